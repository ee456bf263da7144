"""Interactive plots hold the numbers that they are given, in a form that plotly takes."""

from __future__ import annotations

import itertools
import math

import pytest
from plot_checks import check_plot, pairs

from fge.report import Plot, Series, comparison_plot, lines_plot, reliability_plot
from fge.report.interactive import layout, numbers, plotly_script, set_apart, text

NAN, INF = float("nan"), float("inf")


def test_plotly_refuses_what_it_does_not_know() -> None:
    plot = comparison_plot([Series("a", [1], [2])], x="x", y="y")
    with pytest.raises(ValueError, match="no_such"):
        check_plot(Plot([{**plot.data[0], "no_such": 1}], plot.layout))


def test_methods_are_compared_with_a_line_each_and_their_spread() -> None:
    series = [
        Series("single", [100, 200], [9.5, 9.25], spread=[0.1, 0.05]),
        Series("a < b", [100.0], [9.0]),
    ]
    plot = comparison_plot(series, x="epochs", y="error (%)")
    check_plot(plot)
    one, other = plot.data
    assert (one["name"], other["name"]) == ("single", "a &lt; b")
    assert list(zip(one["customdata"], one["y"], strict=True)) == [(100, 9.5), (200, 9.25)]
    assert one["error_y"]["array"] == [0.1, 0.05]
    assert "error_y" not in other
    assert one["line"]["color"] != other["line"]["color"]
    assert one["marker"]["symbol"] != other["marker"]["symbol"]
    assert plot.layout["xaxis"]["title"]["text"] == "epochs"
    assert plot.layout["yaxis"]["title"]["text"] == "error (%)"


def test_methods_of_one_cost_are_set_apart_and_hovering_tells_it() -> None:
    series = [Series(str(k), [24.0], [9.0]) for k in range(9)]
    plot = comparison_plot(series, x="epochs", y="error (%)")
    places = [trace["x"][0] for trace in plot.data]
    # Of one place a fifth is the axis: 0.004 x 4.8 from one to the next, around it.
    assert places == pytest.approx([24 + (k - 4) * 0.0192 for k in range(9)], abs=1e-3)
    assert len(set(places)) == 9
    for trace in plot.data:
        assert trace["customdata"] == [24.0]
        assert "epochs %{customdata}<br>" in trace["hovertemplate"]
        assert "%{x}" not in trace["hovertemplate"]
    assert set_apart([Series("a", [1.0, 3.0], [1, 2])]) == [[1.0, 3.0]]
    assert set_apart([Series("a", [0.0], [1]), Series("b", [0.0], [1])]) == [[0.0], [0.0]]


def test_ten_methods_have_ten_colours() -> None:
    plot = comparison_plot([Series(str(k), [1], [k]) for k in range(11)], x="x", y="y")
    colours = [trace["line"]["color"] for trace in plot.data]
    assert len(set(colours)) == 10
    assert colours[10] == colours[0]
    assert plot.data[10]["marker"] != plot.data[0]["marker"]


def test_reliability_is_shown_beside_the_diagonal() -> None:
    series = [Series("fge", [0.1, NAN, 0.9], [0.2, NAN, 0.85], notes=["3", "0", "7 & 8"])]
    plot = reliability_plot(series)
    check_plot(plot)
    diagonal, fge = plot.data
    assert pairs(diagonal) == [(0, 0), (1, 1)]
    assert pairs(fge) == [(0.1, 0.2), (None, None), (0.9, 0.85)]
    assert fge["text"] == ["3", "0", "7 &amp; 8"]
    assert "%{text}" in fge["hovertemplate"]
    assert plot.layout["xaxis"]["range"] == plot.layout["yaxis"]["range"] == [0, 1]


@pytest.mark.parametrize("log", [False, True])
def test_lines_may_have_a_logarithmic_axis(log: bool) -> None:
    series = [Series("a", [0, 1], [1, 10]), Series("b", [0, 1], [2, 20])]
    plot = lines_plot(series, x="x", y="y", log=log, dashes=True)
    check_plot(plot)
    assert (plot.layout["yaxis"].get("type") == "log") is log
    assert [trace["line"]["dash"] for trace in plot.data] == ["solid", "dash"]
    assert all(trace["mode"] == "lines" for trace in plot.data)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_panels_fill_the_height_from_the_top_without_overlap(count: int) -> None:
    found = layout("x", [f"panel {k}" for k in range(count)], height=100)
    keys = ["yaxis", "yaxis2", "yaxis3"][:count]
    domains = [found[key]["domain"] for key in keys]
    assert domains[0][1] == 1
    assert domains[-1][0] == pytest.approx(0, abs=1e-4)
    for upper, lower in itertools.pairwise(domains):
        assert lower[1] < upper[0]
    heights = [high - low for low, high in domains]
    assert heights == pytest.approx([heights[0]] * count, abs=2e-4)
    assert [found[key]["title"]["text"] for key in keys] == [f"panel {k}" for k in range(count)]


def test_numbers_are_short_and_none_where_they_are_not_finite() -> None:
    assert numbers([1 / 3, 2, -1e-7 / 3, NAN, INF, -INF]) == [
        0.333333,
        2.0,
        -3.33333e-08,
        None,
        None,
        None,
    ]
    assert all(v is None or math.isfinite(v) for v in numbers([NAN, 1e308]))


def test_tags_in_names_are_shown() -> None:
    assert text("<b>a</b> & 'b'") == "&lt;b&gt;a&lt;/b&gt; &amp; 'b'"


def test_the_script_can_stand_in_a_page() -> None:
    script = plotly_script()
    assert script is not None
    assert "plotly.js v" in script[:200]
    assert "</script" not in script.lower()
    assert script == plotly_script()
