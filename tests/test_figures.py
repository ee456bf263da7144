"""From a run's configuration and log to the curves of its figure."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from fge.cycle_config import FGEConfig
from fge.figures import training_curves
from fge.methods import fge_stages

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


def scheduled(config: FGEConfig) -> list[float]:
    """Return the rates of the run's own schedules, with as many steps to an epoch as points."""
    rates = []
    for stage in fge_stages(config)[:2]:
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
    curves = training_curves(config, [])
    assert curves.rates == pytest.approx(scheduled(config), rel=1e-12, abs=0)
    assert curves.rate_epochs[0] == 0
    assert curves.rate_epochs[-1] == config.last_cycle_epoch
    steps = {round(b - a, 12) for a, b in itertools.pairwise(curves.rate_epochs)}
    assert steps == {1 / POINTS}


def test_the_rate_at_the_corners_is_in_closed_form() -> None:
    curves = training_curves(CONFIG, [])
    rate = dict(zip(curves.rate_epochs, curves.rates, strict=True))
    assert rate[0] == rate[5.98] == 0.2
    # In the seventh epoch of 13, alpha = 7/13 lies above one half.
    assert rate[6] == pytest.approx(0.2 * (1 - (7 / 13 - 0.5) / 0.4 * 0.99), rel=1e-12)
    assert rate[7] == rate[11] == pytest.approx(0.1, rel=1e-12)
    assert rate[9] == rate[13] == pytest.approx(0.01, rel=1e-12)
    assert rate[8] == rate[10] == pytest.approx(0.055, rel=1e-12)


def test_the_figures_of_the_snapshots_come_from_the_log() -> None:
    curves = training_curves(CONFIG, RECORDS)
    assert curves.epochs == [9, 13]
    assert curves.snapshot_error == [12.0, 11.0]
    assert curves.ensemble_error == [12.5, 10.0]
    assert curves.distances == [3.5]
    assert curves.single == (13, 9.0)


def test_without_validation_there_are_no_errors() -> None:
    records = [
        {k: v for k, v in record.items() if not k.endswith("val_error")} for record in RECORDS
    ]
    curves = training_curves(CONFIG, records)
    assert curves.epochs == [9, 13]
    assert curves.snapshot_error == []
    assert curves.ensemble_error == []
    assert curves.single is None


def test_without_a_single_network_there_is_none() -> None:
    assert training_curves(CONFIG, RECORDS[:-1]).single is None
