"""Summaries of the runs of ``benchmarks/hessian.py``: medians, ranges, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TARGET = 2.0
"""The target speed-up over PyHessian."""

Figures = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, smallest and largest of values, and their number."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "count": len(values),
    }


def paired(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Return the :func:`spread` of the ratios slow / fast within each round."""
    return spread([one / other for one, other in zip(slow, fast, strict=True)])


def ratios(runs: Mapping[str, Sequence[Figures]]) -> dict[str, dict[str, Any]]:
    """Return how many times faster this project is, paired by round, for ``reach`` and ``own``.

    ``at_least`` says whether the other program failed to reach 1 % in one of its ``reach`` runs.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in ("reach", "own"):
        ours, theirs = runs[f"{kind} fge"], runs[f"{kind} pyhessian"]
        times = ([run["seconds"] for run in side] for side in (theirs, ours))
        at_least = kind == "reach" and not all(run["reached"] for run in theirs)
        found[kind] = {**paired(*times), "at_least": at_least}
    return found


def lines(
    runs: Mapping[str, Sequence[Figures]], found: Mapping[str, Mapping[str, Any]], gradient: float
) -> list[str]:
    """Return the text on a model's runs: medians, ranges over rounds, and paired ratios."""
    texts = []
    for key, results in runs.items():
        seconds = spread([run["seconds"] for run in results])
        products = statistics.median(run["products"] for run in results)
        worst = max(run["error_percent"] for run in results)
        missed = sum(not run["reached"] for run in results)
        mark = f", NOT within 1 % in {missed} of {len(results)} rounds" if missed else ""
        texts.append(
            f"{key:16} {shown(seconds)} s, {products:g} products, "
            f"{seconds['median'] / gradient:.0f} gradients, error at most {worst:.2g} %{mark}"
        )
    for kind, ratio in found.items():
        met = f" (target {TARGET} x, {verdict(ratio['median'] >= TARGET)})"
        most = "at least " if ratio["at_least"] else ""
        texts.append(f"{kind}: {most}{shown(ratio)} x faster{met if kind == 'reach' else ''}")
    return texts


def shown(values: Mapping[str, float]) -> str:
    """Return a :func:`spread` as text.

    >>> shown(spread([3.0, 1.0, 2.0]))
    '2.00 (1.00 to 3.00, 3 rounds)'
    """
    low, high = values["low"], values["high"]
    return f"{values['median']:.2f} ({low:.2f} to {high:.2f}, {values['count']} rounds)"


def verdict(met: bool) -> str:
    """Return "met" or "NOT met"."""
    return "met" if met else "NOT met"
