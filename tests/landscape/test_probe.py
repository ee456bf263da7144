"""Sharpness measured while training: against dense Hessians, and leaving the training alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.config import FGEConfig
from fge.data import EvalBatches, Normaliser, Split, TrainBatches
from fge.errors import DivergenceError, UserError
from fge.landscape import HessianOperator, SharpnessProbe
from fge.observer import Observer
from fge.runs import RunFolder, StagedTraining
from fge.train import Learner, Speed, fge_paper_stages

NORMALISER = Normaliser([128.0], [64.0], torch.device("cpu"))
CONFIG = FGEConfig(
    epochs=5, start_epoch=1, cycle_epochs=2, lr=0.25, max_lr=0.125, min_lr=0.0625, single=True
)
FACTS = ("event", "stage", "epoch", "lr", "snapshot", "eigenvalue", "residual", "converged")


class Moody(nn.Module):
    """Draws random numbers and writes into a buffer, in evaluation mode too; never changes x."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 0 * torch.rand(())


class StoppedError(Exception):
    pass


class StopAt(Observer):
    """Ends the training after so many epochs, when their checkpoint is written."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = epochs

    def epoch(self, *heard: Any) -> None:
        if heard[1] == self.epochs:
            raise StoppedError


def split_of(count: int) -> Split:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 2, 2), generator=rng, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3)


TRAIN = split_of(18)
IMAGES = EvalBatches(Split(TRAIN.images[:10], TRAIN.labels[:10]), NORMALISER, 4)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(nn.Flatten(), Moody(), *layers)


def learner_of(model: nn.Module, **options: Any) -> Learner:
    return Learner(model, torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9), **options)


def trained(
    folder: Path, every: int | None, *, stop: int | None = None, **options: Any
) -> StagedTraining:
    training = StagedTraining(
        RunFolder(folder),
        learner_of(network(), **options),
        fge_paper_stages(CONFIG),
        batches=TrainBatches(TRAIN, NORMALISER, 6, seed=0),
        validation=None,
        seed=0,
        observer=StopAt(stop),
        probe=SharpnessProbe(IMAGES, every) if every else None,
    )
    training.run()
    return training


def measured(training: StagedTraining) -> list[dict[str, Any]]:
    return [r for r in training.folder.records() if r["event"] == "sharpness"]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != "timing.jsonl"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StagedTraining:
    return trained(tmp_path_factory.mktemp("finished"), 2)


def dense_top(state: dict[str, Tensor]) -> float:
    model = network()
    model.load_state_dict(state)
    data = [(x.double(), y) for x, y in IMAGES]
    dense = HessianOperator(model.double(), F.cross_entropy, data).dense()
    return float(torch.linalg.eigvalsh(dense)[-1])


def test_eigenvalues_at_snapshots_are_those_of_dense_hessians(finished: StagedTraining) -> None:
    records = {(r["stage"], r["epoch"]): r for r in measured(finished) if r["snapshot"]}
    assert len(records) == 3
    for stage, store in finished.stores.items():
        for position in range(len(store)):
            epoch = store.facts(position)["epoch"]
            record, expected = records[stage, epoch], dense_top(dict(store[position]))
            assert record["residual"] <= 0.01 * record["eigenvalue"]
            assert abs(record["eigenvalue"] - expected) <= record["residual"] + 1e-5 * expected
            assert record["converged"] is True
            assert record["lr"] == store.facts(position)["lr"]


def test_it_measures_every_other_epoch_and_once_at_each_snapshot(finished: StagedTraining) -> None:
    found = [(r["stage"], r["epoch"], r["snapshot"]) for r in measured(finished)]
    # Cycles of 2 epochs from epoch 1 on have their minima after epochs 2 and 4.
    assert found == [
        ("fge", 2, True),
        ("fge", 4, True),
        ("single", 2, False),
        ("single", 4, False),
        ("single", 5, True),
    ]


def test_it_measures_every_epoch_where_that_is_asked_for(tmp_path: Path) -> None:
    found = [(r["stage"], r["epoch"]) for r in measured(trained(tmp_path, 1))]
    assert found == [("start", 1), *(("fge", e) for e in (2, 3, 4))] + [
        ("single", e) for e in (2, 3, 4, 5)
    ]


def test_a_snapshot_within_an_epoch_does_not_stand_for_its_end() -> None:
    probe, learner = SharpnessProbe(IMAGES, 1), learner_of(network())
    inside = probe.measure(learner, "fge", 3, 0.1, snapshot=True)
    end = probe.measure(learner, "fge", 4, 0.1, snapshot=False)
    assert [r["snapshot"] for r in (*inside, *end)] == [True, False]


def test_records_hold_what_they_cost(finished: StagedTraining) -> None:
    for record in measured(finished):
        assert set(record) == {*FACTS, "examples", "products", "gradients", "agreement"}
        assert record["examples"] == 10
        assert record["gradients"] == pytest.approx(1.3 + 2.6 * record["products"], abs=1e-3)


def test_what_is_trained_is_bit_for_bit_what_it_is_without_a_probe(
    finished: StagedTraining, tmp_path: Path
) -> None:
    trained(tmp_path, None)
    theirs, ours = contents(tmp_path), contents(finished.folder.path)
    # Checkpoints count the records.
    checkpoints = {f"state/{name}.safetensors" for name in ("checkpoint", "checkpoint-2")}
    assert {n for n in ours if ours[n] != theirs[n]} == {"log.jsonl", *checkpoints}
    plain = [r for r in finished.folder.records() if r["event"] != "sharpness"]
    assert plain == RunFolder(tmp_path).records()
    one, other = (RunFolder(f).read_state("checkpoint") for f in (tmp_path, finished.folder.path))
    assert one is not None
    assert other is not None
    for key, tensor in one["learner"]["model"].items():
        assert torch.equal(tensor, other["learner"]["model"][key])
    for key, state in one["learner"]["optimizer"].items():
        assert torch.equal(
            state["momentum_buffer"], other["learner"]["optimizer"][key]["momentum_buffer"]
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("speed", [Speed(), Speed(channels_last=True, amp="bf16")])
def test_a_measurement_leaves_everything_as_it_was(training: bool, speed: Speed) -> None:
    layers = [nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.2)]
    model = nn.Sequential(Moody(), *layers, nn.Linear(4, 3))
    learner = learner_of(model, speed=speed)
    learner.step(*next(iter(IMAGES)))
    model.train(training)
    model[2].eval()
    parameter = next(iter(model.parameters()))
    parameter.grad = torch.ones_like(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    modes, drawn = [m.training for m in model.modules()], torch.get_rng_state()
    buffers = [
        s["momentum_buffer"].clone() for s in learner.optimizer.state_dict()["state"].values()
    ]
    (record,) = SharpnessProbe(IMAGES, 1).measure(learner, "fge", 1, 0.1, snapshot=False)
    assert record["eigenvalue"] > 0
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == memory
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    after = [s["momentum_buffer"] for s in learner.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(after, buffers, strict=True))


def test_precision_and_mode_of_the_training_do_not_enter() -> None:
    learners = [learner_of(network()), learner_of(network(), speed=Speed(amp="bf16"))]
    learners[1].model.eval()
    one, other = (
        SharpnessProbe(IMAGES, 1).measure(learner, "fge", 1, 0.1, snapshot=False)
        for learner in learners
    )
    assert one == other


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_interrupted_and_resumed_it_ends_the_same(
    finished: StagedTraining, tmp_path: Path, stop: int
) -> None:
    with pytest.raises(StoppedError):
        trained(tmp_path, 2, stop=stop)
    trained(tmp_path, 2)
    assert contents(tmp_path) == contents(finished.folder.path)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def once(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(OnceDifferentiable.apply(outputs), targets)


def kinked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy, with a term whose second derivative is infinite there."""
    zero = outputs - outputs.detach()
    return F.cross_entropy(outputs, targets) + zero.abs().pow(1.5).sum()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [(once, "not twice differentiable"), (kinked, "a Hessian product is not finite")],
)
def test_errors_name_the_epoch_and_say_how_to_go_on(
    tmp_path: Path, loss_fn: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        trained(tmp_path, 2, loss_fn=loss_fn)
    text = str(caught.value)
    assert text.startswith("sharpness after epoch 2 of stage 'fge': ")
    assert "saved: continue without measuring with --resume --sharpness-every 0" in text
    assert "\n" not in text
    checkpoint = RunFolder(tmp_path).read_state("checkpoint")
    assert checkpoint is not None
    assert checkpoint["epoch"] == 1
    training = trained(tmp_path, None, loss_fn=loss_fn)
    assert measured(training) == []
    assert len(training.stores["fge"]) == 2


def test_weights_that_are_not_finite_are_divergence() -> None:
    learner = learner_of(network())
    with torch.no_grad():
        next(learner.model.parameters())[0, 0] = torch.inf
    message = (
        r"the weights '2\.weight' are not finite after epoch 3, with learning rate 0\.1 next; lower"
    )
    with pytest.raises(DivergenceError, match=message):
        SharpnessProbe(IMAGES, 1).measure(learner, "fge", 3, 0.1, snapshot=False)


def test_a_probe_measures_every_epoch_or_less_often() -> None:
    with pytest.raises(UserError, match="every must be >= 1 epoch, got 0"):
        SharpnessProbe(IMAGES, 0)
