"""Training on a GPU: batches, steps, precisions, resuming, against the CPU in float64."""

from __future__ import annotations

import copy
import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    DOUBLE,
    SINGLE,
    Batch,
    assert_bitwise,
    assert_near,
    convnet,
    image_batches,
    image_split,
    moved,
    perceptron,
    relative_distance,
    vector_batches,
    weights_of,
)
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fge.config import FGEConfig
from fge.data import EvalBatches, Normaliser, Split, TrainBatches
from fge.ensemble import SnapshotStore
from fge.errors import DivergenceError
from fge.networks import read_state, write_state
from fge.train import EmaLearner, EpochEnd, Learner, Speed, TriangularLR, choose_speed, train
from fge.train import speed as speed_module

pytestmark = pytest.mark.cuda

OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
MEAN, STD = [120.0, 130.0, 110.0], [70.0, 60.0, 80.0]


def make_learner(
    device: torch.device,
    speed: Speed | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """Return a learner of the network of images, with the fused optimizer that runs use."""
    model = convnet(seed, dtype).to(device)
    optimizer = SGD(model.parameters(), **OPTIONS, fused=True)
    return Learner(model, optimizer, speed, batch_size=8, **options)


def by_hand(model: nn.Module, batches: list[Batch]) -> list[float]:
    """Train on the CPU as one would write it in PyTorch; return the losses."""
    optimizer, losses = SGD(model.parameters(), **OPTIONS), []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# --------------------------------------------------------------------------------------- batches


def train_batches(device: torch.device, count: int = 60, **options: Any) -> TrainBatches:
    last = options.pop("channels_last", False)
    normaliser = Normaliser(MEAN, STD, device, channels_last=last)
    return TrainBatches(
        image_split(count).to(device), normaliser, 16, seed=3, crop_padding=2, flip=True, **options
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_images_are_bitwise_those_of_the_cpu(
    accelerator: torch.device, channels_last: bool
) -> None:
    """Whole numbers are indexed; then one product and one sum, each rounded once, everywhere."""
    ours = train_batches(accelerator, channels_last=channels_last)
    theirs = train_batches(torch.device("cpu"), channels_last=channels_last)
    for epoch in (0, 1, 5):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
            assert x.device == y.device == accelerator
            assert torch.equal(x.cpu(), other_x)
            assert torch.equal(y.cpu(), other_y)
            assert x.stride() == other_x.stride()


def test_evaluation_images_are_bitwise_those_of_the_cpu(accelerator: torch.device) -> None:
    split, cpu = image_split(10), torch.device("cpu")
    ours = EvalBatches(split.to(accelerator), Normaliser(MEAN, STD, accelerator), 4)
    theirs = EvalBatches(split, Normaliser(MEAN, STD, cpu), 4)
    for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
        assert x.device == y.device == accelerator
        assert torch.equal(x.cpu(), other_x)
        assert torch.equal(y.cpu(), other_y)


# ----------------------------------------------------------------------------------------- steps


def test_steps_are_those_of_a_loop_in_float64(accelerator: torch.device) -> None:
    batches = image_batches(8, 8, 8, 5) * 3
    learner, plain = make_learner(accelerator, dtype=torch.float64), convnet()
    losses = [learner.step(*batch) for batch in moved(batches, accelerator)]
    expected = by_hand(plain, batches)
    # Rounding of 2^-53 in sums of up to 2000 terms, twelve times over: with room, 1e-10.
    assert all(loss.device == accelerator for loss in losses)
    assert_near(torch.stack(losses), expected, rtol=1e-10)
    assert relative_distance(weights_of(learner.model), weights_of(plain)) < 1e-10
    for name in ("1.running_mean", "1.running_var"):
        found = learner.model.state_dict()[name]
        assert_near(found, plain.state_dict()[name], rtol=1e-10, atol=1e-10)


# What losses may differ by, and how far twelve steps may end from those in float64, relative to
# how far these go. float32 rounds at 2^-24 = 6e-8; sums of 2000 terms and Winograd convolutions
# lose three digits of that. An fp16 number is good to 2^-12 and a bf16 one to 2^-9 = 0.2 %; four
# layers, both ways, make ten times that of a gradient, and twelve steps add up.
VARIANTS = {
    "float32": (Speed(), 1e-4, 1e-4),
    "channels-last": (Speed(channels_last=True), 1e-4, 1e-4),
    "fp16": (Speed(amp="fp16"), 10 * 2**-12, 0.04),
    "bf16": (Speed(amp="bf16"), 10 * 2**-9, 0.1),
    "channels-last-bf16": (Speed(channels_last=True, amp="bf16"), 10 * 2**-9, 0.1),
}


@pytest.mark.parametrize(("speed", "of_losses", "of_weights"), VARIANTS.values(), ids=VARIANTS)
def test_each_way_to_run_goes_where_float64_goes(
    accelerator: torch.device, speed: Speed, of_losses: float, of_weights: float
) -> None:
    batches = image_batches(8, 8, 8, 5) * 3
    learner, plain = make_learner(accelerator, speed), convnet()
    if speed.amp == "fp16":  # a scale at which nothing overflows: no step is skipped
        learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 128.0})
    start, outputs = weights_of(plain), []
    learner.model[0].register_forward_hook(lambda *args: outputs.append(args[-1].dtype))
    layout = torch.channels_last if speed.channels_last else torch.contiguous_format
    given = [
        (x.to(accelerator, torch.float32).contiguous(memory_format=layout), y.to(accelerator))
        for x, y in batches
    ]
    losses = torch.stack([learner.step(*batch) for batch in given])
    expected = by_hand(plain, batches)
    assert set(outputs) == {speed.autocast_dtype or torch.float32}
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert losses.dtype == torch.float32
    assert_near(losses, expected, rtol=of_losses)
    assert relative_distance(weights_of(learner.model), weights_of(plain), start) < of_weights


def test_predictions_are_probabilities_in_float64_on_the_cpu(accelerator: torch.device) -> None:
    batches = image_batches(5, 2)
    learner = make_learner(accelerator)
    learner.model.train()
    probs = learner.predict(moved(batches, accelerator, torch.float32))
    model = convnet().eval()
    with torch.no_grad():
        expected = torch.cat([model(x).softmax(1) for x, _ in batches])
    assert (probs.dtype, probs.device.type) == (torch.float64, "cpu")
    # Logits of size 1 are sums of 72 float32 terms, behind two layers of such: 3 * 72 * 2^-24.
    assert_near(probs, expected, atol=3 * 72 * SINGLE)
    assert all(module.training for module in learner.model.modules())


# ---------------------------------------------------------------------------------- the loop


def in_float64(model: nn.Module, batch: Batch) -> Tensor:
    outputs: Tensor = model(batch[0].double())
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_epochs_under_a_cycle_are_those_of_the_cpu(
    accelerator: torch.device, dtype: torch.dtype
) -> None:
    cpu, told = torch.device("cpu"), []
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10  # as above, for eight steps
    for device, kind in ((accelerator, dtype), (cpu, torch.float64)):
        forward = in_float64 if kind == torch.float64 else None
        learner = make_learner(device, dtype=kind, forward_fn=forward)
        minima: list[int] = []
        ends: list[EpochEnd] = []
        schedule = TriangularLR(learner.optimizer, max_lr=0.1, min_lr=0.01, cycle_steps=6)
        train(
            learner,
            schedule,
            train_batches(device),
            first_epoch=0,
            last_epoch=2,
            on_minimum=minima.append,
            on_epoch=ends.append,
        )
        told.append((learner, minima, ends))
    (ours, minima, ends), (theirs, other_minima, other_ends) = told
    assert minima == other_minima == [0]
    for end, other in zip(ends, other_ends, strict=True):
        assert (end.epoch, end.images) == (other.epoch, other.images)
        assert end.train_loss == pytest.approx(other.train_loss, rel=tolerance)
    start = weights_of(convnet())
    moved_to = weights_of(ours.model), weights_of(theirs.model)
    assert relative_distance(*moved_to, start) < tolerance


class NanAt:
    """A loss that is nan in one call, counted from 0."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        bad = self.calls == self.step
        self.calls += 1
        return F.cross_entropy(logits, targets) * (math.nan if bad else 1.0)


@pytest.mark.parametrize("step", [3, 57])
def test_a_loss_that_is_not_finite_is_found_at_its_step(
    accelerator: torch.device, step: int
) -> None:
    """The host looks at losses fifty at a time, and at the end of the epoch."""
    model = nn.Linear(6, 3).to(accelerator)
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = TriangularLR(optimizer, max_lr=0.1, min_lr=0.1, cycle_steps=1000)
    batches = moved(vector_batches(*[2] * 60, dtype=torch.float32), accelerator)
    with pytest.raises(DivergenceError, match=f"the loss is nan at step {step} with learning rate"):
        train(
            Learner(model, optimizer, loss_fn=NanAt(step)),
            schedule,
            batches,
            first_epoch=0,
            last_epoch=1,
        )


# ---------------------------------------------------------------------------------------- resuming


class _StopError(Exception):
    pass


def trained(
    device: torch.device, folder: Path, speed: Speed, *, stop: int | None = None, seed: int = 0
) -> tuple[Learner, SnapshotStore]:
    """Train for 4 epochs of 4 steps in cycles of 6, on from the state in ``folder`` if any."""
    model = convnet(seed, torch.float32, dropout=0.3).to(device)
    optimizer = SGD(model.parameters(), **OPTIONS, fused=True)
    learner = Learner(model, optimizer, speed, batch_size=16)
    schedule = TriangularLR(optimizer, max_lr=0.1, min_lr=0.01, cycle_steps=6)
    store, file, first = SnapshotStore(folder / "snapshots"), folder / "state", 0
    if file.exists():
        state = read_state(file)
        learner.load_state_dict(state["learner"])
        schedule.load_state_dict(state["schedule"])
        store.truncate(state["snapshots"])
        first = state["epoch"]

    def end_epoch(end: EpochEnd) -> None:
        state = {"learner": learner.state_dict(), "schedule": schedule.state_dict()}
        state |= {"epoch": end.epoch + 1, "snapshots": len(store)}
        write_state(file, state)
        if end.epoch == stop:
            raise _StopError

    train(
        learner,
        schedule,
        train_batches(device, channels_last=speed.channels_last),
        first_epoch=first,
        last_epoch=4,
        on_minimum=lambda epoch: store.append(learner.model, epoch=epoch),
        on_epoch=end_epoch,
    )
    return learner, store


RESUMED = {
    "float32": Speed(),
    "channels-last": Speed(channels_last=True),
    "bf16": Speed(amp="bf16"),
}


@pytest.mark.parametrize("speed", RESUMED.values(), ids=RESUMED)
def test_resumed_in_the_middle_of_a_cycle_it_ends_bitwise_the_same(
    accelerator: torch.device, deterministic: None, tmp_path: Path, speed: Speed
) -> None:
    """Dropout, momentum and position go on too: epochs end at steps 4 and 8, cycles at 6 and 12."""
    del deterministic
    whole, kept = trained(accelerator, tmp_path / "whole", speed)
    for stop in (0, 2):  # the second one starts from other weights, which the state replaces
        with pytest.raises(_StopError):
            trained(accelerator, tmp_path / "cut", speed, stop=stop, seed=stop)
        torch.rand(3, device=accelerator)  # what else a program may draw
    resumed, kept_too = trained(accelerator, tmp_path / "cut", speed, seed=9)
    assert_bitwise(resumed.state_dict(), whole.state_dict())
    assert len(kept) == len(kept_too) == 3
    for one, other in zip(kept, kept_too, strict=True):
        assert_bitwise(one, other)


def test_a_state_saved_on_the_device_goes_on_on_the_cpu(
    accelerator: torch.device, tmp_path: Path
) -> None:
    batches = image_batches(8, 8, 8, 8)
    ours = make_learner(accelerator, dtype=torch.float64)
    theirs = make_learner(torch.device("cpu"), dtype=torch.float64, seed=5)
    for batch in batches[:2]:
        ours.step(*moved(batch, accelerator))
    write_state(tmp_path / "state", ours.state_dict())
    theirs.load_state_dict(read_state(tmp_path / "state"))
    assert_bitwise(theirs.state_dict(), ours.state_dict())
    for batch in batches[2:]:
        ours.step(*moved(batch, accelerator))
        theirs.step(*batch)
    # Two steps of float64 in sums of up to 2000 terms.
    assert relative_distance(weights_of(ours.model), weights_of(theirs.model)) < 2000 * DOUBLE


# ------------------------------------------------------------------------------------ fp16


class Overflowing:
    """The cross-entropy, whose gradients are infinite in some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        factor = math.inf if self.calls in self.steps else 1.0
        self.calls += 1
        return F.cross_entropy(logits.float(), targets) * factor


@pytest.mark.parametrize("first", [True, False], ids=["first-step", "later-step"])
def test_a_step_with_infinite_gradients_is_skipped_and_the_scale_halved(
    accelerator: torch.device, deterministic: None, first: bool
) -> None:
    """In the first step the optimizer makes its memory, which a skipped step must not leave so."""
    del deterministic
    batches = image_batches(8, 8, 8)
    steps = batches[:2] if first else [batches[0], *batches[:2]]
    skipped = 0 if first else 1
    learner = make_learner(accelerator, Speed(amp="fp16"), loss_fn=Overflowing(skipped))
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 128.0})
    plain = convnet()
    for position, batch in enumerate(moved(steps, accelerator, torch.float32)):
        before = weights_of(learner.model)
        learner.step(*batch)
        assert torch.equal(weights_of(learner.model), before) == (position == skipped)
    assert learner.scaler.get_scale() == 64.0
    start = weights_of(plain)
    by_hand(plain, [steps[k] for k in range(len(steps)) if k != skipped])
    # Batch norm's statistics have seen the skipped batch; weights have not: fp16 as above.
    assert relative_distance(weights_of(learner.model), weights_of(plain), start) < 10 * 2**-12


def test_the_state_of_the_scale_is_resumed(
    accelerator: torch.device, deterministic: None, tmp_path: Path
) -> None:
    del deterministic
    batches = moved(image_batches(8, 8, 8, 8), accelerator, torch.float32)
    learners = [
        make_learner(accelerator, Speed(amp="fp16"), seed=seed, loss_fn=Overflowing(*steps))
        for seed, steps in ((0, (1,)), (1, ()))
    ]
    learners[0].scaler.load_state_dict({**learners[0].scaler.state_dict(), "scale": 256.0})
    for batch in batches[:2]:
        learners[0].step(*batch)
    write_state(tmp_path / "state", learners[0].state_dict())
    learners[1].load_state_dict(read_state(tmp_path / "state"))
    for batch in batches[2:]:
        losses = [learner.step(*batch) for learner in learners]
        assert torch.equal(*losses)
    assert learners[1].scaler.get_scale() == 128.0
    assert_bitwise(learners[1].state_dict(), learners[0].state_dict())


# --------------------------------------------------------------------------- compilation, choosing


def needs_compiler(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip where ``torch.compile`` cannot work; on the CPU take a back end that needs a second."""
    if device.type == "cpu":
        backend = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", backend)
        return
    pytest.importorskip("triton", reason="torch.compile needs Triton on a GPU")
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("Triton needs a C compiler")


def test_a_compiled_model_trains_as_it_does_uncompiled(
    accelerator: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_compiler(accelerator, monkeypatch)
    batches = moved(vector_batches(8, 8, 5, 8, dtype=torch.float32), accelerator)
    learners = []
    for compiled in (True, False):
        model = perceptron(0, torch.float32).to(accelerator)
        optimizer = SGD(model.parameters(), **OPTIONS, fused=True)
        learners.append(Learner(model, optimizer, Speed(compile=compiled), batch_size=8))
    start = weights_of(learners[0].model)
    losses = [torch.stack([learner.step(*b) for b in batches]) for learner in learners]
    # Fused kernels round sums of at most 8 terms elsewhere, in four steps.
    assert_near(*losses, rtol=100 * SINGLE)
    after = [weights_of(learner.model) for learner in learners]
    assert relative_distance(*after, start) < 1000 * SINGLE
    torch._dynamo.reset()


def test_choosing_by_measurement_works_and_leaves_everything_as_it_was(
    accelerator: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "_TIMED_SECONDS", 0.0)
    model = convnet(0, torch.float32).to(accelerator)
    before = copy.deepcopy(model.state_dict())
    inputs, targets = moved(image_batches(8, dtype=torch.float32)[0], accelerator)
    torch.manual_seed(3)
    expected = torch.rand(4, device=accelerator)
    torch.manual_seed(3)
    config = FGEConfig(channels_last="auto", amp="auto", compile="off")
    choice = choose_speed(config, model, inputs, targets, steps=10)
    assert torch.equal(torch.rand(4, device=accelerator), expected)
    assert_bitwise(dict(model.state_dict()), dict(before))
    assert len(choice.reasons) >= 2
    for reason in choice.reasons:
        assert "fails here" not in reason
        assert "but its loss" not in reason


# ------------------------------------------------------------------------------------ averages


def ema_learner(device: torch.device, seed: int = 3) -> EmaLearner:
    model = perceptron(seed).to(device)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return EmaLearner(model, optimizer, decay=0.8, refresh=vector_batches(8, 8, seed=7))


def test_the_average_over_the_steps_is_that_of_pytorch_on_the_cpu(
    accelerator: torch.device, tmp_path: Path
) -> None:
    batches = vector_batches(8, 8, 8, 8)
    learner, resumed, plain = ema_learner(accelerator), ema_learner(accelerator, 5), perceptron(3)
    oracle = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer = SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for position, (inputs, targets) in enumerate(batches):
        (learner if position < 2 else resumed).step(*moved((inputs, targets), accelerator))
        if position == 1:
            write_state(tmp_path / "state", learner.state_dict())
            resumed.load_state_dict(read_state(tmp_path / "state"))
        optimizer.zero_grad()
        F.cross_entropy(plain(inputs), targets).backward()
        optimizer.step()
        oracle.update_parameters(plain)
    update_bn((x for x, _ in vector_batches(8, 8, seed=7)), oracle)
    trained_weights = copy.deepcopy(resumed.model.state_dict())
    with resumed.kept() as refreshed:
        assert refreshed == 16
        # Four steps of float64 in sums of at most 8 terms.
        assert relative_distance(weights_of(resumed.model), weights_of(oracle.module)) < 1e-12
        found = resumed.model.state_dict()["1.running_mean"]
        assert_near(found, oracle.module.state_dict()["1.running_mean"], atol=1e-12)
    assert_bitwise(dict(resumed.model.state_dict()), dict(trained_weights))


@pytest.mark.parametrize("make", [lambda d: Split.to(image_split(4), d)])
def test_splits_move_whole(accelerator: torch.device, make: Callable[[Any], Split]) -> None:
    split = make(accelerator)
    assert split.images.device == split.labels.device == accelerator
    assert torch.equal(split.first(2).images.cpu(), image_split(2).images)
