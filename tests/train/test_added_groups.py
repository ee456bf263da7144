"""Parameter groups that are added to the optimizer while a schedule runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from fge.errors import UserError
from fge.train import (
    ClosedFormLR,
    CosineRestartsLR,
    EndpointLR,
    LinearDecayLR,
    LinearRestartsLR,
    LinearTailLR,
    StepsLR,
    TriangularLR,
    WarmUpLR,
)

MAKERS: dict[str, Callable[[Optimizer], ClosedFormLR]] = {
    "endpoint": lambda o: EndpointLR(o, epochs=5, steps_per_epoch=2),
    "steps": lambda o: StepsLR(o, epochs=5, steps_per_epoch=2),
    "cosine": lambda o: CosineRestartsLR(o, cycle_steps=4),
    "tail": lambda o: LinearTailLR(o, steps=10),
    "decay": lambda o: LinearDecayLR(o, epochs=5, steps_per_epoch=2),
    "restarts": lambda o: LinearRestartsLR(o, cycle_steps=4, final=0.1),
    "warm-up": lambda o: WarmUpLR(LinearTailLR(o, steps=10), steps=5),
}


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1))


def run(optimizer: Optimizer, schedule: ClosedFormLR, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        schedule.step()


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("tensors", [False, True])
def test_an_added_group_follows_with_its_own_base_rate(kind: str, tensors: bool) -> None:
    def rate(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64) if tensors else value

    whole = SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": rate(0.4)}], rate(0.2))
    expected = MAKERS[kind](whole)
    grown = SGD([parameter()], rate(0.2))
    schedule = MAKERS[kind](grown)
    run(whole, expected, 3)
    run(grown, schedule, 3)
    grown.add_param_group({"params": [parameter()], "lr": rate(0.4)})
    for _ in range(6):
        run(whole, expected, 1)
        run(grown, schedule, 1)
        assert rates(grown) == pytest.approx(rates(whole), rel=1e-12)
        assert schedule.get_last_lr() == pytest.approx(rates(whole), rel=1e-12)


def test_a_group_that_is_added_before_a_state_is_loaded_gets_its_rate() -> None:
    optimizer = SGD([parameter()], 0.2)
    schedule = LinearTailLR(optimizer, steps=10, final=0.0)
    run(optimizer, schedule, 5)
    other = SGD([parameter()], 0.2)
    loaded = LinearTailLR(other, steps=10, final=0.0)
    other.add_param_group({"params": [parameter()], "lr": 0.1})
    loaded.load_state_dict(schedule.state_dict())
    assert rates(other) == pytest.approx([0.1, 0.05])


def test_the_cycles_of_one_rate_are_those_of_added_groups_too() -> None:
    optimizer = SGD([parameter()], 0.2)
    schedule = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=4)
    run(optimizer, schedule, 1)
    optimizer.add_param_group({"params": [parameter()], "lr": 0.7})
    run(optimizer, schedule, 1)
    assert rates(optimizer) == pytest.approx([0.1, 0.1])


def test_rates_per_group_are_missing_for_an_added_one() -> None:
    optimizer = SGD([parameter()], 0.2)
    schedule = TriangularLR(optimizer, max_lr=[0.5], min_lr=0.1, cycle_steps=4)
    optimizer.step()
    optimizer.add_param_group({"params": [parameter()]})
    message = (
        r"^the optimizer has 2 parameter groups, but max_lr and min_lr were given for 1: make a "
        r"schedule with rates for all, and load this one's state_dict\(\) into it$"
    )
    with pytest.raises(UserError, match=message):
        schedule.step()
    assert schedule.last_epoch == 0
