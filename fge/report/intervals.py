"""Conformal intervals of a regression: stated by validation data, measured on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge import metrics
from fge.ensemble import PredictionFile
from fge.metrics import Conformal, IntervalCoverage
from fge.report.methods import MethodResult
from fge.report.page import Table

TITLE = "Conformal intervals"
Array = NDArray[np.float64]


def deviation_of(spread: ArrayLike, noise: ArrayLike) -> Array:
    """Return the standard deviation (N, K) of numbers around the mean of an ensemble.

    Args:
        spread: the variance over members (N, K).
        noise: the variance (K,) of the numbers around the members.
    """
    return np.sqrt(np.asarray(spread, dtype=np.float64) + np.asarray(noise, dtype=np.float64))


def fit_intervals(val: PredictionFile, members: Sequence[str], coverage: float) -> Conformal:
    """Return the threshold of intervals by validation predictions of some members.

    Intervals are wider where the members differ. Without any noise they have one width.

    Raises:
        UserError: values are not finite, or do not fit together.
    """
    mean, noise = val.mean(members).numpy(), noise_of(val, members)
    deviation = deviation_of(val.spread(members), noise) if noise.min() > 0 else None
    targets = val.targets.reshape(mean.shape)
    return metrics.fit_conformal_intervals(mean, targets, coverage=coverage, spread=deviation)


def noise_of(val: PredictionFile, members: Sequence[str]) -> Array:
    """Return the variance (K,) of the numbers around some members, on validation data."""
    noise = val.own_noise(members)
    assert noise is not None, "these are predictions of numbers"
    return noise


def intervals_by(fit: Conformal, mean: ArrayLike, deviation: ArrayLike) -> Array:
    """Return the intervals (N, K, 2) around predictions of the same members."""
    spread = deviation if fit.score == "normalised" else None
    return metrics.conformal_intervals(mean, fit, spread=spread)


@dataclass(frozen=True)
class Bounds:
    """What the intervals of a line of the method table did on the test set.

    ``measured``: by target; ``fit``: their threshold.
    """

    name: str
    members: int
    fit: Conformal
    measured: dict[str, IntervalCoverage]

    @classmethod
    def of(
        cls, result: MethodResult, test: PredictionFile, val: PredictionFile, coverage: float
    ) -> Bounds:
        """Measure the intervals of a line."""
        members = result.member_names
        fit, mean = fit_intervals(val, members, coverage), test.mean(members).numpy()
        deviation = deviation_of(test.spread(members), noise_of(val, members))
        intervals = intervals_by(fit, mean, deviation)
        targets = test.targets.reshape(mean.shape)
        measured = {
            name: metrics.interval_coverage(intervals[:, k], targets[:, k])
            for k, name in enumerate(test.task.names)
        }
        return cls(result.name, result.members, fit, measured)

    def facts(self) -> dict[str, Any]:
        """Return the content for ``report.json``."""
        measured = {
            name: one._asdict() if self.fit.enough else {"coverage": one.coverage, "width": None}
            for name, one in self.measured.items()
        }
        conformal = {**conformal_facts(self.fit), "targets": measured}
        return {"name": self.name, "members": self.members, "conformal": conformal}


def conformal_facts(fit: Conformal) -> dict[str, Any]:
    """Return a threshold of sets or intervals for ``report.json``; null if it is infinite."""
    threshold = fit.threshold.tolist() if isinstance(fit.threshold, np.ndarray) else fit.threshold
    return {
        "score": fit.score,
        "stated": fit.coverage,
        "examples": fit.examples,
        "threshold": threshold if fit.enough else None,
    }


def interval_table(bounds: Sequence[Bounds], tests: int, example: str) -> Table:
    """Return the table of intervals: coverage and width of each line and target."""
    rows = [
        [own.name, str(own.members), target, f"{100 * one.coverage:.2f}", f"{one.width:.4g}"]
        for own in bounds
        for target, one in own.measured.items()
    ]
    fit = bounds[0].fit
    if fit.enough:
        low, high = metrics.coverage_range(fit.coverage, fit.examples, tests)
        note = (
            "An interval is the prediction, give or take a multiple of its standard deviation: of "
            "the spread of the members and the noise (arXiv 1604.04173). It is to hold the true "
            f"value of {100 * fit.coverage:g} % of {example}s: the multiple is from the "
            f"{fit.examples} validation {example}s, the coverage is measured on the {tests} test "
            f"{example}s. With so many of both, 95 of 100 runs measure {100 * low:.1f} to "
            f"{100 * high:.1f} %. {REUSED.format(example)}"
        )
    else:
        note = (
            f"Intervals at {100 * fit.coverage:g} % need {fit.least} validation {example}s, and "
            f"there are {fit.examples}: every interval holds all numbers."
        )
    return Table(TITLE, ["method", "members", "target", "coverage %", "mean width"], rows, note)


REUSED = (
    "Where validation also chose something, such as a snapshot or the members, predictions are a "
    "little better there than on new {}s, and the coverage is a little lower than stated."
)


def interval_verdict(bounds: Bounds, tests: int, example: str) -> str:
    """Say what the intervals of a line come to."""
    held = [
        f"{100 * one.coverage:.2f} % of {tests} test {example}s"
        + (f" ({target})" if len(bounds.measured) > 1 else "")
        for target, one in bounds.measured.items()
    ]
    return (
        f"The conformal intervals of `{bounds.name}`, stated to hold the value of "
        f"{100 * bounds.fit.coverage:g} % of {example}s, hold it for {', '.join(held)}."
    )
