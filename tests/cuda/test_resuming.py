"""Training that is interrupted on a GPU and goes on, bitwise with deterministic kernels; fp16."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    DOUBLE,
    SGD_OPTIONS,
    assert_bitwise,
    assert_near,
    by_hand,
    convnet,
    image_batches,
    make_learner,
    moved,
    perceptron,
    relative_distance,
    train_batches,
    vector_batches,
    weights_of,
)
from torch import Tensor
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fge.ensemble import SnapshotStore
from fge.networks import read_state, write_state
from fge.train import EmaLearner, EpochEnd, Learner, Speed, TriangularLR, train

pytestmark = pytest.mark.cuda


# ---------------------------------------------------------------------------------------- resuming


class _StopError(Exception):
    pass


def trained(
    device: torch.device, folder: Path, speed: Speed, *, stop: int | None = None, seed: int = 0
) -> tuple[Learner, SnapshotStore]:
    """Train for 4 epochs of 4 steps in cycles of 6, on from the state in ``folder`` if any."""
    model = convnet(seed, torch.float32, dropout=0.3).to(device)
    optimizer = SGD(model.parameters(), **SGD_OPTIONS, fused=True)
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
    # Batch norm's statistics have seen the skipped batch, weights have not; fp16 as above.
    assert relative_distance(weights_of(learner.model), weights_of(plain), start) < 0.04


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
