"""What a method is worth in networks: beside ensembles of networks that were trained apart.

Every function takes mean calibrated log-likelihoods in nats per example, as
:func:`fge.metrics.calibrated_log_likelihood` returns them: of a method, and of ensembles of 1, 2,
... networks (K,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from fge.errors import UserError
from fge.metrics.given import as_array

Array = NDArray[np.float64]
MIN_EXPONENT, MAX_EXPONENT = 0.25, 4.0
"""The range of exponents, ends included. A mean of independent networks tends to 1 over their
number; what is fitted to few sizes is near that."""
_FEWEST = 3
"""Sizes that a power law of three numbers needs."""
_GRID = 200
_BEYOND = 2.0
"""A power law is trusted up to this multiple of the largest ensemble that was measured."""


class PowerLaw(NamedTuple):
    """The calibrated NLL of m networks, L(m) = c + b m^-a, in nats per example."""

    c: float
    b: float
    a: float

    def nll(self, networks: float) -> float:
        """Return L(m).

        >>> PowerLaw(c=0.2, b=0.05, a=1.0).nll(2)
        0.225
        """
        return self.c + self.b * math.pow(networks, -self.a)


def deep_ensemble_equivalent(
    log_likelihood: float, deep_ensemble: ArrayLike, *, sizes: Sequence[int] | None = None
) -> float:
    """Return the size of the deep ensemble that is as good as a method.

    Ashukha et al. 2020 (arXiv 2002.06470): the smallest real l >= 1 at which the deep ensemble's
    mean calibrated log-likelihood, linear between the given sizes, reaches the method's. A method
    worse than one network gets 1; one better than every given ensemble gets the largest size,
    which is then only a lower bound. For the paper's interval give the ensembles' means plus and
    minus their standard deviation.

    >>> round(deep_ensemble_equivalent(-0.83, [-1, -0.9, -0.85, -0.82, -0.8]), 3)
    3.667

    Args:
        log_likelihood: mean calibrated log-likelihood of the method, nats per example.
        deep_ensemble: mean calibrated log-likelihoods (K,) of deep ensembles, nats per example.
        sizes: their numbers of networks, rising from 1; by default 1, 2, ..., K.

    Returns:
        The equivalent size, in [1, largest size].

    Raises:
        UserError: there are no ensembles, values are not finite, or sizes do not fit.
    """
    levels, networks = _checked(log_likelihood, deep_ensemble, sizes)
    reached = np.flatnonzero(levels >= log_likelihood)
    if len(reached) == 0:
        return float(networks[-1])
    first = reached[0]
    if first == 0:
        return 1.0
    share = (log_likelihood - levels[first - 1]) / (levels[first] - levels[first - 1])
    return float(networks[first - 1] + share * (networks[first] - networks[first - 1]))


def fit_power_law(
    deep_ensemble: ArrayLike, *, sizes: Sequence[int] | None = None
) -> PowerLaw | None:
    """Return the power law L(m) = c + b m^-a of the NLL of ensembles, fitted by least squares.

    Lobacheva et al. 2020 (arXiv 2007.08483) find such laws for the calibrated NLL of deep
    ensembles. For each exponent c and b follow from linear least squares; the exponent is searched
    in [:data:`MIN_EXPONENT`, :data:`MAX_EXPONENT`], ends included.

    >>> law = fit_power_law([-0.3, -0.25, -0.2 - 0.1 / 3, -0.225])
    >>> [round(number, 6) for number in law]
    [0.2, 0.1, 1.0]

    Args:
        deep_ensemble: mean calibrated log-likelihoods (K,) of ensembles, nats per example.
        sizes: their numbers of networks, rising from 1; by default 1, 2, ..., K.

    Returns:
        The law; None for fewer than 3 sizes, and where larger ensembles are not better (b <= 0).

    Raises:
        UserError: there are no ensembles, values are not finite, or sizes do not fit.
    """
    levels, networks = _checked(0.0, deep_ensemble, sizes)
    if len(levels) < _FEWEST:
        return None
    losses = -levels
    scale = float(np.ptp(losses)) or 1.0

    def residuals(exponent: float) -> Array:
        """Return what is left of the losses beside the best c and b, in parts of their range."""
        c, b = _line(exponent, networks, losses)
        rest: Array = (c + b * networks**-exponent - losses) / scale
        return rest

    grid = np.geomspace(MIN_EXPONENT, MAX_EXPONENT, _GRID)
    squares = [float(np.sum(residuals(a) ** 2)) for a in grid]
    start = float(grid[int(np.argmin(squares))])
    bounds = MIN_EXPONENT, MAX_EXPONENT
    tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
    found = least_squares(lambda x: residuals(x[0]), [start], bounds=bounds, **tolerances).x[0]
    # At an end of the range the search stops short of it.
    exponent = min((float(found), start), key=lambda a: float(np.sum(residuals(a) ** 2)))
    c, b = _line(exponent, networks, losses)
    return PowerLaw(c, b, exponent) if b > 0 else None


def power_law_equivalent(
    log_likelihood: float,
    deep_ensemble: ArrayLike,
    *,
    sizes: Sequence[int] | None = None,
    cap: float | None = None,
) -> float | None:
    """Return the size of the deep ensemble that is as good as a method, by a power law.

    The inverse of the law of :func:`fit_power_law`: m = ((L - c) / b)^(-1/a) with L minus the
    method's log-likelihood. Unlike :func:`deep_ensemble_equivalent` it reads between the sizes
    along the law, and beyond the largest one up to the cap.

    >>> levels = [-0.3, -0.25, -0.2 - 0.1 / 3]
    >>> round(power_law_equivalent(-0.225, levels), 6), power_law_equivalent(-0.19, levels)
    (4.0, 6.0)

    Args:
        log_likelihood: mean calibrated log-likelihood of the method, nats per example.
        deep_ensemble: mean calibrated log-likelihoods (K,) of deep ensembles, nats per example.
        sizes: their numbers of networks, rising from 1; by default 1, 2, ..., K.
        cap: the largest equivalent, which is then only a lower bound; by default twice the largest
            size.

    Returns:
        The equivalent size, in [1, cap]; None where there is no law.

    Raises:
        UserError: there are no ensembles, values are not finite, sizes do not fit, or the cap is
            below 1.
    """
    levels, networks = _checked(log_likelihood, deep_ensemble, sizes)
    highest = _BEYOND * float(networks[-1]) if cap is None else cap
    if not highest >= 1:
        raise UserError(f"cap must be >= 1, got {cap}")
    law = fit_power_law(levels, sizes=sizes)
    if law is None:
        return None
    share = (-log_likelihood - law.c) / law.b
    if share >= 1:
        return 1.0
    if share <= math.pow(highest, -law.a):
        return float(highest)
    return math.pow(share, -1 / law.a)


def gain_share(log_likelihood: float, single: float, ensemble: float) -> float | None:
    """Return how much of the gain of an independent ensemble a method has, in percent.

    It is 100 (L_single - L_method) / (L_single - L_ensemble): 0 for a method that is as good as a
    single network, 100 for one as good as the ensemble, below 0 for a worse one than the network.

    >>> round(gain_share(-0.25, single=-0.27, ensemble=-0.23), 6)
    50.0

    Args:
        log_likelihood: mean calibrated log-likelihood of the method, nats per example.
        single: that of one network.
        ensemble: that of an ensemble of such networks.

    Returns:
        The share in percent; None where the ensemble is not better than one network.

    Raises:
        UserError: a value is not finite.
    """
    _check_finite(log_likelihood, single, ensemble)
    gain = ensemble - single
    return 100 * (log_likelihood - single) / gain if gain > 0 else None


def _line(exponent: float, networks: Array, losses: Array) -> tuple[float, float]:
    """Return c and b of the law with an exponent, by linear least squares."""
    x = networks**-exponent
    b = float(np.sum((x - x.mean()) * (losses - losses.mean())) / np.sum((x - x.mean()) ** 2))
    return float(losses.mean() - b * x.mean()), b


def _checked(
    log_likelihood: float, deep_ensemble: ArrayLike, sizes: Sequence[int] | None
) -> tuple[Array, Array]:
    """Return log-likelihoods and numbers of networks (K,) of ensembles."""
    levels = as_array(deep_ensemble, dtype=np.float64)
    if levels.ndim != 1 or len(levels) == 0:
        raise UserError(f"deep_ensemble must be (K,) with K >= 1, got shape {levels.shape}")
    _check_finite(log_likelihood, *levels.tolist())
    if sizes is None:
        return levels, np.arange(1.0, len(levels) + 1)
    networks = as_array(sizes, dtype=np.float64)
    if networks.shape != levels.shape or networks[0] != 1 or not (np.diff(networks) > 0).all():
        raise UserError(f"sizes must be {len(levels)} numbers that rise from 1, got {list(sizes)}")
    return levels, networks


def _check_finite(*values: float) -> None:
    for value in values:
        if not math.isfinite(value):
            raise UserError(f"calibrated log-likelihoods must be finite, got {value}")
