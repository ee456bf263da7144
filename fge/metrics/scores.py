"""Scores of class probabilities: error, NLL, Brier score, ECE; numpy, float64.

Every function takes ``probs`` (N, C), rows summing to 1, and integer ``targets`` (N,), and raises
:class:`fge.errors.UserError` for anything else, such as logits or values that are not finite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError, check_at_least
from fge.metrics.given import as_array

_ROUNDING = 1e-3
"""By how much rows may differ from 1, as those in float16 do."""
_OF_BFLOAT16 = 2**-8
"""By how much rows may differ from 1 that were rounded to bfloat16, which has 8 bits."""
TINY = float(np.finfo(np.float32).tiny)
"""The smallest probability in logarithms, since stored probabilities are float32."""


def error(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the percentage of examples whose most probable class is wrong."""
    p, y = check_examples(probs, targets)
    return float(100 * np.mean(p.argmax(axis=1) != y))


def nll(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean of -log p(target), in nats per example."""
    return float(nll_per_example(probs, targets).mean())


def nll_per_example(probs: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Return -log p(target) of each example, in nats (N,)."""
    p, y = check_examples(probs, targets)
    values: NDArray[np.float64] = -np.log(np.maximum(p[np.arange(len(y)), y], TINY))
    return values


def brier(probs: ArrayLike, targets: ArrayLike) -> float:
    """Return the squared distance to the one-hot target, summed over classes (0 to 2).

    Brier 1950: the mean over examples of sum_c (p_c - [c = target])^2.
    """
    p, y = check_examples(probs, targets)
    onehot = np.zeros_like(p)
    onehot[np.arange(len(y)), y] = 1
    return float(np.mean(np.sum((p - onehot) ** 2, axis=1)))


def ece(probs: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """Return the expected calibration error, a fraction.

    Guo et al. 2017 (arXiv 1706.04599, equation 3): examples are binned by confidence (largest
    probability) into ``bins`` intervals (b/bins, (b+1)/bins] of equal width; the sum over bins of
    their fraction of the examples times |accuracy - mean confidence|.

    Raises:
        UserError: as :func:`check_examples`, or ``bins`` is below 1.
    """
    p, y = check_examples(probs, targets)
    index, confidence, correct = _binned(p, y, bins)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


class Reliability(NamedTuple):
    """A reliability diagram: arrays (bins,); confidence and accuracy are NaN in empty bins."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def reliability(probs: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> Reliability:
    """Return the examples, mean confidence and accuracy of each bin of :func:`ece`.

    Guo et al. 2017 (arXiv 1706.04599, section 2): the reliability diagram plots accuracy against
    confidence; calibrated predictions are on the diagonal.

    Raises:
        UserError: as :func:`check_examples`, or ``bins`` is below 1.
    """
    p, y = check_examples(probs, targets)
    index, *values = _binned(p, y, bins)
    counts = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=weights, minlength=bins) for weights in values]
    with np.errstate(invalid="ignore"):
        return Reliability(counts, *(total / counts for total in sums))


def summary(probs: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Return ``error`` (percent), ``nll`` (nats), ``brier`` and ``ece`` (fraction)."""
    return {
        "error": error(probs, targets),
        "nll": nll(probs, targets),
        "brier": brier(probs, targets),
        "ece": ece(probs, targets),
    }


def check_examples(
    probs: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities (N, C) in float64 and targets (N,) in int64.

    Raises:
        UserError: the shapes do not fit, there is no example, targets are not classes, or values
            are not probabilities.
    """
    p = as_array(probs, dtype=np.float64)
    y = as_array(targets)
    if p.ndim != 2 or y.shape != p.shape[:1] or len(y) == 0:
        raise UserError(
            f"probs must be (N, C) and targets (N,) with N >= 1, got {p.shape} and {y.shape}"
            f"{flattening(p.ndim)}"
        )
    wanted = f"targets must be integers in [0, {p.shape[1]}), got {y.dtype}"
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{wanted}, such as {y[0]!s:.40}")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise UserError(f"{wanted} from {y.min()} to {y.max()}")
    return check_probs(p), y.astype(np.int64)


def check_probs(probs: ArrayLike, *, name: str = "probs") -> NDArray[np.float64]:
    """Return probabilities (N, C) of exclusive classes in float64.

    Args:
        probs: class probabilities; rounding errors up to 1e-6 above 1 are allowed, and of the sum
            of a row up to 1e-3.
        name: of the argument, for the message.

    Raises:
        UserError: the shape is not (N, C) with N, C >= 1, values are not in [0, 1] (often
            because they are logits), a row does not sum to 1 (often because it has labels of which
            several may be true), or there is one column and it is not that of all classes.
    """
    p = as_array(probs, dtype=np.float64)
    if p.ndim != 2 or p.size == 0:
        raise UserError(f"{name} must be (N, C) with N >= 1, got {p.shape}{flattening(p.ndim)}")
    check_range(p, name=name, remedy="softmax")
    if p.shape[1] == 1 and p.min() < 1 - 1e-6:
        raise UserError(
            f"{name} must have a column per class, got {p.shape} with values below 1; of two "
            "classes, one of which has probability p, give the columns 1 - p and p"
        )
    sums = p.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _ROUNDING:
        remedy = (
            "take the softmax in float32, or divide each row by its sum"
            if abs(sums[worst] - 1) <= _OF_BFLOAT16
            else "of independent labels use the figures of labels, such as labels_summary, and "
            'uncertainty(..., output="sigmoid")'
        )
        raise UserError(
            f"{name} must be probabilities of exclusive classes, rows that sum to 1, but row "
            f"{worst} sums to {sums[worst]:g}; {remedy}"
        )
    return p


def check_range(
    probs: ArrayLike, *, name: str = "probs", remedy: str = "sigmoid"
) -> NDArray[np.float64]:
    """Return probabilities (N, ...) in float64, whatever they sum to.

    Args:
        probs: rounding errors up to 1e-6 above 1 are allowed, and of a sigmoid removed.
        name: of the argument, for the message.
        remedy: what makes logits probabilities.

    Raises:
        UserError: there are none, or values are not in [0, 1].
    """
    p = as_array(probs, dtype=np.float64)
    if p.ndim < 1 or p.size == 0:
        raise UserError(f"{name} must be (N, ...) with N >= 1, got {p.shape}")
    low, high = float(p.min()), float(p.max())
    if not (low >= 0 and high <= 1 + 1e-6):  # false for NaN too
        raise UserError(
            f"{name} must be probabilities in [0, 1], got values from {low:g} to {high:g}; "
            f"apply a {remedy} to logits"
        )
    return np.minimum(p, 1.0) if remedy == "sigmoid" else p


def flattening(rank: int, of: str = "classes") -> str:
    """Return what to do about arrays of pixels or tokens, after a semicolon."""
    if rank <= 2:
        return ""
    targets = "targets.flatten()" if of == "classes" else "the same of the targets"
    return (
        f"; of pixels or tokens move the dimension of the {of} last and flatten the others: "
        f"probs.movedim(1, -1).flatten(0, -2) and {targets}"
    )


def _binned(
    p: NDArray[np.float64], y: NDArray[np.int64], bins: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return each example's bin, its confidence and whether it is right, (N,) each."""
    check_at_least(1, bins=bins)
    confidence = p.max(axis=1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return index, confidence, p.argmax(axis=1) == y
