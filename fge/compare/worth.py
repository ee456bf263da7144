"""What the rows of a comparison are worth in networks that were trained apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fge.config import AVERAGED, DEEP_ENSEMBLE, DEEP_ENSEMBLE_AVERAGED, SINGLE
from fge.metrics import (
    PowerLaw,
    deep_ensemble_equivalent,
    fit_power_law,
    gain_share,
    power_law_equivalent,
)

Levels = Sequence[tuple[int, float]]
"""Networks k, rising from 1, and mean calibrated log-likelihood (nats) of their ensembles."""
_CAP = 2
"""A power law is read up to this multiple of the largest ensemble."""
WHOLE = 100
"""Percent of the gain from which on a method has all of it, however much more it has."""
NETWORKS = {DEEP_ENSEMBLE: SINGLE, DEEP_ENSEMBLE_AVERAGED: AVERAGED}
"""Ensembles of whole networks, and what their networks are called alone."""


@dataclass(frozen=True)
class Scale:
    """Ensembles of networks that were trained apart: what a method is measured by.

    ``pool``: what they are called; ``levels``: see :data:`Levels`; ``law``: of their NLL, where
    there is one; ``gains``: whether the gain of the largest over one network is significantly above
    0, as far as it is known.
    """

    pool: str
    levels: tuple[tuple[int, float], ...]
    law: PowerLaw | None
    gains: bool = True

    @property
    def largest(self) -> int:
        """Networks of the largest ensemble."""
        return self.levels[-1][0]

    @property
    def cap(self) -> int:
        """Networks up to which the power law is read."""
        return _CAP * self.largest


@dataclass(frozen=True)
class Worth:
    """What a method is worth on a scale, by its mean calibrated NLL.

    ``pool``: of the scale; ``linear`` and ``power_law``: networks, the latter None where there is
    no law; each with whether it is only a lower bound; ``gain_share``: percent of the gain of the
    largest ensemble over one network, None where that is not significantly above 0.
    """

    pool: str
    linear: float
    linear_is_bound: bool
    power_law: float | None
    power_law_is_bound: bool
    gain_share: float | None


def scales_of(levels: Mapping[str, Levels]) -> tuple[Scale, ...]:
    """Return the scales of the pools that have ensembles of two networks or more.

    Args:
        levels: by pool.
    """
    scales = []
    for pool, found in levels.items():
        if len(found) > 1:
            sizes, values = _columns(found)
            scales.append(Scale(pool, tuple(found), fit_power_law(values, sizes=sizes)))
    return tuple(scales)


def worth_on(scale: Scale, log_likelihood: float) -> Worth:
    """Return what a mean calibrated log-likelihood (nats) is worth on a scale."""
    sizes, values = _columns(scale.levels)
    by_law = power_law_equivalent(log_likelihood, values, sizes=sizes, cap=scale.cap)
    return Worth(
        scale.pool,
        deep_ensemble_equivalent(log_likelihood, values, sizes=sizes),
        log_likelihood > max(values),
        by_law,
        by_law is not None and by_law >= scale.cap,
        gain_share(log_likelihood, single=values[0], ensemble=values[-1]) if scale.gains else None,
    )


def _columns(levels: Levels) -> tuple[list[int], list[float]]:
    return [size for size, _ in levels], [value for _, value in levels]
