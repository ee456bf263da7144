"""What a run logged, put in the form that the plots take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from fge.landscape.sharpness import stability_threshold
from fge.report.plots import TrainingCurves
from fge.report.sharpness_plots import SharpnessCurves
from fge.train.recipes import Stage

_POINTS_PER_EPOCH = 50


def training_curves(
    stages: Sequence[Stage], optimizer: Optimizer, records: Sequence[dict[str, Any]]
) -> TrainingCurves:
    """Return the curves of a training from its stages and its log records.

    Args:
        stages: of the method; one called ``single`` beside others is another network's.
        optimizer: as :func:`learning_rates` takes it.
        records: of the log.
    """
    own = _own(stages)
    kept = [r for r in records if r["event"] == "snapshot"]
    snapshots = [r for r in kept if r["stage"] == own[-1].name]
    single = [r for r in kept if r["stage"] == "single" != own[-1].name]
    epochs, rates = learning_rates(own, optimizer)
    return TrainingCurves(
        rate_epochs=epochs,
        rates=rates,
        epochs=[r["epoch"] for r in snapshots],
        snapshot_error=[r["val_error"] for r in snapshots if "val_error" in r],
        ensemble_error=[r["ensemble_val_error"] for r in snapshots if "ensemble_val_error" in r],
        distances=[r["distance"] for r in snapshots if "distance" in r],
        single=next(((r["epoch"], r["val_error"]) for r in single if "val_error" in r), None),
    )


def _own(stages: Sequence[Stage]) -> list[Stage]:
    return [stage for stage in stages if stage.name != "single"] or list(stages)


def learning_rates(
    stages: Sequence[Stage], optimizer: Optimizer
) -> tuple[list[float], list[float]]:
    """Return epochs and, at each of them, the learning rate of stages that follow each other.

    Args:
        stages: in order.
        optimizer: of the kind that they are for; its learning rates are changed.
    """
    base = [group["lr"] for group in optimizer.param_groups]
    epochs: list[float] = []
    rates: list[float] = []
    for stage in stages:
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr
            group.pop("initial_lr", None)
        schedule = stage.schedule(optimizer, _POINTS_PER_EPOCH)
        first, count = schedule.last_epoch, stage.last_epoch - stage.first_epoch
        for point in range(count * _POINTS_PER_EPOCH + (stage is stages[-1])):
            schedule.load_state_dict({"last_epoch": first + point})
            epochs.append(stage.first_epoch + point / _POINTS_PER_EPOCH)
            rates.append(float(schedule.get_last_lr()[0]))
    if len(rates) > 1 and rates[-1] > rates[-2]:  # a cycle that would begin there
        del epochs[-1], rates[-1]
    return epochs, rates


def sharpness_curves(
    stages: Sequence[Stage],
    optimizer: Optimizer,
    records: Sequence[dict[str, Any]],
    *,
    momentum: float | None,
) -> SharpnessCurves:
    """Return the sharpness of a training from its stages and its log records.

    Args:
        stages: of the method; one called ``single`` beside others is another network's.
        optimizer: as :func:`learning_rates` takes it.
        records: of the log.
        momentum: of the optimizer; None where there is no line 2 (1 + momentum) / lr for it.
    """
    own = _own(stages)
    names = {stage.name for stage in own}
    found = [r for r in records if r["event"] == "sharpness"]
    main, others = ([r for r in found if (r["stage"] in names) is mine] for mine in (True, False))
    epochs, rates = learning_rates(own, optimizer)
    thresholds = [] if momentum is None else [_threshold(lr, momentum) for lr in rates]
    return SharpnessCurves(
        epochs=[r["epoch"] for r in main],
        eigenvalues=[r["eigenvalue"] for r in main],
        snapshots=[r["epoch"] for r in main if r["snapshot"]],
        rate_epochs=epochs,
        rates=rates,
        thresholds=thresholds,
        single=([r["epoch"] for r in others], [r["eigenvalue"] for r in others]),
    )


def _threshold(lr: float, momentum: float) -> float:
    return stability_threshold(lr, momentum) if lr > 0 else math.nan
