"""Charts know their axes: limits, ticks, and series that do not hide each other."""

from __future__ import annotations

import math

import pytest

from fge.report import Bars, Chart, Panel, Series, lines_chart, methods_chart
from fge.report.charts import limits_of, set_apart

NAN, INF = math.nan, math.inf


def test_limits_hold_the_finite_values_with_a_margin() -> None:
    assert limits_of([2.0, 4.0, NAN, INF]) == pytest.approx((1.9, 4.1))
    assert limits_of([2.0, 4.0], zero=True) == pytest.approx((0, 4.32))
    assert limits_of([-2.0, 4.0], zero=True) == pytest.approx((-2.3, 4.3))
    assert limits_of([0.01, 100.0, -1.0, 0.0], log=True) == pytest.approx(
        (10**-2.2, 10**2.2), rel=1e-9
    )
    for values in ([], [NAN], [3.0], [0.0], [0.0, 0.0]):
        for log in (False, True):
            low, high = limits_of(values, log=log)
            assert low < high


def test_an_axis_holds_spreads_levels_bars_and_marks() -> None:
    series = Series("a", [1.0, 3.0], [5.0, 7.0], spread=[1.0, 2.0])
    assert Panel("y", [series]).y_limits == pytest.approx((3.75, 9.25))
    assert Panel("y", [series], level=0.0).y_limits[0] < 0
    assert Panel("y", [series], limits=(1.0, 2.0)).y_limits == (1.0, 2.0)
    assert Panel("y", bars=Bars("a", [0, 1], [50])).y_limits == (0, 54)
    assert Chart("x", [Panel("y", [series])], marks=[11.0]).x_limits == pytest.approx((0.5, 11.5))


@pytest.mark.parametrize(("end", "step"), [(1, 1), (10, 1), (11, 2), (24, 5), (100, 10), (101, 20)])
def test_ticks_are_at_whole_numbers_and_no_more_than_ten(end: int, step: int) -> None:
    chart = Chart("x", [], limits=(0.0, float(end)), whole=True)
    assert chart.x_step == step


def test_ticks_are_dense_where_an_axis_has_few_powers_of_ten() -> None:
    assert Panel("y", limits=(1.0, 999.0), log=True).dense
    assert not Panel("y", limits=(1.0, 1000.0), log=True).dense


def test_methods_of_one_cost_are_set_apart_and_hovering_tells_it() -> None:
    series = [Series(str(k), [24.0], [9.0]) for k in range(9)]
    apart = set_apart(series)
    # Of one place a fifth is the axis: 0.004 x 4.8 from one to the next, around it.
    wanted = [24 + (k - 4) * 0.0192 for k in range(9)]
    assert [one.x[0] for one in apart] == pytest.approx(wanted, abs=1e-3)
    assert [one.told for one in apart] == [[24.0]] * 9
    assert set_apart([Series("a", [1.0, 3.0], [1, 2])])[0].x == [1.0, 3.0]
    zeros = set_apart([Series("a", [0.0], [1]), Series("b", [0.0], [1])])
    assert [one.x for one in zeros] == [[0.0], [0.0]]
    assert methods_chart(series, x="x", y="y").panels[0].series[3].marker


def test_lines_differ_by_their_dashes() -> None:
    series = [Series(str(k), [0, 1], [k, k]) for k in range(5)]
    dashes = [one.dash for one in lines_chart(series, x="x", y="y").panels[0].series]
    assert dashes == ["solid", "dash", "dot", "dashdot", "solid"]


def test_a_name_is_in_the_legend_once() -> None:
    hidden = Series("hidden", [0], [0], legend=False)
    panels = [Panel("y", [Series("a", [0], [1]), hidden]), Panel("z", [Series("a", [0], [2])])]
    assert [one.name for one in Chart("x", panels).legend] == ["a"]
