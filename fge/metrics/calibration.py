"""Calibration: temperatures, and metrics that do not depend on them; numpy, float64.

Every function takes ``probs`` (N, C), rows summing to 1, and integer ``targets`` (N,).
Probabilities below :data:`fge.metrics.TINY`, the zeros of certain predictions among them, count
as that much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from fge.errors import UserError
from fge.metrics.scores import TINY, check_examples, check_probs, ece

Array = NDArray[np.float64]
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1000.0
"""Where temperatures are sought: certain predictions that are often wrong need hundreds."""


def adaptive_ece(probs: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equally many examples, a fraction.

    Mukhoti et al. 2020 (arXiv 2002.09437, AdaECE; after Nguyen and O'Connor 2015, arXiv
    1508.05154): the examples, ordered by confidence (largest probability), are cut into ``bins``
    runs of N / bins; the mean over bins of |accuracy - mean confidence|. An example on a cut
    counts in both its bins, in proportion; examples of one confidence count with their mean
    accuracy, so that the order of the examples does not matter.

    Raises:
        UserError: shapes or targets that do not fit, values that are no probabilities, or
            ``bins`` below 1.
    """
    p, y = check_examples(probs, targets)
    if bins < 1:
        raise UserError(f"bins must be >= 1, got {bins}")
    confidence, index, counts = np.unique(p.max(axis=1), return_inverse=True, return_counts=True)
    correct = np.bincount(index, weights=p.argmax(axis=1) == y)
    ends = np.concatenate([[0], np.cumsum(counts)])
    gaps = np.concatenate([[0.0], np.cumsum(correct - counts * confidence)])
    cuts = np.linspace(0, len(y), bins + 1)
    return float(np.abs(np.diff(np.interp(cuts, ends, gaps))).sum() / len(y))


def fit_temperature(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the temperature T > 0 that minimises the NLL of softmax(log p / T).

    Guo et al. 2017 (arXiv 1706.04599, section 4.2), from probabilities: softmax(log p / T) is
    softmax(logits / T). The NLL is convex in 1/T; the root of its derivative is found by Brent's
    method to 1e-11 relative. T lies in [:data:`MIN_TEMPERATURE`, :data:`MAX_TEMPERATURE`]: the
    lower end is returned where every target is the most probable class, since then no T is low
    enough; the upper end where the predictions tell nothing of the targets. T = 1 where all
    classes are equally probable in every example, since then no T matters.

    For a deployed temperature give validation data.

    Raises:
        UserError: shapes or targets that do not fit, or values that are no probabilities.
    """
    p, y = check_examples(probs, targets)
    return _fit(_log(p), y)


def scale_temperature(probs: ArrayLike, temperature: float) -> Array:
    """Return the probabilities (N, C) of softmax(log p / T).

    Args:
        probs: probs (N, C), rows sum to 1.
        temperature: T; above 1 it makes predictions less certain.

    Raises:
        UserError: values that are no probabilities, or a temperature that is not finite and > 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature must be finite and > 0, got {temperature}")
    scaled: Array = softmax(_log(check_probs(probs)) / temperature, axis=1)
    return scaled


def calibrated_log_likelihood(
    probs: ArrayLike, targets: ArrayLike, *, splits: int = 5, seed: int = 0
) -> float:
    """Return the log-likelihood at the optimal temperature, in nats per example (<= 0).

    Ashukha et al. 2020 (arXiv 2002.06470): the examples are split into random halves;
    each half is scored with softmax(log p / T), T fitted on the other half
    (:func:`fit_temperature`); the mean over all examples, and over ``splits`` such splits. Only
    for measuring: a deployed temperature comes from validation data.

    Args:
        probs: probs (N, C), rows sum to 1; N >= 2.
        targets: classes (N,), integers.
        splits: how many random splits to average.
        seed: of the splits: predictions for the same examples are split alike.

    Raises:
        UserError: shapes or targets that do not fit, values that are no probabilities, fewer
            than 2 examples, or ``splits`` below 1.
    """
    p, y = check_examples(probs, targets)
    return float(np.mean([_mean_of(q, y) for q in _held_out(p, y, splits, seed)]))


def calibrated_nll_per_example(
    probs: ArrayLike, targets: ArrayLike, *, splits: int = 5, seed: int = 0
) -> Array:
    """Return each example's NLL at the temperature of the half that it is not in, nats (N,).

    The mean over the splits of :func:`calibrated_log_likelihood`, in each of which every example
    is scored once: the mean over examples is minus the calibrated log-likelihood.

    Arguments and errors are those of :func:`calibrated_log_likelihood`.
    """
    p, y = check_examples(probs, targets)
    rows = np.arange(len(y))
    values: Array = np.mean([-q[rows, y] for q in _held_out(p, y, splits, seed)], axis=0)
    return values


def calibrated_ece(
    probs: ArrayLike, targets: ArrayLike, *, bins: int = 15, splits: int = 5, seed: int = 0
) -> float:
    """Return the expected calibration error at the optimal temperature, a fraction.

    Ashukha et al. 2020 (arXiv 2002.06470): as :func:`calibrated_log_likelihood`, with
    :func:`fge.metrics.ece` of all N held-out predictions of a split, both halves together: an
    ECE grows as examples get fewer, so that of halves could not be compared with a plain one.

    Args:
        probs: probs (N, C), rows sum to 1; N >= 2.
        targets: classes (N,), integers.
        bins: of equal width.
        splits: how many random splits to average.
        seed: of the splits.

    Raises:
        UserError: as :func:`calibrated_log_likelihood`, or ``bins`` below 1.
    """
    p, y = check_examples(probs, targets)
    return float(np.mean([ece(np.exp(q), y, bins=bins) for q in _held_out(p, y, splits, seed)]))


def calibrated_summary(
    probs: ArrayLike, targets: ArrayLike, *, bins: int = 15, splits: int = 5, seed: int = 0
) -> dict[str, float]:
    """Return ``calibrated_log_likelihood`` (nats) and ``calibrated_ece``, from one set of fits.

    Arguments and errors are those of :func:`calibrated_ece`.
    """
    p, y = check_examples(probs, targets)
    values = [(_mean_of(q, y), ece(np.exp(q), y, bins=bins)) for q in _held_out(p, y, splits, seed)]
    log_likelihood, error = np.mean(values, axis=0)
    return {"calibrated_log_likelihood": float(log_likelihood), "calibrated_ece": float(error)}


def deep_ensemble_equivalent(
    log_likelihood: float, deep_ensemble: ArrayLike, *, sizes: Sequence[int] | None = None
) -> float:
    """Return the size of the deep ensemble that does as well as a method.

    Ashukha et al. 2020 (arXiv 2002.06470): the smallest real l >= 1 at which the deep
    ensemble's mean calibrated log-likelihood, linear between the sizes at hand, reaches the
    method's. A method that is worse than one network is worth 1; one that is better than every
    ensemble at hand is worth the largest, which is then only a lower bound. For the paper's
    interval give the ensembles' means plus and less their standard deviation.

    >>> round(deep_ensemble_equivalent(-0.83, [-1, -0.9, -0.85, -0.82, -0.8]), 3)
    3.667

    Args:
        log_likelihood: mean calibrated log-likelihood of the method, nats per example.
        deep_ensemble: mean calibrated log-likelihoods (K,) of deep ensembles, nats per example.
        sizes: their numbers of networks, rising from 1; by default 1, 2, ..., K.

    Returns:
        the equivalent size, in [1, largest size].

    Raises:
        UserError: no ensembles, values that are not finite, or sizes that do not fit.
    """
    levels = np.asarray(deep_ensemble, dtype=np.float64)
    if levels.ndim != 1 or len(levels) == 0:
        raise UserError(f"deep_ensemble must be (K,) with K >= 1, got shape {levels.shape}")
    for value in (log_likelihood, *levels.tolist()):
        if not math.isfinite(value):
            raise UserError(f"calibrated log-likelihoods must be finite, got {value}")
    networks = _checked_sizes(sizes, len(levels))
    reached = np.flatnonzero(levels >= log_likelihood)
    if len(reached) == 0:
        return float(networks[-1])
    first = reached[0]
    if first == 0:
        return 1.0
    share = (log_likelihood - levels[first - 1]) / (levels[first] - levels[first - 1])
    return float(networks[first - 1] + share * (networks[first] - networks[first - 1]))


def _log(p: Array) -> Array:
    """Return log p, finite."""
    log_p: Array = np.log(np.maximum(p, TINY))
    return log_p


def _mean_of(log_q: Array, y: NDArray[np.int64]) -> float:
    """Return the mean log-probability of the targets."""
    return float(log_q[np.arange(len(y)), y].mean())


def _held_out(p: Array, y: NDArray[np.int64], splits: int, seed: int) -> Iterator[Array]:
    """Yield, for each split, log-probabilities (N, C) with the other half's temperature."""
    if len(y) < 2:
        raise UserError(f"splitting in halves takes at least 2 examples, got {len(y)}")
    if splits < 1:
        raise UserError(f"splits must be >= 1, got {splits}")
    rng = np.random.default_rng(seed)
    log_p = _log(p)
    for _ in range(splits):
        order = rng.permutation(len(y))
        halves = order[: len(y) // 2], order[len(y) // 2 :]
        log_q = np.empty_like(log_p)
        for fitted, scored in (halves, halves[::-1]):
            temperature = _fit(log_p[fitted], y[fitted])
            log_q[scored] = log_softmax(log_p[scored] / temperature, axis=1)
        yield log_q


def _fit(log_p: Array, y: NDArray[np.int64]) -> float:
    """Return the temperature that fits log-probabilities (N, C) to targets (N,)."""
    margins = log_p - log_p[np.arange(len(y)), y][:, None]
    if not margins.any():
        return 1.0

    def slope(log_inverse: float) -> float:
        """The derivative of the NLL by 1/T: the mean margin under the scaled probabilities."""
        scaled = softmax(margins * math.exp(log_inverse), axis=1)
        return float(np.einsum("nc,nc->", scaled, margins)) / len(y)

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    # A root, not a minimum: comparing values tells an argument only to half the digits.
    return math.exp(-float(brentq(slope, low, high, xtol=1e-12, rtol=1e-14)))


def _checked_sizes(sizes: Sequence[int] | None, count: int) -> NDArray[np.float64]:
    if sizes is None:
        return np.arange(1.0, count + 1)
    networks = np.asarray(sizes, dtype=np.float64)
    if networks.shape != (count,) or networks[0] != 1 or not (np.diff(networks) > 0).all():
        raise UserError(f"sizes must be {count} numbers that rise from 1, got {list(sizes)}")
    return networks
