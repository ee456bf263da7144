"""The checks of a model: what is well, what each finds, and that the model is left alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fge
from fge.checks import Findings
from fge.checks.findings import Subject
from fge.checks.weights import ensembles
from fge.errors import UserError
from fge.landscape import Agreement
from fge.tasks import both_classes

CLASSES = 3


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 2, 6, 6, generator=rng), torch.randint(CLASSES, (n,), generator=rng))
        for n in sizes or (12, 12, 12)
    ]


def network(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        *more,
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def findings(model: nn.Module, **options: Any) -> Findings:
    return fge.check(model, batches(), **{"compilation": False, **options})


def failed(found: Findings) -> dict[str, str]:
    return {finding.name: finding.detail for finding in found.failed}


def test_an_ordinary_network_passes_every_check_and_is_left_as_it_was() -> None:
    model = network()
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    found = findings(model)
    assert found.ok, str(found)
    assert [finding.status for finding in found] == ["ok"] * len(found)
    assert [module.training for module in (model, model[0])] == [True, False]
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_findings_are_told_as_they_come_and_read_as_lines() -> None:
    told: list[Any] = []
    found = findings(network(), on_finding=told.append)
    assert told == list(found)
    assert str(found).splitlines()[0] == (
        "outputs: ok, 12 examples give (12, 3), the same in each pass"
    )
    assert len(found) == len(str(found).splitlines())


class Noisy(nn.Module):
    """Draws in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Mixing(nn.Module):
    """Normalises by the batch in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1)


class Counting(nn.Module):
    """Keeps what it has seen where no state dict holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale *= 1.5
        return x * self.scale


class Reassigning(nn.Module):
    """Assigns a new tensor to its buffer in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean


class WrongTwice(torch.autograd.Function):
    """The square, whose second derivative is 3 instead of 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        product: Tensor = grad * (2 * x + (x - x.detach()))
        return product


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        squared: Tensor = WrongTwice.apply(x)
        return squared


class Uncopied(nn.Module):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise RuntimeError("there is one of me")

    def forward(self, x: Tensor) -> Tensor:
        return x


class Large(nn.Module):
    """Differences of large numbers, which bf16 cannot hold."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return (x.bfloat16() + 1000).float() - 1000
        return x


@pytest.mark.parametrize(
    ("layer", "check", "detail"),
    [
        (Noisy(), "outputs", "two passes in evaluation mode differ"),
        (Mixing(), "outputs", "outputs depend on the other examples of the batch"),
        (Counting(), "repeats", "two trainings with one seed differ by up to"),
        (Uncopied(), "deep-copies", "the model cannot be deep-copied (there is one of me)"),
        (Large(), "mixed precision", "outputs in bf16 differ by"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_each_fault_is_found_by_its_check(layer: nn.Module, check: str, detail: str) -> None:
    found = failed(findings(network(layer)))
    assert found[check].startswith(detail), found


def test_a_buffer_that_forward_assigns_anew_is_no_fault() -> None:
    assert failed(findings(network(Reassigning()))) == {}


def test_a_wrong_second_derivative_is_found() -> None:
    assert "second derivatives" in failed(findings(network(Squared())))


def test_outputs_of_another_number_and_losses_that_are_not_finite() -> None:
    flat = nn.Sequential(network(), nn.Flatten(0))
    assert failed(findings(flat))["outputs"] == "12 examples give outputs of shape (36,)"
    found = failed(findings(network(), loss_fn=lambda outputs, _: outputs.sum() / 0))
    assert found["trains"].startswith("the loss is ")
    assert "repeats" not in found


class WithoutGraph(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def skipped(found: Findings, reason: str) -> list[str]:
    return [f.name for f in found if f.status == "skipped" and f.detail == reason]


OF_TRAINING = ["repeats", "averages", "curve ends", "second derivatives"]


@pytest.mark.parametrize("kind", ["frozen", "detached"])
def test_what_cannot_be_trained_is_one_failure_with_its_remedy(kind: str) -> None:
    model = nn.Sequential(network(), *([WithoutGraph()] if kind == "detached" else []))
    if kind == "frozen":
        model.requires_grad_(False)
    found = findings(model)
    assert failed(found) == {
        "trains": "the loss does not depend on a parameter that requires a gradient; set "
        "requires_grad, and do not detach the outputs"
    }
    assert skipped(found, "it needs a training step, which failed above") == OF_TRAINING


@pytest.mark.parametrize("targets", ["float", "int"])
def test_one_output_under_the_default_loss_is_a_failure(targets: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 1))
    data = [(x, y.float()[:, None] if targets == "float" else y) for x, y in batches()]
    found = fge.check(model, data, compilation=False)
    assert list(failed(found)) == ["trains"]
    assert failed(found)["trains"].startswith("the model has one output, of shape (12, 1), and")
    assert skipped(found, "it needs a training step, which failed above") == OF_TRAINING


def test_a_loss_or_a_gradient_of_zero_is_a_failure() -> None:
    def constant(outputs: Tensor, _: Any) -> Tensor:
        return 1 + (0 * outputs).sum()

    found = {f.name: f for f in findings(network(), loss_fn=constant)}
    assert (found["trains"].status, found["trains"].detail) == (
        "failed",
        "every gradient is exactly 0",
    )
    assert "loss_fn=" in found["trains"].remedy
    none = failed(findings(network(), loss_fn=lambda outputs, _: (outputs - outputs).sum()))
    assert none == {"trains": "the loss is exactly 0"}


def test_dictionaries_need_a_forward_fn() -> None:
    data = [{"x": x, "labels": y} for x, y in batches()]
    said = failed(fge.check(network(), data, compilation=False))["outputs"]
    assert said.startswith("the model cannot be called with a dict (TypeError: ")
    assert said.endswith("; give forward_fn=lambda model, batch: ... to call it")
    options: dict[str, Any] = {
        "forward_fn": lambda model, batch: model(batch["x"]),
        "target_fn": lambda batch: batch["labels"],
    }
    assert fge.check(network(), data, compilation=False, **options).ok


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")


def test_outputs_that_are_not_finite_are_no_matter_of_random_numbers() -> None:
    found = findings(network(Infinite()))
    assert failed(found) == {"outputs": "outputs are not finite", "trains": "the loss is nan"}
    assert skipped(found, "it needs a training step, which failed above") == [
        "repeats",
        "averages",
    ]

    def growing(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1e30 * F.cross_entropy(outputs, targets)

    assert failed(findings(network(), loss_fn=growing))["repeats"].startswith(
        "the weights are not finite after 3 steps"
    )


def test_half_precision_is_skipped_where_it_cannot_be_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = Agreement(math.nan, math.nan, torch.float16)
    monkeypatch.setattr("fge.landscape.hessian.check_products", lambda *_: nothing)
    data = [(x.half(), y) for x, y in batches()]
    found = fge.check(network().half(), data, compilation=False)
    assert skipped(found, "products could not be checked in float16") == ["second derivatives"]
    assert skipped(found, "the model is in float16 already") == ["mixed precision"]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_said_to_be_unsupported_where_it_is() -> None:
    found = failed(findings(torch.jit.script(network())))
    assert found["second derivatives"].startswith("a TorchScript module has no Hessian products")
    for name in ("batch norm", "averages"):
        assert found[name].endswith("give the module before torch.jit.script")


class Unmeasured(nn.Linear):
    """Has no length, which the truth of a module is where there is one."""

    def __len__(self) -> int:
        raise TypeError("no length")


def test_the_truth_of_a_model_is_not_asked_for() -> None:
    model = Unmeasured(4, 3)
    (x, y), other = (torch.randn(5, 4), torch.arange(5) % 3), Unmeasured(4, 3)
    subject = Subject.of(model, [(x, y)], F.cross_entropy, None)
    assert torch.equal(subject.predict(model=other), other(x))
    assert subject.loss(model=other) == F.cross_entropy(other(x), y)


def test_parameters_without_a_gradient_are_named() -> None:
    model = network()
    model.unused = nn.Parameter(torch.zeros(2))
    (trains,) = [finding for finding in findings(model) if finding.name == "trains"]
    assert trains.detail.endswith("6 parameters get gradients; 1 get none, such as 'unused'")


def test_a_model_that_is_called_otherwise() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor, factor: float) -> Tensor:
            outputs: Tensor = self.inner(x) * factor
            return outputs

    found = findings(Doubled(), forward_fn=lambda model, batch: model(batch[0], 2.0))
    assert found.ok, str(found)
    skipped = {finding.name: finding.detail for finding in found if finding.status == "skipped"}
    assert skipped == {"exports": "the model is called through forward_fn"}
    assert "outputs" in failed(findings(Doubled()))


def test_one_output_is_no_ensemble_of_classes_but_has_an_output_of_its_own() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 1))
    data = [(x, y.float()[:, None]) for x, y in batches()]
    found = fge.check(model, data, loss_fn=F.mse_loss, compilation=False)
    assert found.ok, str(found)
    skipped = [finding for finding in found if finding.status == "skipped"]
    assert [finding.name for finding in skipped] == ["batch norm", "ensembles"]
    assert skipped[1].detail == "outputs of shape (12, 1) are no logits of classes; give output="
    subject = Subject.of(model, data, F.mse_loss, None)
    for output, mean in (("sigmoid", "probabilities"), (both_classes, "predictions")):
        subject.output = output  # type: ignore[assignment]
        assert ensembles(subject) == f"two members have the mean of their {mean}"
    subject.output = "identity"
    subject.model = network()
    assert ensembles(subject) == "two members have the mean of their predictions"


def used_up() -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches()


def test_batches_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(UserError, match=r"^batches must be iterable more than once"):
        fge.check(network(), used_up())
    with pytest.raises(UserError, match=r"^batches yielded nothing"):
        fge.check(network(), [])


def test_empty_batches_are_passed_over_and_nothing_but_them_is_refused() -> None:
    empty, *others = batches(0, 12, 12, 12)
    found = fge.check(network(), [empty, *others], compilation=False)
    assert found.ok, str(found)
    with pytest.raises(UserError, match=r"^batches yielded nothing"):
        fge.check(network(), [empty])


def test_a_rest_of_one_example_is_left_out_as_in_a_fit() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    found = fge.check(model, batches(12, 1), compilation=False)
    assert found.ok, str(found)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES))
    assert fge.check(plain, batches(1, 1), compilation=False).ok


def test_a_lazy_layer_without_a_shape_is_one_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    with pytest.raises(UserError, match=r"^'1.weight' has no shape yet; call the model on one"):
        fge.check(model, batches())


class Auxiliary(nn.Module):
    """Has a head for training only, and calls batch norm by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.norm = nn.Linear(72, 4), nn.BatchNorm1d(4)
        self.head, self.aux = nn.Linear(4, CLASSES), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.norm(input=self.trunk(x.flatten(1)))
        return self.head(hidden + 0.1 * self.aux(hidden) if self.training else hidden)


def test_batch_norm_of_training_alone_is_no_fault() -> None:
    found = findings(Auxiliary())
    assert found.ok, str(found)
    (told,) = [finding.detail for finding in found if finding.name == "batch norm"]
    assert told == (
        "1 layers have the statistics of their inputs; 1 keep theirs, as 'aux' is not called in "
        "eval()"
    )


@pytest.mark.slow
def test_compilation_is_checked_on_a_module_without_length() -> None:
    x = torch.randn(8, 4)
    found = fge.check(nn.Linear(4, 3), [(x, torch.arange(8) % 3)])
    (compiles,) = [finding for finding in found if finding.name == "compiles"]
    assert compiles.status == "ok", compiles
