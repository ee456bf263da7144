"""Scores of independent labels, and of rankings by a score; numpy, float64.

``probs`` (N, L) are the probabilities of L labels, each of which an example has or not: rows need
not sum to 1. ``targets`` (N, L) are 0 or 1. Every function raises
:class:`fge.errors.UserError` for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from fge.errors import UserError, check_at_least
from fge.metrics.calibration import fit_temperature, halves, scale_temperature
from fge.metrics.detection import auroc
from fge.metrics.given import as_array
from fge.metrics.scores import TINY, check_range, flattening

Array = NDArray[np.float64]


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return the area under the precision-recall curve, as a sum of steps.

    AP = sum_n (R_n - R_(n-1)) P_n over the distinct scores from high to low, with P_n and R_n the
    precision and recall of all examples that score at least so high; equal scores are one step.

    >>> round(average_precision([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.8333

    Args:
        scores: (N,), higher for positives.
        targets: 0 or 1 (N,), at least one 1.

    Raises:
        UserError: shapes do not fit, scores are not finite, targets are not 0 or 1, or there is no
            positive.
    """
    s, y = as_array(scores, dtype=np.float64), as_array(targets)
    if s.ndim != 1 or s.shape != y.shape or not (y == 1).any():
        raise UserError(
            f"scores and targets must be (N,) with a target of 1, got {s.shape} and {y.shape}"
        )
    y = _zero_or_one(y)
    if not np.isfinite(s).all():
        raise UserError(f"scores must be finite, got {s[~np.isfinite(s)][0]}")
    order = np.argsort(-s, kind="stable")
    hits = np.cumsum(y[order])
    last = np.append(np.diff(s[order]) != 0, True)
    found, seen = hits[last], np.flatnonzero(last) + 1
    return float(np.sum(np.diff(found, prepend=0) * found / seen) / hits[-1])


def ranking_scores(probs: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Return ``auroc`` and ``average_precision``, means over the labels for which they exist.

    A label needs examples with it and without it; a figure is left out if no label has both.

    Args:
        probs: (N, L).
        targets: 0 or 1 (N, L).
    """
    p, y = check_labels(probs, targets)
    return mean_rankings((p[:, k], y[:, k] == 1) for k in range(p.shape[1]))


def mean_rankings(columns: Iterable[tuple[Array, NDArray[np.bool_]]]) -> dict[str, float]:
    """Return ``auroc`` and ``average_precision``, means over the columns for which they exist.

    Args:
        columns: of each, the scores (N,) and which examples are positives (N,).
    """
    areas, precisions = [], []
    for scores, positive in columns:
        if positive.any() and not positive.all():
            areas.append(auroc(scores[~positive], scores[positive]))
            precisions.append(average_precision(scores, positive))
    if not areas:
        return {}
    return {"auroc": float(np.mean(areas)), "average_precision": float(np.mean(precisions))}


def labels_entropy(probs: ArrayLike) -> Array:
    """Return the entropy of the labels of each example, summed over labels, in nats (N,).

    Args:
        probs: (N, L).

    Raises:
        UserError: values are no probabilities (N, L).
    """
    p = check_label_probs(probs)
    # Sorted rows with the same probabilities have bitwise equal sums, so ties stay ties.
    return np.asarray(np.sort(entr(p) + entr(1 - p), axis=1).sum(axis=1))


def wrong_labels(probs: ArrayLike, targets: ArrayLike) -> Array:
    """Return the fraction of the labels of each example that are wrong at 1/2, (N,)."""
    p, y = check_labels(probs, targets)
    return np.asarray(((p > 0.5) != y).mean(axis=1), dtype=np.float64)


def labels_nll_per_example(probs: ArrayLike, targets: ArrayLike) -> Array:
    """Return the NLL of each example, the sum over its labels, in nats (N,)."""
    p, y = check_labels(probs, targets)
    return np.asarray(-np.log(np.maximum(np.where(y == 1, p, 1 - p), TINY)).sum(axis=1))


def tempered_labels_nll(probs: ArrayLike, targets: ArrayLike) -> Array:
    """Return the NLL (N,) at the one temperature of all labels that makes its mean lowest.

    The temperature divides the logits log(p / (1 - p)); it is fitted on these very examples.
    """
    p, y = check_labels(probs, targets)
    return labels_nll_per_example(_tempered(p, _temperature(p, y)), y)


def calibrated_labels_nll(
    probs: ArrayLike, targets: ArrayLike, *, splits: int = 5, seed: int = 0
) -> Array:
    """Return each example's NLL at the temperature of the other half, in nats (N,).

    As :func:`fge.metrics.calibrated_nll_per_example`, with one temperature for the logits of all
    labels. Arguments are those of that function, for labels (N, L).
    """
    p, y = check_labels(probs, targets)
    total = np.zeros(len(y))
    for fitted, scored in halves(len(y), splits, seed):
        tempered = _tempered(p[scored], _temperature(p[fitted], y[fitted]))
        total[scored] += labels_nll_per_example(tempered, y[scored])
    return total / splits


def labels_ece(probs: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """Return the expected calibration error of all N x L probabilities, a fraction.

    They are binned into ``bins`` intervals of equal width; the sum over bins of their fraction of
    the probabilities times |frequency of the label - mean probability|.
    """
    p, y = check_labels(probs, targets)
    check_at_least(1, bins=bins)
    index = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1).ravel()
    gap = np.bincount(index, weights=(y - p).ravel(), minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def labels_summary(probs: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Return the figures of labels.

    ``error``: percent of all labels that are wrong at 1/2; ``exact_match``: percent of examples
    whose labels are all right; ``auroc`` and ``average_precision``: means over labels, where they
    exist; ``nll``: nats per example, summed over labels; ``brier``: (p - y)^2, the mean over
    examples and labels; ``ece``: a fraction.
    """
    p, y = check_labels(probs, targets)
    wrong = wrong_labels(p, y)
    return {
        "error": float(100 * wrong.mean()),
        "exact_match": float(100 * np.mean(wrong == 0)),
        **ranking_scores(p, y),
        "nll": float(labels_nll_per_example(p, y).mean()),
        "brier": float(np.mean((p - y) ** 2)),
        "ece": labels_ece(p, y),
    }


def check_labels(probs: ArrayLike, targets: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Return probabilities (N, L) in float64 and targets (N, L) in int64.

    Raises:
        UserError: the shapes do not fit, targets are not 0 or 1, or values are no probabilities.
    """
    p, y = as_array(probs, dtype=np.float64), as_array(targets)
    if p.ndim != 2 or p.shape != y.shape or p.size == 0:
        raise UserError(
            f"probs and targets must be (N, L) with N and L >= 1, got {p.shape} and {y.shape}"
            f"{flattening(p.ndim, 'labels')}"
        )
    return check_range(p), _zero_or_one(y)


def check_label_probs(probs: ArrayLike) -> Array:
    """Return probabilities (N, L) in float64.

    Raises:
        UserError: the shape does not fit, or values are no probabilities.
    """
    p = as_array(probs, dtype=np.float64)
    if p.ndim != 2 or p.size == 0:
        raise UserError(
            f"probs must be (N, L) with N and L >= 1, got {p.shape}{flattening(p.ndim, 'labels')}"
        )
    return check_range(p)


def _zero_or_one(y: NDArray[Any]) -> NDArray[np.int64]:
    """Return targets in int64.

    Raises:
        UserError: one is neither 0 nor 1.
    """
    if not np.isin(y, (0, 1)).all():
        raise UserError(f"targets must be 0 or 1, got {y[~np.isin(y, (0, 1))][0]}")
    return y.astype(np.int64)


def _pairs(p: Array) -> Array:
    """Return the probabilities of the two outcomes of each label (N L, 2)."""
    return np.stack([1 - p, p], axis=-1).reshape(-1, 2)


def _temperature(p: Array, y: NDArray[np.int64]) -> float:
    return fit_temperature(_pairs(p), y.ravel())


def _tempered(p: Array, temperature: float) -> Array:
    return scale_temperature(_pairs(p), temperature)[:, 1].reshape(p.shape)
