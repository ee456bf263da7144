"""What a comparison of methods comes to, in words: what to use, its cost, how sure that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fge.compare.comparison import (
    BASELINES,
    LEVEL,
    RANKED,
    Best,
    Comparison,
    MethodRow,
    level_among,
)
from fge.compare.tables import NAMES, epochs_of, interval_text, percent
from fge.config import FGE
from fge.metrics import Interval
from fge.report import cost_text

_FIRST = "calibrated NLL"
_WORDS = {"error": "error", "calibrated_nll": _FIRST}
_FORMS = {"error": "{:.2f} %", "calibrated_nll": "{:.4f}"}
_UNITS = {"error": "{:.2f} points", "calibrated_nll": "{:.4f}"}


def comparison_verdict(comparison: Comparison) -> list[str]:
    """Say what to use, at what cost and how sure that is; then why, and what FGE gains.

    To be used is, of the methods that are not significantly worse than the best in calibrated NLL
    and error, that of the fewest forward passes per prediction (of several the one of lowest
    calibrated NLL). Everything is judged at one level per budget, that of
    :class:`fge.compare.Best`.

    Returns:
        a paragraph for each question; the first one is the verdict in a line.
    """
    budgets = [budget for budget in comparison.budgets if comparison.at(budget)]
    images = f"{len(comparison.cells[0].wrong)} test images"
    uses = [
        f"at {epochs_of(comparison, budget)}, {_use(comparison, _best(comparison, budget)).clause}"
        for budget in budgets
    ]
    parts = [f"A{'; '.join(uses)[1:]} ({_seeds(comparison)}, {images})."]
    for budget in budgets:
        parts += _at(comparison, budget, named=len(budgets) > 1)
    if comparison.beyond:
        names = _and([f"{row.method} at {row.budget} B" for row in comparison.beyond])
        parts.append(f"Not compared, because it trains for longer than the budget: {names}.")
    if all(len(row.seeds) == 1 for row in comparison.rows):
        parts.append("An interval over seeds needs 2 seeds or more.")
        return parts
    holds = f"The results hold for this data and model, with {_seeds(comparison)} and {images}."
    return [*parts, " ".join([*_levels(comparison, budgets), holds])]


def _seeds(comparison: Comparison) -> str:
    """Return how many seeds the methods have."""
    counts = sorted({len(row.seeds) for row in comparison.rows})
    if counts == [1]:
        return "1 seed"
    return f"{counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} seeds"


def _best(comparison: Comparison, budget: int) -> list[Best]:
    return [one for one in comparison.best if one.budget == budget]


def _levels(comparison: Comparison, budgets: Sequence[int]) -> list[str]:
    """Return sentences that say what significant means."""
    levels = {budget: level_among(len(comparison.at(budget))) for budget in budgets}
    which = list(dict.fromkeys(percent(level) for level in levels.values()))
    shown = which
    if len(which) > 1:
        shown = [f"{percent(level)} at {budget} B" for budget, level in levels.items()]
    parts = [
        f"A difference is significant if the interval of the paired difference ({_and(shown)}) "
        "excludes 0; a difference that is not significant may still exist."
    ]
    if which != [percent(LEVEL)]:
        parts.append(
            f"This keeps {percent(LEVEL)} for all methods of a budget together (Bonferroni); each "
            f"interval of the tables is a {percent(LEVEL)} interval by itself."
        )
    return parts


def _at(comparison: Comparison, budget: int, *, named: bool) -> list[str]:
    """Return the paragraphs about one budget; the first has its name if there are several."""
    best = _best(comparison, budget)
    one_pass = [one for one in comparison.best_of_one_pass if one.budget == budget]
    first = [*([f"At {budget} B:"] if named else []), *_use(comparison, best).reasons]
    first += [_lowest(comparison, best), *(_how_sure(best) if best[0].among else [])]
    parts = [" ".join(first), _worth(comparison, best)]
    if one_pass and {one.method for one in one_pass} != {one.method for one in best}:
        lowest = [f"With one pass per prediction, {_lowest(comparison, one_pass)}"]
        parts.append(" ".join([*lowest, *_how_sure(one_pass, " with one pass")]))
    parts += [_against(comparison, budget, baseline) for baseline in BASELINES]
    return [part for part in parts if part]


@dataclass(frozen=True)
class _Choice:
    """What to use, in a clause, and why it is chosen, in sentences."""

    clause: str
    reasons: tuple[str, ...] = ()


def _use(comparison: Comparison, best: Sequence[Best]) -> _Choice:
    """Say which method to use, and why."""
    if not best[0].among:
        return _Choice(f"{best[0].method} is the only method")
    if any(set(one.untested) == set(one.among) for one in best):
        return _Choice("the best method is unknown, because there are no intervals")
    merits = {one.metric: {one.method, *one.alike} - set(one.untested) for one in reversed(best)}
    figures = _and([_WORDS[metric] for metric in merits])
    both = set.intersection(*merits.values())
    if not both:
        chosen = [
            f"{_cheapest(comparison, best[0].budget, names).method} for {_WORDS[metric]}"
            for metric, names in merits.items()
        ]
        return _Choice(f"use {_and(chosen)}: no method is among the best in {figures}")
    row = _cheapest(comparison, best[0].budget, both)
    use = f"use {row.method} ({_cost(row)})"
    if all(one.sure and one.method == row.method for one in best):
        return _Choice(f"{use}: its {figures} are significantly lower than all others")
    if len(both) == 1:
        return _Choice(f"{use}: no other method is among the best in {figures}")
    among = f"not significantly worse than the best in {figures}"
    return _Choice(
        f"{use}: {among}, with the fewest passes", (_among(comparison, row, both, among),)
    )


def _among(comparison: Comparison, row: MethodRow, both: set[str], what: str) -> str:
    """Say how a method was chosen among several."""
    few = [
        one.method
        for one in comparison.at(row.budget)
        if one.method in both and one.costs["forward_passes"] == row.costs["forward_passes"]
    ]
    text = f"{len(both)} methods are {what}; of these, {_and(few)}"
    if len(few) == 1:
        return f"{text} needs the fewest passes."
    return f"{text} need the fewest passes, and {row.method} has the lowest {_FIRST}."


def _cheapest(comparison: Comparison, budget: int, names: Collection[str]) -> MethodRow:
    """Return the method of the fewest passes, of several the one of lowest calibrated NLL."""
    rows = [row for row in comparison.at(budget) if row.method in names]
    return min(rows, key=lambda row: (row.costs["forward_passes"], row.mean["calibrated_nll"]))


def _lowest(comparison: Comparison, best: Sequence[Best]) -> str:
    """Return a sentence that names the methods of lowest calibrated NLL and error."""
    parts = []
    by_method: dict[str, list[str]] = {}
    for one in reversed(best):
        by_method.setdefault(one.method, []).append(one.metric)
    for method, metrics in by_method.items():
        row = comparison.row(method, best[0].budget)
        assert row is not None, "it was ranked"
        figures = [f"{_WORDS[m]} ({_FORMS[m].format(row.mean[m])})" for m in metrics]
        parts.append(f"{method} has the lowest {_and(figures)}, for {_cost(row)}")
    return f"{'; '.join(parts)}."


def _worth(comparison: Comparison, best: Sequence[Best]) -> str:
    """Say what the method of lowest calibrated NLL is worth; nothing without ensembles."""
    lowest = next(one for one in best if one.metric == "calibrated_nll")
    row = comparison.row(lowest.method, lowest.budget)
    assert row is not None, "it was ranked"
    parts = []
    for scale, worth in zip(comparison.scales, row.worths, strict=True):
        more = []
        if worth.power_law is not None:
            by_law = _networks(worth.power_law, is_bound=worth.power_law_is_bound)
            more.append(f"{by_law} by the power law")
        if worth.gain_share is not None:
            more.append(f"{worth.gain_share:.0f} % of the gain of {scale.largest}")
        linear = _networks(worth.linear, is_bound=worth.linear_is_bound)
        details = f" ({'; '.join(more)})" if more else ""
        parts.append(f"{linear} {NAMES[scale.pool]}{details}")
    if not parts:
        return ""
    return f"In {_FIRST}, {row.method} is worth this many networks of 1 B each: {_and(parts)}."


def _networks(networks: float, *, is_bound: bool) -> str:
    return f"{'at least ' if is_bound else ''}{networks:.1f}"


def _cost(row: MethodRow) -> str:
    return cost_text(row.costs["train_epochs"], row.costs["forward_passes"])


def _how_sure(best: Sequence[Best], which: str = "") -> list[str]:
    """Return sentences that say than which methods those of the lowest figures are better."""
    parts = []
    for one in reversed(best):
        where = f"In {_WORDS[one.metric]}, {one.method}"
        if not one.among:
            parts.append(f"{one.method} is the only method{which}.")
        elif one.sure:
            parts.append(f"{where} is significantly better than every other method{which}.")
        else:
            all_alike = set(one.alike) == set(one.among)
            whom = f"any other method{which}" if all_alike else _or(one.alike)
            parts.append(f"{where} is not significantly better than {whom}.")
        if one.untested and one.untested != one.among:
            parts.append(f"There is no interval for {_and(one.untested)}.")
    return list(dict.fromkeys(parts))


def _against(comparison: Comparison, budget: int, baseline: str) -> str:
    """Compare FGE with a baseline of the same budget; nothing where one is missing."""
    within = {row.method: row for row in comparison.at(budget)}
    if FGE not in within or baseline not in within:
        return ""
    differences = {m: comparison.fge_difference(baseline, budget, m) for m in reversed(RANKED)}
    intervals = {m: one.interval for m, one in differences.items() if one is not None}
    costs = f"fge costs {_cost(within[FGE])}, {baseline} {_cost(within[baseline])}."
    if len(intervals) < len(RANKED):
        return f"Whether FGE is better than {baseline} is unknown: there is no interval; {costs}"
    level = percent(level_among(len(within)))
    changes = [
        _change(comparison, baseline, budget, metric, one) for metric, one in intervals.items()
    ]
    return (
        f"{_judgement(baseline, intervals)}. {' '.join(changes)} These are {level} intervals; "
        f"{costs}{_alone(comparison, baseline, budget, intervals)}"
    )


def _change(
    comparison: Comparison, baseline: str, budget: int, metric: str, interval: Interval
) -> str:
    """Return a sentence about one figure of FGE: by how much, in how many seeds, how sure."""
    size, way = abs(interval.difference), "lower" if interval.difference < 0 else "higher"
    _, _, ends = interval_text(metric, interval).partition(" ")
    lower, seeds = _lower_seeds(comparison, baseline, budget, metric)
    significant = "significant" if _excludes_zero(interval) else "not significant"
    return (
        f"Its {_WORDS[metric]} is {_UNITS[metric].format(size)} {way} {ends} (lower in {lower} of "
        f"{seeds} seeds): {significant}."
    )


def _lower_seeds(
    comparison: Comparison, baseline: str, budget: int, metric: str
) -> tuple[int, int]:
    """Return in how many seeds a figure of FGE is lower than the baseline's, and of how many."""
    ours, theirs = (
        {cell.seed: cell.figures[metric] for cell in comparison.cells_of(method, budget)}
        for method in (FGE, baseline)
    )
    shared = [seed for seed in ours if seed in theirs]
    return sum(ours[seed] < theirs[seed] for seed in shared), len(shared)


def _excludes_zero(interval: Interval) -> bool:
    return interval.high < 0 or interval.low > 0


def _alone(
    comparison: Comparison, baseline: str, budget: int, intervals: dict[str, Interval]
) -> str:
    """Name what differs in the intervals of the tables but not in these, which are wider."""
    found = []
    for metric, wider in intervals.items():
        one = comparison.difference(FGE, baseline, budget, metric)
        if one is not None and not _excludes_zero(wider) and _excludes_zero(one.interval):
            way = "lower" if one.interval.high < 0 else "higher"
            found.append(f"its {_WORDS[metric]} is significantly {way}")
    if not found:
        return ""
    return (
        f" By the {percent(LEVEL)} intervals of the tables, {_and(found)}; among so many intervals "
        "that may be chance."
    )


def _judgement(baseline: str, intervals: dict[str, Interval]) -> str:
    lower = [_WORDS[m] for m, one in intervals.items() if one.high < 0]
    higher = [_WORDS[m] for m, one in intervals.items() if one.low > 0]
    rest = [_WORDS[m] for m, one in intervals.items() if not _excludes_zero(one)]
    ways = [f"better than {baseline} in {_and(lower)}"] if lower else []
    ways += [f"worse than {baseline} in {_and(higher)}"] if higher else []
    if not ways:
        return f"FGE and {baseline} do not differ significantly in {_and(rest)}"
    text = f"FGE is significantly {_and(ways)}"
    return f"{text}; the difference in {_and(rest)} is not significant" if rest else text


def _and(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    >>> _and(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
