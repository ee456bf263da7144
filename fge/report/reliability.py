"""The reliability diagram of a run: how often its predictions are right, by their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fge import metrics
from fge.ensemble import PredictionFile
from fge.report.builder import ReportBuilder
from fge.report.charts import Chart, Panel, Series
from fge.report.methods import MethodResult

FEWEST = 10
"""The smallest number of predictions in a bin that is shown: the accuracy of fewer is chance."""
RELIABILITY_CAPTION = (
    "Reliability on the test set{}: accuracy minus confidence in each of 15 bins. "
    "Above 0, a method is right more often than it says. Below, the number of predictions per bin; "
    f"bins of fewer than {FEWEST} are left out."
)
COVERAGE_CAPTION = (
    "Coverage on the test set: the percentage of targets within the central intervals of the "
    "predicted Gaussian, minus the level of the intervals. Above 0, intervals are wider than they "
    "need be."
)
_LEVELS = range(10, 100, 10)
_NOT_DRAWN = ("best-snapshot", "fold")
"""Single networks that are similar to others in the diagram."""


@dataclass(frozen=True)
class ReliabilityBins:
    """The bins of a method: mean ``confidence``, ``accuracy`` and ``counts`` (n,)."""

    name: str
    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]


def reliability_chart(methods: Sequence[ReliabilityBins]) -> Chart:
    """Return accuracy less confidence against confidence, and the number of predictions below.

    The chart shows the difference, because the accuracies of calibrated methods would be one line.
    """
    gaps, counts = [], []
    for bins in methods:
        notes = [
            f"accuracy {accuracy:.4f}, {count} predictions"
            for accuracy, count in zip(bins.accuracy, bins.counts, strict=True)
        ]
        pairs = zip(bins.confidence, bins.accuracy, strict=True)
        gap = [accuracy - confidence for confidence, accuracy in pairs]
        gaps.append(Series(bins.name, bins.confidence, gap, notes=notes, marker=True))
        counts.append(Series(bins.name, bins.confidence, bins.counts, marker=True))
    panels = [
        Panel("accuracy - confidence", gaps, level=0.0, share=2),
        Panel("predictions", counts, log=True),
    ]
    return Chart("confidence", panels, limits=(0.0, 1.0), height=600)


def reliability_bins(
    results: Sequence[MethodResult], test: PredictionFile
) -> list[ReliabilityBins]:
    """Return the bins of a run's best lines, those with at least ``FEWEST`` predictions.

    Args:
        results: the lines of the run.
        test: the test predictions of their members.
    """
    methods = []
    for result in drawn(results):
        bins = metrics.reliability(*_said(test, result.member_names))
        held = bins.counts >= FEWEST
        columns = (bins.confidence, bins.accuracy, bins.counts)
        methods.append(ReliabilityBins(result.name, *(values[held].tolist() for values in columns)))
    return methods


def drawn(results: Sequence[MethodResult]) -> list[MethodResult]:
    """Return a run's best lines, which charts show.

    They are the largest ensemble of each name, averaged weights, and the single network, or the
    last snapshot without one.
    """
    largest = {result.name: result for result in results if result.name not in _NOT_DRAWN}
    if "single" in largest:
        largest.pop("last-snapshot", None)
    return list(largest.values())


def coverage_chart(results: Sequence[MethodResult], test: PredictionFile) -> Chart:
    """Return how many targets of a regression are in their intervals, less how many should be.

    Args:
        results: the lines that are shown.
        test: the test predictions of their members.
    """
    shown = []
    for result in results:
        spread, noise = test.variances(result.member_names)
        assert spread is not None, "it is a regression"
        mean, targets = test.mean(result.member_names).numpy(), test.targets
        noise = metrics.fit_noise(mean, targets, spread) if noise is None else noise
        found = [
            metrics.coverage(mean, targets, noise, spread, level=level / 100) for level in _LEVELS
        ]
        gaps = [inside - level for inside, level in zip(found, _LEVELS, strict=True)]
        notes = [f"{inside:.1f} % are inside" for inside in found]
        shown.append(Series(result.name, list(_LEVELS), gaps, notes=notes, marker=True))
    panel = Panel("targets inside - level (points)", shown, level=0.0)
    return Chart("level of the interval (%)", [panel], limits=(0.0, 100.0), height=420)


def _said(test: PredictionFile, members: Sequence[str]) -> tuple[Any, Any]:
    """Return class probabilities and targets: of labels, whether each is there."""
    probs, targets = test.mean(members).numpy(), test.targets
    if test.task.of_classes:
        return probs, targets
    pairs = np.stack([1 - probs, probs], axis=-1).reshape(-1, 2)
    return pairs.clip(0, 1), targets.reshape(-1)


def add_reliability(
    report: ReportBuilder, results: Sequence[MethodResult], test: PredictionFile
) -> None:
    """Show the reliability diagram, unless every bin has too few predictions.

    Args:
        report: gets the chart ``reliability.png``.
        results: the lines of the run.
        test: the test predictions of their members.
    """
    if test.task.uses_noise:
        report.chart("coverage.png", coverage_chart(drawn(results), test), COVERAGE_CAPTION)
        return
    methods = reliability_bins(results, test)
    if any(bins.confidence for bins in methods):
        caption = RELIABILITY_CAPTION.format("")
        report.chart("reliability.png", reliability_chart(methods), caption)
