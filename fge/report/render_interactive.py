"""Charts as interactive plots: traces and layouts of plotly, as JSON values."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fge.report.charts import DASHES, Bars, Chart, Panel, PlaneChart, Series, refined
from fge.report.palette import INK, LINE, light, marker_of, variable

_CLEAR = "rgba(0,0,0,0)"
_GAP = 0.09
"""Between panels, as a part of the height of all."""
_DARK, _WHITE, _FAINT = light(INK), light("paper"), light(LINE)
"""Colours of marks on a plane; a plane looks the same on light and on dark pages."""


@dataclass(frozen=True)
class Plot:
    """What plotly draws: traces and layout as JSON values (https://plotly.com/javascript/reference/).

    Colours that differ between light and dark are names of the page's CSS variables.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


def plot_of(chart: Chart | PlaneChart) -> Plot:
    """Return a chart as an interactive plot."""
    if isinstance(chart, PlaneChart):
        return _surface(chart) if chart.raised else _contours(chart)
    traces = []
    told = {one.name: False for one in chart.legend}
    for number, panel in enumerate(chart.panels):
        if panel.bars is not None:
            traces.append(_bars(panel.bars, panel))
        for one in panel.series:
            trace = _trace(one, chart, panel)
            trace["showlegend"] = one.legend and not told[one.name]
            trace["legendgroup"] = text(one.name)
            if one.legend:
                told[one.name] = True
            if number:
                trace["yaxis"] = f"y{number + 1}"
            traces.append(trace)
    return Plot(traces, _layout(chart))


def _trace(series: Series, chart: Chart, panel: Panel) -> dict[str, Any]:
    colour = variable(series.style)
    x = "%{customdata}" if series.told else "%{x}"
    hover = f"{text(chart.x)} {x}<br>{text(panel.label)} %{{y}}"
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": text(series.name),
        "x": numbers(series.x),
        "y": numbers(series.y),
        "mode": "+".join(["lines"] * (series.dash is not None) + ["markers"] * series.marker),
        "line": {"color": colour, "width": 2},
        "hovertemplate": f"<b>{text(series.name)}</b><br>{hover}<extra></extra>",
    }
    if series.dash is not None:
        trace["line"]["dash"] = series.dash
    if series.marker:
        trace["marker"] = {"symbol": marker_of(series.style)[1], "size": 8, "color": colour}
        trace["connectgaps"] = True
    if series.spread is not None:
        spread = numbers(series.spread)
        trace["error_y"] = {"array": spread, "color": colour, "thickness": 1.5}
    if series.notes is not None:
        trace["text"] = [text(note) for note in series.notes]
        trace["hovertemplate"] = trace["hovertemplate"].replace("<extra>", "<br>%{text}<extra>")
    if series.told is not None:
        trace["customdata"] = numbers(series.told)
    if series.filled:
        trace["fill"] = "tozeroy"
    return trace


def _bars(bars: Bars, panel: Panel) -> dict[str, Any]:
    middles = [(low + high) / 2 for low, high in pairwise(bars.edges)]
    return {
        "type": "bar",
        "name": text(bars.name),
        "x": numbers(middles),
        "y": numbers(bars.counts),
        "width": numbers(high - low for low, high in pairwise(bars.edges)),
        "marker": {"color": variable(bars.name)},
        "text": [f"{low:.2f} to {high:.2f}" for low, high in pairwise(bars.edges)],
        "textposition": "none",
        "showlegend": False,
        "hovertemplate": f"%{{text}}<br>%{{y}} {text(panel.label)}<extra></extra>",
    }


def _layout(chart: Chart) -> dict[str, Any]:
    """Return the layout of panels one above the other, which share the horizontal axis."""
    found, count = _base(chart.height), len(chart.panels)
    found["xaxis"] = _axis(chart.x, chart.x_limits)
    found["xaxis"] |= {"anchor": f"y{count}" if count > 1 else "y"}
    if chart.whole:
        found["xaxis"] |= {"tick0": 0, "dtick": chart.x_step}
    heights = [panel.share / sum(p.share for p in chart.panels) for panel in chart.panels]
    top, usable = 1.0, 1 - _GAP * (count - 1)
    shapes, notes = [_upright(place) for place in chart.marks], []
    for number, (panel, height) in enumerate(zip(chart.panels, heights, strict=True), start=1):
        name = f"y{number}" if number > 1 else "y"
        low = top - height * usable
        axis = _axis(panel.label, panel.y_limits)
        if panel.log:
            axis |= _logarithmic(panel)
        found[name.replace("y", "yaxis")] = axis | {
            "domain": [round(max(low, 0.0), 4), round(top, 4)]
        }
        if panel.level is not None:
            shapes.append(_level(panel.level, name))
        if panel.note and not panel.series:
            notes.append(_note(panel.note, name))
        top = low - _GAP
    found |= {"shapes": shapes} if shapes else {}
    return found | ({"annotations": notes} if notes else {})


def _base(height: int) -> dict[str, Any]:
    """Return what all plots share: clear backgrounds, the page's ink, the legend below."""
    ink = variable(INK)
    return {
        "height": height,
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "font": {"color": ink, "family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {
            "bgcolor": variable("soft"),
            "bordercolor": variable(LINE),
            "font": {"color": ink},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": _CLEAR,
        },
        "margin": {"l": 60, "r": 12, "t": 36, "b": 48},
        "modebar": {"bgcolor": _CLEAR, "color": ink, "activecolor": variable("link")},
        # What a reader has zoomed and toggled stays when light and dark change.
        "uirevision": "page",
    }


def _axis(title: str, limits: tuple[float, float]) -> dict[str, Any]:
    return {
        "title": {"text": text(title).replace("\n", "<br>"), "standoff": 8},
        "gridcolor": variable(LINE),
        "linecolor": variable(LINE),
        "zeroline": False,
        "automargin": True,
        "showline": True,
        "range": numbers(limits),
    }


def _logarithmic(panel: Panel) -> dict[str, Any]:
    """Return what makes a vertical axis logarithmic, ticks as in the static figure."""
    ends = numbers(map(math.log10, panel.y_limits))
    ticks = {"dtick": "D2"} if panel.dense else {"dtick": 1, "exponentformat": "power"}
    return {"type": "log", "range": ends, **ticks}


def _upright(place: float) -> dict[str, Any]:
    """Return a faint line from top to bottom."""
    line = {"color": variable(LINE), "width": 1}
    ends = {"x0": place, "x1": place, "y0": 0, "y1": 1}
    return {"type": "line", "layer": "below", "xref": "x", "yref": "paper", "line": line} | ends


def _level(height: float, axis: str) -> dict[str, Any]:
    """Return a dotted line from left to right."""
    line = {"color": variable(INK), "width": 1, "dash": "dot"}
    ends = {"x0": 0, "x1": 1, "y0": height, "y1": height}
    return {"type": "line", "layer": "below", "xref": "paper", "yref": axis, "line": line} | ends


def _note(words: str, axis: str) -> dict[str, Any]:
    where = {"xref": "paper", "yref": f"{axis} domain", "x": 0.5, "y": 0.5}
    return {"text": text(words), "showarrow": False, **where}


def _contours(chart: PlaneChart) -> Plot:
    """Return a plane as filled contours; the measured points tell their values on hovering."""
    count, colours = len(chart.levels), list(chart.colours)
    contours = {
        "type": "contour",
        "name": text(chart.label),
        "x": numbers(chart.xs),
        "y": numbers(chart.ys),
        "z": [numbers(row) for row in chart.bands],
        "contours": {"start": 0, "end": count - 1, "size": 1},
        # Plotly looks up the colour of a band at (k + 1) / count.
        "colorscale": [[k / count, colour] for k, colour in enumerate([colours[0], *colours])],
        "colorbar": _colour_bar(chart),
        "line": {"width": 0.5, "color": _DARK},
        "hoverinfo": "skip",
    }
    found = _plane_base(600)
    for name, title, side in zip("xy", chart.axes, (chart.xs, chart.ys), strict=True):
        found[f"{name}axis"] = _axis(title, (side[0], side[-1])) | {"showgrid": False}
    # Plotly misplaces the title of a constrained horizontal axis.
    found["annotations"] = [_below(found["xaxis"].pop("title")["text"])]
    if chart.equal:
        found["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
        found["xaxis"] |= {"constrain": "domain"}
    return Plot([contours, _measured(chart), *_marks(chart)], found)


def _surface(chart: PlaneChart) -> Plot:
    """Return a plane as a surface to turn, cut off at the cap."""
    top, count = chart.levels[-1], len(chart.levels)
    edges = [(k, k + 1, colour) for k, colour in enumerate(chart.colours)]
    surface = {
        "type": "surface",
        "name": text(chart.label),
        "x": numbers(chart.xs),
        "y": numbers(chart.ys),
        "z": [numbers(row) for row in chart.surface],
        "surfacecolor": [numbers(row) for row in chart.bands],
        "cmin": 0,
        "cmax": count,
        "colorscale": [[end / count, colour] for *ends, colour in edges for end in ends],
        "colorbar": _colour_bar(chart),
        "hovertemplate": f"x %{{x}}<br>y %{{y}}<br>{text(chart.label)} %{{z}}<extra></extra>",
        "lighting": {"ambient": 0.85, "diffuse": 0.4, "specular": 0.05},
    }
    lift = 0.01 * float(top - chart.levels[0])
    data = [surface, *(_raised(trace, chart, lift) for trace in _marks(chart))]
    found = _plane_base(640)
    found["scene"] = _scene(chart.label)
    found["margin"] |= {"l": 0, "r": 0, "b": 0}
    return Plot(data, found)


def _colour_bar(chart: PlaneChart) -> dict[str, Any]:
    """Return the colour bar."""
    return {
        "title": {"text": text(chart.label), "side": "top"},
        "orientation": "h",
        "y": 1,
        "yanchor": "bottom",
        "tickvals": list(range(len(chart.levels))),
        "ticktext": [text(tick) for tick in chart.ticks],
        "thickness": 12,
        "outlinewidth": 0,
    }


def _scene(height: str) -> dict[str, Any]:
    """Return axes in three dimensions; the vertical one has its own title.

    The background is light on a dark page too, because turning the surface may move the names of
    networks over it or over the surface.
    """
    side = {"backgroundcolor": _CLEAR, "gridcolor": _FAINT, "color": _DARK, "showspikes": False}
    titles = {"xaxis": "x", "yaxis": "y", "zaxis": height}
    axes = {name: {"title": {"text": text(title)}, **side} for name, title in titles.items()}
    return {
        **axes,
        "bgcolor": _WHITE,
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.6},
        "camera": {"eye": {"x": -1.3, "y": -1.3, "z": 0.9}},
        "dragmode": "turntable",
    }


def _below(title: str) -> dict[str, Any]:
    """Return a title below the horizontal axis."""
    place = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0, "yanchor": "top"}
    return {"text": title, "showarrow": False, "yshift": -24, "font": {"size": 14}, **place}


def _plane_base(height: int) -> dict[str, Any]:
    """Return the shared layout, with a legend whose marks are visible on a dark page too."""
    found = _base(height)
    found["legend"] |= {"bgcolor": _WHITE, "font": {"color": _DARK}}
    found["margin"] |= {"t": 100, "b": 64}
    return found


def _measured(chart: PlaneChart) -> dict[str, Any]:
    """Return the points that were measured, each with its value."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "measured points",
        "x": numbers(chart.measured[:, 0]),
        "y": numbers(chart.measured[:, 1]),
        "text": [f"{value:.4g}" for value in chart.values],
        "marker": {"color": _DARK, "size": 3, "opacity": 0.45},
        "hovertemplate": f"x %{{x}}<br>y %{{y}}<br>{text(chart.label)} %{{text}}<extra></extra>",
    }


def _marks(chart: PlaneChart) -> list[dict[str, Any]]:
    """Return traces of paths and networks."""
    found: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": text(name),
            "x": numbers(path[:, 0]),
            "y": numbers(path[:, 1]),
            "line": {"color": _DARK, "width": 2.5, "dash": DASHES[number % len(DASHES)]},
            "hoverinfo": "name",
        }
        for number, (name, path) in enumerate(chart.paths.items())
    ]
    if not chart.points:
        return found
    x, y = zip(*chart.points.values(), strict=True)
    networks = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "networks",
        "x": numbers(x),
        "y": numbers(y),
        "text": [text(name) for name in chart.points],
        "textposition": "top center",
        "textfont": {"color": _DARK},
        "marker": {"color": _DARK, "size": 10, "line": {"color": _WHITE, "width": 1.5}},
        "hovertemplate": "%{text}<br>x %{x}<br>y %{y}<extra></extra>",
    }
    return [*found, networks]


def _raised(trace: Mapping[str, Any], chart: PlaneChart, lift: float) -> dict[str, Any]:
    """Return a trace in three dimensions, a little above the surface so that it is visible."""
    path = np.stack([trace["x"], trace["y"]], axis=1)
    if trace["mode"] == "lines":
        path = refined(path)
    found = {**trace, "type": "scatter3d", "z": numbers(chart.on_surface()(path) + lift)}
    found |= {"x": numbers(path[:, 0]), "y": numbers(path[:, 1])}
    if trace["mode"] == "lines":
        found["line"] = {**trace["line"], "width": 5}
    else:
        found["marker"] = {**trace["marker"], "size": 5}
    return found


def numbers(values: Iterable[float]) -> list[float | None]:
    """Return numbers as JSON values: six significant digits, None for one that is not finite.

    >>> numbers([1 / 3, 1e9 / 7, float("nan")])
    [0.333333, 142857000.0, None]
    """
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def text(name: str) -> str:
    """Return a name with HTML escaped, because plotly interprets some tags.

    >>> text("a < b & c")
    'a &lt; b &amp; c'
    """
    return html.escape(name, quote=False)


def plotly_script() -> str | None:
    """Return plotly.js for a page, or None if plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    script: str = get_plotlyjs()
    return script
