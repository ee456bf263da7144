"""Methods compared over seeds: means, paired intervals, and the best methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fge.compare.cells import Cell
from fge.compare.worth import NETWORKS, Scale, Worth, scales_of, worth_on
from fge.config import (
    CURVE_ENSEMBLE,
    DEEP_ENSEMBLE,
    DEEP_ENSEMBLE_AVERAGED,
    FGE,
    ORDER,
    POOLS,
    SINGLE,
    without_views,
)
from fge.errors import UserError
from fge.metrics import (
    Interval,
    deep_ensemble_equivalent,
    paired_difference_of_values,
    paired_difference_over_seeds,
)
from fge.tasks import MANY_CLASSES, Task

BASELINES = (SINGLE, CURVE_ENSEMBLE)
_NLLS = ("nll", "calibrated_nll")
LEVEL = 0.95
DRAWS = 4000
Pair = Callable[..., tuple[int, Interval] | None]
ONE_VALUE = "all seeds are pooled into one value, without deviation or interval"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MethodRow:
    """A method at one budget, over seeds.

    ``values``: that there are, one per seed, but one in all where each cell pools the runs of all
    seeds; ``costs``: means of the :class:`fge.compare.Cost`;
    ``mean`` and ``deviation``: of each figure that all cells have, the standard deviation (of a
    sample, n - 1) empty for one value; ``by_members`` likewise for the first m members;
    ``equivalent``: the deep-ensemble equivalent, ``equivalent_is_bound`` where the method is better
    than the largest ensemble at hand; ``worths``: what it is worth on each scale of the comparison;
    ``beyond``: it trains for longer than the budget.
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
    worths: tuple[Worth, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A method's metric minus a baseline's at the same budget, over ``seeds`` paired seeds.

    ``level`` is that of the interval.
    """

    method: str
    baseline: str
    budget: int
    metric: str
    seeds: int
    interval: Interval
    level: float = LEVEL


@dataclass(frozen=True)
class Best:
    """The method with the lowest mean of a metric at a budget, and how sure that is.

    ``among``: the methods that it was compared with. ``alike``: those that are not significantly
    worse: the interval of the paired difference at ``level`` contains 0, or there is no interval
    (then the method is also in ``untested``). If no method is alike, the best is ``sure``. The
    level is :func:`level_among` the methods of the budget.
    """

    metric: str
    budget: int
    method: str
    among: tuple[str, ...]
    alike: tuple[str, ...]
    level: float
    untested: tuple[str, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether there are other methods and it is significantly better than all of them."""
        return bool(self.among) and not self.alike


@dataclass(frozen=True)
class Comparison:
    """Cells, and the comparison of their methods.

    ``budget_epochs``: B. ``differences``: each at a level of 95 %; ``fge_differences``: those of
    FGE from the baselines at the level of ``best``, so that what is said of both is said by one
    rule. ``best``: of all methods within each budget; ``best_of_one_pass``: of those with one
    forward pass per prediction. ``deep_ensembles``: networks k and mean calibrated
    log-likelihood of the deep ensembles of k single networks at k B; ``scales``: ensembles of 2
    networks or more, conventional ones and averages, by which all rows are measured.
    """

    budget_epochs: float
    cells: tuple[Cell, ...]
    rows: tuple[MethodRow, ...]
    differences: tuple[Difference, ...]
    fge_differences: tuple[Difference, ...]
    best: tuple[Best, ...]
    best_of_one_pass: tuple[Best, ...]
    deep_ensembles: tuple[tuple[int, float], ...]
    scales: tuple[Scale, ...] = ()
    task: Task = MANY_CLASSES
    example: str = "image"

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics whose differences have intervals."""
        return self.task.compared.key, *_NLLS

    @property
    def ranked(self) -> tuple[str, ...]:
        """The metrics by which methods are ranked."""
        return self.task.compared.key, _NLLS[-1]

    @property
    def budgets(self) -> list[int]:
        """The budgets at which methods are compared: with more there than pooled networks."""
        return _budgets(self.rows)

    @property
    def methods(self) -> list[str]:
        """The methods in their order in tables."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def at(self, budget: int) -> list[MethodRow]:
        """Return the methods within a budget."""
        return [row for row in self.rows if row.budget == budget and not row.beyond]

    @property
    def beyond(self) -> list[MethodRow]:
        """The methods that train for longer than their budget."""
        return [row for row in self.rows if row.beyond]

    def row(self, method: str, budget: int) -> MethodRow | None:
        """Return a method at a budget, or None."""
        return next((r for r in self.rows if (r.method, r.budget) == (method, budget)), None)

    def difference(self, method: str, baseline: str, budget: int, metric: str) -> Difference | None:
        """Return a difference, or None: for example, for fewer than 2 paired seeds."""
        return _find(self.differences, method, baseline, budget, metric)

    def fge_difference(self, baseline: str, budget: int, metric: str) -> Difference | None:
        """Return the difference of FGE from a baseline at the level of ``best``."""
        return _find(self.fge_differences, FGE, baseline, budget, metric)

    def cells_of(self, method: str, budget: int) -> list[Cell]:
        """Return the cells of a method at a budget."""
        return [cell for cell in self.cells if (cell.method, cell.budget) == (method, budget)]


def compare_cells(
    cells: Iterable[Cell],
    *,
    budget_epochs: float,
    deep_ensembles: Sequence[tuple[int, float]] | None = None,
    draws: int = DRAWS,
    task: Task = MANY_CLASSES,
    example: str = "image",
) -> Comparison:
    """Compare methods at equal budgets.

    The same seeds are paired (:func:`fge.metrics.paired_difference_over_seeds`). A method that
    trains for more than ``budget`` x ``budget_epochs`` is not compared.

    Args:
        cells: of one test set; one per method, budget and seed.
        budget_epochs: B, the epochs of one conventional training.
        deep_ensembles: networks k, rising from 1, and mean calibrated log-likelihood (nats) of
            their ensembles; by default those of the cells: ``single`` at budget 1, and
            ``deep-ensemble`` of k members at the budgets k >= 2.
        draws: number of resamples for each interval.
        task: what is predicted.
        example: what a test example is called: image or row.

    Raises:
        UserError: there are no cells, one occurs twice, or they are from different test sets.
    """
    ordered = _checked(list(cells))
    groups = {key: list(group) for key, group in groupby(ordered, key=_place)}
    rows = [method_row(group, budget_epochs) for group in groups.values()]
    levels = deep_ensemble_levels(rows) if deep_ensembles is None else list(deep_ensembles)
    averaged = deep_ensemble_levels(rows, DEEP_ENSEMBLE_AVERAGED)
    pair = partial(_paired, groups, draws=draws)
    scales = tuple(
        replace(scale, gains=_gains(scale, rows, groups, pair, draws))
        for scale in scales_of({DEEP_ENSEMBLE: levels, DEEP_ENSEMBLE_AVERAGED: averaged})
    )
    rows = [with_equivalent(row, levels, scales) for row in rows]
    compared, ranked = (task.compared.key, *_NLLS), (task.compared.key, _NLLS[-1])
    return Comparison(
        budget_epochs,
        tuple(ordered),
        tuple(rows),
        tuple(_differences(rows, pair, compared)),
        tuple(_differences(rows, pair, ranked, of=(FGE,), corrected=True)),
        tuple(_best(rows, pair, ranked)),
        tuple(_best(rows, pair, ranked, one_pass=True)),
        tuple(levels),
        scales,
        task,
        example,
    )


def level_among(methods: int) -> float:
    """Return the level of the intervals between one method and each of the others.

    It is 1 - 0.05 / (methods - 1), which keeps the probability of any false "significant" among
    these intervals at 5 % (Bonferroni).

    >>> round(level_among(9), 5)
    0.99375
    """
    return 1 - (1 - LEVEL) / max(1, methods - 1)


def method_row(cells: Sequence[Cell], budget_epochs: float) -> MethodRow:
    """Return the means and deviations of one method at one budget over its cells.

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


def deep_ensemble_levels(
    rows: Sequence[MethodRow], pool: str = DEEP_ENSEMBLE
) -> list[tuple[int, float]]:
    """Return networks k and mean calibrated log-likelihood of the deep ensembles among the rows.

    They are ``single`` at budget 1 and ``deep-ensemble`` of k members at budgets k >= 2, or
    ``average`` and ``deep-ensemble-averaged``; nothing without the first.
    """
    network = NETWORKS[pool]
    levels = {}
    for row in rows:
        single = row.method == network and row.budget == 1
        several = row.method == pool and row.budget > 1
        if single or (several and row.costs["members"] == row.budget):
            levels[row.budget] = row.mean["calibrated_log_likelihood"]
    return sorted(levels.items()) if 1 in levels else []


def with_equivalent(
    row: MethodRow, levels: Sequence[tuple[int, float]], scales: Sequence[Scale] = ()
) -> MethodRow:
    """Return the row with its deep-ensemble equivalent, and its worth on the scales.

    Args:
        row: the method.
        levels: as :func:`deep_ensemble_levels` returns them; without any there is no equivalent.
        scales: of the comparison.
    """
    reached = row.mean["calibrated_log_likelihood"]
    row = replace(row, worths=tuple(worth_on(scale, reached) for scale in scales))
    if not levels:
        return row
    sizes, values = zip(*levels, strict=True)
    equivalent = deep_ensemble_equivalent(reached, values, sizes=sizes)
    return replace(row, equivalent=equivalent, equivalent_is_bound=reached > max(values))


def _find(differences: Sequence[Difference], *key: str | int) -> Difference | None:
    matching = (d for d in differences if (d.method, d.baseline, d.budget, d.metric) == key)
    return next(matching, None)


def _checked(cells: list[Cell]) -> list[Cell]:
    """Return the cells by budget, method and seed."""
    if not cells:
        raise UserError("there is nothing to compare: no cells")
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the cell {twice} occurs twice")
    for cell in cells:
        if len(cell.wrong) != len(cells[0].wrong):
            raise UserError(
                f"{cells[0].name} was tested on {len(cells[0].wrong)} examples, but {cell.name} on "
                f"{len(cell.wrong)}: they cannot be compared"
            )
    known = list(dict.fromkeys((*ORDER, *(without_views(cell.method) for cell in cells))))

    def place(cell: Cell) -> tuple[int, int, str, int]:
        """With views, a method follows itself."""
        return cell.budget, known.index(without_views(cell.method)), cell.method, cell.seed

    return sorted(cells, key=place)


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
    """Return the number of seeds that two rows share and the interval, or None without one."""
    first, second = ({c.seed: c for c in groups[row.method, row.budget]} for row in (a, b))
    seeds = [seed for seed in first if seed in second]
    pairs = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
    pooled = max((cell.pooled for side in pairs for cell in side), default=1)
    if len(seeds) < 2 or pooled >= len(seeds):
        return None
    if pooled > 1 and len(seeds) < max(map(len, groups.values())):
        return None  # the overlap of pools is that of a ring of all seeds, and one is missing
    values = [np.stack([_values(cell, metric) for cell in side]) for side in pairs]
    interval = paired_difference_over_seeds(*values, pooled=pooled, draws=draws, level=level)
    return len(seeds), interval


def _gains(
    scale: Scale,
    rows: Sequence[MethodRow],
    groups: Mapping[tuple[str, int], Sequence[Cell]],
    pair: Pair,
    draws: int,
) -> bool:
    """Return whether the largest ensemble of a scale is significantly better than one network.

    The interval is over seeds; of an ensemble of all of them over test examples, for these runs.
    """
    by_place = {(row.method, row.budget): row for row in rows}
    places = (scale.pool, scale.largest), (NETWORKS[scale.pool], 1)
    if any(place not in by_place for place in places):
        return True  # the ensembles are those of another comparison
    metric = _NLLS[-1]
    paired = pair(*(by_place[place] for place in places), metric)
    if paired is not None:
        return paired[1].high < 0
    values = [np.mean([_values(c, metric) for c in groups[place]], axis=0) for place in places]
    return paired_difference_of_values(*values, draws=draws, level=LEVEL).high < 0


def _values(cell: Cell, metric: str) -> NDArray[np.float64]:
    """Return the values (N,) whose mean the metric is."""
    if metric in _NLLS:
        return np.asarray(getattr(cell, metric), dtype=np.float64)
    wrong = 100.0 * cell.wrong if cell.wrong.dtype == np.bool_ else cell.wrong
    return np.asarray(wrong, dtype=np.float64)


def _differences(
    rows: Sequence[MethodRow],
    pair: Pair,
    metrics: Sequence[str],
    *,
    of: Sequence[str] | None = None,
    corrected: bool = False,
) -> Iterable[Difference]:
    """Yield the differences of methods, all or those given, from the baselines of their budget."""
    for row in rows:
        within = _within(rows, row.budget)
        level = level_among(len(within)) if corrected else LEVEL
        if row in within and (of is None or row.method in of):
            for base in (r for r in within if r is not row and r.method in BASELINES):
                for metric in metrics:
                    paired = pair(row, base, metric, level)
                    if paired is not None:
                        names = row.method, base.method, row.budget, metric
                        yield Difference(*names, *paired, level)


def _budgets(rows: Sequence[MethodRow]) -> list[int]:
    """Return the budgets with a method; within one budget a deep ensemble is a method itself."""
    return sorted({row.budget for row in rows if row.method not in POOLS or row.budget == 1})


def _within(rows: Sequence[MethodRow], budget: int) -> list[MethodRow]:
    return [row for row in rows if row.budget == budget and not row.beyond]


def _best(
    rows: Sequence[MethodRow], pair: Pair, metrics: Sequence[str], *, one_pass: bool = False
) -> Iterable[Best]:
    for budget in _budgets(rows):
        within = _within(rows, budget)
        level = level_among(len(within))
        if one_pass:
            within = [row for row in within if row.costs["forward_passes"] == 1]
        for metric in metrics if within else ():
            lowest = min(within, key=lambda row: row.mean[metric])
            others = [row for row in within if row is not lowest]
            pairs = {row.method: pair(lowest, row, metric, level) for row in others}
            alike = [name for name, p in pairs.items() if p is None or p[1].high >= 0]
            untested = tuple(name for name in alike if pairs[name] is None)
            yield Best(metric, budget, lowest.method, tuple(pairs), tuple(alike), level, untested)


def _statistics(
    values: Sequence[Mapping[str, float]], *, alone: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Return means and standard deviations (empty for one value) of the keys in all mappings."""
    keys = [key for key in values[0] if all(key in value for value in values)]
    columns = {key: np.array([value[key] for value in values], dtype=np.float64) for key in keys}
    means = {key: float(column.mean()) for key, column in columns.items()}
    if alone or len(values) < 2:
        return means, {}
    return means, {key: float(column.std(ddof=1)) for key, column in columns.items()}
