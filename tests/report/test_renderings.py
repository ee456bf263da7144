"""A static figure and an interactive plot of one chart have the same colours, axes and points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from chart_examples import CHARTS, PLANES
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.contour import QuadContourSet
from plot_checks import check_plot

from fge.report import Chart, draw, plot_of
from fge.report.palette import PAGE, SERIES
from fge.report.render_static import _LINES

DASHES = {matplotlib: plotly for plotly, matplotlib in _LINES.items()} | {"None": None}


def on_light(colour: str) -> str:
    """Return the colour that a light page puts in for a variable."""
    key = colour.removeprefix("var(--").removesuffix(")")
    return (PAGE | SERIES)[key][0] if colour.startswith("var(") else colour


def finite(values: Any) -> list[float | None]:
    found = [float(value) for value in values]
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in found]


@pytest.mark.parametrize("name", CHARTS)
def test_both_renderings_have_the_same_series(name: str) -> None:
    chart = CHARTS[name]
    figure, plot = draw(chart), plot_of(chart)
    check_plot(plot)
    static, interactive = [], []
    for number, axes in enumerate(figure.axes):
        lines = [c.lines[0] for c in axes.containers if isinstance(c, ErrorbarContainer)]
        for container, line in zip(axes.containers, lines, strict=True):
            x, y = (finite(np.asarray(v, dtype=float)) for v in line.get_data())
            dash, marked = DASHES[line.get_linestyle()], line.get_marker() not in ("None", "none")
            static.append(
                (number, container.get_label(), x, y, to_hex(line.get_color()), dash, marked)
            )
    for trace in plot.data:
        if trace["type"] == "scatter":
            number = int(trace.get("yaxis", "y")[1:] or 1) - 1
            dash = trace["line"]["dash"] if "lines" in trace["mode"] else None
            colour, marked = on_light(trace["line"]["color"]), "markers" in trace["mode"]
            label = trace["name"].replace("&lt;", "<")
            interactive.append((number, label, trace["x"], trace["y"], colour, dash, marked))
    assert static == interactive
    assert static or chart.panels[0].bars


@pytest.mark.parametrize("name", CHARTS)
def test_both_renderings_have_the_same_axes(name: str) -> None:
    chart = CHARTS[name]
    figure, layout = draw(chart), plot_of(chart).layout
    assert len(figure.axes) == len(chart.panels)
    for number, axes in enumerate(figure.axes, start=1):
        upright = layout["yaxis" if number == 1 else f"yaxis{number}"]
        assert axes.get_xlim() == pytest.approx(layout["xaxis"]["range"], rel=1e-5)
        log = axes.get_yscale() == "log"
        assert log == (upright.get("type") == "log")
        limits = [math.log10(end) if log else end for end in axes.get_ylim()]
        assert limits == pytest.approx(upright["range"], rel=1e-5, abs=1e-5)
        assert axes.get_ylabel().replace("\n", "<br>") == upright["title"]["text"]
    assert figure.axes[-1].get_xlabel() == layout["xaxis"]["title"]["text"]
    marks = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0, 1]]
    shapes = [s for s in layout.get("shapes", ()) if s["yref"] == "paper"]
    assert [float(np.asarray(m.get_xdata())[0]) for m in marks] == [s["x0"] for s in shapes]
    assert {to_hex(m.get_color()) for m in marks} == {on_light(s["line"]["color"]) for s in shapes}


@pytest.mark.parametrize("name", CHARTS)
def test_both_renderings_have_the_same_legend(name: str) -> None:
    chart = CHARTS[name]
    legends = draw(chart).legends
    static = [text.get_text() for legend in legends for text in legend.get_texts()]
    shown = [trace["name"] for trace in plot_of(chart).data if trace["showlegend"]]
    assert static == [name.replace("&lt;", "<") for name in shown]
    assert len(static) == len(set(static))


def test_bars_are_the_same() -> None:
    (bars,) = plot_of(CHARTS["bars"]).data
    (stairs,) = draw(CHARTS["bars"]).axes[0].patches
    counts, edges, _ = stairs.get_data()  # type: ignore[attr-defined]
    assert counts.tolist() == bars["y"]
    assert (edges[:-1] + np.diff(edges) / 2).tolist() == pytest.approx(bars["x"])
    assert to_hex(stairs.get_facecolor()) == on_light(bars["marker"]["color"])


def test_planes_have_the_same_levels_and_colours() -> None:
    chart = PLANES["plane"]
    axes, bar = draw(chart).axes
    (filled,) = [c for c in axes.collections if isinstance(c, QuadContourSet) and c.filled]
    plot = plot_of(chart)
    check_plot(plot)
    contour = plot.data[0]
    colours = [to_hex(colour) for colour in filled.get_facecolor()]  # type: ignore[union-attr]
    assert colours == [colour for _, colour in contour["colorscale"][1:]]
    np.testing.assert_allclose(filled.levels, chart.levels)
    ticks = [label.get_text() for label in bar.get_yticklabels()]
    assert ticks == [tick.replace("&gt;", ">") for tick in contour["colorbar"]["ticktext"]]
    assert axes.get_xlim() == pytest.approx(plot.layout["xaxis"]["range"])
    assert axes.get_ylim() == pytest.approx(plot.layout["yaxis"]["range"])
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    traces = {trace["name"]: trace for trace in plot.data}
    for name in chart.paths:
        assert to_hex(lines[name].get_color()) == traces[name]["line"]["color"]
        assert DASHES[lines[name].get_linestyle()] == traces[name]["line"]["dash"]


def test_one_method_has_one_colour_in_all_charts() -> None:
    found: dict[str, set[str]] = {}
    for chart in CHARTS.values():
        assert isinstance(chart, Chart)
        for trace in plot_of(chart).data:
            if trace["type"] == "scatter":
                found.setdefault(trace["name"], set()).add(trace["line"]["color"])
    assert all(len(colours) == 1 for colours in found.values())
    assert len(found) > 15
