"""Figures of curves between networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CURVE, SEGMENT = "#1d4ed8", "#d97706"
_PANELS = (
    ("train_loss", "training loss (nats)"),
    ("test_loss", "test loss (nats)"),
    ("train_error", "training error (%)"),
    ("test_error", "test error (%)"),
)
_ENSEMBLE_STYLES = {
    "curve": (CURVE, "-"),
    "segment": (SEGMENT, "-"),
    "random-direction": ("#6b7280", ":"),
    "random-at-angle": ("#be185d", "--"),
    "same-gram-arc": ("#15803d", "-."),
}
ENSEMBLE_LABELS = {
    "curve": "curve",
    "segment": "segment",
    "random-direction": "random direction",
    "random-at-angle": "random, at the curve's angle",
    "same-gram-arc": "random arc of the curve's shape",
}

ALONG = "t, from the first network (0) to the second (1)"

_STEEP = 2
"""The ratio of largest to smallest value from which axes begin at zero."""

Records = Sequence[Mapping[str, Any]]


def curve_figure(
    curve: Records,
    segment: Records,
    *,
    place: str = ALONG,
) -> Figure:
    """Draw loss and error along a curve and along the segment, on training and test data.

    Args:
        curve: records of :func:`fge.evaluate_curve` with keys ``t``, ``train_loss``,
            ``train_error``, ``test_loss``, ``test_error``.
        segment: likewise.
        place: what ``t`` is.
    """
    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS, strict=True):
        for records, colour, name in ((segment, SEGMENT, "segment"), (curve, CURVE, "curve")):
            axes.plot(_values(records, "t"), _values(records, key), color=colour, label=name)
        _finish(axes, label)
    axes_list = figure.axes
    axes_list[0].legend(frameon=False)
    for axes in axes_list[2:]:
        axes.set_xlabel(place)
    return figure


def ensemble_figure(paths: Mapping[str, Records]) -> Figure:
    """Draw the test error of the two networks {w(0), w(t)} against how far w(t) is from w(0).

    The figure of arXiv 1802.10026 (section 4) that asks how far one has to go along a curve to
    gain from ensembling, with further baselines at the same distances.

    Args:
        paths: name of the path to its records with keys ``distance`` and ``ensemble_error``.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, records in paths.items():
        colour, style = _ENSEMBLE_STYLES[name]
        axes.plot(
            _values(records, "distance"),
            _values(records, "ensemble_error"),
            style,
            color=colour,
            label=ENSEMBLE_LABELS[name],
        )
    axes.set_xlabel("distance from the first network")
    _finish(axes, "test error of the two (%)")
    axes.legend(frameon=False)
    return figure


def _values(records: Records, key: str) -> list[float]:
    return [float(record[key]) for record in records]


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    heights = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata())]
    if heights and max(heights) > _STEEP * min(heights):  # else zero would flatten what is shown
        axes.set_ylim(0, 1.05 * max(heights))
    axes.spines[["top", "right"]].set_visible(False)
