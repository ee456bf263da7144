"""Figures of a comparison of methods: against training epochs, against members, reliability."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fge.compare.comparison import ORDER, Comparison
from fge.compare.comparison_series import (
    EPOCHS,
    EQUIVALENT,
    MEMBERS,
    WORDS,
    cost_series,
    equivalent_series,
    members_series,
    reliability_series,
)
from fge.report.interactive import Series, set_apart

COLOURS = (
    *("#6b7280", "#1d4ed8", "#0e7490", "#15803d", "#84cc16", "#d97706"),
    *("#92400e", "#a855f7", "#dc2626", "#db2777", "#111827"),
)
MARKERS = ("D", "o", "s", "^", "v", "P", "X", "<", "*", "p", ">")
_OWN_COLOURS = ("#b45309", "#4d7c0f", "#0369a1", "#7e22ce", "#be123c")
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


def series_figure(series: Sequence[Series], *, x: str, y: str) -> Figure:
    """Draw a line with markers for each method, with bars of the spread.

    Methods are moved sideways a little, so that points of equal cost do not hide each other.

    Args:
        series: one per method; a method has its colour and marker in every figure.
        x: what the horizontal axis is.
        y: what the vertical axis is.
    """
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for position, (one, places) in enumerate(zip(series, set_apart(series), strict=True)):
        colour, marker = _style(one.name, position)
        axes.errorbar(
            places,
            one.y,
            yerr=one.spread,
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.4,
            elinewidth=1,
            capsize=2.5,
            label=one.name,
        )
    _finish(axes, x, y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def reliability_figure(series: Sequence[Series]) -> Figure:
    """Draw accuracy less confidence against confidence, and the number of predictions below.

    The difference is drawn, since the bins of calibrated methods lie on one line otherwise.

    Args:
        series: of :func:`fge.compare.reliability_series`.
    """
    figure = Figure(figsize=(8.5, 6.0), layout="constrained")
    gaps, counts = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for position, one in enumerate(series):
        colour, marker = _style(one.name, position)
        style = {"color": colour, "marker": marker, "linewidth": 1.4, "label": one.name}
        gap = [accuracy - confidence for confidence, accuracy in zip(one.x, one.y, strict=True)]
        gaps.plot(one.x, gap, **style)
        counts.plot(one.x, [int(note.split()[0]) for note in one.notes or ()], **style)
    gaps.axhline(0, color="#111827", linewidth=0.8, linestyle=":")
    _finish(gaps, "", "accuracy - confidence")
    counts.set_yscale("log")
    counts.set_xlabel("confidence")
    counts.set_ylabel("predictions")
    counts.set_xlim(0, 1)
    counts.spines[["top", "right"]].set_visible(False)
    return figure


def _style(method: str, position: int) -> tuple[str, str]:
    """Return colour and marker of a method."""
    if method in ORDER:
        place = ORDER.index(method)
        return COLOURS[place], MARKERS[place]
    return _OWN_COLOURS[position % len(_OWN_COLOURS)], MARKERS[position % len(MARKERS)]


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
