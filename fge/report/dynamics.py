"""How the sharpness went through a training: figure, table and sentence for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fge.landscape.sharpness import stability_threshold
from fge.report.drawn import Figures
from fge.report.figures import sharpness_curves
from fge.report.interactive_runs import dynamics_plot
from fge.report.report import Table
from fge.report.sharpness_plots import SharpnessCurves, dynamics_figure
from fge.report.training_results import rate_holder
from fge.runs.staged import StagedTraining
from fge.train.recipes import Recipe

MOST_ROWS = 40
CAPTION = "Top Hessian eigenvalue of the training loss over epochs"
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
        drawn: Figures,
        tables: list[Table],
        verdicts: list[str],
        content: dict[str, Any],
    ) -> None:
        """Draw the figure, and add the rest to what a page and ``report.json`` are made of."""
        figure, plot = dynamics_figure(self.curves), dynamics_plot(self.curves)
        line = ", beside 2(1 + momentum)/learning rate" if self.curves.thresholds else ""
        drawn.add("sharpness.png", figure, CAPTION + line, plot)
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
