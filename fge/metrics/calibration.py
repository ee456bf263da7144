"""Calibration: temperatures, and metrics that do not depend on them; numpy, float64.

Every function takes ``probs`` (N, C), rows summing to 1, and integer ``targets`` (N,).
Probabilities below :data:`fge.metrics.TINY`, such as the zeros of certain predictions, are raised
to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from fge.errors import UserError, check_at_least, check_positive
from fge.metrics.scores import TINY, check_examples, check_probs, ece, nll_per_example

Array = NDArray[np.float64]
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1000.0
"""The range of temperatures: certain predictions that are often wrong need hundreds."""


def adaptive_ece(probs: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equally many examples, a fraction.

    Mukhoti et al. 2020 (arXiv 2002.09437, AdaECE; after Nguyen and O'Connor 2015, arXiv
    1508.05154): the examples, ordered by confidence (largest probability), are divided into
    ``bins`` groups of N / bins; the mean over bins of |accuracy - mean confidence|. An example on
    a boundary counts in both bins, in proportion; examples of equal confidence count with their
    mean accuracy, so the order of the examples does not matter.

    Raises:
        UserError: shapes or targets do not fit, values are not probabilities, or ``bins`` is
            below 1.
    """
    p, y = check_examples(probs, targets)
    check_at_least(1, bins=bins)
    confidence, index, counts = np.unique(p.max(axis=1), return_inverse=True, return_counts=True)
    correct = np.bincount(index, weights=p.argmax(axis=1) == y)
    ends = np.concatenate([[0], np.cumsum(counts)])
    gaps = np.concatenate([[0.0], np.cumsum(correct - counts * confidence)])
    cuts = np.linspace(0, len(y), bins + 1)
    return float(np.abs(np.diff(np.interp(cuts, ends, gaps))).sum() / len(y))


def fit_temperature(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the temperature T > 0 that minimises the NLL of softmax(log p / T).

    Guo et al. 2017 (arXiv 1706.04599, section 4.2), from probabilities: softmax(log p / T) is
    softmax(logits / T). The NLL is convex in 1/T; Brent's method finds the root of its derivative
    to 1e-11 relative. T is in [:data:`MIN_TEMPERATURE`, :data:`MAX_TEMPERATURE`]: the lower end is
    returned if every target is the most probable class, since then no T is low enough; the upper
    end if the predictions contain no information about the targets. T is 1 if all classes are
    equally probable in every example, since then T has no effect.

    For a deployed temperature give validation data.

    Raises:
        UserError: shapes or targets do not fit, or values are not probabilities.
    """
    p, y = check_examples(probs, targets)
    return _fit(_log(p), y)


def tempered_nll_per_example(probs: ArrayLike, targets: ArrayLike) -> Array:
    """Return the NLL (N,), in nats, at the temperature that makes its mean lowest.

    The temperature is fitted on these very examples, unlike that of
    :func:`calibrated_nll_per_example`: for validation data, whose figures choose.

    >>> import numpy as np
    >>> probs = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    >>> tempered_nll_per_example(probs, [0, 0, 1]).round(4).tolist()
    [0.4055, 0.4055, 1.0986]

    Args:
        probs: probs (N, C), rows sum to 1.
        targets: classes (N,).

    Raises:
        UserError: shapes or targets do not fit, or values are not probabilities.
    """
    return nll_per_example(scale_temperature(probs, fit_temperature(probs, targets)), targets)


def scale_temperature(probs: ArrayLike, temperature: float) -> Array:
    """Return the probabilities (N, C) of softmax(log p / T).

    Args:
        probs: probs (N, C), rows sum to 1.
        temperature: T; above 1 it makes predictions less certain.

    Raises:
        UserError: values are not probabilities, or the temperature is not finite and above 0.
    """
    check_positive(temperature=temperature)
    scaled: Array = softmax(_log(check_probs(probs)) / temperature, axis=1)
    return scaled


def calibrated_log_likelihood(
    probs: ArrayLike, targets: ArrayLike, *, splits: int = 5, seed: int = 0
) -> float:
    """Return the log-likelihood at the optimal temperature, in nats per example (<= 0).

    Ashukha et al. 2020 (arXiv 2002.06470): the examples are split into random halves, and each half
    is scored with softmax(log p / T), T fitted on the other half (:func:`fit_temperature`). The
    result is the mean over all examples and over ``splits`` such splits. Use it only to measure: a
    deployed temperature comes from validation data.

    Args:
        probs: probs (N, C), rows sum to 1; N >= 2.
        targets: classes (N,), integers.
        splits: number of random splits to average.
        seed: of the splits; predictions for the same examples are split in the same way.

    Raises:
        UserError: shapes or targets do not fit, values are not probabilities, there are fewer than
            2 examples, or ``splits`` is below 1.
    """
    p, y = check_examples(probs, targets)
    return float(np.mean([_mean_of(q, y) for q in _held_out(p, y, splits, seed)]))


def calibrated_nll_per_example(
    probs: ArrayLike, targets: ArrayLike, *, splits: int = 5, seed: int = 0
) -> Array:
    """Return each example's NLL at the temperature of the other half, in nats (N,).

    This is the mean over the splits of :func:`calibrated_log_likelihood`, each of which scores
    every example once. The mean over examples is minus the calibrated log-likelihood.

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

    Ashukha et al. 2020 (arXiv 2002.06470): like :func:`calibrated_log_likelihood`, with
    :func:`fge.metrics.ece` of all N held-out predictions of a split, both halves together. An ECE
    grows as the number of examples falls, so the ECE of a half is not comparable with a plain one.

    Args:
        probs: probs (N, C), rows sum to 1; N >= 2.
        targets: classes (N,), integers.
        bins: number of bins of equal width.
        splits: number of random splits to average.
        seed: of the splits.

    Raises:
        UserError: as :func:`calibrated_log_likelihood`, or ``bins`` is below 1.
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


def _log(p: Array) -> Array:
    """Return log p, finite."""
    log_p: Array = np.log(np.maximum(p, TINY))
    return log_p


def _mean_of(log_q: Array, y: NDArray[np.int64]) -> float:
    """Return the mean log-probability of the targets."""
    return float(log_q[np.arange(len(y)), y].mean())


def _held_out(p: Array, y: NDArray[np.int64], splits: int, seed: int) -> Iterator[Array]:
    """Yield, for each split, log-probabilities (N, C) at the other half's temperature."""
    log_p = _log(p)
    pairs = halves(len(y), splits, seed)
    for first, second in zip(pairs, pairs, strict=True):
        log_q = np.empty_like(log_p)
        for fitted, scored in (first, second):
            temperature = _fit(log_p[fitted], y[fitted])
            log_q[scored] = log_softmax(log_p[scored] / temperature, axis=1)
        yield log_q


def halves(
    count: int, splits: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield two pairs per random split: the examples to fit on and those to score, both ways.

    Raises:
        UserError: there are fewer than 2 examples, or ``splits`` is below 1.
    """
    if count < 2:
        raise UserError(f"splitting into halves needs at least 2 examples, got {count}")
    check_at_least(1, splits=splits)
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        order = rng.permutation(count)
        pair = order[: count // 2], order[count // 2 :]
        yield from (pair, pair[::-1])


def _fit(log_p: Array, y: NDArray[np.int64]) -> float:
    """Return the temperature that fits log-probabilities (N, C) to targets (N,)."""
    margins = log_p - log_p[np.arange(len(y)), y][:, None]
    if not margins.any():
        return 1.0

    def slope(log_inverse: float) -> float:
        """Return the derivative of the NLL by 1/T: the mean margin of the scaled probabilities."""
        scaled = softmax(margins * math.exp(log_inverse), axis=1)
        return float(np.einsum("nc,nc->", scaled, margins)) / len(y)

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    # A root, not a minimum: comparing values determines the argument only to half the digits.
    return math.exp(-float(brentq(slope, low, high, xtol=1e-12, rtol=1e-14)))
