"""Hessian products check themselves; those of fused operations are right or refused by name."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fge
from fge.errors import UserError
from fge.networks import flatten, write_parameters

Norm = Callable[[nn.Module], nn.Module]


def data(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(30, 8, generator=rng, dtype=dtype), torch.arange(30) % 3)]


def by_differences(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the Hessian (P, P) from central differences of gradients, in float64."""
    inputs, targets = batch
    start = flatten(model, model).clone()

    def gradient(point: Tensor) -> Tensor:
        write_parameters(model, point)
        model.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(inputs), targets))
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    columns = [
        (gradient(start + 1e-6 * unit) - gradient(start - 1e-6 * unit)) / 2e-6
        for unit in torch.eye(len(start), dtype=start.dtype)
    ]
    write_parameters(model, start)
    model.zero_grad()
    return torch.stack(columns, dim=1)


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x.transpose(0, 1))[0]
        return states[-1]


def networks() -> dict[str, Callable[[], nn.Module]]:
    def linear(norm: Norm, **options: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            torch.manual_seed(0)
            layers = [norm(nn.Linear(8, 6), **options), nn.Tanh(), nn.Linear(6, 3)]
            return nn.Sequential(*layers).double()

        return build

    def between(*layers: nn.Module) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(8, 6), *map(copy.deepcopy, layers), nn.Linear(6, 3))
            return network.double()

        return build

    return {
        "hard-sigmoid": between(nn.Hardsigmoid()),
        "hard-sigmoid-in-place": between(nn.Hardsigmoid(inplace=True)),
        "recurrent": between(nn.Unflatten(1, (3, 2)), Last(nn.LSTM(2, 6))),
        "gated": between(nn.Unflatten(1, (3, 2)), Last(nn.GRU(2, 6))),
        "attention": between(
            nn.Unflatten(1, (2, 3)),
            nn.TransformerEncoderLayer(3, 1, 4, batch_first=True, activation=torch.tanh),
            nn.Flatten(),
        ),
        "parametrization": linear(parametrizations.weight_norm),
        "by-columns": linear(parametrizations.weight_norm, dim=1),
        "old-style": linear(torch.nn.utils.weight_norm),
        "old-style-of-all": linear(torch.nn.utils.weight_norm, dim=None),
        "spectral": linear(parametrizations.spectral_norm),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", networks())
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_fused_operations_have_the_hessian_of_finite_differences(name: str) -> None:
    model = networks()[name]().eval()
    (batch,) = data()
    expected = by_differences(model, batch)
    operator = fge.HessianOperator(model, F.cross_entropy, [batch])
    torch.testing.assert_close(operator.dense(), expected, rtol=0, atol=1e-7)
    agreement = operator.agreement
    assert agreement is not None
    assert agreement.symmetry < 1e-12
    assert agreement.difference < 1e-5
    top = fge.top_eigenvalues(model, F.cross_entropy, [batch], tolerance=1e-6)
    assert float(top.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]))
    assert top.agreement == agreement
    assert str(agreement).startswith("Hessian products are symmetric to ")


class Wrong(torch.autograd.Function):
    """The square of x, whose derivative has another derivative: 3, or skewed, instead of 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, skew: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.skew = skew
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        nothing = x - x.detach()
        return grad * (2 * x + (nothing.roll(1, 1) if ctx.skew else nothing)), None


class Square(nn.Module):
    def __init__(self, skew: bool) -> None:
        super().__init__()
        self.skew = skew

    def forward(self, x: Tensor) -> Tensor:
        squared: Tensor = Wrong.apply(x, self.skew)
        return squared


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("skew", "what"),
    [(True, "u·Hv and v·Hu differ by"), (False, "from a finite difference of gradients")],
)
def test_a_wrong_second_derivative_is_one_clear_error(
    skew: bool, what: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), Square(skew), nn.Linear(6, 3)).to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    for measure in (fge.top_eigenvalues, fge.trace, fge.spectral_density):
        with pytest.raises(UserError, match=r"^Hessian products are wrong: ") as caught:
            measure(model, F.cross_entropy, data(dtype))
        assert what in str(caught.value)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None


class Single(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 8) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float() @ torch.eye(8)).tanh()


def test_what_cannot_be_computed_in_float64_is_checked_in_its_own_dtype() -> None:
    operator = fge.HessianOperator(Single(), F.cross_entropy, data(torch.float32))
    operator.gradient()
    assert operator.agreement is not None
    assert operator.agreement.dtype == torch.float32


@pytest.mark.parametrize("where", ["loss", "norm"])
def test_parts_that_round_to_float32_are_no_disagreement(where: str) -> None:
    """Language models do so in losses and norms; they are checked in float64 all the same."""

    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().tanh().to(x.dtype)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float() if where == "loss" else outputs, targets)

    torch.manual_seed(0)
    middle = Rounding() if where == "norm" else nn.Tanh()
    model = nn.Sequential(nn.Linear(8, 6), middle, nn.Linear(6, 3))
    operator = fge.HessianOperator(model, loss, data(torch.float32))
    plain = nn.Sequential(model[0], nn.Tanh(), model[2])
    right = fge.HessianOperator(plain, F.cross_entropy, data(torch.float32)).dense()
    torch.testing.assert_close(operator.dense(), right, rtol=0, atol=1e-6)
    assert operator.agreement is not None
    assert operator.agreement.dtype == torch.float64
    assert operator.agreement.difference < 1e-6


def test_a_wrong_second_derivative_is_found_where_parts_round_to_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), Square(False), nn.Linear(6, 3))
    with pytest.raises(UserError, match=r"^Hessian products are wrong: .* finite difference"):
        fge.trace(model, lambda o, t: F.cross_entropy(o.float(), t), data(torch.float32))


def test_checks_leave_kept_graphs_of_another_measurement_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    first = fge.HessianOperator(model, F.cross_entropy, data())
    vector = torch.ones(first.size, dtype=torch.float64)
    expected = first.matvec(vector)
    fge.HessianOperator(model, F.cross_entropy, data()).matvec(vector)
    assert torch.equal(first.matvec(vector), expected)


def of_words(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))


def words() -> list[tuple[Tensor, Tensor]]:
    return [(torch.arange(60).reshape(30, 2) % 7, torch.arange(30) % 3)]


@pytest.mark.parametrize(
    ("layer", "loss_fn", "message"),
    [
        (nn.EmbeddingBag(7, 4), F.cross_entropy, r"nn.EmbeddingBag has no second derivative in "),
        (nn.EmbeddingBag(7, 4, sparse=True), F.cross_entropy, r"nn.EmbeddingBag has no second "),
        (nn.Embedding(7, 4), F.multi_margin_loss, r"nn.MultiMarginLoss has no second derivative "),
        (
            nn.Embedding(7, 4),
            lambda outputs, _: F.ctc_loss(
                outputs.log_softmax(1)[:, None], torch.tensor([[1, 2]]), [len(outputs)], [2]
            ),
            r"CTC loss has no second derivative in PyTorch; use another loss",
        ),
        (
            nn.Sequential(nn.Embedding(7, 4), nn.Unflatten(0, (-1, 1)), nn.CrossMapLRN2d(2)),
            F.cross_entropy,
            r"a backward pass that writes into out=, as that of nn.CrossMapLRN2d, has no second ",
        ),
    ],
)
def test_operations_without_a_second_derivative_are_named(
    layer: nn.Module, loss_fn: Any, message: str
) -> None:
    model = of_words(layer)
    model(words()[0][0])
    with pytest.raises(UserError, match=f"^the loss is not twice differentiable here: {message}"):
        fge.top_eigenvalues(model, loss_fn, words())


class Function(nn.Module):
    """Rows of its weight, by a function."""

    def __init__(self, rows: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(3 * torch.ones(7, 4))
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x, self.weight)


SCALES, SHORTENS = "scales its gradient by frequency", "shortens its weights in the forward pass"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Embedding(7, 4, scale_grad_by_freq=True), f"the layer '0' {SCALES}"),
        (nn.EmbeddingBag(7, 4, scale_grad_by_freq=True), f"the layer '0' {SCALES}"),
        (nn.Embedding(7, 4, max_norm=0.1), f"the layer '0' {SHORTENS}"),
        (nn.EmbeddingBag(7, 4, max_norm=0.1), f"the layer '0' {SHORTENS}"),
        (
            Function(lambda x, w: F.embedding(x, w, None, None, 2.0, True)),
            f"F.embedding {SCALES}",
        ),
        (Function(lambda x, w: F.embedding(x, w, max_norm=0.1)), f"F.embedding {SHORTENS}"),
        (Function(lambda x, w: F.embedding_bag(x, w, max_norm=0.1)), f"F.embedding_bag {SHORTENS}"),
    ],
)
def test_embeddings_whose_gradient_is_not_that_of_the_loss_are_refused(
    layer: nn.Module, message: str
) -> None:
    model = of_words(layer)
    model(torch.zeros(1, 2, dtype=torch.long))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=f"^{message}, so that there is no Hessian; set its "):
        fge.top_eigenvalues(model, F.cross_entropy, words())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_frozen_embeddings_may_do_what_they_like() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(7, 4, max_norm=0.5, scale_grad_by_freq=True).requires_grad_(False)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 3)).double()
    ((x, y),) = words()
    fixed = model[:2](x)
    expected = fge.HessianOperator(model[2], F.cross_entropy, [(fixed, y)]).dense()
    found = fge.HessianOperator(model, F.cross_entropy, [(x, y)]).dense()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_other_sparse_gradients_are_refused() -> None:
    table = Function(lambda x, w: torch.gather(w, 0, x[:, :1].expand(-1, 4), sparse_grad=True))
    with pytest.raises(
        UserError, match=r"a parameter has a sparse gradient; use sparse=False \(of torch"
    ):
        fge.top_eigenvalues(table, F.cross_entropy, words())


class Translator(nn.Module):
    """Embeddings, of which one is of padding; the weights may be those of the last layer too."""

    def __init__(self, *, tied: bool, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=1, sparse=sparse)
        self.layer = nn.Linear(4, 4)
        self.last = nn.Linear(4, 7, bias=False)
        if tied:
            self.last.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.normal_()

    def forward(self, x: Tensor, constant: Tensor | None = None) -> Tensor:
        if constant is None:
            rows = self.embedding(x)
        else:
            rows = torch.where((x == 1)[..., None], constant, self.embedding.weight[x])
        outputs: Tensor = self.last(self.layer(rows.tanh().sum(1)).sin())
        return outputs


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_padding_is_a_constant_of_the_loss(tied: bool, sparse: bool) -> None:
    """As in PyTorch's gradient, which leaves out how the loss depends on the row of padding."""
    torch.manual_seed(0)
    model = Translator(tied=tied, sparse=sparse).double()
    ((x, y),) = words()
    constant = model.embedding.weight.detach()[1].clone()
    start = flatten(model, model).clone()
    named = {n: p.detach() for n, p in model.named_parameters()}

    def loss(point: Tensor) -> Tensor:
        parts = point.split([p.numel() for p in named.values()])
        weights = {n: v.view_as(named[n]) for n, v in zip(named, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (x, constant)), y)

    expected = torch.autograd.functional.hessian(loss, start)
    operator = fge.HessianOperator(model, F.cross_entropy, [(x, y)])
    torch.testing.assert_close(operator.dense(), expected, rtol=0, atol=1e-12)
    assert operator.agreement is not None
    assert operator.agreement.difference < 1e-5
    assert bool((expected[4:8] == 0).all()) is not tied


def test_weights_that_are_signs_of_others_are_no_disagreement() -> None:
    torch.manual_seed(0)
    layers = [parametrizations.orthogonal(nn.Linear(8, 6)), nn.Tanh(), nn.Linear(6, 3)]
    operator = fge.HessianOperator(nn.Sequential(*layers), F.cross_entropy, data(torch.float32))
    operator.gradient()
    assert operator.agreement is not None
    assert operator.agreement.agrees
    assert operator.agreement.difference < 1e-5


def test_a_loss_that_knows_the_size_of_its_batches_is_checked_with_it() -> None:
    weights = torch.linspace(0, 1, 30, dtype=torch.float64)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return (F.cross_entropy(outputs, targets, reduction="none") * weights).mean()

    model = nn.Linear(8, 3).double()
    operator = fge.HessianOperator(model, loss_fn, data())
    operator.matvec(torch.ones(operator.size, dtype=torch.float64))
    assert operator.agreement is not None
    assert operator.agreement.difference < 1e-5


def test_half_precision_is_said_not_to_be_checked() -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.bfloat16(), self.weight, self.bias)

    found = fge.trace(Half(8, 3).bfloat16(), F.cross_entropy, data(torch.float32), num_samples=2)
    assert str(found.agreement) == "Hessian products could not be checked in bfloat16."


def test_batch_statistics_of_a_single_example_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    ((x, y),) = data()
    batches = [(x[:29], y[:29]), (x[29:], y[29:])]
    fge.trace(model, F.cross_entropy, batches, num_samples=2)
    with pytest.raises(UserError, match=r"^a single example has no batch statistics; give batches"):
        fge.trace(model, F.cross_entropy, batches, num_samples=2, batch_statistics=True)


@pytest.mark.parametrize("measure", [fge.top_eigenvalues, fge.trace, fge.spectral_density])
def test_targets_may_be_anywhere_in_a_batch(measure: Any) -> None:
    model = nn.Linear(8, 3).double()
    ((x, y),) = data()
    options: dict[str, Any] = {"chunk": 7, "forward_fn": lambda model, batch: model(batch["x"])}
    expected = measure(model, F.cross_entropy, [(x, y)], chunk=7)
    found = measure(
        model, F.cross_entropy, [UserDict(x=x, y=y)], target_fn=lambda b: b["y"], **options
    )
    for name in ("values", "value", "nodes"):
        first, second = getattr(expected, name, None), getattr(found, name, None)
        assert first is second is None or torch.equal(
            torch.as_tensor(first), torch.as_tensor(second)
        )
    with pytest.raises(UserError, match=r"give targets, target_fn=lambda batch"):
        measure(model, F.cross_entropy, [UserDict(x=x, y=y)], **options)
    with pytest.raises(UserError, match=r"^batches of 3 parts do not say which is the target"):
        measure(model, F.cross_entropy, [(x, x, y)])


class Residual(nn.Module):
    """A block whose branch begins at zero, so that its last ReLU is at its kink where x is 0."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.scale = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.scale * self.branch(x))


def on_a_kink(before: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), before, block, nn.Linear(6, 3)).double()


def test_weights_on_a_kink_are_compared_beside_it() -> None:
    model = on_a_kink(nn.Identity())
    before = [p.detach().clone() for p in model.parameters()]
    agreement = fge.top_eigenvalues(model, F.cross_entropy, data()).agreement
    assert agreement is not None
    assert agreement.difference < 1e-5
    assert all(map(torch.equal, model.parameters(), before))


def test_a_wrong_second_derivative_is_found_on_a_kink_too() -> None:
    model = on_a_kink(Square(skew=False))
    with pytest.raises(UserError, match="from a finite difference of gradients"):
        fge.top_eigenvalues(model, F.cross_entropy, data())
