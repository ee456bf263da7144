"""Scores of a regression: distances, and the Gaussian that an ensemble predicts; numpy, float64.

``mean`` and ``targets`` are (N, K) for K outputs, or (N,) for one. The predicted Gaussian of an
output has the mean over members, and as variance that over members (``spread``, 0 for one network)
plus a noise variance (``noise``), which is the same for all examples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtri

from fge.errors import UserError
from fge.metrics.calibration import halves
from fge.metrics.given import as_array
from fge.metrics.scores import flattening

Array = NDArray[np.float64]
_FLOOR = 1e-12
"""The smallest variance, as a part of the largest squared residual; itself if all are 0."""


def rmse(mean: ArrayLike, targets: ArrayLike) -> float:
    """Return the root of the mean squared residual, over examples and outputs."""
    return math.sqrt(float(squared_residuals(mean, targets).mean()))


def mae(mean: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean absolute residual, over examples and outputs."""
    m, y = check_regression(mean, targets)
    return float(np.abs(m - y).mean())


def r2(mean: ArrayLike, targets: ArrayLike) -> float:
    """Return 1 - squared residuals / squared deviations of the targets, the mean over outputs.

    NaN if a target never changes, as there is nothing to explain.
    """
    m, y = check_regression(mean, targets)
    if not np.ptp(y, axis=0).all():  # a rounded mean would leave deviations of a constant
        return math.nan
    spread = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    return float(np.mean(1 - ((m - y) ** 2).sum(axis=0) / spread))


def squared_residuals(mean: ArrayLike, targets: ArrayLike) -> Array:
    """Return the squared residual of each example, the mean over outputs (N,)."""
    m, y = check_regression(mean, targets)
    return np.asarray(((m - y) ** 2).mean(axis=1))


def fit_noise(mean: ArrayLike, targets: ArrayLike, spread: ArrayLike = 0.0) -> Array:
    """Return the noise variance of each output (K,) that makes the likelihood largest.

    With residuals r and spreads v it minimises the mean of log(v + s) + r^2 / (v + s) over s >= 0:
    of one network (v = 0) it is the mean of r^2. Give validation data: residuals of training data
    are too small.

    >>> fit_noise([1.0, 1.0], [0.0, 2.0]).tolist()
    [1.0]

    Args:
        mean: predictions (N, K).
        targets: (N, K).
        spread: variance over members (N, K), or 0.
    """
    m, y = check_regression(mean, targets)
    squares, v = (m - y) ** 2, np.broadcast_to(_column(spread, y.shape), y.shape)
    return np.array([_noise_of(squares[:, k], v[:, k]) for k in range(y.shape[1])])


def gaussian_nll_per_example(
    mean: ArrayLike, targets: ArrayLike, noise: ArrayLike, spread: ArrayLike = 0.0
) -> Array:
    """Return -log N(target; mean, spread + noise) of each example, summed over outputs, nats (N,).

    Args:
        mean: predictions (N, K).
        targets: (N, K).
        noise: variance of each output (K,), above 0.
        spread: variance over members (N, K), or 0.
    """
    m, y = check_regression(mean, targets)
    variance = _variance(noise, spread, y.shape)
    return np.asarray(
        (0.5 * (np.log(2 * math.pi * variance) + (m - y) ** 2 / variance)).sum(axis=1)
    )


def coverage(
    mean: ArrayLike,
    targets: ArrayLike,
    noise: ArrayLike,
    spread: ArrayLike = 0.0,
    *,
    level: float = 0.9,
) -> float:
    """Return the percentage of targets within the central interval of the predicted Gaussian.

    Args:
        mean: predictions (N, K).
        targets: (N, K).
        noise: variance of each output (K,), above 0.
        spread: variance over members (N, K), or 0.
        level: of the interval, in (0, 1).
    """
    m, y = check_regression(mean, targets)
    if not 0 < level < 1:
        raise UserError(f"level must be in (0, 1), got {level}")
    half = ndtri((1 + level) / 2) * np.sqrt(_variance(noise, spread, y.shape))
    return float(100 * np.mean(np.abs(m - y) <= half))


def calibrated_gaussian_nll(
    mean: ArrayLike,
    targets: ArrayLike,
    spread: ArrayLike = 0.0,
    *,
    splits: int = 5,
    seed: int = 0,
) -> Array:
    """Return each example's NLL with the noise variance of the other half, in nats (N,).

    The counterpart of :func:`fge.metrics.calibrated_nll_per_example` for a regression: what is
    fitted on one random half and used on the other is the noise variance (:func:`fit_noise`). Minus
    its mean is the calibrated log-likelihood.

    Args:
        mean: predictions (N, K), N >= 2.
        targets: (N, K).
        spread: variance over members (N, K), or 0.
        splits: number of random splits to average.
        seed: of the splits.
    """
    m, y = check_regression(mean, targets)
    v = np.broadcast_to(_column(spread, y.shape), y.shape)
    total = np.zeros(len(y))
    for fitted, scored in halves(len(y), splits, seed):
        noise = fit_noise(m[fitted], y[fitted], v[fitted])
        total[scored] += gaussian_nll_per_example(m[scored], y[scored], noise, v[scored])
    return total / splits


def regression_summary(
    mean: ArrayLike, targets: ArrayLike, noise: ArrayLike, spread: ArrayLike = 0.0
) -> dict[str, float]:
    """Return the figures of a regression, in the units of the targets.

    ``rmse``, ``mae`` and, unless a target never changes, ``r2``; ``nll`` (nats per example, summed
    over outputs) and ``coverage`` (percent of the targets in their intervals of 90 %) of the
    predicted Gaussian.
    """
    explained = r2(mean, targets)
    return {
        "rmse": rmse(mean, targets),
        "mae": mae(mean, targets),
        **({"r2": explained} if math.isfinite(explained) else {}),
        "nll": float(gaussian_nll_per_example(mean, targets, noise, spread).mean()),
        "coverage": coverage(mean, targets, noise, spread),
    }


def check_regression(mean: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Return predictions and targets as (N, K), float64.

    Raises:
        UserError: the shapes do not fit, or values are not finite.
    """
    m, y = (as_array(values, dtype=np.float64) for values in (mean, targets))
    if m.shape != y.shape or m.ndim not in (1, 2) or m.size == 0:
        raise UserError(
            f"predictions and targets must be (N,) or (N, K), with one shape, got {m.shape} and "
            f"{y.shape}{flattening(m.ndim, 'outputs')}"
        )
    for name, values in (("predictions", m), ("targets", y)):
        if not np.isfinite(values).all():
            raise UserError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    return (m[:, None], y[:, None]) if m.ndim == 1 else (m, y)


def _column(values: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return variances in a form that broadcasts to (N, K)."""
    array = as_array(values, dtype=np.float64)
    array = array[:, None] if array.shape == (shape[0],) and shape[1] == 1 else array
    if array.shape not in ((), shape):
        raise UserError(
            f"variances over members must be {shape} as the predictions, or 0, got shape "
            f"{array.shape}"
        )
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise UserError("variances must be finite and >= 0")
    return array


def _variance(noise: ArrayLike, spread: ArrayLike, shape: tuple[int, ...]) -> Array:
    added = as_array(noise, dtype=np.float64)
    if added.shape not in ((), (1,), shape[1:]):
        raise UserError(f"noise must be {shape[1:]}, one of each output, got shape {added.shape}")
    if not (np.isfinite(added).all() and (added > 0).all()):
        raise UserError(f"noise must be finite and above 0, got {added.min():g}")
    return np.broadcast_to(added + _column(spread, shape), shape)


def _noise_of(squares: Array, spread: Array) -> float:
    """Return the noise variance of one output; a search over its logarithm where spreads differ."""
    highest = float(squares.max())
    floor = _FLOOR * highest or _FLOOR  # an absolute one would depend on the units
    if spread.min() == spread.max():
        return max(float(squares.mean()) - float(spread[0]), floor)

    def loss(log_noise: float) -> float:
        variance = spread + math.exp(log_noise)
        return float((np.log(variance) + squares / variance).mean())

    bounds = math.log(floor), math.log(max(highest, 2 * floor))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return math.exp(float(found.x))
