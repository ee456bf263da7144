"""Means over the tail of a training on a GPU, and the methods that keep them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import full_precision
from cuda_tools import (
    Batch,
    assert_bitwise,
    assert_near,
    convnet,
    image_batches,
    moved,
    perceptron,
    record_on_the_cpu,
    relative_distance,
    vector_batches,
    weights_of,
)
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import update_bn

import fge
from fge.ensemble import SnapshotStore
from fge.networks import average_weights, load_weights, read_state, write_state
from fge.train import EpochEnd, LinearTailLR, Speed, TailLearner, graphed, train

pytestmark = pytest.mark.cuda

OPTIONS = {"lr": 0.1, "momentum": 0.9}
REFRESH = vector_batches(8, 8, seed=7)


@pytest.fixture(autouse=True)
def recorded_without_a_gpu(accelerator: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for CUDA graphs where the tests run on the CPU."""
    if accelerator.type == "cpu":
        monkeypatch.setattr(graphed, "record", record_on_the_cpu)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    with full_precision():
        yield


def by_hand(model: nn.Module, batches: list[Batch], first: int) -> None:
    """Train a descent on the CPU; leave the mean of the weights from a step on in the model."""
    optimizer = SGD(model.parameters(), **OPTIONS)
    schedule, states = LinearTailLR(optimizer, steps=len(batches)), []
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        schedule.step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    load_weights(model, average_weights(states[first:]), "the mean")
    update_bn([inputs for inputs, _ in REFRESH], model)


def test_a_tail_average_is_the_mean_of_the_iterates_on_the_cpu(accelerator: torch.device) -> None:
    batches = vector_batches(*[8] * 6)
    model, expected = perceptron(3).to(accelerator), perceptron(3)
    by_hand(expected, batches, first=2)
    optimizer = SGD(model.parameters(), **OPTIONS)
    schedule, tail = LinearTailLR(optimizer, steps=6), fge.TailAverage(model, first_step=2)
    for inputs, targets in moved(batches, accelerator):
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tail.step()
    found = tail.module(moved(REFRESH, accelerator))
    assert next(found.parameters()).device == accelerator
    # Six steps of float64 in sums of at most 8 terms.
    assert relative_distance(weights_of(found), weights_of(expected)) < 1e-12
    for name in ("1.running_mean", "1.running_var"):
        assert_near(found.state_dict()[name], expected.state_dict()[name], atol=1e-12)


class Epochs:
    """Batches of two epochs."""

    def __init__(self, batches: list[Batch]) -> None:
        self.halves = [batches[:5], batches[5:]]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.halves[self.epoch])

    def __len__(self) -> int:
        return 5


def tail_learner(device: torch.device, seed: int = 3) -> TailLearner:
    model = perceptron(seed).to(device)
    return TailLearner(model, SGD(model.parameters(), **OPTIONS), refresh=moved(REFRESH, device))


def test_a_descent_that_is_interrupted_in_its_tail_ends_with_the_same_mean(
    accelerator: torch.device, tmp_path: Path
) -> None:
    batches = vector_batches(*[8] * 10)
    expected = perceptron(3)
    by_hand(expected, batches, first=4)  # the last 60 %

    def saved(end: EpochEnd) -> None:
        if end.epoch == 0:  # after five steps: the tail has begun
            state = {"learner": learner.state_dict(), "schedule": schedule.state_dict()}
            write_state(tmp_path / "state", state)

    def run(first: int) -> None:
        train(
            learner,
            schedule,
            Epochs(moved(batches, accelerator)),
            first_epoch=first,
            last_epoch=2,
            seed=0,
            average=0.6,
            on_epoch=saved,
        )

    learner = tail_learner(accelerator)
    schedule = LinearTailLR(learner.optimizer, steps=10)
    run(0)
    whole = learner
    learner = tail_learner(accelerator, seed=5)
    schedule = LinearTailLR(learner.optimizer, steps=10)
    state = read_state(tmp_path / "state")
    learner.load_state_dict(state["learner"])
    schedule.load_state_dict(state["schedule"])
    run(1)
    for each in (whole, learner):
        trained = weights_of(each.model)
        with each.kept() as refreshed:
            assert refreshed == 16
            assert relative_distance(weights_of(each.model), weights_of(expected)) < 1e-12
            found = each.model.state_dict()["1.running_mean"]
            assert_near(found, expected.state_dict()["1.running_mean"], atol=1e-12)
        assert torch.equal(weights_of(each.model), trained)


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"])
def test_a_network_that_starts_afresh_is_trained_as_if_it_were_the_first(
    accelerator: torch.device, amp: str
) -> None:
    """The recorded graph goes on with the weights and with the scale of the restarted training."""
    batches = moved(image_batches(*[8] * 12), accelerator, torch.float32)
    learners = []
    for seed in (0, 1):
        model = convnet(seed, torch.float32).to(accelerator).train()
        optimizer = SGD(model.parameters(), **OPTIONS, fused=True)
        speed = Speed(channels_last=True, amp=amp, cuda_graphs=True)
        learners.append(TailLearner(model, optimizer, speed, batch_size=8, refresh=[]))
    first, second = learners
    for batch in batches[:6]:
        first.step(*batch)
    first.restart(convnet(1, torch.float32).state_dict())
    losses = [[learner.step(*batch) for batch in batches] for learner in (first, second)]
    rounding = {"off": 1e-4, "fp16": 0.02, "bf16": 0.1}[amp]
    assert_near(torch.stack(losses[0]), torch.stack(losses[1]), rtol=rounding)
    start = weights_of(convnet(1))
    assert relative_distance(weights_of(first.model), weights_of(second.model), start) < rounding


def test_members_of_a_cycle_are_means_over_the_end_of_its_descent(
    accelerator: torch.device, tmp_path: Path
) -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64, device=accelerator)
    optimizer = SGD(model.parameters(), lr=1.0)
    rates = {"max_lr": 0.1, "min_lr": 0.01}
    cycle = fge.FGE(model, optimizer, cycle_steps=8, **rates, out=tmp_path, average=0.5)
    for value in range(1, 13):
        nn.init.constant_(model.weight, value)
        optimizer.step()
        cycle.step()
    found = [state["weight"].item() for state in SnapshotStore(tmp_path)]
    assert found == [3.5, 11.5]  # steps 3 and 4, 11 and 12
    assert_bitwise(dict(model.state_dict()), {"weight": torch.tensor([[12.0]]).double()})
