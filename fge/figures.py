"""What a run logged, put in the form that the plots take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fge.cycle_config import FGEConfig
from fge.plots import TrainingCurves
from fge.schedule import endpoint_factor, triangular

_POINTS_PER_EPOCH = 50


def training_curves(config: FGEConfig, records: Sequence[dict[str, Any]]) -> TrainingCurves:
    """Return the curves of an FGE run from its configuration and its log records."""
    snapshots = [r for r in records if r["event"] == "snapshot" and r["stage"] == "fge"]
    single = [r for r in records if r["event"] == "snapshot" and r["stage"] == "single"]
    last = config.last_cycle_epoch
    points = range(last * _POINTS_PER_EPOCH + 1)
    return TrainingCurves(
        rate_epochs=[point / _POINTS_PER_EPOCH for point in points],
        rates=[_rate(config, point) for point in points],
        epochs=[r["epoch"] for r in snapshots],
        snapshot_error=[r["val_error"] for r in snapshots if "val_error" in r],
        ensemble_error=[r["ensemble_val_error"] for r in snapshots if "ensemble_val_error" in r],
        distances=[r["distance"] for r in snapshots if "distance" in r],
        single=next(((r["epoch"], r["val_error"]) for r in single if "val_error" in r), None),
    )


def _rate(config: FGEConfig, point: int) -> float:
    """Return the learning rate at a point of the run, ``_POINTS_PER_EPOCH`` to an epoch."""
    start = config.first_cycle_epoch * _POINTS_PER_EPOCH
    if point < start:
        return config.base_lr * endpoint_factor(point // _POINTS_PER_EPOCH + 1, config.epochs)
    return triangular(
        point - start,
        max_lr=config.cycle_lrs.max_lr,
        min_lr=config.cycle_lrs.min_lr,
        cycle_steps=config.cycle_length * _POINTS_PER_EPOCH,
    )
