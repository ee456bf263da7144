"""How good class probabilities are: error, NLL, Brier score, ECE; numpy, float64.

Every function takes ``probs`` (N, C), rows summing to 1, and integer ``targets`` (N,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError

TINY = float(np.finfo(np.float32).tiny)
"""Probabilities below this count as this in logarithms: stored ones are float32."""


def error(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the share of examples whose most probable class is wrong, in percent."""
    p, y = _checked(probs, targets)
    return float(100 * np.mean(p.argmax(axis=1) != y))


def nll(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean of -log p(target), in nats per example."""
    p, y = _checked(probs, targets)
    return float(-np.mean(np.log(np.maximum(p[np.arange(len(y)), y], TINY))))


def brier(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the squared distance to the one-hot target, summed over classes (0 to 2).

    Brier 1950: the mean over examples of sum_c (p_c - [c = target])^2.
    """
    p, y = _checked(probs, targets)
    onehot = np.zeros_like(p)
    onehot[np.arange(len(y)), y] = 1
    return float(np.mean(np.sum((p - onehot) ** 2, axis=1)))


def ece(probs: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """Return the expected calibration error, a fraction.

    Guo et al. 2017 (arXiv 1706.04599, equation 3): the confidence (largest probability) falls
    into ``bins`` intervals (b/bins, (b+1)/bins] of equal width; the sum over bins of their share
    of the examples times |accuracy - mean confidence|.
    """
    p, y = _checked(probs, targets)
    confidence = p.max(axis=1)
    correct = p.argmax(axis=1) == y
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def summary(probs: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Return ``error`` (percent), ``nll`` (nats), ``brier`` and ``ece`` (fraction)."""
    return {
        "error": error(probs, targets),
        "nll": nll(probs, targets),
        "brier": brier(probs, targets),
        "ece": ece(probs, targets),
    }


def _checked(probs: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p = np.asarray(probs, dtype=np.float64)
    y = np.asarray(targets)
    if p.ndim != 2 or y.shape != p.shape[:1] or len(y) == 0:
        raise UserError(
            f"probs must be (N, C) and targets (N,) with N >= 1, got {p.shape} and {y.shape}"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise UserError(
            f"targets must be integers in [0, {p.shape[1]}), got {y.dtype} "
            f"from {y.min()} to {y.max()}"
        )
    return p, y.astype(np.int64)
