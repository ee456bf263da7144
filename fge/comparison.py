"""Methods compared over seeds: means, paired intervals, and the best where one can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fge.bootstrap import Interval, paired_difference_over_seeds
from fge.cells import Cell
from fge.errors import UserError
from fge.method_rows import (
    DEEP_ENSEMBLE,
    SINGLE,
    MethodRow,
    deep_ensemble_levels,
    method_row,
    with_equivalent,
)

CURVE_ENSEMBLE = "curve-ensemble"
BASELINES = (SINGLE, CURVE_ENSEMBLE)
COMPARED = ("error", "nll", "calibrated_nll")
RANKED = ("error", "calibrated_nll")
LEVEL = 0.95
ORDER = (
    SINGLE,
    "fge",
    "fge+refit",
    "swa",
    "fold",
    "sse",
    "csgld",
    "ema",
    DEEP_ENSEMBLE,
    CURVE_ENSEMBLE,
    "curve-ensemble-2B",
)
"""Methods in the order in which they are shown; others follow in the order of the cells."""
DRAWS = 4000


@dataclass(frozen=True)
class Difference:
    """A metric of a method less that of a baseline at the same budget, over so many seeds."""

    method: str
    baseline: str
    budget: int
    metric: str
    seeds: int
    interval: Interval


@dataclass(frozen=True)
class Best:
    """The method with the lowest mean of a metric at a budget, and how sure that is.

    ``among``: those that it was compared with. ``alike``: those of them from which it is not told
    apart, since the interval of the paired difference at ``level`` holds 0 or there is none; where
    there are none it is ``sure``. The level, 1 - 0.05 / (others), keeps the chance of naming a
    method that is not the best at 5 % over all of them (Bonferroni).
    """

    metric: str
    budget: int
    method: str
    among: tuple[str, ...]
    alike: tuple[str, ...]
    level: float

    @property
    def sure(self) -> bool:
        """Whether it is told apart from every other method, of which there is one at least."""
        return bool(self.among) and not self.alike


@dataclass(frozen=True)
class Comparison:
    """Cells, and what they come to.

    ``budget_epochs``: B. ``best``: of all methods within each budget; ``best_of_one_pass``: of
    those with one forward pass per prediction. ``deep_ensembles``: networks k and mean calibrated
    log-likelihood of the deep ensembles of k single networks at k B.
    """

    budget_epochs: float
    cells: tuple[Cell, ...]
    rows: tuple[MethodRow, ...]
    differences: tuple[Difference, ...]
    best: tuple[Best, ...]
    best_of_one_pass: tuple[Best, ...]
    deep_ensembles: tuple[tuple[int, float], ...]

    @property
    def budgets(self) -> list[int]:
        """The budgets at which methods are compared: with more there than deep ensembles."""
        return sorted({row.budget for row in self.rows if row.method != DEEP_ENSEMBLE})

    @property
    def methods(self) -> list[str]:
        """The methods in the order in which they are shown."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def at(self, budget: int) -> list[MethodRow]:
        """Return the methods within a budget."""
        return [row for row in self.rows if row.budget == budget and not row.beyond]

    @property
    def beyond(self) -> list[MethodRow]:
        """The methods that train for longer than their budget."""
        return [row for row in self.rows if row.beyond]

    def row(self, method: str, budget: int) -> MethodRow | None:
        """Return a method at a budget, where there is one."""
        return next((r for r in self.rows if (r.method, r.budget) == (method, budget)), None)

    def difference(self, method: str, baseline: str, budget: int, metric: str) -> Difference | None:
        """Return a difference, where there is one: None for fewer than 2 paired seeds."""
        key = (method, baseline, budget, metric)
        return next(
            (d for d in self.differences if (d.method, d.baseline, d.budget, d.metric) == key), None
        )

    def cells_of(self, method: str, budget: int) -> list[Cell]:
        """Return the cells of a method at a budget."""
        return [cell for cell in self.cells if (cell.method, cell.budget) == (method, budget)]


def compare_cells(
    cells: Iterable[Cell],
    *,
    budget_epochs: float,
    deep_ensembles: Sequence[tuple[int, float]] | None = None,
    draws: int = DRAWS,
) -> Comparison:
    """Compare methods at equal budgets.

    The same seeds are paired (:func:`fge.bootstrap.paired_difference_over_seeds`). A method that
    trains for more than ``budget`` x ``budget_epochs`` is compared with none.

    Args:
        cells: of one test set, each method, budget and seed once.
        budget_epochs: B, the epochs of one conventional training.
        deep_ensembles: networks k, rising from 1, and mean calibrated log-likelihood (nats) of
            their ensembles; by default those of the cells: ``single`` at budget 1, and
            ``deep-ensemble`` of k members at the budgets k >= 2.
        draws: of each interval's resampling.

    Raises:
        UserError: no cells, one of them twice, or cells of different test sets.
    """
    ordered = _checked(list(cells))
    groups = {key: list(group) for key, group in groupby(ordered, key=_place)}
    rows = [method_row(group, budget_epochs) for group in groups.values()]
    levels = deep_ensemble_levels(rows) if deep_ensembles is None else list(deep_ensembles)
    rows = [with_equivalent(row, levels) for row in rows]
    pair = partial(_paired, groups, draws=draws)
    return Comparison(
        budget_epochs,
        tuple(ordered),
        tuple(rows),
        tuple(_differences(rows, pair)),
        tuple(_best(rows, pair)),
        tuple(_best([row for row in rows if row.costs["forward_passes"] == 1], pair)),
        tuple(levels),
    )


Pair = Callable[..., tuple[int, Interval] | None]


def _checked(cells: list[Cell]) -> list[Cell]:
    """Return the cells by budget, method and seed."""
    if not cells:
        raise UserError("there is nothing to compare: no cells")
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the cell {twice} is there twice")
    for cell in cells:
        if len(cell.wrong) != len(cells[0].wrong):
            raise UserError(
                f"{cells[0].name} was tested on {len(cells[0].wrong)} examples, but {cell.name} on "
                f"{len(cell.wrong)}: they cannot be compared"
            )
    known = list(dict.fromkeys((*ORDER, *(cell.method for cell in cells))))
    return sorted(cells, key=lambda cell: (cell.budget, known.index(cell.method), cell.seed))


def _place(cell: Cell) -> tuple[str, int]:
    return cell.method, cell.budget


def _paired(
    groups: Mapping[tuple[str, int], Sequence[Cell]],
    a: MethodRow,
    b: MethodRow,
    metric: str,
    level: float = LEVEL,
    *,
    draws: int,
) -> tuple[int, Interval] | None:
    """Return how many seeds two rows share and the interval, None where there can be none."""
    first, second = ({c.seed: c for c in groups[row.method, row.budget]} for row in (a, b))
    seeds = [seed for seed in first if seed in second]
    pairs = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
    pooled = max((cell.pooled for side in pairs for cell in side), default=1)
    if len(seeds) < 2 or pooled >= len(seeds):
        return None
    values = [np.stack([_values(cell, metric) for cell in side]) for side in pairs]
    interval = paired_difference_over_seeds(*values, pooled=pooled, draws=draws, level=level)
    return len(seeds), interval


def _values(cell: Cell, metric: str) -> NDArray[np.float64]:
    """Return the values (N,) whose mean the metric is."""
    values = 100.0 * cell.wrong if metric == "error" else getattr(cell, metric)
    return np.asarray(values, dtype=np.float64)


def _differences(rows: Sequence[MethodRow], pair: Pair) -> Iterable[Difference]:
    for row, base in _same_budget(rows):
        if base.method in BASELINES:
            for metric in COMPARED:
                found = pair(row, base, metric)
                if found is not None:
                    yield Difference(row.method, base.method, row.budget, metric, *found)


def _same_budget(rows: Sequence[MethodRow]) -> Iterable[tuple[MethodRow, MethodRow]]:
    """Yield ordered pairs of methods within one budget."""
    within = [row for row in rows if not row.beyond]
    for a in within:
        yield from ((a, b) for b in within if a is not b and a.budget == b.budget)


def _best(rows: Sequence[MethodRow], pair: Pair) -> Iterable[Best]:
    budgets = sorted({row.budget for row in rows if row.method != DEEP_ENSEMBLE})
    for budget in budgets:
        within = [row for row in rows if row.budget == budget and not row.beyond]
        for metric in RANKED if within else ():
            lowest = min(within, key=lambda row: row.mean[metric])
            others = [row for row in within if row is not lowest]
            level = 1 - (1 - LEVEL) / max(1, len(others))
            found = {row.method: pair(lowest, row, metric, level) for row in others}
            alike = [name for name, one in found.items() if one is None or one[1].high >= 0]
            yield Best(metric, budget, lowest.method, tuple(found), tuple(alike), level)
