"""Interactive plots are in a form that plotly takes, and tell what they show."""

from __future__ import annotations

import itertools
import math

import pytest
from chart_examples import CHARTS, PLANES
from plot_checks import check_plot, pairs

from fge.report import Chart, Panel, Plot, ReliabilityBins, Series, plot_of, reliability_chart
from fge.report.render_interactive import numbers, plotly_script, text

NAN, INF = float("nan"), float("inf")


def test_plotly_refuses_what_it_does_not_know() -> None:
    plot = plot_of(CHARTS["comparison"])
    with pytest.raises(ValueError, match="no_such"):
        check_plot(Plot([{**plot.data[0], "no_such": 1}], plot.layout))


@pytest.mark.parametrize("name", PLANES)
def test_plotly_takes_planes(name: str) -> None:
    check_plot(plot_of(PLANES[name]))


def test_methods_tell_their_spread_and_true_place() -> None:
    plot = plot_of(CHARTS["comparison"])
    single, *_, other = plot.data
    assert (single["name"], other["name"]) == ("single", "a &lt; b")
    assert single["error_y"]["array"] == [0.2, 0.1]
    assert single["customdata"] == [1, 2]
    for trace in plot.data:
        assert "epochs %{customdata}<br>" in trace["hovertemplate"]
        assert "%{x}" not in trace["hovertemplate"]


def test_reliability_tells_accuracy_and_counts() -> None:
    bins = ReliabilityBins("fge", [0.1, 0.9], [0.2, 0.85], [11, 700])
    gap, count = plot_of(reliability_chart([bins])).data
    assert pairs(gap) == [(0.1, 0.1), (0.9, -0.05)]
    assert gap["text"] == ["accuracy 0.2000, 11 predictions", "accuracy 0.8500, 700 predictions"]
    assert "%{text}" in gap["hovertemplate"]
    assert pairs(count) == [(0.1, 11), (0.9, 700)]


def test_a_series_of_several_panels_is_toggled_as_one() -> None:
    plot = plot_of(CHARTS["curve"])
    shown = [trace["name"] for trace in plot.data if trace["showlegend"]]
    assert len(shown) == len(set(shown)) == 4
    groups = {trace["name"]: trace["legendgroup"] for trace in plot.data}
    assert len(set(groups.values())) == 4


def test_a_panel_without_series_says_why() -> None:
    chart = Chart("x", [Panel("y", [Series("a", [1], [1])]), Panel("z", note="no data")])
    plot = plot_of(chart)
    check_plot(plot)
    (note,) = plot.layout["annotations"]
    assert (note["text"], note["yref"]) == ("no data", "y2 domain")


@pytest.mark.parametrize("shares", [[1], [2, 1], [3, 1, 1]])
def test_panels_fill_the_height_from_the_top_without_overlap(shares: list[float]) -> None:
    panels = [Panel(f"panel {k}", share=share) for k, share in enumerate(shares)]
    found = plot_of(Chart("x", panels)).layout
    keys = ["yaxis", "yaxis2", "yaxis3"][: len(shares)]
    domains = [found[key]["domain"] for key in keys]
    assert domains[0][1] == 1
    assert domains[-1][0] == pytest.approx(0, abs=1e-4)
    for upper, lower in itertools.pairwise(domains):
        assert lower[1] < upper[0]
    heights = [high - low for low, high in domains]
    whole = sum(heights)
    assert heights == pytest.approx([whole * s / sum(shares) for s in shares], abs=3e-4)
    assert [found[key]["title"]["text"] for key in keys] == [p.label for p in panels]


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
