"""Charts of a comparison: against training epochs, against members, reliability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fge.compare.comparison import Comparison, MethodRow
from fge.config import CURVE_ENSEMBLE, DEEP_ENSEMBLE, SINGLE
from fge.report import (
    FEWEST,
    RELIABILITY_CAPTION,
    Chart,
    ReliabilityBins,
    Series,
    methods_chart,
    reliability_chart,
)

_OVER_SEEDS = "mean ± standard deviation over seeds"
_JOINED = "A line joins the budgets of a method; methods of equal cost are moved apart a little."
CAPTIONS = {
    "error_by_epochs.png": f"Test error against training epochs, {_OVER_SEEDS}. {_JOINED}",
    "calibrated_nll_by_epochs.png": f"Calibrated NLL against training epochs, {_OVER_SEEDS}. "
    f"{_JOINED}",
    "error_by_members.png": f"Test error of the ensemble of the first members, at the smallest "
    f"budget, {_OVER_SEEDS}.",
    "calibrated_nll_by_members.png": f"Calibrated NLL of the ensemble of the first members, at the "
    f"smallest budget, {_OVER_SEEDS}.",
    "equivalent_by_epochs.png": "Deep-ensemble equivalent against training epochs; the size of the "
    f"largest deep ensemble limits it. {_JOINED}",
    "reliability.png": RELIABILITY_CAPTION.format(", over all seeds, at the smallest budget"),
}
EPOCHS, MEMBERS = "training epochs", "members"
WORDS = {
    "error": "test error (%)",
    "rmse": "test RMSE",
    "nll": "NLL (nats)",
    "calibrated_nll": "calibrated NLL (nats)",
}
EQUIVALENT = "deep-ensemble equivalent (networks)"
SHOWN_BINS = (SINGLE, "fge", DEEP_ENSEMBLE, CURVE_ENSEMBLE)
"""Methods of the reliability diagram: few, so that it can be read."""


def caption_of(name: str) -> str:
    """Return the caption of a chart by its file name; those of RMSE are those of errors."""
    return CAPTIONS[name.replace("rmse", "error")].replace(
        "error", "RMSE" if name.startswith("rmse") else "error"
    )


def comparison_charts(comparison: Comparison) -> dict[str, Chart]:
    """Return the charts by file name, each with a caption in :data:`CAPTIONS`.

    The charts of members and reliability show the smallest budget. A chart without points is left
    out.
    """
    budget = comparison.budgets[0]
    series = {}
    for figure in (comparison.task.measure.key, "calibrated_nll"):
        by_epochs = cost_series(comparison, figure)
        series[f"{figure}_by_epochs.png"] = (by_epochs, EPOCHS, WORDS[figure])
        by_members = members_series(comparison, figure, budget)
        series[f"{figure}_by_members.png"] = (by_members, MEMBERS, WORDS[figure])
    equivalents = equivalent_series(comparison)
    series["equivalent_by_epochs.png"] = (equivalents, EPOCHS, EQUIVALENT)
    charts = {
        name: methods_chart(points, x=x, y=y) for name, (points, x, y) in series.items() if points
    }
    methods = [] if comparison.task.uses_noise else reliability_bins(comparison, budget)
    return charts | ({"reliability.png": reliability_chart(methods)} if methods else {})


def cost_series(comparison: Comparison, figure: str) -> list[Series]:
    """Return a figure against training epochs: a line for each method, a point for each budget.

    Methods beyond their budget are included, at the epochs that they took.

    Args:
        comparison: of the methods.
        figure: a key of a cell's figures.
    """
    return _over_budgets(comparison, lambda row: row.mean[figure], figure)


def equivalent_series(comparison: Comparison) -> list[Series]:
    """Return the deep-ensemble equivalents against training epochs, or [] without any."""
    if not comparison.deep_ensembles:
        return []
    return _over_budgets(comparison, lambda row: row.equivalent or 1.0)


def members_series(comparison: Comparison, figure: str, budget: int) -> list[Series]:
    """Return a figure of the first m members against m, for methods of two members or more.

    Args:
        comparison: of the methods.
        figure: ``error``, ``nll`` or ``calibrated_nll``.
        budget: of the methods shown.
    """
    return [
        Series(
            row.method,
            list(range(1, len(row.by_members) + 1)),
            [means[figure] for means in row.by_members],
            _spreads(row.by_members_deviation, figure),
        )
        for row in comparison.at(budget)
        if len(row.by_members) > 1
    ]


def reliability_bins(
    comparison: Comparison, budget: int, methods: Sequence[str] = SHOWN_BINS
) -> list[ReliabilityBins]:
    """Return the bins of methods with at least ``FEWEST`` predictions, over all seeds.

    Args:
        comparison: of the methods.
        budget: of the methods shown.
        methods: names of the methods to show; those not in the comparison are left out.
    """
    shown = []
    for row in comparison.at(budget):
        if row.method in methods:
            cells = comparison.cells_of(row.method, budget)[: row.values]
            counts = np.array([cell.bin_counts for cell in cells])
            held = counts.sum(axis=0) >= FEWEST
            total = counts.sum(axis=0)[held]
            bins = [
                [np.nan_to_num(getattr(cell, name)) for cell in cells]
                for name in ("bin_confidence", "bin_accuracy")
            ]
            confidence, accuracy = (
                ((counts * values).sum(axis=0)[held] / total).tolist() for values in bins
            )
            shown.append(ReliabilityBins(row.method, confidence, accuracy, total.tolist()))
    return shown


def _over_budgets(
    comparison: Comparison, value: Callable[[MethodRow], float], figure: str | None = None
) -> list[Series]:
    series = []
    for method in comparison.methods:
        rows = [row for row in comparison.rows if row.method == method]
        rows.sort(key=lambda row: row.costs["train_epochs"])
        spread = _spreads([row.deviation for row in rows], figure) if figure else None
        epochs = [row.costs["train_epochs"] for row in rows]
        notes = [_note(row) for row in rows]
        series.append(Series(method, epochs, [value(row) for row in rows], spread, notes))
    return series


def _spreads(deviations: Sequence[dict[str, float]], figure: str) -> list[float] | None:
    """Return the standard deviations of a figure, 0 for one seed, or None if none has several."""
    if not any(deviations):
        return None
    return [deviation.get(figure, 0.0) for deviation in deviations]


def _note(row: MethodRow) -> str:
    passes = row.costs["forward_passes"]
    text = f"{row.budget} B, {passes:g} {'pass' if passes == 1 else 'passes'} per prediction"
    return f"{text}, beyond the budget" if row.beyond else text
