"""Cosine schedules against PyTorch's own, and what they say of snapshots and temperatures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR

from fge.errors import UserError
from fge.train import SGLD, CosineRestartsLR, CyclicalSGLDLR, LinearTailLR
from fge.train.schedules import cosine_factor

SGLD_OPTIONS: dict[str, Any] = {
    "cycle_steps": 20,
    "sample_steps": 2,
    "samples": 3,
    "sampling": 0.1,
    "temperature": 0.25,
}


def make_optimizer(*rates: float) -> SGD:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def make_sgld(**changes: Any) -> tuple[SGLD, CyclicalSGLDLR]:
    optimizer = SGLD([nn.Parameter(torch.zeros(1))], 0.5, examples=10)
    return optimizer, CyclicalSGLDLR(optimizer, **{**SGLD_OPTIONS, **changes})


def step(optimizer: SGD, schedule: CosineRestartsLR) -> None:
    optimizer.step()
    schedule.step()


def test_rates_are_those_of_pytorch_s_cosine_with_restarts() -> None:
    ours, theirs = make_optimizer(0.2, 0.05), make_optimizer(0.2, 0.05)
    schedule = CosineRestartsLR(ours, cycle_steps=7)
    oracle = CosineAnnealingWarmRestarts(theirs, T_0=7)
    for _ in range(30):
        assert schedule.get_last_lr() == pytest.approx(oracle.get_last_lr(), rel=1e-12)
        assert [group["lr"] for group in ours.param_groups] == schedule.get_last_lr()
        step(ours, schedule)
        theirs.step()
        oracle.step()


def test_a_snapshot_is_kept_when_a_cycle_is_complete() -> None:
    optimizer = make_optimizer(0.1)
    schedule = CosineRestartsLR(optimizer, cycle_steps=5)
    assert not schedule.at_minimum
    kept = []
    for done in range(1, 16):
        step(optimizer, schedule)
        kept += [done] if schedule.at_minimum else []
    assert kept == [5, 10, 15]


def test_the_rate_of_a_snapshot_is_that_of_the_last_step_before_it() -> None:
    optimizer = make_optimizer(0.1)
    schedule = CosineRestartsLR(optimizer, cycle_steps=5)
    for _ in range(5):
        step(optimizer, schedule)
    assert schedule.rate_kept == pytest.approx(0.1 * cosine_factor(4, 5), rel=1e-15)


def test_a_schedule_goes_on_from_its_state() -> None:
    first = make_sgld()
    for _ in range(19):
        step(*first)
    second = make_sgld()
    second[1].load_state_dict(first[1].state_dict())
    assert second[0].param_groups[0]["temperature"] == 0.25
    assert second[1].get_last_lr() == first[1].get_last_lr()
    assert second[1].at_minimum == first[1].at_minimum


def test_noise_comes_in_the_last_part_of_each_cycle_alone() -> None:
    optimizer, schedule = make_sgld(sampling=0.3)
    temperatures = []
    for _ in range(40):
        temperatures.append(optimizer.param_groups[0]["temperature"])
        step(optimizer, schedule)
    assert temperatures == ([0.0] * 14 + [0.25] * 6) * 2


def test_each_sample_follows_a_whole_epoch_of_noise() -> None:
    optimizer, schedule = make_sgld(sampling=0.1, samples=3)
    temperatures = []
    for _ in range(40):
        temperatures.append(optimizer.param_groups[0]["temperature"])
        step(optimizer, schedule)
    assert temperatures == ([0.0] * 14 + [0.25] * 6) * 2  # a tenth would be 2 steps, one epoch


def test_samples_are_kept_at_the_end_of_a_cycle_s_last_epochs() -> None:
    optimizer, schedule = make_sgld()
    kept = []
    for done in range(1, 41):
        step(optimizer, schedule)
        kept += [done] if schedule.at_minimum else []
    assert kept == [16, 18, 20, 36, 38, 40]


def test_a_cycle_may_consist_of_samples_alone() -> None:
    optimizer, schedule = make_sgld(cycle_steps=4, samples=2)
    kept = []
    for done in range(1, 9):
        step(optimizer, schedule)
        kept += [done] if schedule.at_minimum else []
    assert kept == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cycle_steps": 0}, "cycle_steps must be >= 1, got 0|samples do not fit"),
        ({"sample_steps": 0}, "sample_steps must be >= 1, got 0"),
        ({"samples": 0}, "samples must be >= 1, got 0"),
        ({"samples": 11}, "11 samples do not fit in 10 epochs"),
        ({"sampling": 0.0}, r"sampling must be in \(0, 1\], got 0\.0"),
        ({"sampling": 1.5}, r"sampling must be in \(0, 1\], got 1\.5"),
        ({"temperature": -1.0}, "temperature must be finite and >= 0, got -1"),
        ({"cycle_steps": 21}, "cycle_steps must be a multiple of 2, got 21"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_sgld(**changes)


def test_a_cosine_needs_a_step_per_cycle() -> None:
    with pytest.raises(UserError, match="cycle_steps must be >= 1, got 0"):
        CosineRestartsLR(make_optimizer(0.1), cycle_steps=0)


@pytest.mark.parametrize("done", [3, 7])
def test_behind_a_warm_up_of_pytorch_a_descent_goes_on_where_it_was(done: int) -> None:
    """Loading the descent's state does not take the rates from the warm-up, which are a product."""

    def make() -> tuple[SGD, SequentialLR]:
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        parts = [LinearLR(optimizer, 0.1, 1.0, 5), LinearTailLR(optimizer, steps=10)]
        return optimizer, SequentialLR(optimizer, parts, milestones=[5])

    def rates(optimizer: SGD, schedule: SequentialLR, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
        return found

    expected = rates(*make(), 15)
    optimizer, schedule = make()
    rates(optimizer, schedule, done)
    states = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = make()
    optimizer.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    assert rates(optimizer, schedule, 15 - done) == expected[done:]
