"""The course of a training: learning rate, errors, distances and sharpness over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fge.config import FGE, SINGLE
from fge.errors import UserError
from fge.files import AGAIN
from fge.landscape import stability_threshold
from fge.report.builder import ReportBuilder
from fge.report.charts import Chart, Panel, Series, limits_of
from fge.report.page import Table
from fge.report.palette import INK
from fge.report.sharpness import THRESHOLD_NOTE, curvature_units, threshold_series
from fge.runs import StagedTraining
from fge.tasks import ERROR, MANY_CLASSES, Measure, Task
from fge.train import Recipe, Stage, make_optimizer

_POINTS_PER_EPOCH = 50
_EPOCHS = "epochs"
TRAINING_CAPTION = "Learning rate, validation error and distance over epochs"
MOST_ROWS = 40
SHARPNESS_CAPTION = "Top Hessian eigenvalue of the training loss over epochs"
_NOTE = (
    "Top eigenvalue of the Hessian of the mean loss over {examples} training {example}s without "
    "augmentation or weight decay, with batch norm in evaluation mode, in {units}. "
    "The residual bounds the distance to an eigenvalue. lr is the learning rate that a snapshot at "
    "that epoch belongs to. {line} {count} measurements used {products} Hessian-vector products, "
    "at an estimated cost of {gradients:.0f} gradients over those {example}s: {images} {example}s "
    "forward and backward, which do not count as training epochs."
)


@dataclass(frozen=True)
class TrainingCurves:
    """The course of a training, over completed epochs.

    ``rate_epochs`` and ``rates``: the learning rate; ``epochs``: of each snapshot;
    ``snapshot_error`` and ``ensemble_error``: on validation, in the ``measure`` of the task, empty
    without any;
    ``distances``: |w_i - w_(i-1)| from the second snapshot on; ``single``: epoch and validation
    error of the single network.
    """

    rate_epochs: Sequence[float]
    rates: Sequence[float]
    epochs: Sequence[float]
    snapshot_error: Sequence[float]
    ensemble_error: Sequence[float]
    distances: Sequence[float]
    single: tuple[float, float] | None = None
    measure: Measure = ERROR


@dataclass(frozen=True)
class SharpnessCurves:
    """The top Hessian eigenvalue during a training, over completed epochs.

    ``epochs`` and ``eigenvalues``: each measurement; ``snapshots``: epochs at which one was kept;
    ``rate_epochs``, ``rates`` and ``thresholds``: the learning rate and 2 (1 + momentum) / lr, NaN
    where the rate is 0, empty if the optimizer has no such line; ``single``: epochs and
    eigenvalues of the single network, empty without one.
    """

    epochs: Sequence[float]
    eigenvalues: Sequence[float]
    snapshots: Sequence[float]
    rate_epochs: Sequence[float]
    rates: Sequence[float]
    thresholds: Sequence[float]
    single: tuple[Sequence[float], Sequence[float]] = ((), ())


def training_chart(curves: TrainingCurves) -> Chart:
    """Return learning rate, validation errors and snapshot distances, one above the other.

    The figure of arXiv 1802.10026 that shows how FGE runs: the rate with its minima, what each
    snapshot and the ensemble so far make of them, and how far the weights travel in between.
    """
    errors = []
    if curves.snapshot_error:
        errors = [
            Series("snapshot", curves.epochs, curves.snapshot_error, dash="dash", marker=True),
            Series("ensemble so far", curves.epochs, curves.ensemble_error, marker=True, like=FGE),
        ]
        if curves.single is not None:
            errors.append(_single([curves.single[0]], [curves.single[1]], alone=True))
    steps = Series(
        "distance", curves.epochs[1:], curves.distances, marker=True, like="snapshot", legend=False
    )
    panels = [
        _rate_panel(curves.rate_epochs, curves.rates),
        Panel(f"validation {curves.measure.axis}", errors, note="no validation data"),
        Panel("distance to\nprevious snapshot", [steps], zero=True),
    ]
    return Chart(_EPOCHS, panels, marks=curves.epochs, whole=True, height=720)


def _rate_panel(epochs: Sequence[float], rates: Sequence[float], share: float = 1.0) -> Panel:
    rate = Series("learning rate", epochs, rates, like=INK, legend=False)
    return Panel("learning rate", [rate], zero=True, share=share)


def _single(x: Sequence[float], y: Sequence[float], *, alone: bool = False) -> Series:
    name = "single network"
    return Series(name, x, y, dash=None if alone else "solid", marker=True, like=SINGLE)


def dynamics_chart(curves: SharpnessCurves, *, task: Task = MANY_CLASSES) -> Chart:
    """Return the top eigenvalue during a training with 2 (1 + momentum) / lr, the rate below it.

    Args:
        curves: of the training.
        task: whose loss it is.

    Raises:
        UserError: nothing was measured.
    """
    if not curves.epochs:
        raise UserError("a chart of the sharpness needs a measurement, got none")
    series = []
    if curves.thresholds:
        series.append(threshold_series(curves.rate_epochs, curves.thresholds))
    series.append(Series("top eigenvalue", curves.epochs, curves.eigenvalues, marker=True))
    value = dict(zip(curves.epochs, curves.eigenvalues, strict=True))
    kept = [value[epoch] for epoch in curves.snapshots]
    series.append(
        Series("at a snapshot", curves.snapshots, kept, dash=None, marker=True, like="snapshot")
    )
    if curves.single[0]:
        series.append(_single(*curves.single))
    shown, limits = [*curves.eigenvalues, *curves.single[1]], None
    log = min(shown) > 0
    if log:
        # As the rate falls to 0 the line goes to infinity; it may leave the panel at the top.
        lines = [x for x in curves.thresholds if math.isfinite(x)]
        limits = min(shown + lines) / 1.5, 3 * max(shown + lines[:1])
    label = f"top eigenvalue of the Hessian\n({curvature_units(task)})"
    panels = [
        Panel(label, series, log=log, limits=limits or limits_of(shown), share=3),
        _rate_panel(curves.rate_epochs, curves.rates),
    ]
    return Chart(_EPOCHS, panels, marks=curves.snapshots, whole=True, height=650)


def training_curves(
    stages: Sequence[Stage],
    optimizer: Optimizer,
    records: Sequence[dict[str, Any]],
    measure: Measure = ERROR,
) -> TrainingCurves:
    """Return the curves of a training from its stages and its log records.

    Args:
        stages: of the method; if there are several, those called ``single`` and ``average`` are of
            other networks.
        optimizer: as :func:`learning_rates` takes it.
        records: of the log.
        measure: of the task.
    """
    own, key = _own(stages), f"val_{measure.key}"
    kept = [r for r in records if r["event"] == "snapshot"]
    snapshots = [r for r in kept if r["stage"] == own[-1].kind]
    single = [r for r in kept if r["stage"] == "single" != own[-1].kind]
    epochs, rates = learning_rates(own, optimizer)
    return TrainingCurves(
        rate_epochs=epochs,
        rates=rates,
        epochs=[r["epoch"] for r in snapshots],
        snapshot_error=_column(snapshots, key),
        ensemble_error=_column(snapshots, f"ensemble_{key}"),
        distances=_column(snapshots[1:], "distance"),
        single=next(((r["epoch"], r[key]) for r in single if key in r), None),
        measure=measure,
    )


def _column(snapshots: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return a figure of snapshots that all have, or none."""
    values = [record[key] for record in snapshots if key in record]
    if len(values) not in (0, len(snapshots)):
        missing = len(snapshots) - len(values)
        raise UserError(f"log.jsonl is damaged: {missing} snapshots have no {key!r}; {AGAIN}")
    return values


_BESIDE = ("single", "average")
"""Stages of networks that a run may train beside its own."""


def _own(stages: Sequence[Stage]) -> list[Stage]:
    return [stage for stage in stages if stage.name not in _BESIDE] or list(stages)


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
        stages: of the method; if there are several, one called ``single`` is another network's.
        optimizer: as :func:`learning_rates` takes it.
        records: of the log.
        momentum: of the optimizer; None if there is no line 2 (1 + momentum) / lr for it.
    """
    own = _own(stages)
    names = {stage.name for stage in own}
    found = [r for r in records if r["event"] == "sharpness"]
    main = [r for r in found if r["stage"] in names]
    others = [r for r in found if r["stage"] == "single" and "single" not in names]
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


def rate_holder(recipe: Recipe) -> Optimizer:
    """Return an optimizer whose rates schedules may set, so that the trained one is unchanged."""
    return make_optimizer(recipe, [nn.Parameter(torch.zeros(1))], examples=1)


def add_training(report: ReportBuilder, training: StagedTraining, recipe: Recipe) -> None:
    """Add the course of a training to a report.

    Args:
        report: gets the chart ``training.png``.
        training: finished.
        recipe: of it.
    """
    measure, records = training.task.measure, training.folder.records()
    curves = training_curves(training.stages, rate_holder(recipe), records, measure)
    caption = TRAINING_CAPTION.replace("error", measure.word)
    report.chart("training.png", training_chart(curves), caption)


@dataclass(frozen=True)
class Dynamics:
    """The section of a report on the sharpness during a training.

    Attributes:
        curves: for the chart.
        table: of the measurements: those at snapshots, and at most ``MOST_ROWS`` others.
        verdict: a sentence.
        content: for ``report.json``.
        task: whose loss it is.
    """

    curves: SharpnessCurves
    table: Table
    verdict: str
    content: dict[str, Any]
    task: Task = MANY_CLASSES

    def add_to(self, report: ReportBuilder) -> None:
        """Add chart, table, sentence and facts to a report."""
        line = ", with 2(1 + momentum)/learning rate" if self.curves.thresholds else ""
        chart = dynamics_chart(self.curves, task=self.task)
        report.chart("sharpness.png", chart, SHARPNESS_CAPTION + line)
        report.table(self.table)
        report.say(self.verdict)
        report.facts(sharpness=self.content)


def line_momentum(recipe: Recipe) -> float | None:
    """Return the momentum in the line 2 (1 + momentum) / lr of a recipe; None without such a line.

    The line holds for SGD, with or without noise: the beta 1 of Adam is no momentum in this
    sense, and its steps are rescaled.
    """
    return None if recipe.optimizer in ("adam", "adamw") else recipe.momentum


def no_line_of(optimizer: str) -> str:
    """Say why the threshold is missing."""
    return f"There is no threshold 2(1+m)/lr: it holds for SGD, and the optimizer is {optimizer}."


def find_dynamics(
    training: StagedTraining, recipe: Recipe, example: str = "image"
) -> Dynamics | None:
    """Return the sharpness during a training, or None if it was not measured.

    Args:
        training: by the recipe.
        recipe: of it.
        example: what the network is trained on, image or row.
    """
    records = [r for r in training.folder.records() if r["event"] == "sharpness"]
    if not records:
        return None
    momentum = line_momentum(recipe)
    curves = sharpness_curves(training.stages, rate_holder(recipe), records, momentum=momentum)
    costs = {key: sum(r[key] for r in records) for key in ("products", "gradients")}
    examples = records[0]["examples"]
    content = {
        "optimizer": recipe.optimizer,
        "momentum": momentum,
        "examples": examples,
        **costs,
        "images_passed": round(examples * costs["gradients"]),
        "measurements": records,
    }
    table = dynamics_table(content, task=training.task, example=example)
    return Dynamics(curves, table, dynamics_verdict(records, momentum), content, training.task)


def dynamics_table(
    content: dict[str, Any], *, task: Task = MANY_CLASSES, example: str = "image"
) -> Table:
    """Return the table of measurements.

    Args:
        content: as in :class:`Dynamics`.
        task: whose loss it is.
        example: what the loss is over, image or row.
    """
    records, momentum = content["measurements"], content["momentum"]
    headings = ["epoch", "stage", "lr", "top eigenvalue", "residual"]
    headings += [*(["2(1+m)/lr"] if momentum is not None else []), "products", "gradients"]
    shown = _thinned(records)
    rows = [_row(record, momentum) for record in shown]
    note = _NOTE.format(
        line=THRESHOLD_NOTE if momentum is not None else no_line_of(content["optimizer"]),
        examples=content["examples"],
        example=example,
        units=curvature_units(task),
        count=len(records),
        products=content["products"],
        gradients=content["gradients"],
        images=f"{content['images_passed']:,}",
    )
    short = [f"{r['stage']} {r['epoch']}" for r in records if not r["converged"]]
    if short:
        note += f" The residual is above 1 % of the eigenvalue after {', '.join(short)}."
    if len(shown) < len(records):
        note += f" The table shows {len(shown)} of {len(records)}; `log.jsonl` holds all."
    return Table("Sharpness through the training", headings, rows, note)


def _row(record: Mapping[str, Any], momentum: float | None) -> list[str]:
    lr, stage = record["lr"], record["stage"]
    line = []
    if momentum is not None:
        line = [f"{stability_threshold(lr, momentum):.4g}" if lr > 0 else "infinite"]
    return [
        str(record["epoch"]),
        f"{stage}, snapshot" if record["snapshot"] else stage,
        f"{lr:g}",
        f"{record['eigenvalue']:.4g}",
        f"{record['residual']:.1g}",
        *line,
        str(record["products"]),
        f"{record['gradients']:.0f}",
    ]


def dynamics_verdict(records: Sequence[dict[str, Any]], momentum: float | None) -> str:
    """Say how the top eigenvalue changed, and how often it was above 2 (1 + momentum) / lr."""
    own = [r for r in records if r["stage"] not in _BESIDE] or records
    first, last = own[0], own[-1]
    text = (
        f"The top Hessian eigenvalue was {first['eigenvalue']:.4g} after epoch {first['epoch']} "
        f"and {last['eigenvalue']:.4g} after epoch {last['epoch']}"
    )
    if momentum is None:
        return f"{text}."
    above = sum(
        r["lr"] > 0 and r["eigenvalue"] > stability_threshold(r["lr"], momentum) for r in own
    )
    return (
        f"{text}. It was above 2(1 + momentum)/learning rate in {above} of {len(own)} measurements."
    )


def _thinned(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those at snapshots, the last, and no more of the others than ``MOST_ROWS``."""
    every = -(-sum(not r["snapshot"] for r in records) // MOST_ROWS)
    others = [position for position, r in enumerate(records) if not r["snapshot"]]
    kept = {*others[:: max(every, 1)], len(records) - 1}
    return [r for position, r in enumerate(records) if r["snapshot"] or position in kept]
