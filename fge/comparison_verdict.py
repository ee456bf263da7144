"""What a comparison of methods comes to, in words: what to use, how sure that is, what pays."""

from __future__ import annotations

from collections.abc import Sequence

from fge.bootstrap import Interval
from fge.comparison import BASELINES, RANKED, Best, Comparison
from fge.comparison_tables import epochs_of, interval_text
from fge.method_rows import MethodRow

FGE = "fge"
_WORDS = {"error": "error", "calibrated_nll": "calibrated NLL"}
_FORMS = {"error": "{:.2f} %", "calibrated_nll": "{:.4f}"}


def verdict(comparison: Comparison) -> str:
    """Say per budget which method to use, how sure that is, and whether FGE pays.

    The lowest calibrated NLL and error are named among all methods and among those of one forward
    pass per prediction, with those that they are not told apart from and with what they cost.
    """
    parts = []
    for budget in comparison.budgets:
        if comparison.at(budget):
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
        parts.append(
            f"This holds for this data and model, as far as {counted} {word} and {images} test "
            "images tell."
        )
    return " ".join(parts)


def _at(comparison: Comparison, budget: int) -> list[str]:
    """Return the sentences about one budget."""
    best = [one for one in comparison.best if one.budget == budget]
    one_pass = [one for one in comparison.best_of_one_pass if one.budget == budget]
    parts = [f"At {epochs_of(comparison, budget)}: {_lowest(comparison, best)}"]
    parts += _how_sure(comparison, best)
    if one_pass and {one.method for one in one_pass} != {one.method for one in best}:
        parts.append(f"With one pass per prediction: {_lowest(comparison, one_pass)}")
        parts += _how_sure(comparison, one_pass, cheapest=False)
    parts += [_pays(comparison, budget, baseline) for baseline in BASELINES]
    return [part for part in parts if part]


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


def _how_sure(comparison: Comparison, best: Sequence[Best], *, cheapest: bool = True) -> list[str]:
    """Return sentences that say from which methods those of the lowest figures are told apart."""
    parts = []
    for one in reversed(best):
        where = f"In {_WORDS[one.metric]} {one.method}"
        if not one.among:
            parts.append(f"{where} has nobody to be compared with.")
        elif one.sure:
            parts.append(f"{where} is told apart from every other method.")
        else:
            whom = "any other" if set(one.alike) == set(one.among) else _or(one.alike)
            text = f"{where} is not told apart from {whom}"
            parts.append(f"{text}{_cheapest(comparison, one) if cheapest else ''}.")
    return parts


def _cheapest(comparison: Comparison, best: Best) -> str:
    """Say which of the methods that are not told apart takes the fewest passes."""
    names = (best.method, *best.alike)
    rows = [row for row in comparison.at(best.budget) if row.method in names]
    least = min(rows, key=lambda r: (r.costs["forward_passes"], r.costs["train_epochs"]))
    if least.method == best.method:
        return ", and is the cheapest of them to predict with"
    return f"; {least.method} is the cheapest of them to predict with ({_cost(least)})"


def _pays(comparison: Comparison, budget: int, baseline: str) -> str:
    """Say whether FGE pays against a baseline of the same budget, nothing where one is missing."""
    within = {row.method: row for row in comparison.at(budget)}
    if FGE not in within or baseline not in within:
        return ""
    differences = {m: comparison.difference(FGE, baseline, budget, m) for m in reversed(RANKED)}
    intervals = {m: one.interval for m, one in differences.items() if one is not None}
    costs = f"fge takes {_cost(within[FGE])}, {baseline} {_cost(within[baseline])}"
    if len(intervals) < len(RANKED):
        return f"Whether FGE pays against {baseline} cannot be told: too few seeds; {costs}."
    figures = _and([f"{_WORDS[m]} {interval_text(m, one)}" for m, one in intervals.items()])
    return f"{_judgement(baseline, intervals)}: {figures}; {costs}."


def _judgement(baseline: str, intervals: dict[str, Interval]) -> str:
    lower = [_WORDS[m] for m, one in intervals.items() if one.high < 0]
    higher = [_WORDS[m] for m, one in intervals.items() if one.low > 0]
    rest = [word for word in _WORDS.values() if word not in (*lower, *higher)]
    if not lower:
        verb = "is" if len(higher) == 1 else "are"
        why = f"its {_and(higher)} {verb} higher" if higher else "no difference can be told"
        if higher and rest:
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
