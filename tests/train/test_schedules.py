"""Learning-rate schedules against reference values, closed forms and PyTorch's own."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LinearLR, MultiStepLR

from fge import EndpointLR, TriangularLR
from fge.config import FGEConfig
from fge.errors import UserError
from fge.train import ClosedFormLR, LinearDecayLR, LinearTailLR, StepsLR, fge_stages
from fge.train.descents import linear_factor
from fge.train.schedules import mark_epochs, steps_factor, triangular

REFERENCE: dict[str, Any] = json.loads(
    (ROOT / "tests" / "reference.json").read_text(encoding="utf-8")
)
SNAPSHOT_EPOCHS = [(int(c), e) for c, e in REFERENCE["snapshot_epochs"].items() if c != "epochs"]


def make_optimizer(*rates: float | Tensor) -> SGD:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return SGD(groups)


def advance(optimizer: Optimizer, schedule: ClosedFormLR, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        schedule.step()


def rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def minima(optimizer: Optimizer, schedule: ClosedFormLR, steps: int) -> list[int]:
    """Return the numbers of completed steps at which a snapshot is to be kept."""
    found = []
    for done in range(1, steps + 1):
        advance(optimizer, schedule, 1)
        if schedule.at_minimum:
            found.append(done)
    return found


@pytest.mark.parametrize("case", REFERENCE["triangular_lr"])
def test_triangular_lr_has_the_reference_values(case: dict[str, Any]) -> None:
    per_epoch = case["steps_per_epoch"]
    optimizer = make_optimizer(0.123)
    schedule = TriangularLR(
        optimizer,
        max_lr=case["max_lr"],
        min_lr=case["min_lr"],
        cycle_steps=case["cycle_epochs"] * per_epoch,
    )
    done = 0
    for epoch, step, expected in case["values"]:
        advance(optimizer, schedule, epoch * per_epoch + step - done)
        done = epoch * per_epoch + step
        assert rates_of(optimizer) == pytest.approx([expected], rel=0, abs=case["atol"])
        assert schedule.get_last_lr() == rates_of(optimizer)


@pytest.mark.parametrize("per_epoch", [1, 3, 4])
@pytest.mark.parametrize(("cycle_epochs", "expected"), SNAPSHOT_EPOCHS)
def test_triangular_lr_is_at_its_minimum_at_the_reference_epochs_ends(
    cycle_epochs: int, expected: list[int], per_epoch: int
) -> None:
    optimizer = make_optimizer(1.0)
    schedule = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=cycle_epochs * per_epoch)
    found = minima(optimizer, schedule, REFERENCE["snapshot_epochs"]["epochs"] * per_epoch)
    assert found == [(epoch + 1) * per_epoch for epoch in expected]


@pytest.mark.parametrize(("cycle_epochs", "expected"), SNAPSHOT_EPOCHS)
def test_the_fge_stage_keeps_snapshots_at_the_reference_epochs_ends(
    cycle_epochs: int, expected: list[int]
) -> None:
    per_epoch = 3
    epochs = REFERENCE["snapshot_epochs"]["epochs"]
    config = FGEConfig(epochs=epochs, cycle_epochs=cycle_epochs, start_epoch=0)
    stage = fge_stages(config)[1]
    optimizer = make_optimizer(config.lr)
    schedule = stage.schedule(optimizer, per_epoch)
    found = minima(optimizer, schedule, (stage.last_epoch - stage.first_epoch) * per_epoch)
    assert found == [(epoch + 1) * per_epoch for epoch in expected]
    assert stage.last_epoch == expected[-1] + 1


def test_endpoint_lr_has_the_reference_values_throughout_each_epoch() -> None:
    case, per_epoch = REFERENCE["endpoint_lr"], 2
    optimizer = make_optimizer(case["base_lr"])
    schedule = EndpointLR(optimizer, epochs=case["epochs"], steps_per_epoch=per_epoch)
    rates = []
    for _ in range(case["epochs"] * per_epoch):
        rates += rates_of(optimizer)
        advance(optimizer, schedule, 1)
    for epoch, expected in case["values"]:
        of_epoch = rates[(epoch - 1) * per_epoch : epoch * per_epoch]
        assert of_epoch == pytest.approx([expected] * per_epoch, rel=0, abs=case["atol"])


def test_endpoint_lr_scales_each_group_and_is_never_at_a_minimum() -> None:
    optimizer = make_optimizer(1.0, 0.1)
    schedule = EndpointLR(optimizer, epochs=10, steps_per_epoch=1)
    advance(optimizer, schedule, 5)  # epoch 6 of 10: 1 - 0.1 / 0.4 * 0.99
    assert rates_of(optimizer) == pytest.approx([0.7525, 0.07525], rel=0, abs=1e-12)
    assert not schedule.at_minimum
    assert minima(optimizer, schedule, 10) == []


def test_triangular_lr_is_pytorchs_cyclic_lr_half_a_cycle_on() -> None:
    cycle = 14
    ours, theirs = make_optimizer(1.0), make_optimizer(1.0)
    schedule = TriangularLR(ours, max_lr=0.7, min_lr=0.03, cycle_steps=cycle)
    oracle = CyclicLR(
        theirs, base_lr=0.03, max_lr=0.7, step_size_up=cycle // 2, cycle_momentum=False
    )
    for _ in range(cycle // 2):
        theirs.step()
        oracle.step()
    for _ in range(3 * cycle):
        assert rates_of(ours) == pytest.approx(rates_of(theirs), rel=0, abs=1e-12)
        advance(ours, schedule, 1)
        theirs.step()
        oracle.step()


@given(
    half=st.integers(1, 500),
    step=st.integers(0, 5000),
    low=st.floats(0, 1),
    span=st.floats(0, 1),
)
def test_triangular_repeats_mirrors_and_stays_within_its_ends(
    half: int, step: int, low: float, span: float
) -> None:
    options = {"max_lr": low + span, "min_lr": low, "cycle_steps": 2 * half}
    rate = triangular(step, **options)
    assert low - 1e-12 <= rate <= low + span + 1e-12
    assert rate == triangular(step + 2 * half, **options)
    mirrored = triangular(2 * half - step % (2 * half), **options)
    assert rate == pytest.approx(mirrored, rel=0, abs=1e-12)
    slope = abs(triangular(step + 1, **options) - rate)
    assert slope == pytest.approx(span / half, rel=0, abs=1e-12)


def test_triangular_lr_takes_one_rate_per_group() -> None:
    optimizer = make_optimizer(1.0, 1.0)
    schedule = TriangularLR(optimizer, max_lr=[0.4, 0.04], min_lr=[0.2, 0.0], cycle_steps=4)
    seen = [rates_of(optimizer)]
    for _ in range(4):
        advance(optimizer, schedule, 1)
        seen.append(rates_of(optimizer))
    expected = [[0.4, 0.04], [0.3, 0.02], [0.2, 0.0], [0.3, 0.02], [0.4, 0.04]]
    for rates, wanted in zip(seen, expected, strict=True):
        assert rates == pytest.approx(wanted, rel=0, abs=1e-12)


def test_one_rate_is_for_all_groups_and_may_be_mixed_with_one_per_group() -> None:
    optimizer = make_optimizer(1.0, 1.0)
    schedule = TriangularLR(optimizer, max_lr=0.4, min_lr=[0.2, 0.1], cycle_steps=2)
    assert rates_of(optimizer) == [0.4, 0.4]
    advance(optimizer, schedule, 1)
    assert rates_of(optimizer) == [0.2, 0.1]
    assert schedule.at_minimum


def test_rates_may_be_numbers_of_numpy() -> None:
    rates = {"max_lr": np.float32(0.5), "min_lr": np.array([0.25, 0.125])}
    schedule = TriangularLR(make_optimizer(1.0, 1.0), **rates, cycle_steps=4)  # type: ignore[arg-type]
    assert (schedule.max_lrs, schedule.min_lrs) == ([0.5, 0.5], [0.25, 0.125])


def test_a_tensor_learning_rate_is_set_in_place() -> None:
    rate = torch.tensor(9.0, dtype=torch.float64)
    optimizer = make_optimizer(rate)
    schedule = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=4)
    for expected in (0.3, 0.1, 0.3, 0.5):
        advance(optimizer, schedule, 1)
        assert optimizer.param_groups[0]["lr"] is rate
        assert float(rate) == pytest.approx(expected, rel=0, abs=1e-12)
    schedule.load_state_dict({"last_epoch": 6})
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1, rel=0, abs=1e-12)
    assert schedule.at_minimum


def test_a_cycle_of_two_steps_alternates() -> None:
    optimizer = make_optimizer(1.0)
    schedule = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=2)
    assert minima(optimizer, schedule, 6) == [1, 3, 5]


def test_a_new_schedule_is_not_at_its_minimum_and_sets_the_first_rate() -> None:
    optimizer = make_optimizer(1.0)
    schedule = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=2)
    assert rates_of(optimizer) == [0.5]
    assert not schedule.at_minimum


@pytest.mark.parametrize("done", [0, 3, 5, 9, 13])
def test_a_saved_state_goes_on_exactly_where_it_was(done: int) -> None:
    def build() -> tuple[SGD, TriangularLR]:
        optimizer = make_optimizer(1.0, 2.0)
        return optimizer, TriangularLR(
            optimizer, max_lr=[0.5, 0.7], min_lr=[0.1, 0.2], cycle_steps=10
        )

    optimizer, schedule = build()
    advance(optimizer, schedule, done)
    state = json.loads(json.dumps(schedule.state_dict()))
    resumed_optimizer, resumed = build()
    resumed.load_state_dict(state)
    for _ in range(12):
        assert rates_of(resumed_optimizer) == rates_of(optimizer)
        assert resumed.get_last_lr() == schedule.get_last_lr() == rates_of(optimizer)
        assert resumed.at_minimum == schedule.at_minimum
        advance(optimizer, schedule, 1)
        advance(resumed_optimizer, resumed, 1)


@pytest.mark.parametrize(
    "state", [{}, {"last_epoch": None}, {"last_epoch": 1.5}, {"last_epoch": -2}, [], 3]
)
def test_a_damaged_state_is_refused(state: Any) -> None:
    schedule = TriangularLR(make_optimizer(1.0), max_lr=0.5, min_lr=0.1, cycle_steps=10)
    with pytest.raises(UserError, match="the saved state of the learning rate is damaged: "):
        schedule.load_state_dict(state)
    assert schedule.last_epoch == 0


def test_the_endpoint_schedule_goes_on_from_a_saved_state_with_the_optimizers_own_rate() -> None:
    optimizer = make_optimizer(0.2)
    schedule = EndpointLR(optimizer, epochs=10, steps_per_epoch=3)
    schedule.load_state_dict({"last_epoch": 7 * 3 + 2})  # the last step of epoch 8
    assert rates_of(optimizer) == pytest.approx([0.2 * (1 - 0.3 / 0.4 * 0.99)], rel=0, abs=1e-12)
    advance(optimizer, schedule, 1)
    assert rates_of(optimizer) == pytest.approx([0.2 * 0.01], rel=0, abs=1e-12)


def test_last_epoch_goes_on_behind_the_last_step_as_in_pytorch() -> None:
    optimizer = make_optimizer(1.0)
    TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=8)
    resumed = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=8, last_epoch=2)
    assert resumed.last_epoch == 3
    assert rates_of(optimizer) == pytest.approx([0.2], rel=0, abs=1e-12)


def test_other_optimizers_are_scheduled_too() -> None:
    optimizer = Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=4)
    advance(optimizer, schedule, 1)
    assert rates_of(optimizer) == pytest.approx([0.3], rel=0, abs=1e-12)


@pytest.mark.parametrize("cycle_steps", [-2, 0, 1, 7])
def test_a_cycle_that_has_no_middle_is_refused(cycle_steps: int) -> None:
    with pytest.raises(UserError, match=f"cycle_steps must be even and >= 2, got {cycle_steps}$"):
        TriangularLR(make_optimizer(1.0), max_lr=0.5, min_lr=0.1, cycle_steps=cycle_steps)


@pytest.mark.parametrize(
    ("max_lr", "min_lr", "message"),
    [
        (0.1, 0.2, "min_lr must not exceed max_lr, got min_lr 0.2 > max_lr 0.1"),
        (0.1, -0.2, "min_lr must be finite and >= 0, got -0.2"),
        (-0.1, -0.2, "max_lr must be finite and >= 0, got -0.1"),
        (0.0, 0.0, "max_lr must be above 0, got 0"),
        (float("inf"), 0.1, "max_lr must be finite and >= 0, got inf"),
        (0.1, float("nan"), "min_lr must be finite and >= 0, got nan"),
        ([0.1, 0.2], 0.1, r"max_lr must be one number or one per parameter group \(1\), got 2"),
        (0.1, [], r"min_lr must be one number or one per parameter group \(1\), got 0"),
    ],
)
def test_learning_rates_that_make_no_cycle_are_refused(
    max_lr: float | list[float], min_lr: float | list[float], message: str
) -> None:
    optimizer = make_optimizer(1.0)
    with pytest.raises(UserError, match=message):
        TriangularLR(optimizer, max_lr=max_lr, min_lr=min_lr, cycle_steps=4)
    assert rates_of(optimizer) == [1.0]


def test_rates_in_the_wrong_order_are_found_in_any_group() -> None:
    with pytest.raises(UserError, match=r"min_lr 0\.3 > max_lr 0\.2"):
        TriangularLR(make_optimizer(1.0, 1.0), max_lr=[0.5, 0.2], min_lr=[0.1, 0.3], cycle_steps=4)


@pytest.mark.parametrize(
    ("epochs", "marks"),
    [
        (200, (60, 120, 160)),
        (40, (12, 24, 32)),
        (10, (3, 6, 8)),
        (7, (2, 4, 6)),  # 2.1, 4.2 and 5.6 epochs
        (5, (2, 3, 4)),  # 1.5 epochs: halves go up
        (2, (1, 1, 2)),  # 0.6, 1.2, 1.6
        (1, (1, 1, 1)),  # the one epoch is at the base rate
    ],
)
def test_the_marks_of_the_stepwise_schedule_scale_with_the_budget(
    epochs: int, marks: tuple[int, ...]
) -> None:
    assert mark_epochs(epochs) == marks
    optimizer, per_epoch = make_optimizer(0.05, 0.5), 2
    schedule = StepsLR(optimizer, epochs=epochs, steps_per_epoch=per_epoch)
    for step in range(epochs * per_epoch):
        divisions = sum(step // per_epoch >= mark for mark in marks)
        expected = [0.05 / 5**divisions, 0.5 / 5**divisions]
        assert rates_of(optimizer) == pytest.approx(expected, rel=1e-12, abs=0)
        assert not schedule.at_minimum
        advance(optimizer, schedule, 1)


def test_a_mark_at_half_an_epoch_goes_up_whatever_its_product_rounds_to() -> None:
    assert 0.29 * 50 < 14.5
    assert mark_epochs(50, (0.29, 0.31)) == (15, 16)


def test_steps_lr_is_pytorchs_multi_step_lr() -> None:
    ours, theirs = make_optimizer(0.7, 0.3), make_optimizer(0.7, 0.3)
    schedule = StepsLR(ours, epochs=20, steps_per_epoch=3, marks=(0.25, 0.7), factor=0.5)
    oracle = MultiStepLR(theirs, milestones=[15, 42], gamma=0.5)
    for _ in range(70):
        assert rates_of(ours) == pytest.approx(rates_of(theirs), rel=1e-12, abs=0)
        advance(ours, schedule, 1)
        theirs.step()
        oracle.step()


def test_steps_lr_without_marks_is_constant() -> None:
    optimizer = make_optimizer(0.7)
    schedule = StepsLR(optimizer, epochs=2, steps_per_epoch=3, marks=())
    advance(optimizer, schedule, 6)
    assert rates_of(optimizer) == [0.7]


def test_the_rate_after_the_budget_is_the_last_one() -> None:
    assert steps_factor(99, 10) == pytest.approx(0.008, rel=1e-12)
    assert linear_factor(99, 10, final_factor=0.25) == 0.25


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_decay_lr_falls_by_equal_parts_in_each_group(final: float) -> None:
    optimizer, steps = make_optimizer(0.05, 0.5), 4 * 3
    schedule = LinearDecayLR(optimizer, epochs=4, steps_per_epoch=3, final_factor=final)
    for step in range(steps + 1):
        factor = (steps - step) / steps + final * step / steps
        assert rates_of(optimizer) == pytest.approx([0.05 * factor, 0.5 * factor], rel=0, abs=1e-15)
        advance(optimizer, schedule, 1)
    assert rates_of(optimizer) == pytest.approx([0.05 * final, 0.5 * final], rel=0, abs=1e-15)


def test_linear_decay_lr_is_pytorchs_linear_lr() -> None:
    ours, theirs = make_optimizer(0.7), make_optimizer(0.7)
    schedule = LinearDecayLR(ours, epochs=5, steps_per_epoch=7, final_factor=0.2)
    oracle = LinearLR(theirs, start_factor=1.0, end_factor=0.2, total_iters=35)
    for _ in range(40):
        assert rates_of(ours) == pytest.approx(rates_of(theirs), rel=1e-12, abs=0)
        advance(ours, schedule, 1)
        theirs.step()
        oracle.step()


def build_schedule(kind: type[ClosedFormLR]) -> tuple[SGD, ClosedFormLR]:
    optimizer = make_optimizer(1.0, 2.0)
    return optimizer, kind(optimizer, epochs=10, steps_per_epoch=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [StepsLR, LinearDecayLR])
@pytest.mark.parametrize("done", [0, 8, 9, 17, 24, 29])
def test_a_stepwise_or_linear_schedule_goes_on_exactly_where_it_was(
    kind: type[ClosedFormLR], done: int
) -> None:
    optimizer, schedule = build_schedule(kind)
    advance(optimizer, schedule, done)
    state = json.loads(json.dumps(schedule.state_dict()))
    resumed_optimizer, resumed = build_schedule(kind)
    resumed.load_state_dict(state)
    for _ in range(12):
        assert rates_of(resumed_optimizer) == rates_of(optimizer)
        assert resumed.get_last_lr() == schedule.get_last_lr() == rates_of(optimizer)
        advance(optimizer, schedule, 1)
        advance(resumed_optimizer, resumed, 1)


@pytest.mark.parametrize("kind", [StepsLR, LinearDecayLR])
def test_a_stepwise_or_linear_schedule_sets_tensor_rates_in_place(kind: type[ClosedFormLR]) -> None:
    rate = torch.tensor(2.0, dtype=torch.float64)
    optimizer = make_optimizer(rate)
    schedule = kind(optimizer, epochs=10, steps_per_epoch=1)  # type: ignore[call-arg]
    advance(optimizer, schedule, 6)
    assert optimizer.param_groups[0]["lr"] is rate
    expected = {StepsLR: 2 * 0.04, LinearDecayLR: 2 * 0.4}[kind]
    assert float(rate) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EndpointLR, {"epochs": 0}, "epochs must be >= 1, got 0$"),
        (EndpointLR, {"steps_per_epoch": 0}, "steps_per_epoch must be >= 1, got 0$"),
        (EndpointLR, {"epochs": 2.5}, "epochs must be a whole number, got 2.5$"),
        (EndpointLR, {"epochs": 2.0}, "epochs must be a whole number, got 2.0$"),
        (EndpointLR, {"epochs": math.inf}, "epochs must be a whole number, got inf$"),
        (StepsLR, {"epochs": math.nan}, "epochs must be a whole number, got nan$"),
        (StepsLR, {"epochs": 0}, "epochs must be >= 1, got 0$"),
        (StepsLR, {"steps_per_epoch": 0}, "steps_per_epoch must be >= 1, got 0$"),
        (StepsLR, {"marks": (0.6, 0.3)}, r"marks must rise within \(0, 1\), got \(0.6, 0.3\)"),
        (StepsLR, {"marks": (0.3, 0.3)}, r"marks must rise within \(0, 1\), got \(0.3, 0.3\)"),
        (StepsLR, {"marks": (0, 0.3)}, r"marks must rise within \(0, 1\), got \(0, 0.3\)"),
        (StepsLR, {"marks": (60, 120)}, r"marks must rise within \(0, 1\), got \(60, 120\)"),
        (StepsLR, {"marks": (float("nan"),)}, r"marks must rise within \(0, 1\), got \(nan,\)"),
        (StepsLR, {"factor": 5.0}, r"factor must be in \(0, 1\), got 5.0"),
        (StepsLR, {"factor": 0.0}, r"factor must be in \(0, 1\), got 0.0"),
        (StepsLR, {"factor": float("nan")}, r"factor must be in \(0, 1\), got nan"),
        (LinearDecayLR, {"epochs": -1}, "epochs must be >= 1, got -1$"),
        (LinearDecayLR, {"steps_per_epoch": 0}, "steps_per_epoch must be >= 1, got 0$"),
        (LinearDecayLR, {"final_factor": 1.5}, r"final_factor must be in \[0, 1\], got 1.5"),
        (LinearDecayLR, {"final_factor": -0.1}, r"final_factor must be in \[0, 1\], got -0.1"),
    ],
)
def test_options_that_make_no_schedule_are_refused(
    kind: type[ClosedFormLR], options: dict[str, Any], message: str
) -> None:
    optimizer = make_optimizer(1.0)
    with pytest.raises(UserError, match=f"^{message}"):
        kind(optimizer, **({"epochs": 10, "steps_per_epoch": 3} | options))
    assert rates_of(optimizer) == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"final": 1.5}, r"final must be in \[0, 1\], got 1.5"),
        ({"hold": 1.0}, r"hold must be in \[0, 1\), got 1.0"),
        ({"hold": -0.1}, r"hold must be in \[0, 1\), got -0.1"),
    ],
)
def test_a_descent_of_other_parts_is_refused(options: dict[str, Any], message: str) -> None:
    optimizer = make_optimizer(1.0)
    with pytest.raises(UserError, match=f"^{message}$"):
        LinearTailLR(optimizer, **{"steps": 10, **options})
    assert rates_of(optimizer) == [1.0]


def test_a_held_descent_falls_in_the_rest_of_its_steps() -> None:
    optimizer = make_optimizer(0.8)
    schedule, rates = LinearTailLR(optimizer, steps=8, final=0.5, hold=0.5), []
    for _ in range(10):
        rates.append(rates_of(optimizer)[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.8] * 5 + [0.7, 0.6, 0.5, 0.4, 0.4], abs=1e-15)
    assert schedule.descent == (8, 10)
