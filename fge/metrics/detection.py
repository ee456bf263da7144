"""Detecting OOD inputs and wrong predictions by uncertainty; numpy, float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from fge.errors import UserError
from fge.metrics.given import as_array
from fge.metrics.scores import check_examples, check_probs

Array = NDArray[np.float64]


def auroc(negatives: ArrayLike, positives: ArrayLike) -> float:
    """Return the area under the ROC curve: the probability that a positive scores higher.

    P(positive > negative) + P(positive = negative) / 2 over all pairs, the Mann-Whitney statistic
    (Fawcett 2006, doi 10.1016/j.patrec.2005.10.010, section 7): 0.5 for uninformative scores.

    Args:
        negatives: scores (N,), N >= 1.
        positives: scores (M,), M >= 1.

    Raises:
        UserError: either is empty, not a vector, or holds values that are not finite.
    """
    low, high = np.sort(_scores("negatives", negatives)), _scores("positives", positives)
    below = np.searchsorted(low, high, side="left")
    not_above = np.searchsorted(low, high, side="right")
    return float(np.mean((below + not_above) / 2) / len(low))


def entropy(probs: ArrayLike) -> Array:
    """Return the entropy -sum_c p_c log p_c of each row, in nats (N,); 0 log 0 is 0.

    Raises:
        UserError: values are not probabilities.
    """
    # Sorted rows with the same probabilities have bitwise equal sums, so ties stay ties.
    values: Array = entr(np.sort(check_probs(probs), axis=1)).sum(axis=1)
    return values


def ood_auroc(probs: ArrayLike, ood_probs: ArrayLike) -> dict[str, float]:
    """Return two AUROCs of detecting out-of-distribution (OOD) inputs by uncertainty.

    OOD inputs are the positives. Their scores are the negative largest probability (Hendrycks and
    Gimpel 2017, arXiv 1610.02136) and the entropy of the prediction (Lakshminarayanan et al. 2017,
    arXiv 1612.01474).

    Args:
        probs: probs (N, C) of in-distribution inputs, rows sum to 1.
        ood_probs: probs (M, C) of OOD inputs, rows sum to 1.

    Returns:
        ``"max_probability"`` and ``"entropy"``, :func:`auroc` in [0, 1].

    Raises:
        UserError: either has no inputs, the numbers of classes differ, or values are not
            probabilities.
    """
    inside, outside = check_probs(probs), check_probs(ood_probs, name="ood_probs")
    if inside.shape[1] != outside.shape[1]:
        raise UserError(
            "probs and ood_probs must have the same classes, got "
            f"{inside.shape[1]} and {outside.shape[1]}"
        )
    return {
        "max_probability": auroc(-inside.max(axis=1), -outside.max(axis=1)),
        "entropy": auroc(entropy(inside), entropy(outside)),
    }


class RiskCoverage(NamedTuple):
    """The fraction of examples answered and the fraction of wrong answers among them, (N,) each."""

    coverage: Array
    risk: Array


def risk_coverage(probs: ArrayLike, targets: ArrayLike) -> RiskCoverage:
    """Return the error among the most confident k of N examples, for k = 1 to N.

    Geifman and El-Yaniv 2017 (arXiv 1705.08500), with the largest probability as confidence.
    Examples of equal confidence have no order: each counts with the mean error of all of them,
    which is the expected risk with ties broken at random.

    Args:
        probs: probs (N, C), rows sum to 1.
        targets: classes (N,), integers.

    Returns:
        Coverage k / N and risk, both fractions, by rising coverage; the last risk is the error.

    Raises:
        UserError: shapes or targets do not fit, or values are not probabilities.
    """
    p, y = check_examples(probs, targets)
    return risk_coverage_of(-p.max(axis=1), p.argmax(axis=1) != y)


def risk_coverage_of(doubt: ArrayLike, risk: ArrayLike) -> RiskCoverage:
    """Return the mean risk of the k of N examples of least doubt, for k = 1 to N.

    As :func:`risk_coverage`, for any measure of doubt and of risk: the entropy of labels and the
    part of them that is wrong, or a predicted variance and the squared error.

    >>> risk_coverage_of([0.1, 0.9, 0.5], [0.0, 6.0, 3.0]).risk.tolist()
    [0.0, 1.5, 3.0]

    Args:
        doubt: (N,); those of equal doubt have no order.
        risk: (N,), of each example.

    Returns:
        Coverage k / N and mean risk, by rising coverage; the last risk is the mean of all.

    Raises:
        UserError: shapes do not fit, there is no example, or values are not finite.
    """
    d, r = _scores("doubt", doubt), _scores("risk", risk)
    if d.shape != r.shape:
        raise UserError(f"doubt and risk must have one shape, got {d.shape} and {r.shape}")
    _, index, counts = np.unique(d, return_inverse=True, return_counts=True)
    total = np.bincount(index, weights=r)
    answered = np.arange(1, len(r) + 1)
    ends = np.concatenate([[0], np.cumsum(counts)])
    sums = np.interp(answered, ends, np.concatenate([[0.0], np.cumsum(total)]))
    return RiskCoverage(answered / len(r), sums / answered)


def aurc(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the area under the risk-coverage curve, a fraction: the mean risk over coverages.

    Geifman et al. 2019 (arXiv 1805.08206): the mean over k = 1 to N of the risk at coverage k / N
    (:func:`risk_coverage`). Lower is better: it falls with fewer errors, and with errors of lower
    confidence.

    Args:
        probs: probs (N, C), rows sum to 1.
        targets: classes (N,), integers.

    Raises:
        UserError: as :func:`risk_coverage`.
    """
    return float(risk_coverage(probs, targets).risk.mean())


def _scores(name: str, values: ArrayLike) -> Array:
    scores = as_array(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise UserError(f"{name} must be scores (N,) with N >= 1, got shape {scores.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        raise UserError(f"{name} must be finite, got {scores[~finite][0]}")
    return scores
