"""From a run's configuration and log to the curves of its figure."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fge.config import FGEConfig, MethodConfig
from fge.report.training import (
    TrainingCurves,
    learning_rates,
    sharpness_curves,
    training_curves,
)
from fge.train import fge_paper_stages, fge_stages, split_stages, sse_stages

CONFIG = FGEConfig(
    epochs=13, start_epoch=7, cycle_epochs=4, lr=0.2, max_lr=0.1, min_lr=0.01, single=True
)
POINTS = 50
"""Of the learning rate, per epoch."""


def snapshot(member: int, **figures: float) -> dict[str, Any]:
    return {"event": "snapshot", "stage": "fge", "member": member, **figures}


RECORDS: list[dict[str, Any]] = [
    {"event": "epoch", "stage": "start", "epoch": 0, "train_loss": 1.0},
    snapshot(1, epoch=9, val_error=12.0, ensemble_val_error=12.5),
    {"event": "epoch", "stage": "fge", "epoch": 9, "train_loss": 0.5},
    snapshot(2, epoch=13, val_error=11.0, ensemble_val_error=10.0, distance=3.5),
    {
        "event": "snapshot",
        "stage": "single",
        "member": 1,
        "epoch": 13,
        "val_error": 9.0,
        "ensemble_val_error": 9.5,
    },
]


def curves_of(config: FGEConfig, records: list[dict[str, Any]]) -> TrainingCurves:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=config.base_lr)
    return training_curves(fge_paper_stages(config), optimizer, records)


def scheduled(config: FGEConfig) -> list[float]:
    """Return the rates of the run's own schedules, with as many steps to an epoch as points."""
    rates = []
    for stage in fge_paper_stages(config)[:2]:
        model = nn.Linear(1, 1)
        schedule = stage.schedule(torch.optim.SGD(model.parameters(), lr=config.base_lr), POINTS)
        for _ in range((stage.last_epoch - stage.first_epoch) * POINTS):
            rates.append(float(schedule.get_last_lr()[0]))
            schedule.optimizer.step()
            schedule.step()
    return [*rates, float(schedule.get_last_lr()[0])]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        FGEConfig(epochs=10, start_epoch=0, cycle_epochs=2, max_lr=0.3, min_lr=0.2),
        FGEConfig(epochs=10, start_epoch=9, cycle_epochs=2, max_lr=0.3, min_lr=0.3),
        FGEConfig(epochs=10, start_epoch=1, cycle_epochs=4),  # ends before the budget does
    ],
)
def test_the_rate_is_that_of_the_runs_schedules(config: FGEConfig) -> None:
    curves = curves_of(config, [])
    assert curves.rates == pytest.approx(scheduled(config), rel=1e-12, abs=0)
    assert curves.rate_epochs[0] == 0
    assert curves.rate_epochs[-1] == config.last_cycle_epoch
    steps = {round(b - a, 12) for a, b in itertools.pairwise(curves.rate_epochs)}
    assert steps == {1 / POINTS}


def test_the_rate_at_the_corners_is_in_closed_form() -> None:
    curves = curves_of(CONFIG, [])
    rate = dict(zip(curves.rate_epochs, curves.rates, strict=True))
    assert rate[0] == rate[5.98] == 0.2
    # In the seventh epoch of 13, alpha = 7/13 lies above one half.
    assert rate[6] == pytest.approx(0.2 * (1 - (7 / 13 - 0.5) / 0.4 * 0.99), rel=1e-12)
    assert rate[7] == rate[11] == pytest.approx(0.1, rel=1e-12)
    assert rate[9] == rate[13] == pytest.approx(0.01, rel=1e-12)
    assert rate[8] == rate[10] == pytest.approx(0.055, rel=1e-12)


def test_the_figures_of_the_snapshots_come_from_the_log() -> None:
    curves = curves_of(CONFIG, RECORDS)
    assert curves.epochs == [9, 13]
    assert curves.snapshot_error == [12.0, 11.0]
    assert curves.ensemble_error == [12.5, 10.0]
    assert curves.distances == [3.5]
    assert curves.single == (13, 9.0)


def test_without_validation_there_are_no_errors() -> None:
    records = [
        {k: v for k, v in record.items() if not k.endswith("val_error")} for record in RECORDS
    ]
    curves = curves_of(CONFIG, records)
    assert curves.epochs == [9, 13]
    assert curves.snapshot_error == []
    assert curves.ensemble_error == []
    assert curves.single is None


def test_without_a_single_network_there_is_none() -> None:
    assert curves_of(CONFIG, RECORDS[:-1]).single is None


def optimizer(lr: float = 0.2) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)


def test_rates_of_stages_are_those_of_their_schedules() -> None:
    epochs, rates = learning_rates(fge_paper_stages(CONFIG)[:2], optimizer())
    curves = curves_of(CONFIG, [])
    assert epochs == pytest.approx(curves.rate_epochs, rel=1e-12)
    assert rates == pytest.approx(curves.rates, rel=1e-12)


def test_rates_of_a_stage_that_goes_on_begin_where_it_does() -> None:
    epochs, rates = learning_rates(fge_paper_stages(CONFIG)[2:], optimizer())
    assert (epochs[0], epochs[-1]) == (7, 13)
    # Epoch 7 of 13 lies at alpha = 8/13, the last ones at 1 % of the base rate.
    assert rates[0] == pytest.approx(0.2 * (1 - (8 / 13 - 0.5) / 0.4 * 0.99), rel=1e-12)
    assert rates[-1] == pytest.approx(0.002, rel=1e-12)


def test_a_cycle_that_would_begin_at_the_end_is_not_shown() -> None:
    stages = sse_stages(MethodConfig(epochs=4, sse_cycles=2, average=0.0))
    epochs, rates = learning_rates(stages, optimizer())
    rate = dict(zip(epochs, rates, strict=True))
    assert rate[0] == rate[2] == 0.2
    assert rate[1] == rate[3] == pytest.approx(0.1, rel=1e-12)
    assert epochs[-1] == 3.98
    assert rates[-1] < 1e-3


def measured(
    stage: str, epoch: int, eigenvalue: float, *, snapshot: bool = False
) -> dict[str, Any]:
    facts = {"stage": stage, "epoch": epoch, "eigenvalue": eigenvalue, "snapshot": snapshot}
    return {"event": "sharpness", **facts}


def test_sharpness_is_that_of_the_log_beside_the_threshold_of_each_rate() -> None:
    records = [
        measured("start", 5, 10.0),
        *RECORDS,
        measured("fge", 9, 20.0, snapshot=True),
        measured("single", 10, 40.0),
        measured("single", 13, 50.0, snapshot=True),
    ]
    curves = sharpness_curves(fge_paper_stages(CONFIG), optimizer(), records, momentum=0.9)
    assert (curves.epochs, curves.eigenvalues) == ([5, 9], [10.0, 20.0])
    assert curves.snapshots == [9]
    assert curves.single == ([10, 13], [40.0, 50.0])
    assert curves.rate_epochs[-1] == 13
    threshold = dict(zip(curves.rate_epochs, curves.thresholds, strict=True))
    assert threshold[0] == pytest.approx(3.8 / 0.2, rel=1e-12)
    assert threshold[9] == threshold[13] == pytest.approx(3.8 / 0.01, rel=1e-12)


def test_where_the_rate_is_zero_there_is_no_threshold() -> None:
    config = FGEConfig(epochs=2, start_epoch=0, cycle_epochs=2, max_lr=0.1, min_lr=0.0)
    curves = sharpness_curves(fge_paper_stages(config), optimizer(), [], momentum=0.9)
    nowhere = [
        e for e, x in zip(curves.rate_epochs, curves.thresholds, strict=True) if math.isnan(x)
    ]
    assert nowhere == [1]


def test_without_a_momentum_there_are_no_thresholds() -> None:
    curves = sharpness_curves(fge_paper_stages(CONFIG), optimizer(), RECORDS, momentum=None)
    assert curves.thresholds == []
    assert len(curves.rates) == len(curves.rate_epochs) > 0


def test_a_single_network_alone_is_what_the_curves_are_of() -> None:
    stages = [stage for stage in fge_paper_stages(CONFIG) if stage.name == "single"]
    records = [measured("single", 13, 50.0, snapshot=True)]
    curves = sharpness_curves(stages, optimizer(), records, momentum=0.9)
    assert (curves.epochs, curves.single) == ([13], ([], []))


def test_networks_that_are_trained_beside_are_not_in_the_rates() -> None:
    config = replace(CONFIG, average=None)
    stages = fge_stages(config)
    assert [stage.name for stage in stages] == ["start", "fge", "single", "average"]
    records = [
        {"event": "snapshot", "stage": name, "member": 1, "epoch": 13, "val_error": error}
        for name, error in (("fge", 8.0), ("single", 9.0), ("average", 7.0))
    ]
    curves = training_curves(stages, optimizer(), records)
    assert curves.rate_epochs[-1] == config.last_cycle_epoch
    assert (curves.snapshot_error, curves.single) == ([8.0], (13, 9.0))


def test_members_of_several_stages_are_one_curve() -> None:
    stages = split_stages(MethodConfig(epochs=4, split=2))
    records = [
        {"event": "snapshot", "stage": "split", "member": k, "epoch": 2 * k, "val_error": 10.0 - k}
        for k in (1, 2)
    ]
    curves = training_curves(stages, optimizer(), records)
    assert (curves.epochs, curves.snapshot_error) == ([2, 4], [9.0, 8.0])
