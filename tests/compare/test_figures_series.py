"""The points that figures of a comparison show, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_cells import CURVES, FGES, SINGLES, compared, several

from fge.compare import Cell, comparison_charts
from fge.compare.figures import cost_series, equivalent_series, members_series, reliability_bins

DOUBLED = several("single", [5, 5, 6], [0.3, 0.31, 0.32], budget=2)


def with_bins(cell: Cell, filled: dict[int, tuple[int, float, float]]) -> Cell:
    """Return the cell with bins of so many predictions, confidence and accuracy."""
    counts, confidence, accuracy = (
        np.zeros(15, np.int64),
        np.full(15, np.nan),
        np.full(15, np.nan),
    )
    for place, values in filled.items():
        counts[place], confidence[place], accuracy[place] = values
    return replace(cell, bin_counts=counts, bin_confidence=confidence, bin_accuracy=accuracy)


def test_budgets_of_a_method_are_points_of_one_line() -> None:
    single, fge = cost_series(compared(SINGLES, DOUBLED, FGES), "calibrated_nll")
    assert (single.name, fge.name) == ("single", "fge")
    assert single.x == [10, 20]
    assert single.y == pytest.approx([0.51, 0.31])
    assert single.spread == pytest.approx([0.01, 0.01])
    assert single.notes == ["1 B, 1 pass per prediction", "2 B, 1 pass per prediction"]
    assert fge.x == [10]
    assert fge.notes == ["1 B, 3 passes per prediction"]


def test_what_is_beyond_its_budget_is_shown_at_its_epochs() -> None:
    longer = several("curve-ensemble-2B", [1, 1, 1], [0.1, 0.1, 0.1], epochs=25, members=5)
    series = cost_series(compared(SINGLES, longer), "error")
    assert series[1].x == [25]
    assert series[1].notes == ["1 B, 5 passes per prediction, beyond the budget"]


def test_one_seed_has_no_spread() -> None:
    assert [s.spread for s in cost_series(compared(SINGLES[:1], FGES[:1]), "error")] == [None, None]
    mixed = cost_series(compared(SINGLES, DOUBLED[:1]), "error")
    assert mixed[0].spread == pytest.approx([2.0, 0.0])


def test_one_value_has_no_spread() -> None:
    pooled = [replace(cell, pooled=3) for cell in FGES]
    single, fge = cost_series(compared(SINGLES, pooled), "error")
    assert single.spread == pytest.approx([2.0])
    assert fge.spread is None
    assert [s.spread for s in members_series(compared(pooled), "error", 1)] == [None]


def test_equivalents_are_shown_where_there_are_any() -> None:
    series = equivalent_series(compared(SINGLES, FGES, deep_ensembles=[(1, -0.5), (2, -0.4)]))
    assert [s.y for s in series] == [pytest.approx([1.0]), pytest.approx([1 + 0.26 / 0.3])]
    assert equivalent_series(compared(FGES)) == []


def test_members_are_shown_one_after_another() -> None:
    growing = [
        replace(
            cell,
            by_members=[{"error": error + cell.seed, "nll": 1, "calibrated_nll": 1} for error in e],
        )
        for cell, e in zip(FGES, ([20, 18, 16], [22, 20, 18], [21, 19, 17]), strict=True)
    ]
    (series,) = members_series(compared(SINGLES, growing), "error", 1)
    assert series.name == "fge"
    assert series.x == [1, 2, 3]
    # Of the first: 20, 23 and 23.
    assert series.y == pytest.approx([22, 20, 18])
    assert series.spread == pytest.approx([math.sqrt(3)] * 3)


def test_bins_are_pooled_over_seeds_by_their_predictions() -> None:
    cells = [
        with_bins(FGES[0], {14: (30, 0.98, 0.9), 7: (20, 0.5, 0.5)}),
        with_bins(FGES[1], {14: (10, 0.94, 1.0)}),
    ]
    (bins,) = reliability_bins(compared(cells), 1)
    assert bins.confidence == pytest.approx([0.5, (30 * 0.98 + 10 * 0.94) / 40])
    assert bins.accuracy == pytest.approx([0.5, (27 + 10) / 40])
    assert bins.counts == [20, 40]


def test_bins_of_one_value_are_counted_once() -> None:
    filled = {14: (50, 0.95, 0.9)}
    cells = [replace(with_bins(cell, filled), pooled=3) for cell in FGES]
    (bins,) = reliability_bins(compared(cells), 1)
    assert bins.counts == [50]


def test_few_methods_are_shown_in_the_reliability_diagram() -> None:
    bins = {14: (50, 0.95, 0.9)}
    groups = [[with_bins(cell, bins) for cell in group] for group in (SINGLES, FGES, CURVES)]
    sse = [with_bins(cell, bins) for cell in several("sse", [9, 9], [0.4, 0.4])]
    found = compared(*groups, sse)
    names = ["single", "fge", "curve-ensemble"]
    assert [bins.name for bins in reliability_bins(found, 1)] == names
    assert [bins.name for bins in reliability_bins(found, 1, ["sse"])] == ["sse"]


def test_each_chart_has_the_points_of_its_series() -> None:
    charts = comparison_charts(compared(SINGLES, FGES, DOUBLED))
    assert list(charts) == [
        "error_by_epochs.png",
        "error_by_members.png",
        "calibrated_nll_by_epochs.png",
        "calibrated_nll_by_members.png",
        "equivalent_by_epochs.png",
        "reliability.png",
    ]
    single = charts["calibrated_nll_by_epochs.png"].panels[0].series[0]
    assert (single.name, single.told) == ("single", [10, 20])
    assert single.y == pytest.approx([0.51, 0.31])
    assert single.spread == pytest.approx([0.01, 0.01])
