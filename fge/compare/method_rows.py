"""A method at one budget over seeds: means, standard deviations, deep-ensemble equivalent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from fge.compare.cells import Cell
from fge.metrics.calibration import deep_ensemble_equivalent

SINGLE, DEEP_ENSEMBLE = "single", "deep-ensemble"
ONE_VALUE = "all seeds are pooled into one value, which has no deviation and no interval"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MethodRow:
    """A method at one budget, over seeds.

    ``values``: that there are, one per seed, but one in all where each cell pools the runs of all
    seeds; ``costs``: means of the :class:`fge.compare.Cost`;
    ``mean`` and ``deviation``: of each figure that all cells have, the standard deviation (of a
    sample, n - 1) empty for one value; ``by_members`` likewise for the first m members;
    ``equivalent``: the deep-ensemble equivalent, ``equivalent_is_bound`` where the method is better
    than the largest ensemble at hand; ``beyond``: it trains for longer than the budget.
    """

    method: str
    budget: int
    seeds: tuple[int, ...]
    values: int
    costs: dict[str, float]
    mean: dict[str, float]
    deviation: dict[str, float]
    by_members: list[dict[str, float]]
    by_members_deviation: list[dict[str, float]]
    beyond: bool
    note: str = ""
    equivalent: float | None = None
    equivalent_is_bound: bool = False


def method_row(cells: Sequence[Cell], budget_epochs: float) -> MethodRow:
    """Return what the cells of one method at one budget come to.

    Args:
        cells: one per seed.
        budget_epochs: B, the epochs of one conventional training.
    """
    first = cells[0]
    values = 1 if max(cell.pooled for cell in cells) >= len(cells) else len(cells)
    notes = [cell.note for cell in cells if cell.note]
    notes += [ONE_VALUE] if values < len(cells) else []
    costs = [{k: v for k, v in asdict(cell.cost).items() if v is not None} for cell in cells]
    mean_costs, _ = _statistics(costs)
    statistics = partial(_statistics, alone=values == 1)
    mean, deviation = statistics([cell.figures for cell in cells])
    sizes = zip(*(cell.by_members for cell in cells), strict=False)
    by_members = [statistics(figures) for figures in sizes]
    limit = first.budget * budget_epochs * (1 + _ROUNDING)
    return MethodRow(
        first.method,
        first.budget,
        tuple(cell.seed for cell in cells),
        values,
        mean_costs,
        mean,
        deviation,
        [means for means, _ in by_members],
        [deviations for _, deviations in by_members],
        beyond=mean_costs["train_epochs"] > limit,
        note="; ".join(dict.fromkeys(notes)),
    )


def deep_ensemble_levels(rows: Sequence[MethodRow]) -> list[tuple[int, float]]:
    """Return networks k and mean calibrated log-likelihood of the deep ensembles among the rows.

    They are ``single`` at budget 1 and ``deep-ensemble`` of k members at budgets k >= 2; nothing
    without the first.
    """
    levels = {}
    for row in rows:
        single = row.method == SINGLE and row.budget == 1
        several = row.method == DEEP_ENSEMBLE and row.budget > 1
        if single or (several and row.costs["members"] == row.budget):
            levels[row.budget] = row.mean["calibrated_log_likelihood"]
    return sorted(levels.items()) if 1 in levels else []


def with_equivalent(row: MethodRow, levels: Sequence[tuple[int, float]]) -> MethodRow:
    """Return the row with its deep-ensemble equivalent.

    Args:
        row: the method.
        levels: as :func:`deep_ensemble_levels` returns them; the row is as it was without any.
    """
    if not levels:
        return row
    sizes, values = zip(*levels, strict=True)
    reached = row.mean["calibrated_log_likelihood"]
    equivalent = deep_ensemble_equivalent(reached, values, sizes=sizes)
    return replace(row, equivalent=equivalent, equivalent_is_bound=reached > max(values))


def _statistics(
    values: Sequence[Mapping[str, float]], *, alone: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean and standard deviation of what all mappings have; none where they are one."""
    keys = [key for key in values[0] if all(key in one for one in values)]
    columns = {key: np.array([one[key] for one in values], dtype=np.float64) for key in keys}
    means = {key: float(column.mean()) for key, column in columns.items()}
    if alone or len(values) < 2:
        return means, {}
    return means, {key: float(column.std(ddof=1)) for key, column in columns.items()}
