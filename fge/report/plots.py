"""Arrays to figures; nothing here reads a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fge.config import ORDER
from fge.files import write_bytes
from fge.report.interactive import Series, set_apart

METHOD_COLOURS = (
    *("#6b7280", "#1d4ed8", "#0e7490", "#15803d", "#84cc16", "#d97706"),
    *("#92400e", "#a855f7", "#dc2626", "#db2777", "#111827"),
)
METHOD_MARKERS = ("D", "o", "s", "^", "v", "P", "X", "<", "*", "p", ">")
_OWN_COLOURS = ("#b45309", "#4d7c0f", "#0369a1", "#7e22ce", "#be123c")

SINGLE, SNAPSHOT, ENSEMBLE, RATE = "#6b7280", "#d97706", "#1d4ed8", "#111827"


@dataclass(frozen=True)
class TrainingCurves:
    """What the training figure shows, over completed epochs.

    ``rate_epochs`` and ``rates``: the learning rate; ``epochs``: of each snapshot;
    ``snapshot_error`` and ``ensemble_error``: on validation, percent, empty where there is none;
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


def training_figure(curves: TrainingCurves) -> Figure:
    """Draw learning rate, validation errors and snapshot distances, one above the other.

    The figure of arXiv 1802.10026 that shows how FGE runs: the rate with its minima, what each
    snapshot and the ensemble so far make of them, and how far the weights travel in between.
    """
    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    rate, error, distance = figure.subplots(3, 1, sharex=True)
    rate.plot(curves.rate_epochs, curves.rates, color=RATE, linewidth=1.2)
    rate.set_ylabel("learning rate")
    rate.set_ylim(0, 1.08 * max(curves.rates))
    _draw_errors(error, curves)
    distance.plot(curves.epochs[1:], curves.distances, "o-", color=SNAPSHOT, markersize=4)
    distance.set_ylabel("distance to\nprevious snapshot")
    distance.set_ylim(0, 1.08 * max(curves.distances, default=1.0))
    distance.set_xlabel("epochs")
    distance.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (rate, error, distance):
        for epoch in curves.epochs:
            axes.axvline(epoch, color="#d1d5db", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_errors(axes: Axes, curves: TrainingCurves) -> None:
    axes.set_ylabel("validation error (%)")
    if not curves.snapshot_error:
        axes.text(0.5, 0.5, "no validation data", transform=axes.transAxes, ha="center")
        return
    axes.plot(
        curves.epochs, curves.snapshot_error, "o--", color=SNAPSHOT, label="snapshot", markersize=4
    )
    axes.plot(
        curves.epochs,
        curves.ensemble_error,
        "o-",
        color=ENSEMBLE,
        label="ensemble so far",
        markersize=4,
    )
    if curves.single is not None:
        epoch, value = curves.single
        axes.plot([epoch], [value], "D", color=SINGLE, label="single network", clip_on=False)
    axes.legend(frameon=False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())


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
        colour, marker = _method_style(one.name, position)
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
        series: a method each: mean confidence and accuracy of bins, and how many are in them.
    """
    figure = Figure(figsize=(8.5, 6.0), layout="constrained")
    gaps, counts = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for position, one in enumerate(series):
        colour, marker = _method_style(one.name, position)
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


def _method_style(method: str, position: int) -> tuple[str, str]:
    """Return colour and marker of a method."""
    if method in ORDER:
        place = ORDER.index(method)
        return METHOD_COLOURS[place], METHOD_MARKERS[place]
    own, marker = position % len(_OWN_COLOURS), position % len(METHOD_MARKERS)
    return _OWN_COLOURS[own], METHOD_MARKERS[marker]


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
