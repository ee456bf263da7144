"""Hessian products against dense Hessians of torch.func, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape import HessianOperator
from fge.networks import cut, freeze, nothing_yielded, reordered, train_mode


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


def initialised(model: nn.Module, seed: int = 1) -> nn.Module:
    """The model in float64, with parameters and statistics that are nothing special."""
    model.double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * draw(*parameter.shape, seed=seed + index))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(draw(module.num_features, seed=seed + 50))
                module.running_var.copy_(draw(module.num_features, seed=seed + 51).square() + 0.5)
    return model


def mlp() -> nn.Module:
    return initialised(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def convnet() -> nn.Module:
    return initialised(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
            nn.Conv2d(3, 2, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3),
        )
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0].mean(1)[:, :3]


def attention() -> nn.Module:
    return initialised(Attention())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "convnet": (convnet, (1, 5, 5)),
    "attention": (attention, (3, 4)),
}


def mean_only(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean() + 0 * targets.sum()


LossOf = Callable[[dict[str, Tensor]], Tensor]


def dense_hessian(loss_of: LossOf, parameters: dict[str, Tensor]) -> Tensor:
    """The Hessian (P, P) of a function of parameters by name, by torch.func on a flat vector."""
    sizes = [p.numel() for p in parameters.values()]

    def flat_loss(vector: Tensor) -> Tensor:
        parts = torch.split(vector, sizes)
        named = zip(parameters.items(), parts, strict=True)
        return loss_of({name: part.view(p.shape) for (name, p), part in named})

    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    return torch.func.hessian(flat_loss)(flat).detach()  # type: ignore[no-any-return]


def model_hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The Hessian of the mean cross-entropy in evaluation mode, by the trainable parameters."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    training = model.training
    model.eval()

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            outputs = torch.func.functional_call(model, parameters, (inputs,))
        return F.cross_entropy(outputs, targets)

    dense = dense_hessian(loss_of, trainable)
    model.train(training)
    return dense


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def operator(model: nn.Module, data: Any, **options: Any) -> HessianOperator:
    return HessianOperator(model, F.cross_entropy, data, **options)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_dense_hessian(name: str) -> None:
    make, shape = CASES[name]
    model, inputs, targets = make(), draw(12, *shape), labels(12)
    expected = model_hessian(model, inputs, targets)
    assert expected.abs().max() > 0.01
    hessian = operator(model, [(inputs, targets)])
    vector = draw(hessian.size, seed=7)
    assert hessian.size == len(expected)
    assert_close(hessian.matvec(vector), expected @ vector)
    assert_close(hessian.dense(), expected)


@pytest.mark.parametrize("memory", [0, 2**30], ids=["recomputed", "kept"])
@pytest.mark.parametrize("sizes", [(11,), (7, 4), (3, 1, 7)], ids=str)
def test_chunks_of_any_size_give_the_hessian_of_all(sizes: tuple[int, ...], memory: int) -> None:
    model, inputs, targets = convnet(), draw(11, 1, 5, 5), labels(11)
    expected = model_hessian(model, inputs, targets)
    batches = list(zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True))
    hessian = operator(model, batches, chunk=4, graph_memory=memory)
    vector = draw(hessian.size, seed=7)
    for _ in range(2):
        assert_close(hessian.matvec(vector), expected @ vector)


def test_batches_are_cut_evenly() -> None:
    inputs, targets = draw(11, 2), labels(11)
    pieces = list(cut({"x": inputs, "more": (targets, "a note")}, 4))
    assert [count for _, count in pieces] == [3, 4, 4]
    assert torch.equal(torch.cat([piece["x"] for piece, _ in pieces]), inputs)
    assert torch.equal(torch.cat([piece["more"][0] for piece, _ in pieces]), targets)
    assert {piece["more"][1] for piece, _ in pieces} == {"a note"}


def test_batches_of_tensors_of_several_lengths_are_used_whole() -> None:
    batch = [draw(11, 2), labels(3)]
    assert [(piece is batch, count) for piece, count in cut(batch, 4)] == [(True, 11)]


def test_kept_graphs_and_recomputed_ones_agree_and_their_costs_are_counted() -> None:
    model, data = convnet(), [(draw(8, 1, 5, 5), labels(8)), (draw(3, 1, 5, 5), labels(3))]
    kept, fresh = operator(model, data), operator(model, data, graph_memory=0)
    vectors = draw(4, kept.size, seed=3)
    for vector in vectors:
        assert_close(kept.matvec(vector), fresh.matvec(vector), atol=1e-14)
    assert (kept.keeps_all_graphs, fresh.keeps_all_graphs) == (True, False)
    assert (kept.products, fresh.products) == (4, 4)
    assert kept.cost == pytest.approx(1.3 + 4 * 2.6)
    assert fresh.cost == pytest.approx(4 * 3.9)


def test_as_many_graphs_are_kept_as_fit() -> None:
    model, batch = mlp(), (draw(40, 4), labels(40))
    all_kept = operator(model, [batch], chunk=10)
    all_kept.matvec(draw(all_kept.size))
    needed = sum(all_kept._store._storages.values())
    # Two Linear layers and the softmax at least: inputs, hidden values and logits of 40 examples.
    assert needed > 40 * (4 + 5 + 3) * 8
    half = operator(model, [batch], chunk=10, graph_memory=needed // 2 + 1)
    expected = model_hessian(model, *batch)
    vector = draw(half.size, seed=7)
    for _ in range(3):
        assert_close(half.matvec(vector), expected @ vector)
    kept = len(half._store.graphs)
    assert 1 <= kept <= 2
    assert half.cost == pytest.approx(3 * 2.6 + 1.3 * (1 + 2 * (1 - kept / 4)))


def test_the_graphs_size_is_that_of_what_autograd_saves() -> None:
    model, (inputs, targets) = convnet().eval(), (draw(20, 1, 5, 5), labels(20))
    own = {p.data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor.detach())
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(inputs), targets)
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    hessian = operator(model, [(inputs, targets)])
    hessian.matvec(draw(hessian.size))
    found = sum(hessian._store._storages.values())
    assert found == pytest.approx(sum(sizes.values()), rel=0.1)


def test_weight_decay_adds_itself_times_the_vector() -> None:
    model, data = mlp(), [(draw(9, 4), labels(9))]
    vector = draw(operator(model, data).size, seed=3)
    plain = operator(model, data).matvec(vector)
    assert_close(operator(model, data, weight_decay=0.3).matvec(vector), plain + 0.3 * vector)


@pytest.mark.parametrize("memory", [0, 2**30], ids=["recomputed", "kept"])
def test_the_gradient_is_that_of_the_mean_loss(memory: int) -> None:
    model, inputs, targets = mlp(), draw(9, 4), labels(9)
    model[2].weight.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    penalty = 0.3 / 2 * torch.stack([p.square().sum() for p in trainable]).sum()
    loss = F.cross_entropy(model(inputs), targets) + penalty
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trainable)])
    hessian = operator(model, [(inputs, targets)], weight_decay=0.3, chunk=4, graph_memory=memory)
    assert_close(hessian.gradient(), expected)
    assert (hessian.cost, hessian.products) == (pytest.approx(1.3), 0)
    hessian.matvec(draw(hessian.size))
    assert hessian.cost == pytest.approx(1.3 + 2.6 + (1.3 if memory == 0 else 0))


def test_a_constant_gradient_is_part_of_it() -> None:
    model = initialised(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    hessian = HessianOperator(model, mean_only, [(draw(6, 2), labels(6))])
    expected = torch.autograd.grad(model(draw(6, 2)).mean(), list(model.parameters()))
    assert_close(hessian.gradient(), torch.cat([g.reshape(-1) for g in expected]))
    assert float(hessian.gradient()[-1]) == pytest.approx(1), "the last bias's, which is constant"


def test_frozen_parameters_are_left_out_and_unused_ones_have_zeros() -> None:
    model = mlp()
    model.register_parameter("unused", nn.Parameter(draw(2)))
    model[2].weight.requires_grad_(False)
    inputs, targets = draw(9, 4), labels(9)
    hessian = operator(model, [(inputs, targets)])
    assert hessian.layout.names == ("unused", "0.weight", "0.bias", "2.bias")
    dense = hessian.dense()
    assert not dense[:2].any()
    assert not dense[:, :2].any()
    assert_close(dense, model_hessian(model, inputs, targets))


def test_tied_parameters_count_once() -> None:
    model = initialised(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)))
    model[2].weight = model[0].weight
    inputs, targets = draw(9, 3), labels(9)

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        hidden = torch.tanh(inputs @ parameters["0.weight"].T + parameters["0.bias"])
        outputs = hidden @ parameters["0.weight"].T + parameters["2.bias"]
        return F.cross_entropy(outputs, targets)

    expected = dense_hessian(loss_of, dict(model.named_parameters()))
    assert len(expected) == 9 + 3 + 3
    assert_close(operator(model, [(inputs, targets)]).dense(), expected)


def test_strided_parameters_have_c_order() -> None:
    model, inputs, targets = convnet(), draw(6, 1, 5, 5), labels(6)
    expected = operator(model, [(inputs, targets)]).dense()
    model.to(memory_format=torch.channels_last)
    assert not model[3].weight.is_contiguous()
    assert_close(operator(model, [(inputs, targets)]).dense(), expected)


def test_batch_statistics_take_part_in_the_second_derivatives() -> None:
    model = initialised(nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)))
    inputs, targets = draw(10, 4), labels(10)

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        hidden = inputs @ parameters["0.weight"].T
        variance = hidden.var(0, unbiased=False)
        normed = (hidden - hidden.mean(0)) / torch.sqrt(variance + 1e-5)
        return F.cross_entropy(normed * parameters["1.weight"] + parameters["1.bias"], targets)

    expected = dense_hessian(loss_of, dict(model.named_parameters()))
    found = operator(model, [(inputs, targets)], batch_statistics=True).dense()
    assert_close(found, expected, atol=1e-10)
    with_running = operator(model, [(inputs, targets)]).dense()
    assert_close(with_running, model_hessian(model, inputs, targets))
    assert (with_running - found).abs().max() > 0.01, "the two differ here"


def test_batch_norm_of_frozen_modules_keeps_its_statistics() -> None:
    frozen = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    model = initialised(nn.Sequential(frozen, nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh()))
    inputs, targets = draw(10, 4), labels(10)
    model.train()
    model(2 * inputs + 1)
    freeze(model, "^0")
    found = operator(model, [(inputs, targets)], batch_statistics=True)
    gradient, hessian = found.gradient(), found.dense()
    train_mode(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(inputs), targets)
    parts = torch.autograd.grad(loss, trained, create_graph=True)
    expected = torch.cat([part.reshape(-1) for part in parts])
    assert_close(gradient, expected.detach())
    rows = [torch.autograd.grad(value, trained, retain_graph=True) for value in expected]
    assert_close(hessian, torch.stack([torch.cat([p.reshape(-1) for p in r]) for r in rows]))


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_scale_invariant_blocks_grow_as_the_inverse_square(batch_statistics: bool) -> None:
    model, (inputs, targets) = convnet(), (draw(12, 1, 5, 5), labels(12))
    norm, size, shrink = model[1], model[0].weight.numel(), 0.25

    def hessian() -> Tensor:
        return operator(model, [(inputs, targets)], batch_statistics=batch_statistics).dense()

    before = hessian()
    with torch.no_grad():
        model[0].weight.mul_(shrink)
        norm.running_mean.mul_(shrink)
        norm.running_var.mul_(shrink**2)
        norm.eps *= shrink**2
    after = hessian()
    assert before[:size, :size].abs().max() > 0.001
    assert_close(after[:size, :size] * shrink**2, before[:size, :size], atol=1e-10)
    assert_close(after[:size, size:] * shrink, before[:size, size:], atol=1e-10)
    assert_close(after[size:, size:], before[size:, size:], atol=1e-10)


@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(batch_statistics: bool, fails: bool) -> None:
    model = nn.Sequential(convnet(), nn.Dropout())
    model.train()
    model[0][1].eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = draw(*parameter.shape, seed=index)
    pointers = [p.data_ptr() for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    saved = [t.clone() for t in (*model.state_dict().values(), *gradients)]
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()

    def forward(module: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = module(batch[0])
        if fails:
            raise RuntimeError("out of luck")
        return outputs

    hessian = operator(
        model, [(draw(6, 1, 5, 5), labels(6))], batch_statistics=batch_statistics,
        forward_fn=forward,
    )  # fmt: skip
    if fails:
        with pytest.raises(RuntimeError, match="out of luck"):
            hessian.matvec(draw(hessian.size))
    else:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert hessian.matvec(draw(hessian.size)).isfinite().all()
    now = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(now, saved, strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [m.training for m in model.modules()] == modes
    assert model[0][1].track_running_stats
    assert torch.equal(torch.get_rng_state(), rng), "dropout is off"


def test_wrapped_models_are_seen_through() -> None:
    model, data = mlp(), [(draw(6, 4), labels(6))]
    expected = operator(model, data).dense()
    assert_close(operator(nn.DataParallel(model), data).dense(), expected)
    assert_close(operator(torch.compile(model), data).dense(), expected)  # type: ignore[arg-type]


def test_forward_fn_takes_batches_of_any_kind() -> None:
    model, (inputs, targets) = mlp(), (draw(7, 4), labels(7))
    data = [{"ids": inputs, "labels": targets}]
    hessian = HessianOperator(
        model, lambda outputs, batch: F.cross_entropy(outputs, batch["labels"]), data,
        forward_fn=lambda module, batch: module(batch["ids"]), chunk=3,
    )  # fmt: skip
    assert_close(hessian.dense(), model_hessian(model, inputs, targets))


def test_vectors_keep_their_dtype() -> None:
    model, data = mlp().float(), [(draw(7, 4).float(), labels(7))]
    hessian = operator(model, data)
    expected = operator(mlp(), [(draw(7, 4), labels(7))]).dense()
    for dtype in (torch.float32, torch.float64):
        vector = draw(hessian.size, seed=3).to(dtype)
        found = hessian.matvec(vector)
        assert found.dtype == dtype
        assert_close(found.double(), expected @ vector.double(), atol=1e-5)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].exp()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda out, _: OnceOnly.apply(out).square().mean(),
            "not twice differentiable here: .*once_",
        ),
        (lambda out, _: out.detach().mean(), "not twice differentiable here: it does not depend"),
        (lambda out, _: (out * 0).sum() + torch.inf, "the loss is inf"),
        (lambda out, _: out.square().sum(1), r"must return one number, .* got \(6,\)"),
        (lambda out, _: float(out.detach().sum()), "must return one number, .* got float"),
        (lambda out, _: (out * 0).norm() + out.square().sum(), "Hessian product is not finite"),
        (lambda out, _: (out - out.detach()).abs().sqrt().sum(), "product is not finite"),
    ],
)
def test_losses_without_a_hessian_are_refused(loss_fn: Any, message: str) -> None:
    hessian = HessianOperator(mlp(), loss_fn, [(draw(6, 4), labels(6))])
    with pytest.raises(UserError, match=message) as caught:
        hessian.matvec(draw(hessian.size))
    assert "\n" not in str(caught.value)


def test_a_piecewise_linear_loss_is_refused() -> None:
    model = initialised(nn.Linear(4, 3))
    hessian = HessianOperator(model, mean_only, [(draw(6, 4), labels(6))])
    with pytest.raises(UserError, match="its gradient does not depend on the parameters"):
        hessian.matvec(draw(hessian.size))


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return NotTwice.apply(gradient * 2 * ctx.saved_tensors[0])  # type: ignore[no-any-return]


class NotTwice(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        raise NotImplementedError("derivative for it is not implemented\nat all")


def test_what_autograd_has_not_implemented_is_said_in_one_line() -> None:
    hessian = HessianOperator(
        mlp(), lambda out, _: NoSecondDerivative.apply(out).mean(), [(draw(6, 4), labels(6))]
    )
    with pytest.raises(UserError, match=r"here: derivative for it is not implemented$"):
        hessian.matvec(draw(hessian.size))


def test_other_runtime_errors_pass() -> None:
    hessian = operator(mlp(), [(draw(6, 5), labels(6))])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        hessian.matvec(draw(hessian.size))


def test_vectors_of_another_shape_are_refused() -> None:
    hessian = operator(mlp(), [(draw(6, 4), labels(6))])
    with pytest.raises(UserError, match=r"has shape \(43,\), got \(42,\)"):
        hessian.matvec(draw(42))


def test_missing_data_are_refused() -> None:
    with pytest.raises(UserError, match="must be iterable more than once"):
        operator(mlp(), iter([(draw(6, 4), labels(6))]))
    for data in ([], [(draw(0, 4), labels(0))]):
        hessian = operator(mlp(), data)
        with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
            hessian.matvec(draw(hessian.size))
    hessian = operator(mlp(), ["no tensor"])
    with pytest.raises(UserError, match="a batch must hold a tensor, got a str"):
        hessian.matvec(draw(hessian.size))
    hessian = operator(mlp(), [torch.tensor(1.0)])
    with pytest.raises(UserError, match=r"got one of shape \(\)"):
        hessian.matvec(draw(hessian.size))


class Changing:
    """Data that are others at the second pass."""

    def __init__(self, *passes: list[Any]) -> None:
        self.passes = list(passes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.passes.pop(0))


def test_data_that_change_between_passes_are_refused() -> None:
    first, second = (draw(6, 4), labels(6)), (draw(6, 4, seed=1), labels(6))
    for passes, message in (
        (([first, second], [second, first]), f"^{reordered()}$"),
        (
            ([first, second], [first]),
            "12 examples on the first pass and 6 on a later one; give the same",
        ),
    ):
        hessian = operator(mlp(), Changing(*passes), graph_memory=0)
        hessian.matvec(draw(hessian.size))
        with pytest.raises(UserError, match=message):
            hessian.matvec(draw(hessian.size))
    kept = operator(mlp(), Changing([first, second]))
    assert_close(kept.matvec(draw(kept.size)), kept.matvec(draw(kept.size)), atol=0)


def test_odd_options_are_refused() -> None:
    with pytest.raises(UserError, match="chunk must be >= 1, got 0"):
        operator(mlp(), [draw(6, 4)], chunk=0)
    with pytest.raises(UserError, match="no parameter of the model requires a gradient"):
        operator(mlp().requires_grad_(False), [draw(6, 4)])
