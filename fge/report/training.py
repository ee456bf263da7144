"""How a training went: learning rate, errors, distances and sharpness over its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fge.landscape import stability_threshold
from fge.report.interactive_runs import dynamics_plot, training_plot
from fge.report.page import FigureSet, Table
from fge.report.plots import TrainingCurves, training_figure
from fge.report.sharpness import SharpnessCurves, dynamics_figure
from fge.runs import StagedTraining
from fge.train import Recipe, Stage, make_optimizer

_POINTS_PER_EPOCH = 50
TRAINING_CAPTION = "Learning rate, validation error and distance over epochs"
MOST_ROWS = 40
SHARPNESS_CAPTION = "Top Hessian eigenvalue of the training loss over epochs"
_NOTE = (
    "Top eigenvalue of the Hessian of the mean loss over {examples} training images without "
    "augmentation or weight decay, batch norm in evaluation mode, in nats per squared weight, "
    "after so many epochs; there is an eigenvalue within the residual. lr is the rate that a "
    "snapshot kept there belongs to. {line} {count} measurements took {products} Hessian-vector "
    "products, at an estimated cost of {gradients:.0f} gradients over those images, that of "
    "{images} images passed forward and back, which are not counted as training epochs."
)
_LINE = (
    "2(1+m)/lr is where full-batch heavy-ball descent on a quadratic loss stops being stable; "
    "training with batches is another thing."
)


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


def rate_holder(recipe: Recipe) -> Optimizer:
    """Return an optimizer whose rates schedules may set: not those of the one that trained."""
    return make_optimizer(recipe, [nn.Parameter(torch.zeros(1))], examples=1)


def add_training(drawn: FigureSet, training: StagedTraining, recipe: Recipe) -> None:
    """Draw how a training went.

    Args:
        drawn: gets the figure ``training.png``.
        training: finished.
        recipe: of it.
    """
    curves = training_curves(training.stages, rate_holder(recipe), training.folder.records())
    drawn.add("training.png", training_figure(curves), TRAINING_CAPTION, training_plot(curves))


@dataclass(frozen=True)
class Dynamics:
    """What a report shows of the sharpness through a training.

    Attributes:
        curves: for the figure.
        table: of the measurements, at most ``MOST_ROWS`` beside those at snapshots.
        verdict: a sentence.
        content: for ``report.json``.
    """

    curves: SharpnessCurves
    table: Table
    verdict: str
    content: dict[str, Any]

    def add_to(
        self,
        drawn: FigureSet,
        tables: list[Table],
        verdicts: list[str],
        content: dict[str, Any],
    ) -> None:
        """Draw the figure, and add the rest to what a page and ``report.json`` are made of."""
        figure, plot = dynamics_figure(self.curves), dynamics_plot(self.curves)
        line = ", beside 2(1 + momentum)/learning rate" if self.curves.thresholds else ""
        drawn.add("sharpness.png", figure, SHARPNESS_CAPTION + line, plot)
        tables.append(self.table)
        verdicts.append(self.verdict)
        content["sharpness"] = self.content


def line_momentum(recipe: Recipe) -> float | None:
    """Return the momentum in the line 2 (1 + momentum) / lr of a recipe; None without such a line.

    The line is that of SGD, with or without noise: the beta 1 of Adam is no momentum in this sense,
    and its steps are rescaled.
    """
    return None if recipe.optimizer == "adam" else recipe.momentum


def no_line_of(optimizer: str) -> str:
    """Say why the line is missing."""
    return f"There is no line 2(1+m)/lr: it is that of SGD, and the optimizer was {optimizer}."


def find_dynamics(training: StagedTraining, recipe: Recipe) -> Dynamics | None:
    """Return the sharpness through a training; None where it was not measured.

    Args:
        training: by the recipe.
        recipe: of it.
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
    return Dynamics(curves, dynamics_table(content), dynamics_verdict(records, momentum), content)


def dynamics_table(content: dict[str, Any]) -> Table:
    """Return the table of measurements.

    Args:
        content: as in :class:`Dynamics`.
    """
    records, momentum = content["measurements"], content["momentum"]
    headings = ["epoch", "stage", "lr", "top eigenvalue", "residual"]
    headings += [*(["2(1+m)/lr"] if momentum is not None else []), "products", "gradients"]
    shown = _thinned(records)
    rows = [_row(record, momentum) for record in shown]
    note = _NOTE.format(
        line=_LINE if momentum is not None else no_line_of(content["optimizer"]),
        examples=content["examples"],
        count=len(records),
        products=content["products"],
        gradients=content["gradients"],
        images=f"{content['images_passed']:,}",
    )
    short = [f"{r['stage']} {r['epoch']}" for r in records if not r["converged"]]
    if short:
        note += f" Residuals above 1 % of the eigenvalue were left after {', '.join(short)}."
    if len(shown) < len(records):
        note += f" {len(shown)} of {len(records)} are shown; `log.jsonl` holds all."
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
    """Say in words how the top eigenvalue went, and where it lay beside 2 (1 + momentum) / lr."""
    own = [r for r in records if r["stage"] != "single"] or records
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
        f"{text}; it lay above 2(1 + momentum)/learning rate in {above} of {len(own)} measurements."
    )


def _thinned(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those at snapshots, the last, and no more of the others than ``MOST_ROWS``."""
    every = -(-sum(not r["snapshot"] for r in records) // MOST_ROWS)
    others = [position for position, r in enumerate(records) if not r["snapshot"]]
    kept = {*others[:: max(every, 1)], len(records) - 1}
    return [r for position, r in enumerate(records) if r["snapshot"] or position in kept]
