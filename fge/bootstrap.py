"""Intervals from resampling test examples: what the size of a test set allows to be said."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge import metrics
from fge.errors import UserError, unknown

Metric = Literal["error", "nll"]

_METRICS = {"error": metrics.error, "nll": metrics.nll}
_DRAWN_AT_ONCE = 1_000_000
"""Examples that are resampled at a time: 16 MB of positions and values."""


class Interval(NamedTuple):
    """A difference with the ends of its interval: percent for errors, nats for NLL."""

    difference: float
    low: float
    high: float


def paired_difference(
    a_probs: ArrayLike,
    b_probs: ArrayLike,
    targets: ArrayLike,
    metric: Metric = "error",
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the metric of A less that of B, with a paired bootstrap interval.

    The test examples are drawn anew, with replacement, ``draws`` times; both predictions are
    compared on the same draw, and the interval holds the middle ``level`` of the differences (the
    percentile interval of Efron and Tibshirani 1993, chapter 13). Below 0, A is better.

    It speaks of this pair of runs, not of the methods: another seed gives another network, and
    what that changes is not in the interval. For methods, pair seeds, or resample both.

    Args:
        a_probs: probs (N, C) of A, rows sum to 1.
        b_probs: probs (N, C) of B, for the same examples in the same order.
        targets: classes (N,), integers.
        metric: ``"error"`` (percent) or ``"nll"`` (nats per example).
        draws: how many times to resample.
        seed: of the resampling.
        level: the share of the draws that the interval holds, in (0, 1).

    Returns:
        difference, low, high; the difference is that of :func:`fge.metrics.error` or ``nll``.

    Raises:
        UserError: an unknown metric, shapes or targets that do not fit, probabilities that are
            not finite, or ``draws`` or ``level`` out of range.
    """
    if metric not in _METRICS:
        raise unknown("metric", metric, _METRICS)
    if draws < 1:
        raise UserError(f"draws must be >= 1, got {draws}")
    if not 0 < level < 1:
        raise UserError(f"level must be in (0, 1), got {level}")
    a, b = (np.asarray(probs, dtype=np.float64) for probs in (a_probs, b_probs))
    if a.shape != b.shape:
        raise UserError(f"a_probs and b_probs must have one shape, got {a.shape} and {b.shape}")
    for name, probs in (("a_probs", a), ("b_probs", b)):
        if not np.isfinite(probs).all():
            raise UserError(f"{name} holds values that are not finite")
    difference = _METRICS[metric](a, targets) - _METRICS[metric](b, targets)
    y = np.asarray(targets)
    means = _resampled_means(_per_example(a, y, metric) - _per_example(b, y, metric), draws, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(difference, float(low), float(high))


def _per_example(
    probs: NDArray[np.float64], targets: NDArray[np.integer], metric: Metric
) -> NDArray[np.float64]:
    """Return the values (N,) whose mean the metric is."""
    if metric == "error":
        return np.where(probs.argmax(axis=1) == targets, 0.0, 100.0)
    of_target = probs[np.arange(len(targets)), targets]
    values: NDArray[np.float64] = -np.log(np.maximum(of_target, metrics.TINY))
    return values


def _resampled_means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Return the mean (draws,) of each resample of the values (N,)."""
    rng = np.random.default_rng(seed)
    count = len(values)
    rows = max(1, _DRAWN_AT_ONCE // count)
    means = np.empty(draws)
    for start in range(0, draws, rows):
        part = means[start : start + rows]
        part[:] = values[rng.integers(0, count, size=(len(part), count))].mean(axis=1)
    return means
