"""The deep-ensemble equivalent: how many independent networks a method is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError


def deep_ensemble_equivalent(
    log_likelihood: float, deep_ensemble: ArrayLike, *, sizes: Sequence[int] | None = None
) -> float:
    """Return the size of the deep ensemble that does as well as a method.

    Ashukha et al. 2020 (arXiv 2002.06470): the smallest real l >= 1 at which the deep
    ensemble's mean calibrated log-likelihood, linear between the sizes at hand, reaches the
    method's. A method that is worse than one network is worth 1; one that is better than every
    ensemble at hand is worth the largest, which is then only a lower bound. For the paper's
    interval give the ensembles' means plus and less their standard deviation.

    >>> round(deep_ensemble_equivalent(-0.83, [-1, -0.9, -0.85, -0.82, -0.8]), 3)
    3.667

    Args:
        log_likelihood: mean calibrated log-likelihood of the method, nats per example.
        deep_ensemble: mean calibrated log-likelihoods (K,) of deep ensembles, nats per example.
        sizes: their numbers of networks, rising from 1; by default 1, 2, ..., K.

    Returns:
        the equivalent size, in [1, largest size].

    Raises:
        UserError: no ensembles, values that are not finite, or sizes that do not fit.
    """
    levels = np.asarray(deep_ensemble, dtype=np.float64)
    if levels.ndim != 1 or len(levels) == 0:
        raise UserError(f"deep_ensemble must be (K,) with K >= 1, got shape {levels.shape}")
    for value in (log_likelihood, *levels.tolist()):
        if not math.isfinite(value):
            raise UserError(f"calibrated log-likelihoods must be finite, got {value}")
    networks = _checked_sizes(sizes, len(levels))
    reached = np.flatnonzero(levels >= log_likelihood)
    if len(reached) == 0:
        return float(networks[-1])
    first = reached[0]
    if first == 0:
        return 1.0
    share = (log_likelihood - levels[first - 1]) / (levels[first] - levels[first - 1])
    return float(networks[first - 1] + share * (networks[first] - networks[first - 1]))


def _checked_sizes(sizes: Sequence[int] | None, count: int) -> NDArray[np.float64]:
    if sizes is None:
        return np.arange(1.0, count + 1)
    networks = np.asarray(sizes, dtype=np.float64)
    if networks.shape != (count,) or networks[0] != 1 or not (np.diff(networks) > 0).all():
        raise UserError(f"sizes must be {count} numbers that rise from 1, got {list(sizes)}")
    return networks
