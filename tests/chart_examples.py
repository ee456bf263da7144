"""A chart of every kind, for tests of what draws them and of pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from fge.landscape import PlaneGrid
from fge.report import (
    Bars,
    Chart,
    Panel,
    PlaneChart,
    ReliabilityBins,
    Series,
    curve_chart,
    dynamics_chart,
    eigenvalue_chart,
    ensemble_chart,
    line_chart,
    methods_chart,
    plane_chart,
    reliability_chart,
    spectrum_chart,
    training_chart,
)
from fge.report.training import SharpnessCurves, TrainingCurves

METHODS = ("single", "fge", "fge+refit", "swa", "fold", "sse", "csgld", "ema", "mine", "a < b")
NAN = float("nan")


def records(height: float) -> list[dict[str, float]]:
    keys = ("train_loss", "train_error", "test_loss", "test_error")
    return [{"t": t, **dict.fromkeys(keys, 1 + height * t * (1 - t))} for t in (0.0, 0.5, 1.0)]


def _ensemble(name: str) -> list[dict[str, float]]:
    lowest = 8 - len(name) / 10
    return [{"distance": 0, "ensemble_error": 9}, {"distance": 5, "ensemble_error": lowest}]


CHARTS: dict[str, Chart] = {
    "training": training_chart(
        TrainingCurves([0, 1, 2], [0.1, 0.01, 0.1], [1, 2], [9, 8], [9, 7], [3.0], (2, 8.5))
    ),
    "curve": curve_chart(records(1), records(9)),
    "sharpness": eigenvalue_chart([1, 2], [[30, 9], [40, 8]], place="epochs", thresholds=[380, 38]),
    "dynamics": dynamics_chart(
        SharpnessCurves(
            [1, 2], [30, 50], [2], [0, 1, 2], [0.1, 0.1, 0.0], [38, 38, NAN], ([2], [20])
        )
    ),
    "ensemble": ensemble_chart({n: _ensemble(n) for n in ("curve", "segment", "same-gram-arc")}),
    "spectrum": spectrum_chart([-1, 0, 1, 2], [0, 1, 0.1, 0.01]),
    "comparison": methods_chart(
        [Series(n, [1, 2], [9 + k, 8 + k], spread=[0.2, 0.1]) for k, n in enumerate(METHODS)],
        x="epochs",
        y="error (%)",
    ),
    "reliability": reliability_chart(
        [
            ReliabilityBins("fge", [0.2, 0.8], [0.3, 0.75], [20, 4000]),
            ReliabilityBins("single", [0.3], [0.2], [50]),
        ]
    ),
    "lines": line_chart({"curve": records(2), "segment": records(5)}, key="train_loss", x="t"),
    "bars": Chart(
        "largest probability",
        [Panel("images", bars=Bars("fge", [0, 0.5, 1], [3, 5]))],
        limits=(0, 1),
    ),
}


def _grid() -> PlaneGrid:
    xs, ys = np.linspace(-1, 6, 6), np.linspace(-1, 4, 5)
    x, y = np.meshgrid(xs, ys)
    return PlaneGrid(xs, ys, {"loss": 0.2 + (y - x) ** 2 / 10}, np.zeros((3, 2)), np.eye(2))


_MARKS: dict[str, Any] = {
    "points": {"w(0)": (0.0, 0.0), "w(1)": (5.0, 0.0)},
    "lines": {"curve": [(0.0, 0.0), (2.5, 3.0), (5.0, 0.0)]},
}
PLANES: dict[str, PlaneChart] = {
    "plane": plane_chart(_grid(), **_MARKS),
    "surface": plane_chart(_grid(), **_MARKS, raised=True),
}
