"""How the members of an ensemble differ, and what averaging gains; numpy, float64.

Every function takes the members' ``probs``, an array (S, N, C) or S arrays (N, C), S >= 2, rows
summing to 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError
from fge.metrics.scores import TINY, brier, check_examples, check_probs, error, nll

Array = NDArray[np.float64]
Members = Iterable[ArrayLike]


def disagreement_matrix(members: Members) -> Array:
    """Return, for each pair of members, the percentage of examples they classify differently.

    Fort et al. 2019 (arXiv 1912.02757), in the unit of :func:`fge.metrics.error`.

    Args:
        members: S arrays of probs (N, C).

    Returns:
        (S, S), symmetric, 0 on the diagonal.

    Raises:
        UserError: there are fewer than 2 members, shapes differ, or values are not probabilities.
    """
    classes = np.stack([p.argmax(axis=1) for p in _checked(members)])
    return np.stack([100 * np.mean(classes != row, axis=1) for row in classes])


def disagreement(members: Members) -> float:
    """Return the mean of :func:`disagreement_matrix` over pairs of members, in percent.

    Raises:
        UserError: as :func:`disagreement_matrix`.
    """
    return float(_pairs(disagreement_matrix(members)).mean())


def error_correlation_matrix(members: Members, targets: ArrayLike) -> Array:
    """Return, for each pair of members, the correlation of their errors, in [-1, 1].

    Pearson's correlation of the indicators [predicted class != target] over the examples (Kuncheva
    and Whitaker 2003, doi 10.1023/A:1022859003006): 0 for independent errors, 1 if both are wrong
    on the same examples. It is undefined (NaN) for a member that is always right or always wrong.

    Args:
        members: S arrays of probs (N, C).
        targets: classes (N,), integers.

    Returns:
        (S, S), symmetric.

    Raises:
        UserError: as :func:`disagreement_matrix`, or targets do not fit.
    """
    arrays = _checked(members)
    _, y = check_examples(arrays[0], targets)
    wrong = np.stack([p.argmax(axis=1) != y for p in arrays]).astype(np.float64)
    wrong -= wrong.mean(axis=1, keepdims=True)
    covariance = wrong @ wrong.T
    deviations = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore"):
        matrix: Array = np.clip(covariance / np.outer(deviations, deviations), -1, 1)
    return matrix


def error_correlation(members: Members, targets: ArrayLike) -> float:
    """Return the mean of :func:`error_correlation_matrix` over the pairs where it is defined.

    NaN if there is no such pair.

    Raises:
        UserError: as :func:`error_correlation_matrix`.
    """
    pairs = _pairs(error_correlation_matrix(members, targets))
    defined = pairs[~np.isnan(pairs)]
    return float(defined.mean()) if len(defined) else float("nan")


class GainSplit(NamedTuple):
    """A metric's mean over members, its value for their ensemble, and the members' diversity."""

    members: float
    ensemble: float
    diversity: float

    @property
    def gain(self) -> float:
        """The gain of averaging: the members' mean minus the ensemble's value."""
        return self.members - self.ensemble


def gain_split(members: Members, targets: ArrayLike) -> dict[str, GainSplit]:
    """Return the gain of averaging the members' probabilities, and the members' diversity.

    With p_s the members' probabilities, m their mean, y the target:

    - ``"nll"`` (nats): the diversity is the Jensen gap, the mean over examples of
      log m_y - mean_s log p_sy (Abe et al. 2022, arXiv 2202.06985), that is KL(uniform || w) of
      the members' posterior weights w_s = p_sy / sum_r p_ry for the target. It equals the gain.
    - ``"brier"``: the diversity is the ambiguity, the mean over examples of
      mean_s sum_c (p_sc - m_c)^2 (Krogh and Vedelsby 1995; Wood et al. 2023, arXiv 2301.03962).
      It equals the gain.
    - ``"error"`` (percent): the diversity is the disagreement of pairs. Here there is no identity:
      the gain may be smaller, or negative.

    Args:
        members: S arrays of probs (N, C).
        targets: classes (N,), integers.

    Returns:
        A split for each of ``"error"``, ``"nll"`` and ``"brier"``.

    Raises:
        UserError: as :func:`error_correlation_matrix`.
    """
    arrays = _checked(members)
    _, y = check_examples(arrays[0], targets)
    mean = np.zeros_like(arrays[0])
    for p in arrays:
        mean += p / len(arrays)
    diversity = {
        "error": disagreement(arrays),
        "nll": float(np.mean(_log_of(mean, y) - np.mean([_log_of(p, y) for p in arrays], axis=0))),
        "brier": float(np.mean([np.sum((p - mean) ** 2, axis=1) for p in arrays])),
    }
    return {
        name: GainSplit(
            float(np.mean([metric(p, y) for p in arrays])), metric(mean, y), diversity[name]
        )
        for name, metric in (("error", error), ("nll", nll), ("brier", brier))
    }


def _checked(members: Members) -> list[Array]:
    arrays = [check_probs(p, name=f"member {s}") for s, p in enumerate(members)]
    if len(arrays) < 2:
        raise UserError(f"diversity needs at least 2 members, got {len(arrays)}")
    for s, p in enumerate(arrays):
        if p.shape != arrays[0].shape:
            raise UserError(
                f"member {s} has shape {p.shape}, but member 0 has {arrays[0].shape}; give "
                "predictions for the same examples"
            )
    return arrays


def _pairs(matrix: Array) -> Array:
    """Return the values above the diagonal."""
    return matrix[np.triu_indices(len(matrix), k=1)]


def _log_of(p: Array, y: NDArray[np.int64]) -> Array:
    """Return the targets' log-probabilities (N,), clamped as :func:`fge.metrics.nll` does."""
    log_p: Array = np.log(np.maximum(p[np.arange(len(y)), y], TINY))
    return log_p
