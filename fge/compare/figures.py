"""Figures of a comparison: against training epochs, against members, reliability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from fge.compare.comparison import Comparison, MethodRow
from fge.config import CURVE_ENSEMBLE, DEEP_ENSEMBLE, SINGLE
from fge.report import (
    FEWEST,
    Plot,
    Series,
    comparison_plot,
    reliability_figure,
    reliability_plot,
    series_figure,
)

CAPTIONS = {
    "error_by_epochs.png": "Test error against training epochs, mean ± standard deviation over "
    "seeds; a line joins a method's budgets. Methods of equal cost are set apart a little.",
    "calibrated_nll_by_epochs.png": "Calibrated NLL against training epochs, mean ± standard "
    "deviation over seeds; a line joins a method's budgets. Methods of equal cost are set apart a "
    "little.",
    "error_by_members.png": "Test error of the first members together, at the smallest budget; "
    "mean ± standard deviation over seeds.",
    "calibrated_nll_by_members.png": "Calibrated NLL of the first members together, at the "
    "smallest budget; mean ± standard deviation over seeds.",
    "equivalent_by_epochs.png": "Deep-ensemble equivalent against training epochs; no ensemble at "
    "hand is larger than the largest value.",
    "reliability.png": "Accuracy less confidence in each bin of confidence, over all seeds, at the "
    "smallest budget: above 0 a method is less confident than right; bins of fewer than 10 "
    "predictions are left out. Below, how many predictions are in the bin.",
}
EPOCHS, MEMBERS = "training epochs", "members"
CONFIDENCE, ACCURACY = "confidence", "accuracy"
WORDS = {
    "error": "test error (%)",
    "nll": "NLL (nats)",
    "calibrated_nll": "calibrated NLL (nats)",
}
EQUIVALENT = "deep-ensemble equivalent (networks)"
SHOWN_BINS = (SINGLE, "fge", DEEP_ENSEMBLE, CURVE_ENSEMBLE)
"""Methods of the reliability diagram: few, so that it can be read."""


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """Return the figures by file name, each with a caption in :data:`CAPTIONS`.

    Those of members and reliability are of the smallest budget; a figure without points is left
    out.
    """
    budget = comparison.budgets[0]
    series = {}
    for figure in ("error", "calibrated_nll"):
        by_epochs = cost_series(comparison, figure)
        series[f"{figure}_by_epochs.png"] = (by_epochs, EPOCHS, WORDS[figure])
        by_members = members_series(comparison, figure, budget)
        series[f"{figure}_by_members.png"] = (by_members, MEMBERS, WORDS[figure])
    equivalents = equivalent_series(comparison)
    series["equivalent_by_epochs.png"] = (equivalents, EPOCHS, EQUIVALENT)
    figures = {
        name: series_figure(points, x=x, y=y) for name, (points, x, y) in series.items() if points
    }
    bins = reliability_series(comparison, budget)
    return figures | ({"reliability.png": reliability_figure(bins)} if bins else {})


def cost_series(comparison: Comparison, figure: str) -> list[Series]:
    """Return a figure against training epochs: a line for each method, a point for each budget.

    What is beyond its budget is there, too, at the epochs that it took.

    Args:
        comparison: of the methods.
        figure: one of a cell's.
    """
    return _over_budgets(comparison, lambda row: row.mean[figure], figure)


def equivalent_series(comparison: Comparison) -> list[Series]:
    """Return the deep-ensemble equivalents against training epochs, nothing where there is none."""
    if not comparison.deep_ensembles:
        return []
    return _over_budgets(comparison, lambda row: row.equivalent or 1.0)


def members_series(comparison: Comparison, figure: str, budget: int) -> list[Series]:
    """Return a figure of the first m members against m, for methods of two members or more.

    Args:
        comparison: of the methods.
        figure: ``error``, ``nll`` or ``calibrated_nll``.
        budget: at which, within it.
    """
    return [
        Series(
            row.method,
            list(range(1, len(row.by_members) + 1)),
            [means[figure] for means in row.by_members],
            _spreads(row.by_members_deviation, figure),
            style=comparison.methods.index(row.method),
        )
        for row in comparison.at(budget)
        if len(row.by_members) > 1
    ]


def reliability_series(
    comparison: Comparison, budget: int, methods: Sequence[str] = SHOWN_BINS
) -> list[Series]:
    """Return accuracy against mean confidence of each bin, over the predictions of all seeds.

    Args:
        comparison: of the methods.
        budget: at which, within it.
        methods: those shown, where they are there.

    Returns:
        a series for each, with its bins of ``FEWEST`` predictions or more; the notes say how many.
    """
    found = []
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
            notes = [f"{count} predictions" for count in total]
            style = comparison.methods.index(row.method)
            found.append(Series(row.method, confidence, accuracy, notes=notes, style=style))
    return found


def comparison_plots(comparison: Comparison) -> dict[str, Plot]:
    """Return the interactive plots by the file name of the figure that they stand in for.

    They are those of :func:`fge.compare.comparison_figures`.
    """
    budget = comparison.budgets[0]
    plots = {}
    for figure in ("error", "calibrated_nll"):
        words = WORDS[figure]
        by_epochs = cost_series(comparison, figure)
        plots[f"{figure}_by_epochs.png"] = comparison_plot(by_epochs, x=EPOCHS, y=words)
        by_members = members_series(comparison, figure, budget)
        if by_members:
            plots[f"{figure}_by_members.png"] = comparison_plot(by_members, x=MEMBERS, y=words)
    equivalents = equivalent_series(comparison)
    if equivalents:
        plots["equivalent_by_epochs.png"] = comparison_plot(equivalents, x=EPOCHS, y=EQUIVALENT)
    bins = reliability_series(comparison, budget)
    if bins:
        plots["reliability.png"] = reliability_plot(bins)
    return plots


def _over_budgets(
    comparison: Comparison, value: Callable[[MethodRow], float], figure: str | None = None
) -> list[Series]:
    found = []
    for method in comparison.methods:
        rows = [row for row in comparison.rows if row.method == method]
        rows.sort(key=lambda row: row.costs["train_epochs"])
        spread = _spreads([row.deviation for row in rows], figure) if figure else None
        epochs = [row.costs["train_epochs"] for row in rows]
        notes = [_note(row) for row in rows]
        found.append(Series(method, epochs, [value(row) for row in rows], spread, notes))
    return found


def _spreads(deviations: Sequence[dict[str, float]], figure: str) -> list[float] | None:
    """Return the standard deviations of a figure, 0 for one seed, None where all are of one."""
    if not any(deviations):
        return None
    return [one.get(figure, 0.0) for one in deviations]


def _note(row: MethodRow) -> str:
    passes = row.costs["forward_passes"]
    text = f"{row.budget} B, {passes:g} {'pass' if passes == 1 else 'passes'} per prediction"
    return f"{text}, beyond the budget" if row.beyond else text
