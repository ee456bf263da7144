"""Spearman's rank correlation, with intervals that resample whole groups of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

DRAWS, LEVEL = 4000, 0.95

Floats = NDArray[np.float64]


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of two sequences (n,), NaN if one is constant."""
    return float(_rank_correlations(np.atleast_2d(a), np.atleast_2d(b))[0])


def interval(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of Spearman's correlation over pairs (n,).

    Whole groups are resampled: as many as there are, each with all its pairs. Resamplings in which
    one of the two is constant have no correlation and are left out.

    Args:
        a: one of the two.
        b: the other one.
        groups: (n,) names of the groups; by default each pair is one.
        draws: resamplings.
        seed: of them.
        level: of the interval.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    names = np.arange(len(x)) if groups is None else np.asarray(groups)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    chosen = np.random.default_rng(seed).integers(0, len(members), (draws, len(members)))
    # Groups may differ in size, and with them the lengths of resamplings.
    by_length: dict[int, list[NDArray[np.intp]]] = {}
    for row in chosen:
        pairs = np.concatenate([members[group] for group in row])
        by_length.setdefault(len(pairs), []).append(pairs)
    rows = (np.stack(pairs) for pairs in by_length.values())
    found = np.concatenate([_rank_correlations(x[pairs], y[pairs]) for pairs in rows])
    found = found[~np.isnan(found)]
    if not len(found):
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _rank_correlations(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return Pearson's correlations (k,) of the ranks in each row of a and b (k, n)."""
    x, y = (np.asarray(stats.rankdata(rows, axis=1), dtype=np.float64) for rows in (a, b))
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    norms = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    found = np.full(len(x), np.nan)
    np.divide((x * y).sum(axis=1), norms, out=found, where=norms > 0)
    return found
