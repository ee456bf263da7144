"""The verdict of a comparison in words: what to use, what it costs, how sure that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fge.compare.comparison import (
    BASELINES,
    LEVEL,
    Best,
    Comparison,
    MethodRow,
    level_among,
)
from fge.compare.tables import NAMES, epochs_of, interval_text, percent
from fge.compare.worth import WHOLE
from fge.config import FGE
from fge.metrics import Interval
from fge.observer import listed
from fge.report import cost_text

_FIRST, _CALIBRATED = "calibrated NLL", "calibrated_nll"
_UNFIT = 1.5
"""A temperature of 1 is always at hand: fitted ones that suit make no NLL so many times as high."""
_WORDS = {"error": "error", "mse": "squared error", "calibrated_nll": _FIRST}
_FORMS = {"error": "{:.2f} %", "mse": "{:.4g}", "calibrated_nll": "{:.4f}"}
_UNITS = {"error": "{:.2f} points", "mse": "{:.4g}", "calibrated_nll": "{:.4f}"}


def comparison_verdict(comparison: Comparison) -> list[str]:
    """Say what to use, at what cost and how sure that is; then why, and what FGE gains.

    The verdict considers the methods that are not significantly worse than the best in calibrated
    NLL and error. It recommends the one with the fewest forward passes per prediction; among
    several, the one with the lowest calibrated NLL. All differences of a budget are judged at the
    level of :class:`fge.compare.Best`.

    Returns:
        a paragraph for each question; the first one is the verdict in a line.
    """
    budgets = [budget for budget in comparison.budgets if comparison.at(budget)]
    images = f"{len(comparison.cells[0].wrong)} test {comparison.example}s"
    uses = [
        f"at {epochs_of(comparison, budget)}, {_use(comparison, _best(comparison, budget)).clause}"
        for budget in budgets
    ]
    parts = [f"A{'; '.join(uses)[1:]} ({_seeds(comparison)}, {images}).", *_unfit(comparison)]
    for budget in budgets:
        parts += _at(comparison, budget, named=len(budgets) > 1)
    if comparison.beyond:
        names = listed([f"{row.method} at {row.budget} B" for row in comparison.beyond])
        parts.append(f"Not compared, because it trains for longer than the budget: {names}.")
    if all(len(row.seeds) == 1 for row in comparison.rows):
        parts.append("An interval over seeds needs 2 seeds or more.")
        return parts
    holds = f"The results hold for this data and model, with {_seeds(comparison)} and {images}."
    return [*parts, " ".join([*_levels(comparison, budgets), holds])]


def _unfit(comparison: Comparison) -> list[str]:
    """Say that no temperature can be fitted, where a method's calibrated NLL is far too high."""
    if comparison.task.uses_noise:
        return []
    worst = max(comparison.rows, key=lambda row: row.mean[_CALIBRATED] - _UNFIT * row.mean["nll"])
    calibrated, plain = worst.mean[_CALIBRATED], worst.mean["nll"]
    if calibrated <= _UNFIT * plain:
        return []
    return [
        f"The {_FIRST} says little here: that of {worst.method} at {worst.budget} B is "
        f"{calibrated:.4f}, its NLL as it is {plain:.4f}. Half of the test {comparison.example}s "
        "has too few errors for a temperature that suits the other half. Go by error and NLL: "
        f"what is said of the {_FIRST}, and the worth in networks, is chance."
    ]


def _seeds(comparison: Comparison) -> str:
    """Return the number of seeds in words."""
    counts = sorted({len(row.seeds) for row in comparison.rows})
    if counts == [1]:
        return "1 seed"
    return f"{counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} seeds"


def _best(comparison: Comparison, budget: int) -> list[Best]:
    return [best for best in comparison.best if best.budget == budget]


def _levels(comparison: Comparison, budgets: Sequence[int]) -> list[str]:
    """Return sentences that define "significant"."""
    levels = {budget: level_among(len(comparison.at(budget))) for budget in budgets}
    which = list(dict.fromkeys(percent(level) for level in levels.values()))
    shown = which
    if len(which) > 1:
        shown = [f"{percent(level)} at {budget} B" for budget, level in levels.items()]
    parts = [
        f"A difference is significant if the interval of the paired difference ({listed(shown)}) "
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
    one_pass = [winner for winner in comparison.best_of_one_pass if winner.budget == budget]
    first = [*([f"At {budget} B:"] if named else []), *_use(comparison, best).reasons]
    first += [_lowest(comparison, best), *(_how_sure(best) if best[0].among else [])]
    parts = [" ".join(first), _worth(comparison, best)]
    if one_pass and {winner.method for winner in one_pass} != {winner.method for winner in best}:
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
    if any(set(winner.untested) == set(winner.among) for winner in best):
        return _Choice("the best method is unknown, because there are no intervals")
    merits = {
        winner.metric: {winner.method, *winner.alike} - set(winner.untested)
        for winner in reversed(best)
    }
    figures = listed([_WORDS[metric] for metric in merits])
    both = set.intersection(*merits.values())
    if not both:
        chosen = [
            f"{_cheapest(comparison, best[0].budget, names).method} for {_WORDS[metric]}"
            for metric, names in merits.items()
        ]
        return _Choice(f"use {listed(chosen)}: no method is among the best in {figures}")
    row = _cheapest(comparison, best[0].budget, both)
    use = f"use {row.method} ({_cost(row)})"
    if all(winner.sure and winner.method == row.method for winner in best):
        return _Choice(f"{use}: its {figures} are significantly lower than all others")
    if len(both) == 1:
        return _Choice(f"{use}: no other method is among the best in {figures}")
    among = f"not significantly worse than the best in {figures}"
    return _Choice(
        f"{use}: {among}, with the fewest passes", (_among(comparison, row, both, among),)
    )


def _among(comparison: Comparison, row: MethodRow, both: set[str], what: str) -> str:
    """Say how the method was chosen among several."""
    few = [
        other.method
        for other in comparison.at(row.budget)
        if other.method in both and other.costs["forward_passes"] == row.costs["forward_passes"]
    ]
    text = f"{len(both)} methods are {what}; of these, {listed(few)}"
    if len(few) == 1:
        return f"{text} needs the fewest passes."
    return f"{text} need the fewest passes, and {row.method} has the lowest {_FIRST}."


def _cheapest(comparison: Comparison, budget: int, names: Collection[str]) -> MethodRow:
    """Return the method with the fewest passes; among several, with the lowest calibrated NLL."""
    rows = [row for row in comparison.at(budget) if row.method in names]
    return min(rows, key=lambda row: (row.costs["forward_passes"], row.mean["calibrated_nll"]))


def _lowest(comparison: Comparison, best: Sequence[Best]) -> str:
    """Return a sentence that names the methods of lowest calibrated NLL and error."""
    parts = []
    by_method: dict[str, list[str]] = {}
    for winner in reversed(best):
        by_method.setdefault(winner.method, []).append(winner.metric)
    for method, metrics in by_method.items():
        row = comparison.row(method, best[0].budget)
        assert row is not None, "it was ranked"
        figures = [f"{_WORDS[m]} ({_FORMS[m].format(row.mean[m])})" for m in metrics]
        parts.append(f"{method} has the lowest {listed(figures)}, for {_cost(row)}")
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
            all_of_it = worth.gain_share >= WHOLE
            part = "all" if all_of_it else f"{worth.gain_share:.0f} %"
            more.append(f"{part} of the gain of {scale.largest}")
        linear = _networks(worth.linear, is_bound=worth.linear_is_bound)
        details = f" ({'; '.join(more)})" if more else ""
        parts.append(f"{linear} {NAMES[scale.pool]}{details}")
    if not parts:
        return ""
    return f"In {_FIRST}, {row.method} is worth this many networks of 1 B each: {listed(parts)}."


def _networks(networks: float, *, is_bound: bool) -> str:
    return f"{'at least ' if is_bound else ''}{networks:.1f}"


def _cost(row: MethodRow) -> str:
    return cost_text(row.costs["train_epochs"], row.costs["forward_passes"])


def _how_sure(best: Sequence[Best], which: str = "") -> list[str]:
    """Return sentences that say which methods the best ones are significantly better than."""
    parts = []
    for winner in reversed(best):
        where = f"In {_WORDS[winner.metric]}, {winner.method}"
        if not winner.among:
            parts.append(f"{winner.method} is the only method{which}.")
        elif winner.sure:
            parts.append(f"{where} is significantly better than every other method{which}.")
        else:
            all_alike = set(winner.alike) == set(winner.among)
            whom = f"any other method{which}" if all_alike else listed(winner.alike, "or")
            parts.append(f"{where} is not significantly better than {whom}.")
        if winner.untested and winner.untested != winner.among:
            parts.append(f"There is no interval for {listed(winner.untested)}.")
    return list(dict.fromkeys(parts))


def _against(comparison: Comparison, budget: int, baseline: str) -> str:
    """Compare FGE with a baseline of the same budget; return "" if one is missing."""
    within = {row.method: row for row in comparison.at(budget)}
    if FGE not in within or baseline not in within:
        return ""
    differences = {
        m: comparison.fge_difference(baseline, budget, m) for m in reversed(comparison.ranked)
    }
    intervals = {m: d.interval for m, d in differences.items() if d is not None}
    costs = f"fge costs {_cost(within[FGE])}, {baseline} {_cost(within[baseline])}."
    if len(intervals) < len(comparison.ranked):
        return f"Whether FGE is better than {baseline} is unknown: there is no interval; {costs}"
    level = percent(level_among(len(within)))
    changes = [
        _change(comparison, baseline, budget, metric, interval)
        for metric, interval in intervals.items()
    ]
    return (
        f"{_judgement(baseline, intervals)}. {' '.join(changes)} These are {level} intervals; "
        f"{costs}{_alone(comparison, baseline, budget, intervals)}"
    )


def _change(
    comparison: Comparison, baseline: str, budget: int, metric: str, interval: Interval
) -> str:
    """Return a sentence about the difference in one metric, and whether it is significant."""
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
    """Return the number of seeds with a lower figure for FGE, and the number of paired seeds."""
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
    """Name the metrics that differ significantly only by the narrower intervals of the tables."""
    ways = []
    for metric, wider in intervals.items():
        single = comparison.difference(FGE, baseline, budget, metric)
        if single is not None and not _excludes_zero(wider) and _excludes_zero(single.interval):
            way = "lower" if single.interval.high < 0 else "higher"
            ways.append(f"its {_WORDS[metric]} is significantly {way}")
    if not ways:
        return ""
    return (
        f" By the {percent(LEVEL)} intervals of the tables, {listed(ways)}; among so many "
        "intervals that may be chance."
    )


def _judgement(baseline: str, intervals: dict[str, Interval]) -> str:
    lower = [_WORDS[m] for m, interval in intervals.items() if interval.high < 0]
    higher = [_WORDS[m] for m, interval in intervals.items() if interval.low > 0]
    rest = [_WORDS[m] for m, interval in intervals.items() if not _excludes_zero(interval)]
    ways = [f"better than {baseline} in {listed(lower)}"] if lower else []
    ways += [f"worse than {baseline} in {listed(higher)}"] if higher else []
    if not ways:
        return f"FGE and {baseline} do not differ significantly in {listed(rest)}"
    text = f"FGE is significantly {listed(ways)}"
    return f"{text}; the difference in {listed(rest)} is not significant" if rest else text
