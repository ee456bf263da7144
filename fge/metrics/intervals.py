"""Confidence intervals from resampling test examples and seeds."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from fge.errors import UserError, check_at_least, unknown
from fge.metrics import scores
from fge.metrics.given import as_array

Metric = Literal["error", "nll"]

_METRICS = {"error": scores.error, "nll": scores.nll}
_DRAWN_AT_ONCE = 1_000_000
"""Examples resampled at a time: 16 MB of indices and values."""


class Interval(NamedTuple):
    """A difference and the ends of its interval: in percent for errors, in nats for NLL."""

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
    """Return the metric of A minus that of B, with a paired bootstrap interval.

    The test examples are resampled with replacement ``draws`` times; both predictions are compared
    on the same resample, and the interval contains the middle ``level`` of the differences (the
    percentile interval of Efron and Tibshirani 1993, chapter 13). Below 0, A is better.

    The interval is about this pair of runs, not about the methods: another seed gives another
    network, and that variation is not in the interval. To compare methods use
    :func:`paired_difference_over_seeds`.

    Args:
        a_probs: probs (N, C) of A, rows sum to 1.
        b_probs: probs (N, C) of B, for the same examples in the same order.
        targets: classes (N,), integers.
        metric: ``"error"`` (percent) or ``"nll"`` (nats per example).
        draws: number of resamples.
        seed: of the resampling.
        level: the fraction of the resamples within the interval, in (0, 1).

    Returns:
        Difference, low, high; the difference is that of :func:`fge.metrics.error` or ``nll``.

    Raises:
        UserError: the metric is unknown, shapes or targets do not fit, probabilities are not
            finite, or ``draws`` or ``level`` is out of range.
    """
    if metric not in _METRICS:
        raise unknown("metric", metric, _METRICS)
    _check_options(draws, level)
    a, b = (as_array(probs, dtype=np.float64) for probs in (a_probs, b_probs))
    if a.shape != b.shape:
        raise UserError(f"a_probs and b_probs must have one shape, got {a.shape} and {b.shape}")
    for name, probs in (("a_probs", a), ("b_probs", b)):
        if not np.isfinite(probs).all():
            raise UserError(f"{name} holds values that are not finite")
    difference = _METRICS[metric](a, targets) - _METRICS[metric](b, targets)
    y = as_array(targets)
    low, high = _bootstrap(
        _per_example(a, y, metric) - _per_example(b, y, metric), draws, seed, level
    )
    return Interval(difference, low, high)


def paired_difference_of_values(
    a: ArrayLike, b: ArrayLike, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the mean of A minus that of B, with the interval of :func:`paired_difference`.

    For figures that are the mean of a value per example and not those of classes: errors of labels,
    squared residuals, the NLL of a density.

    Args:
        a: values (N,) of A.
        b: values (N,) of B, for the same examples in the same order.
        draws: number of resamples.
        seed: of the resampling.
        level: the fraction of the resamples within the interval, in (0, 1).

    Raises:
        UserError: shapes do not fit, values are not finite, or ``draws`` or ``level`` is out of
            range.
    """
    _check_options(draws, level)
    first, second = (as_array(values, dtype=np.float64) for values in (a, b))
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise UserError(
            f"a and b must have one shape (N,) with N >= 1, got {first.shape} and {second.shape}"
        )
    differences = first - second
    if not np.isfinite(differences).all():
        raise UserError("a or b holds values that are not finite")
    low, high = _bootstrap(differences, draws, seed, level)
    return Interval(float(differences.mean()), low, high)


def _bootstrap(
    differences: NDArray[np.float64], draws: int, seed: int, level: float
) -> tuple[float, float]:
    """Return the ends of the percentile interval of a mean of values (N,)."""
    tail = (1 - level) / 2
    low, high = np.quantile(_resampled_means(differences, draws, seed), [tail, 1 - tail])
    return float(low), float(high)


def paired_difference_over_seeds(
    a: ArrayLike,
    b: ArrayLike,
    *,
    pooled: int = 1,
    draws: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of A minus that of B, with an interval over seeds and test examples.

    Row s of A and row s of B come from runs with the same seed. With d = a - b, its means r (S,)
    over examples, c (N,) over seeds and m over both, seeds and examples are resampled separately
    (Owen 2007, "The pigeonhole bootstrap", doi 10.1214/07-AOAS122), and the interval contains the
    middle ``level`` of

        m + f (mean r* - m) + k (mean c* - m)

    - f = sqrt(S / (S-1)) t_(S-1) / z, with the quantiles of Student's t and of the normal
      distribution at ``level``: resampled means of few seeds vary too little (Hesterberg 2015,
      arXiv 1411.5279, the expanded percentile interval).
    - k^2 = 1 - v / (S var c), at least 0, with v the variance of the residuals d - r - c + m:
      r already contains the effect of one network on one example, which would count twice.

    If each row pools the runs of ``pooled`` seeds (its own and the next ones, cyclically), rows
    share runs and vary less than independent rows: S - 1 becomes sum_j l_j in f and v, and the
    degrees of freedom become (sum_j l_j)^2 / sum_j l_j^2 (Satterthwaite 1946, doi
    10.2307/3002019), with l_j the squared Fourier coefficients of the pooling window.

    The interval is never narrower than that of the examples alone. Below 0, A is better. It is
    about the methods on this task, as far as a few seeds show how seeds vary.

    Args:
        a: values (S, N) of A, one per seed and test example, whose mean is the metric.
        b: values (S, N) of B, for the same seeds and examples in the same order.
        pooled: runs in each row of A or B, at most S - 1.
        draws: number of resamples.
        seed: of the resampling.
        level: the fraction of the resamples within the interval, in (0, 1).

    Raises:
        UserError: there are fewer than 2 seeds, shapes do not fit, values are not finite, or
            ``pooled``, ``draws`` or ``level`` is out of range.
    """
    _check_options(draws, level)
    values = _checked_differences(a, b)
    if not 1 <= pooled < len(values):
        raise UserError(
            f"pooled must be in [1, {len(values) - 1}] for {len(values)} seeds, got {pooled}"
        )
    spectrum = _pooled_spectrum(len(values), pooled)
    independent = float(spectrum.sum())
    freedom = independent**2 / float(np.sum(spectrum**2))
    mean, of_seeds, of_examples = float(values.mean()), values.mean(axis=1), values.mean(axis=0)
    tail = (1 - level) / 2
    widened = math.sqrt(len(values) / independent) * stdtrit(freedom, 1 - tail) / ndtri(1 - tail)
    residuals = values - of_seeds[:, None] - of_examples + mean
    # The divisor N - 1 of both cancels.
    spread = len(values) * float(np.sum((of_examples - mean) ** 2))
    twice = float(np.sum(residuals**2)) / independent
    shared = math.sqrt(max(0.0, 1 - twice / spread)) if spread > 0 else 0.0
    by_seeds = _resampled_means(of_seeds - mean, draws, seed + 1)
    by_examples = _resampled_means(of_examples - mean, draws, seed)
    both = np.quantile(widened * by_seeds + shared * by_examples, [tail, 1 - tail])
    alone = np.quantile(by_examples, [tail, 1 - tail])
    low, high = min(both[0], alone[0]), max(both[1], alone[1])
    return Interval(mean, mean + float(low), mean + float(high))


def _pooled_spectrum(seeds: int, pooled: int) -> NDArray[np.float64]:
    """Return the factors (S-1,) by which pooling changes the variances of S runs.

    The mean of ``pooled`` cyclic neighbours is a circular filter. It multiplies the Fourier
    components j = 1 to S-1 of the runs' deviations by its own; these are their squares.
    """
    window = np.zeros(seeds)
    window[:pooled] = 1 / pooled
    spectrum: NDArray[np.float64] = np.abs(np.fft.fft(window)[1:]) ** 2
    return spectrum


def _check_options(draws: int, level: float) -> None:
    check_at_least(1, draws=draws)
    if not 0 < level < 1:
        raise UserError(f"level must be in (0, 1), got {level}")


def _checked_differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return a - b (S, N)."""
    first, second = (as_array(values, dtype=np.float64) for values in (a, b))
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise UserError(
            f"a and b must have one shape (S, N) with N >= 1, got {first.shape} and {second.shape}"
        )
    if len(first) < 2:
        raise UserError(f"an interval over seeds needs at least 2 seeds, got {len(first)}")
    for name, values in (("a", first), ("b", second)):
        if not np.isfinite(values).all():
            raise UserError(f"{name} holds values that are not finite")
    difference: NDArray[np.float64] = first - second
    return difference


def _per_example(
    probs: NDArray[np.float64], targets: NDArray[np.integer], metric: Metric
) -> NDArray[np.float64]:
    """Return the values (N,) whose mean the metric is."""
    if metric == "error":
        return np.where(probs.argmax(axis=1) == targets, 0.0, 100.0)
    return scores.nll_per_example(probs, targets)


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
