"""A warm-up: the rates of any schedule, raised linearly where a network starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from fge.config import TrainConfig
from fge.errors import UserError
from fge.report.training import learning_rates
from fge.train import (
    ClosedFormLR,
    CyclicalSGLDLR,
    EndpointLR,
    LinearRestartsLR,
    Stage,
    TriangularLR,
    WarmUpLR,
    find_method,
    warmed_up,
)

STEPS = 6


def optimizer_of(*rates: float) -> SGD:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return SGD(groups, lr=1.0)


def schedules(rate: float) -> dict[str, ClosedFormLR]:
    def sgld() -> SGD:
        optimizer = optimizer_of(rate, 2 * rate)
        for group in optimizer.param_groups:
            group["temperature"] = 0.0
        return optimizer

    made = optimizer_of(rate, 2 * rate)
    return {
        "cycles": TriangularLR(
            optimizer_of(rate, 2 * rate), max_lr=[0.4, 0.8], min_lr=[0.1, 0.2], cycle_steps=4
        ),
        "endpoint": EndpointLR(optimizer_of(rate, 2 * rate), epochs=4, steps_per_epoch=3),
        "restarts": LinearRestartsLR(made, cycle_steps=5),
        "sgld": CyclicalSGLDLR(
            sgld(), cycle_steps=6, sample_steps=2, samples=1, sampling=0.1, temperature=0.5
        ),
    }


@pytest.mark.parametrize("name", ["cycles", "endpoint", "restarts", "sgld"])
def test_rates_are_those_of_the_schedule_times_the_ramp(name: str) -> None:
    plain, inner = schedules(0.5)[name], schedules(0.5)[name]
    warm = WarmUpLR(inner, steps=STEPS)
    for step in range(14):
        factor = min(1.0, (step + 1) / STEPS)
        expected = [rate * factor for rate in plain.get_last_lr()]
        assert warm.get_last_lr() == pytest.approx(expected, rel=1e-15)
        used = [group["lr"] for group in warm.optimizer.param_groups]
        assert used == warm.get_last_lr()  # the logged rate is the one in use
        assert warm.at_minimum == plain.at_minimum
        assert warm.descent == plain.descent
        assert warm.tail_step(0.4) == plain.tail_step(0.4)
        assert warm.rate_kept == pytest.approx(plain.rate_kept * factor, rel=1e-15)
        ours, theirs = warm.optimizer.param_groups[0], plain.optimizer.param_groups[0]
        assert ours.get("temperature") == theirs.get("temperature")
        for schedule in (warm, plain):
            schedule.optimizer.step()
            schedule.step()


def test_a_restored_warm_up_goes_on() -> None:
    whole = WarmUpLR(schedules(0.5)["cycles"], steps=STEPS)
    for _ in range(3):
        whole.optimizer.step()
        whole.step()
    resumed = WarmUpLR(schedules(0.5)["cycles"], steps=STEPS)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.get_last_lr() == whole.get_last_lr()
    assert [group["lr"] for group in resumed.optimizer.param_groups] == whole.get_last_lr()


def first_rates(stage: Stage, per_epoch: int) -> list[float]:
    optimizer = optimizer_of(0.05)
    schedule = stage.schedule(optimizer, per_epoch)
    found = []
    for _ in range((stage.last_epoch - stage.first_epoch) * per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def factors(method: str, epochs: float, **options: object) -> dict[str, list[float]]:
    """Return the factor at each step of each stage of a method."""
    config = TrainConfig(epochs=8, method=method, **options)  # type: ignore[arg-type]
    stages = find_method(method).stages(config)
    assert isinstance(stages, list)
    warm: list[Stage] = []
    for stage in stages:
        warm.append(warmed_up(stage, warm, epochs))
    return {
        stage.name: [
            a / b for a, b in zip(first_rates(other, 2), first_rates(stage, 2), strict=True)
        ]
        for stage, other in zip(stages, warm, strict=True)
    }


def test_every_network_is_warmed_up_where_it_starts_and_branches_are_not() -> None:
    ramp = pytest.approx([1 / 3, 2 / 3, *[1.0] * 6], rel=1e-12)
    split = factors("split", 1.5, split=2)
    assert split["network-1"] == ramp
    assert split["network-2"] == ramp
    star = factors("star", 1.5, star_trunk=0.5, star_branches=2)
    assert star["trunk"] == ramp
    assert star["branch-1"] == star["branch-2"] == [1.0] * 4


def test_a_long_warm_up_goes_on_in_the_cycles_and_in_the_network_beside_them() -> None:
    found = factors("fge-paper", 3, start_epoch=2, cycle_epochs=2)
    assert found["start"] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6], rel=1e-12)
    assert found["fge"][:3] == pytest.approx([5 / 6, 1.0, 1.0], rel=1e-12)
    found = factors("star", 5, star_trunk=0.5, star_branches=2)
    for branch in ("branch-1", "branch-2"):  # both go on from the trunk
        assert found[branch] == pytest.approx([9 / 10, 1.0, 1.0, 1.0], rel=1e-12)
    assert factors("fge", 1, start_epoch=0, cycle_epochs=2)["fge"][:2] == [0.5, 1.0]


def test_without_a_warm_up_the_stage_is_untouched() -> None:
    stage = Stage(
        "a", 0, 2, lambda optimizer, steps: EndpointLR(optimizer, epochs=2, steps_per_epoch=steps)
    )
    assert warmed_up(stage, [], 0) is stage


@pytest.mark.parametrize(
    ("options", "named"), [({"steps": 0}, "steps"), ({"steps": 2, "done": -1}, "done")]
)
def test_bad_lengths_are_named(options: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=f"^{named} must be >= "):
        WarmUpLR(schedules(0.5)["endpoint"], **options)


def test_the_chart_of_a_training_shows_the_rates_of_the_warm_up() -> None:
    config = TrainConfig(epochs=8, method="average", lr=0.2)
    stages = find_method("average").stages(config)
    assert isinstance(stages, list)
    plain = dict(zip(*learning_rates(stages, optimizer_of(0.2)), strict=True))
    warm = dict(zip(*learning_rates([warmed_up(stages[0], [], 4)], optimizer_of(0.2)), strict=True))
    assert warm.keys() == plain.keys()
    per_epoch = round(1 / min(epoch for epoch in plain if epoch > 0))
    for epoch, rate in warm.items():
        factor = min(1.0, (epoch * per_epoch + 1) / (4 * per_epoch))
        assert rate == pytest.approx(plain[epoch] * factor, rel=1e-9)
