"""What a comparison of methods comes to, in words: what to use, how sure that is, what pays."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fge.compare.comparison import (
    BASELINES,
    LEVEL,
    RANKED,
    Best,
    Comparison,
    MethodRow,
    level_among,
)
from fge.compare.tables import epochs_of, interval_text, percent
from fge.config import FGE
from fge.metrics import Interval

_FIRST = "calibrated NLL"
_WORDS = {"error": "error", "calibrated_nll": _FIRST}
_FORMS = {"error": "{:.2f} %", "calibrated_nll": "{:.4f}"}


def comparison_verdict(comparison: Comparison) -> str:
    """Say per budget which method to use, how sure that is, and whether FGE pays.

    To be used is, of the methods that are not told apart from the best in calibrated NLL or error,
    that of the fewest forward passes per prediction (of several the one of lowest calibrated NLL).
    The lowest calibrated NLL and error are named among all methods and among those of one forward
    pass per prediction, with those that they are not told apart from and with what they cost.
    Everything is told apart at one level per budget, that of :class:`fge.compare.Best`. Each
    question has a paragraph.
    """
    parts = []
    budgets = [budget for budget in comparison.budgets if comparison.at(budget)]
    for budget in budgets:
        parts += _at(comparison, budget)
    if comparison.beyond:
        names = _and([f"{row.method} at {row.budget} B" for row in comparison.beyond])
        parts.append(f"Not compared, since beyond the budget: {names}.")
    seeds = sorted({len(row.seeds) for row in comparison.rows})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    word = "seed" if seeds == [1] else "seeds"
    images = len(comparison.cells[0].wrong)
    if seeds == [1]:
        parts.append(f"One seed and {images} test images: an interval over seeds needs 2 or more.")
    else:
        holds = (
            f"This holds for this data and model, as far as {counted} {word} and {images} test "
            "images tell."
        )
        parts.append(" ".join([*_levels(comparison, budgets), holds]))
    return "\n\n".join(parts)


def _levels(comparison: Comparison, budgets: Sequence[int]) -> list[str]:
    """Return sentences that say what it takes to be told apart."""
    levels = {budget: level_among(len(comparison.at(budget))) for budget in budgets}
    which = list(dict.fromkeys(percent(level) for level in levels.values()))
    shown = which
    if len(which) > 1:
        shown = [f"{percent(level)} at {budget} B" for budget, level in levels.items()]
    parts = [
        f"Methods are told apart where the interval of their paired difference ({_and(shown)}) "
        "excludes 0; those that are not may differ all the same."
    ]
    if which != [percent(LEVEL)]:
        parts.append(
            f"That keeps {percent(LEVEL)} over all methods of a budget together (Bonferroni); the "
            f"intervals of the tables have {percent(LEVEL)} each, taken alone."
        )
    return parts


def _at(comparison: Comparison, budget: int) -> list[str]:
    """Return the paragraphs about one budget."""
    best = [one for one in comparison.best if one.budget == budget]
    one_pass = [one for one in comparison.best_of_one_pass if one.budget == budget]
    parts = [f"At {epochs_of(comparison, budget)}: {_use(comparison, best)}."]
    parts.append(" ".join([_lowest(comparison, best), *(_how_sure(best) if best[0].among else [])]))
    if one_pass and {one.method for one in one_pass} != {one.method for one in best}:
        lowest = f"With one pass per prediction: {_lowest(comparison, one_pass)}"
        parts.append(" ".join([lowest, *_how_sure(one_pass, "method of one pass")]))
    parts += [_pays(comparison, budget, baseline) for baseline in BASELINES]
    return [part for part in parts if part]


def _use(comparison: Comparison, best: Sequence[Best]) -> str:
    """Say which method to use, and why."""
    if not best[0].among:
        return f"{best[0].method} has nobody to be compared with"
    if any(set(one.untested) == set(one.among) for one in best):
        return "which method to use cannot be told, there are no intervals"
    merits = {one.metric: {one.method, *one.alike} - set(one.untested) for one in reversed(best)}
    figures = _and([_WORDS[metric] for metric in merits])
    both = set.intersection(*merits.values())
    if not both:
        chosen = [
            f"{_cheapest(comparison, best[0].budget, names).method} for {_WORDS[metric]}"
            for metric, names in merits.items()
        ]
        return f"use {_and(chosen)}, none is among the best in {figures}"
    row = _cheapest(comparison, best[0].budget, both)
    return f"use {row.method} ({_cost(row)}): {_why(comparison, row, best, both, figures)}"


def _why(
    comparison: Comparison, row: MethodRow, best: Sequence[Best], both: set[str], figures: str
) -> str:
    """Say why a method of those that are among the best in all ``figures`` is the one to use."""
    if all(one.sure and one.method == row.method for one in best):
        return f"it has the lowest {figures}, told apart from every other method"
    if len(both) == 1:
        return f"it alone is among the best in {figures}"
    passes = row.costs["forward_passes"]
    few = [
        one.method
        for one in comparison.at(row.budget)
        if one.method in both and one.costs["forward_passes"] == passes
    ]
    text = f"of the {len(both)} methods that are not told apart from the best in {figures}"
    if len(few) == 1:
        return f"{text}, it predicts in the fewest passes"
    lowest = f"{row.method} has the lowest {_FIRST} of them"
    return f"{text}, {_and(few)} predict in the fewest passes, and {lowest}"


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
        parts.append(f"{method} has the lowest {_and(figures)}, at {_cost(row)}")
    return f"{'; '.join(parts)}."


def _cost(row: MethodRow) -> str:
    epochs, passes = row.costs["train_epochs"], row.costs["forward_passes"]
    return (
        f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'} of training and "
        f"{passes:g} {'pass' if passes == 1 else 'passes'} per prediction"
    )


def _how_sure(best: Sequence[Best], others: str = "method") -> list[str]:
    """Return sentences that say from which methods those of the lowest figures are told apart."""
    parts = []
    for one in reversed(best):
        where = f"In {_WORDS[one.metric]} {one.method}"
        if not one.among:
            parts.append(f"{one.method} has nobody to be compared with.")
        elif one.sure:
            parts.append(f"{where} is told apart from every other {others}.")
        else:
            whom = f"any other {others}" if set(one.alike) == set(one.among) else _or(one.alike)
            parts.append(f"{where} is not told apart from {whom}.")
        if one.untested and one.untested != one.among:
            parts.append(f"There is no interval to {_or(one.untested)}.")
    return list(dict.fromkeys(parts))


def _pays(comparison: Comparison, budget: int, baseline: str) -> str:
    """Say whether FGE pays against a baseline of the same budget, nothing where one is missing."""
    within = {row.method: row for row in comparison.at(budget)}
    if FGE not in within or baseline not in within:
        return ""
    differences = {m: comparison.fge_difference(baseline, budget, m) for m in reversed(RANKED)}
    intervals = {m: one.interval for m, one in differences.items() if one is not None}
    costs = f"fge takes {_cost(within[FGE])}, {baseline} {_cost(within[baseline])}"
    if len(intervals) < len(RANKED):
        return f"Whether FGE pays against {baseline} cannot be told, there is no interval; {costs}."
    figures = _and([f"{_WORDS[m]} {interval_text(m, one)}" for m, one in intervals.items()])
    level = percent(level_among(len(within)))
    text = f"{_judgement(baseline, intervals)}: {figures} ({level} intervals); {costs}."
    return text + _alone(comparison, baseline, budget, intervals)


def _alone(
    comparison: Comparison, baseline: str, budget: int, intervals: dict[str, Interval]
) -> str:
    """Name what differs in the intervals of the tables but not in these, which are wider."""
    found = []
    for metric, wider in intervals.items():
        one = comparison.difference(FGE, baseline, budget, metric)
        if one is not None and wider.low <= 0 <= wider.high:
            way = "lower" if one.interval.high < 0 else "higher" if one.interval.low > 0 else ""
            found += [f"a {way} {_WORDS[metric]}"] if way else []
    if not found:
        return ""
    return (
        f" As the only question asked ({percent(LEVEL)} intervals), FGE has {_and(found)}; among "
        "so many that may be chance."
    )


def _judgement(baseline: str, intervals: dict[str, Interval]) -> str:
    lower = [_WORDS[m] for m, one in intervals.items() if one.high < 0]
    higher = [_WORDS[m] for m, one in intervals.items() if one.low > 0]
    rest = [word for word in _WORDS.values() if word not in (*lower, *higher)]
    if not lower and not higher:
        return f"FGE and {baseline} are not told apart in {_and(list(reversed(rest)))}"
    if not lower:
        verb = "is" if len(higher) == 1 else "are"
        why = f"its {_and(higher)} {verb} higher"
        if rest:
            why += f" and no difference can be told in {_and(rest)}"
        return f"FGE does not pay against {baseline}, {why}"
    text = f"FGE pays against {baseline} in {_and(lower)}"
    if higher:
        text += f", not in {_and(higher)}, which is higher"
    return f"{text}, while no difference can be told in {_and(rest)}" if rest else text


def _and(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    >>> _and(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
