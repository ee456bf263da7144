"""Arrays to figures; nothing here reads a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fge.files import write_bytes

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
