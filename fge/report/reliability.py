"""The reliability diagram of a run for its report, from the predictions that it has."""

from __future__ import annotations

from collections.abc import Sequence

from fge import metrics
from fge.compare.comparison_plots import reliability_figure
from fge.compare.comparison_series import FEWEST
from fge.ensemble.predictions import PredictionFile
from fge.report.drawn import Figures
from fge.report.interactive import Series, reliability_plot
from fge.report.methods import MethodResult

CAPTION = (
    "Reliability on the test set: accuracy in each of 15 bins of confidence; bins of fewer than "
    f"{FEWEST} predictions are left out"
)
_LEFT_OUT = ("best-snapshot", "fold")
"""Single networks like others that are shown."""


def reliability_series(found: Sequence[MethodResult], test: PredictionFile) -> list[Series]:
    """Return accuracy against mean confidence of each bin, for the best lines of a run.

    They are the largest ensemble of each name, averaged weights, and the single network; where
    none was trained, the last snapshot.

    Args:
        found: the lines of the run.
        test: test predictions, which hold their members.

    Returns:
        a series for each, with its bins of ``FEWEST`` predictions or more; the notes say how many.
    """
    largest = {result.name: result for result in found if result.name not in _LEFT_OUT}
    if "single" in largest:
        largest.pop("last-snapshot", None)
    series = []
    for name, result in largest.items():
        bins = metrics.reliability(test.mean(result.member_names), test.targets)
        held = bins.counts >= FEWEST
        notes = [f"{count} predictions" for count in bins.counts[held]]
        x, y = (values[held].tolist() for values in (bins.confidence, bins.accuracy))
        series.append(Series(name, x, y, notes=notes))
    return series


def add_reliability(drawn: Figures, found: Sequence[MethodResult], test: PredictionFile) -> None:
    """Draw the diagram, unless every bin has too few predictions.

    Args:
        drawn: gets the figure ``reliability.png``.
        found: the lines of the run.
        test: test predictions, which hold their members.
    """
    series = reliability_series(found, test)
    if any(one.x for one in series):
        drawn.add("reliability.png", reliability_figure(series), CAPTION, reliability_plot(series))
