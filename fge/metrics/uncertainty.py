"""How uncertain each prediction of an ensemble is, from its members' kept predictions; float64.

Every function of probabilities takes ``members`` (S, N, C), S >= 1, rows summing to 1, as
:meth:`fge.Ensemble.predict_members` and ``predictions/*.npz`` have them. With
``output="sigmoid"`` they are (S, N, ...), probabilities of independent labels, and each label has
figures of its own, in the shape (N, ...), as :class:`fge.Ensemble` gives them. With m the mean over
members and H the entropy in nats (Houlsby et al. 2011, arXiv 1112.5745, equation 2)::

    H(m)  =  mean_s H(p_s)  +  mutual information
    total    the members agree   they disagree
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from fge.errors import UserError, unknown
from fge.metrics.detection import entropy
from fge.metrics.given import as_array
from fge.metrics.scores import check_probs, check_range

Array = NDArray[np.float64]
Probable = Literal["softmax", "sigmoid"]
_HALF = 0.5


def uncertainty(members: Iterable[ArrayLike], *, output: Probable = "softmax") -> dict[str, Array]:
    """Return the mean prediction and every measure of its uncertainty.

    The same as :meth:`fge.Ensemble.uncertainty` of the members, from predictions that were kept.
    Memory does not grow with S if they are read one after the other.

    Args:
        members: probs (S, N, C), or an iterable of S arrays (N, C).
        output: what they are: ``"softmax"`` for exclusive classes, ``"sigmoid"`` for labels.

    Returns:
        ``mean`` (N, C), and (N,) each, of labels (N, ...): ``entropy`` of the mean,
        ``expected_entropy`` and ``mutual_information`` in nats, ``disagreement`` (a fraction).

    Raises:
        UserError: there are no members, shapes differ, values are not probabilities, rows of
            classes do not sum to 1, or ``output`` is unknown.

    >>> found = uncertainty([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> [round(float(found[name][0]), 4) for name in ("entropy", "mutual_information")]
    [0.6931, 0.6931]
    """
    if output not in get_args(Probable):
        raise unknown("output", output, get_args(Probable))
    labels = output == "sigmoid"
    count, total, expected, votes = 0, np.empty((0, 0)), np.empty(0), np.empty((0, 0), np.int32)
    for s, given in enumerate(members):
        p = (check_range if labels else check_probs)(given, name=f"member {s}")
        h = (_label_entropy if labels else entropy)(p)
        if not count:
            total, expected = np.zeros_like(p), np.zeros_like(h)
            votes = np.zeros(p.shape, np.int32)
        if p.shape != total.shape:
            raise UserError(
                f"member {count} has shape {p.shape}, but member 0 has {total.shape}; give "
                "predictions for the same examples"
            )
        count += 1
        total += p
        expected += h
        votes += _said(p, labels)
    if not count:
        raise UserError("uncertainty needs at least 1 member, got 0")
    mean, expected = total / count, expected / count
    mixed = (_label_entropy if labels else entropy)(mean)
    said = _said(mean, labels)
    agreeing = np.where(said, votes, count - votes) if labels else votes[said]
    return {
        "mean": mean,
        "entropy": mixed,
        "expected_entropy": expected,
        "mutual_information": np.maximum(mixed - expected, 0),  # rounding
        "disagreement": 1 - agreeing / count,
    }


def _label_entropy(p: Array) -> Array:
    """Return the entropy of each label, in nats, in the shape of its probabilities."""
    values: Array = entr(p) + entr(1 - p)
    return values


def _said(p: Array, labels: bool) -> NDArray[np.bool_]:
    """Return which labels are predicted, in the shape of ``p``; of classes the first largest."""
    if labels:
        return np.asarray(p > _HALF)
    return np.asarray(p.argmax(axis=1)[:, None] == np.arange(p.shape[1]))


def expected_entropy(members: Iterable[ArrayLike], *, output: Probable = "softmax") -> Array:
    """Return the mean of the members' entropies (N,), in nats: the part that they agree on.

    Args:
        members: probs (S, N, C), or S arrays (N, C).
        output: as of :func:`uncertainty`.

    Raises:
        UserError: as :func:`uncertainty`.
    """
    return uncertainty(members, output=output)["expected_entropy"]


def mutual_information(members: Iterable[ArrayLike], *, output: Probable = "softmax") -> Array:
    """Return H(mean_s p_s) - mean_s H(p_s) of each example (N,), in nats, from 0 to log S.

    It is 0 where all members predict the same, however uncertain they are.

    Args:
        members: probs (S, N, C), or S arrays (N, C).
        output: as of :func:`uncertainty`.

    Raises:
        UserError: as :func:`uncertainty`.
    """
    return uncertainty(members, output=output)["mutual_information"]


def label_disagreement(members: Iterable[ArrayLike], *, output: Probable = "softmax") -> Array:
    """Return the fraction of members whose most probable class is not that of the mean, (N,).

    Also known as the variation ratio of votes around the ensemble's label (Freeman 1965; Gal 2016,
    section 3.3.1). Of equal probabilities, the first class is the label.

    Args:
        members: probs (S, N, C), or S arrays (N, C).
        output: as of :func:`uncertainty`.

    Raises:
        UserError: as :func:`uncertainty`.

    >>> p = [[[0.9, 0.1]], [[0.4, 0.6]], [[0.8, 0.2]], [[0.7, 0.3]]]
    >>> label_disagreement(p).tolist()
    [0.25]
    """
    return uncertainty(members, output=output)["disagreement"]


def member_variance(members: ArrayLike) -> Array:
    """Return the variance over members, sum_s (f_s - mean f)² / S, of each output.

    For regression, as :meth:`fge.Ensemble.uncertainty` gives it with ``output="identity"``.

    Args:
        members: predictions (S, N, ...) of any kind, S >= 1.

    Returns:
        (N, ...), in squared units of the predictions.

    Raises:
        UserError: the shape is another, or values are not finite.
    """
    values = as_array(members, dtype=np.float64)
    if values.ndim < 2 or values.size == 0:
        raise UserError(f"members must be (S, N, ...) with S, N >= 1, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise UserError(f"members must be finite, got {values[~np.isfinite(values)][0]}")
    variance: Array = values.var(axis=0)
    return variance
