"""Split conformal prediction: sets and intervals that hold the truth as often as stated; float64.

Scores of n calibration examples that no training or choice has seen give a threshold, the
ceil((n + 1) coverage)-th smallest of them. If these examples and a new one are exchangeable, the
set of all answers whose score is at most the threshold holds the new one's truth with a probability
of at least ``coverage``, whatever the model (Vovk et al. 2005; Lei et al. 2018, arXiv 1604.04173,
theorem 2.2), and of at most ``coverage`` + 1 / (n + 1) if there are no ties. It is an average over
calibration sets and new examples, not a promise for each class or each image: see
:func:`coverage_range`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from fge.errors import UserError
from fge.metrics.given import as_array
from fge.metrics.scores import check_examples, check_probs

Array = NDArray[np.float64]
Masks = NDArray[np.bool_]
Score = Literal["lac", "aps", "aps-random"]
"""How well an answer fits; see :func:`fit_conformal`."""
_ROUNDING = 1e-9
"""Of (n + 1) coverage, which for 99 examples and 0.55 is 55.00000000000001."""
_INSIDE = 0.95
_INTERVALS = ("residual", "normalised")
"""Scores of intervals."""
OF_LABELS = "labels"
"""The score of sets of labels."""
_USES = {
    "sets": "conformal_sets",
    OF_LABELS: "conformal_label_sets",
    "intervals": "conformal_intervals",
}


@dataclass(frozen=True)
class Conformal:
    """A threshold for scores, fitted on calibration examples.

    Attributes:
        score: the kind of score; ``"residual"`` or ``"normalised"`` for intervals, ``"labels"`` for
            sets of labels.
        coverage: the stated probability that a set holds the truth.
        examples: n, the number of calibration examples.
        threshold: scores up to it are in the set; infinite if n is too small for the coverage, and
            then every set holds all answers. For outputs (n, ...) of a regression an array (...).
    """

    score: str
    coverage: float
    examples: int
    threshold: float | Array

    @property
    def enough(self) -> bool:
        """Whether there were enough examples for sets that leave something out."""
        return self.examples >= self.least

    @property
    def least(self) -> int:
        """The smallest number of examples for a finite threshold.

        >>> Conformal("lac", 0.9, 100, 0.5).least, Conformal("lac", 0.99, 100, 0.5).least
        (9, 99)
        """
        least = self.coverage / (1 - self.coverage)
        whole = round(least)  # where it is one but for rounding, which the rank decides
        return whole if 1 <= _rank(whole, self.coverage) <= whole else math.ceil(least)


def conformal_quantile(scores: ArrayLike, coverage: float) -> float | Array:
    """Return the ceil((n + 1) coverage)-th smallest of n scores; infinity if that is above n.

    Args:
        scores: (n,), or (n, ...) for a quantile of each output.
        coverage: in (0, 1).

    Returns:
        a number, or an array (...).

    Raises:
        UserError: the coverage is not in (0, 1), there are no scores, or they are not numbers.

    >>> conformal_quantile([3.0, 1.0, 2.0, 4.0], 0.75), conformal_quantile([1.0, 2.0], 0.9)
    (4.0, inf)
    """
    check_coverage(coverage)
    values = as_array(scores, dtype=np.float64)
    if values.ndim == 0 or values.size == 0:
        raise UserError(f"scores must be (n, ...) with n >= 1, got shape {values.shape}")
    if np.isnan(values).any():
        raise UserError("scores must be numbers, got nan")
    place = _rank(len(values), coverage)
    if place > len(values):
        return math.inf if values.ndim == 1 else np.full(values.shape[1:], math.inf)
    quantile = np.sort(values, axis=0)[place - 1]
    return float(quantile) if values.ndim == 1 else quantile


def fit_conformal(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    coverage: float = 0.9,
    score: Score = "lac",
    seed: int = 0,
) -> Conformal:
    """Return the threshold of conformal sets, from predictions of calibration examples.

    With p the probabilities of an example, y a class and u a uniform random number in [0, 1) for
    each example, the score of y is

    - ``"lac"``: 1 - p_y (Sadinle et al. 2019, arXiv 1609.00451). The smallest sets on average; a
      set may be empty where no class is probable enough.
    - ``"aps"``: the sum of the probabilities of the classes that are more probable than y, of equal
      ones the first (Romano et al. 2020, arXiv 2006.02544, equation 7 with u = 1): the set takes
      the most probable classes until they hold the threshold. No set is empty, and sets are larger
      where the model is less certain; the coverage may be higher than stated, since all examples
      whose most probable class is right share the score 0.
    - ``"aps-random"``: that sum plus u p_y (the same with a random u). Exact again, and sets may be
      empty.

    Args:
        probs: (n, C), rows sum to 1, of examples that neither trained nor chose the model.
        targets: their classes (n,), integers.
        coverage: in (0, 1).
        score: as above.
        seed: of the random numbers of ``"aps-random"``.

    Raises:
        UserError: the coverage is not in (0, 1), the score is unknown, or probs and targets do not
            fit.

    >>> fit = fit_conformal([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2]], [0, 0, 0], coverage=0.75)
    >>> fit.threshold, conformal_sets([[0.5, 0.5], [0.3, 0.7]], fit).tolist()
    (0.6, [[True, True], [False, True]])
    """
    check_coverage(coverage)
    p, y = check_examples(probs, targets)
    own = _scores(p, score, seed, "calibration")[np.arange(len(y)), y]
    return Conformal(score, float(coverage), len(y), conformal_quantile(own, coverage))


def conformal_sets(probs: ArrayLike, fit: Conformal, *, seed: int = 0) -> Masks:
    """Return which classes are in the conformal set of each example.

    Args:
        probs: (N, C), rows sum to 1, of new examples by the same model.
        fit: of :func:`fit_conformal`.
        seed: of the random numbers of ``"aps-random"``, which differ from those of the fit.

    Returns:
        (N, C): True for the classes in the set. All are, if there were too few examples for the
        fit (``fit.enough``).

    Raises:
        UserError: values are not probabilities, or the fit is one of labels or intervals.
    """
    check_fit(fit, "sets")
    p = check_probs(probs)
    inside: Masks = _scores(p, fit.score, seed, "new") <= fit.threshold
    return inside


class SetCoverage(NamedTuple):
    """What conformal sets did on examples with known targets.

    ``coverage``: the fraction of sets that hold the target; ``size``: their mean number of classes;
    ``single`` and ``empty``: the fractions of sets of one class and of none.
    """

    coverage: float
    size: float
    single: float
    empty: float


def set_coverage(sets: ArrayLike, targets: ArrayLike) -> SetCoverage:
    """Return coverage and size of conformal sets, measured.

    Args:
        sets: (N, C), of :func:`conformal_sets`.
        targets: classes (N,), integers.

    Raises:
        UserError: shapes or targets do not fit.
    """
    masks = as_array(sets)
    if masks.dtype != np.bool_ or masks.ndim != 2:
        raise UserError(f"sets must be (N, C) of True and False, got {masks.dtype} {masks.shape}")
    # Each row made into probabilities, for the check of the targets.
    _, y = check_examples(np.full(masks.shape, 1 / max(1, masks.shape[1])), targets)
    sizes = masks.sum(axis=1)
    return SetCoverage(
        float(masks[np.arange(len(y)), y].mean()),
        float(sizes.mean()),
        float((sizes == 1).mean()),
        float((sizes == 0).mean()),
    )


def fit_conformal_intervals(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    coverage: float = 0.9,
    spread: ArrayLike | None = None,
) -> Conformal:
    """Return the threshold of conformal intervals, from predictions of calibration examples.

    The score of a value y is |y - f|, or |y - f| / s with a spread s, which makes intervals wider
    where the model is less certain (Lei et al. 2018, arXiv 1604.04173, sections 2.2 and 5.2).

    Args:
        predictions: f, (n,) or (n, ...), of examples that neither trained nor chose the model.
        targets: y, in the same shape.
        coverage: in (0, 1), of each output by itself.
        spread: s > 0 in the same shape, a standard deviation, such as the square root of an
            ensemble's variance plus a small constant.

    Raises:
        UserError: the coverage is not in (0, 1), shapes differ, values are not finite, or a spread
            is not positive.
    """
    f, y = _same_shape("predictions", predictions, "targets", targets)
    residuals = np.abs(y - f)
    if spread is not None:
        residuals = residuals / _spread(spread, f)
    kind = "residual" if spread is None else "normalised"
    threshold = conformal_quantile(residuals, coverage)
    return Conformal(kind, float(coverage), len(f), threshold)


def conformal_intervals(
    predictions: ArrayLike, fit: Conformal, *, spread: ArrayLike | None = None
) -> Array:
    """Return the conformal interval of each prediction f: f - q to f + q, or f - q s to f + q s.

    Args:
        predictions: (N,) or (N, ...), of new examples by the same model.
        fit: of :func:`fit_conformal_intervals`.
        spread: given if, and only if, it was given to the fit.

    Returns:
        (N, ..., 2): the lower and the upper end; infinite if there were too few examples for the
        fit (``fit.enough``).

    Raises:
        UserError: shapes differ, values are not finite, the spread is missing or not positive, or
            the fit is one of sets.
    """
    check_fit(fit, "intervals")
    if (fit.score == "normalised") != (spread is not None):
        word = "was made with" if fit.score == "normalised" else "was made without"
        raise UserError(f"the fit {word} a spread; give one to both or to neither")
    f = _finite("predictions", predictions)
    width = fit.threshold * (np.ones_like(f) if spread is None else _spread(spread, f))
    return np.stack([f - width, f + width], axis=-1)


class IntervalCoverage(NamedTuple):
    """What intervals did on examples with known targets, of all outputs together.

    ``coverage``: the fraction of targets inside; ``width``: the mean width, in their unit.
    """

    coverage: float
    width: float


def interval_coverage(intervals: ArrayLike, targets: ArrayLike) -> IntervalCoverage:
    """Return coverage and mean width of intervals, measured; the ends count as inside.

    Args:
        intervals: (N, ..., 2), of :func:`conformal_intervals`.
        targets: (N, ...).

    Raises:
        UserError: shapes do not fit, or a target is not finite.
    """
    ends, y = as_array(intervals, dtype=np.float64), _finite("targets", targets)
    if ends.shape != (*y.shape, 2):
        raise UserError(f"intervals must be {(*y.shape, 2)} as the targets, got {ends.shape}")
    low, high = ends[..., 0], ends[..., 1]
    return IntervalCoverage(float(((low <= y) & (y <= high)).mean()), float((high - low).mean()))


def coverage_range(coverage: float, examples: int, tests: int) -> tuple[float, float]:
    """Return between what the measured coverage of one fit lies in 95 of 100 cases.

    Without ties, the number of ``tests`` new examples that are covered has the beta-binomial
    distribution with a = k and b = n + 1 - k, k = ceil((n + 1) coverage) (Vovk 2012,
    arXiv 1209.2673, proposition 2). Ties can only raise the coverage.

    Args:
        coverage: that was stated, in (0, 1).
        examples: n, for the fit.
        tests: new examples on which it is measured.

    Returns:
        the 2.5 % and 97.5 % quantiles, fractions; (1, 1) if n is too small for the coverage.

    Raises:
        UserError: the coverage is not in (0, 1), or a number is below 1.

    >>> low, high = coverage_range(0.9, 1000, 10_000)
    >>> f"{low:.3f} {high:.3f}"
    '0.880 0.919'
    """
    check_coverage(coverage)
    if examples < 1 or tests < 1:
        raise UserError(f"examples and tests must be >= 1, got {examples} and {tests}")
    place = _rank(examples, coverage)
    if place > examples:
        return 1.0, 1.0
    a, b, j = place, examples + 1 - place, np.arange(tests + 1)
    log_mass = gammaln(tests + 1) - gammaln(j + 1) - gammaln(tests - j + 1)
    log_mass += gammaln(a + j) + gammaln(b + tests - j) - gammaln(a + b + tests)
    log_mass += gammaln(a + b) - gammaln(a) - gammaln(b)
    below = np.cumsum(np.exp(log_mass))
    tail = (1 - _INSIDE) / 2
    low, high = np.searchsorted(below, [tail, 1 - tail])
    return float(low / tests), float(min(high, tests) / tests)


def check_coverage(coverage: float) -> None:
    """Check that a coverage is a fraction.

    Raises:
        UserError: it is not above 0 and below 1.
    """
    if not 0 < coverage < 1:  # false for NaN too
        raise UserError(
            f"coverage must be above 0 and below 1, got {coverage:g}; for 90 % give 0.9"
        )


def check_fit(fit: Conformal, of: str) -> None:
    """Check that a threshold is one of sets, of sets of labels, or of intervals.

    Raises:
        UserError: it is one of others; the message says which function takes it.
    """
    kind = "intervals" if fit.score in _INTERVALS else fit.score
    kind = kind if kind in _USES else "sets"
    if kind != of:
        raise UserError(f"the fit is one of {kind} ({fit.score}); use {_USES[kind]}")


def _rank(count: int, coverage: float) -> int:
    return max(1, math.ceil((count + 1) * coverage - _ROUNDING))


def _scores(p: Array, score: str, seed: int, stream: str) -> Array:
    """Return the score of each class of each example (N, C)."""
    if score not in get_args(Score):
        known = ", ".join(map(repr, get_args(Score)))
        raise UserError(f"score must be {known}, got {score!r}")
    if score == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    before = np.zeros_like(ranked)
    np.cumsum(ranked[:, :-1], axis=1, out=before[:, 1:])
    if score == "aps-random":
        streams = ("calibration", "new")
        generator = np.random.default_rng([seed, streams.index(stream)])
        before = before + generator.random((len(p), 1)) * ranked
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def _finite(name: str, values: ArrayLike) -> Array:
    array = as_array(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise UserError(f"{name} must be (N, ...) with N >= 1, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _same_shape(
    name: str, values: ArrayLike, other_name: str, others: ArrayLike
) -> tuple[Array, Array]:
    one, two = _finite(name, values), _finite(other_name, others)
    if one.shape != two.shape:
        raise UserError(
            f"{name} and {other_name} must have one shape, got {one.shape} and {two.shape}"
        )
    return one, two


def _spread(spread: ArrayLike, f: Array) -> Array:
    s, _ = _same_shape("spread", spread, "predictions", f)
    if s.min() <= 0:
        raise UserError(
            f"spread must be standard deviations above 0, got {s.min():g}; add a small constant "
            "where the members agree"
        )
    return s
