"""Interactive plots: arrays to what plotly draws, as JSON values; nothing here reads a run."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, LINE, SOFT, PAPER = "var(--ink)", "var(--line)", "var(--soft)", "var(--paper)"
COLOURS = tuple(f"var(--series-{number})" for number in range(1, 11))
"""Colours by name: the page puts its values in their place, one in light and one in dark."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")
APART = 0.004
"""How far methods are moved sideways from one to the next, as a part of the axis."""
_CLEAR = "rgba(0,0,0,0)"
_GAP = 0.09
"""Between panels, as a part of the height of all."""
_AXIS = {
    "gridcolor": LINE,
    "linecolor": LINE,
    "zeroline": False,
    "automargin": True,
    "showline": True,
}


@dataclass(frozen=True)
class Plot:
    """What plotly draws: traces and layout as JSON values (https://plotly.com/javascript/reference/).

    Colours are names of the page's CSS variables where they depend on light and dark.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """Points (n,) by name; ``spread`` (n,) is drawn up and down, ``notes`` (n,) on hovering.

    ``style`` chooses colour and marker, so that a name has the same in several plots; by default
    the position does.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    notes: Sequence[str] | None = None
    style: int | None = None


def comparison_plot(series: Sequence[Series], *, x: str, y: str) -> Plot:
    """Return the plot that compares methods: a line with markers each, error bars where known.

    Methods of equal cost are set apart a little (:func:`set_apart`); hovering tells the true place.

    Args:
        series: one per method, such as test error against training epochs, against members, or the
            deep-ensemble equivalent against cost; ``spread`` is a standard deviation over seeds.
        x: what the horizontal axis is, with its unit.
        y: what the vertical axis is, with its unit.
    """
    data = []
    for position, (one, places) in enumerate(zip(series, set_apart(series), strict=True)):
        trace = _with_spread(line(one, x=x, y=y, style=_style(one, position), marks=True), one)
        hover = trace["hovertemplate"].replace("%{x}", "%{customdata}")
        data.append(
            trace | {"x": numbers(places), "customdata": trace["x"], "hovertemplate": hover}
        )
    return Plot(data, layout(x, [y], height=460))


def set_apart(series: Sequence[Series]) -> list[list[float]]:
    """Return the x of each series, moved sideways a little, so that none hides another."""
    places = [place for one in series for place in one.x]
    apart = APART * max(max(places) - min(places), 0.2 * max(places)) if places else 0.0
    return [
        [place + (position - (len(series) - 1) / 2) * apart for place in one.x]
        for position, one in enumerate(series)
    ]


def lines_plot(
    series: Sequence[Series], *, x: str, y: str, log: bool = False, dashes: bool = False
) -> Plot:
    """Return a plot of lines without markers.

    Args:
        series: one per line.
        x: what the horizontal axis is, with its unit.
        y: what the vertical axis is, with its unit.
        log: whether the vertical axis is logarithmic.
        dashes: whether lines differ by their dashes, too.
    """
    data = [line(one, x=x, y=y, style=style) for style, one in enumerate(series)]
    for style, trace in enumerate(data):
        if dashes:
            trace["line"]["dash"] = DASHES[style % len(DASHES)]
    found = layout(x, [y], height=420)
    if log:
        found["yaxis"] |= LOG
    return Plot(data, found)


def reliability_plot(series: Sequence[Series]) -> Plot:
    """Return the reliability diagram: accuracy against confidence per bin, and the diagonal.

    Bins without an example are left out where their numbers are NaN.

    Args:
        series: one per method; ``x`` mean confidence and ``y`` accuracy of each bin, fractions;
            ``notes`` might say how many examples are in the bin.
    """
    x, y = "confidence", "accuracy"
    diagonal = Series("calibrated", [0.0, 1.0], [0.0, 1.0])
    reference = line(diagonal, x=x, y=y, style=0) | {"hoverinfo": "skip"}
    reference["line"] = {"color": INK, "dash": "dot", "width": 1}
    del reference["hovertemplate"]
    data = [
        line(one, x=x, y=y, style=_style(one, position), marks=True)
        for position, one in enumerate(series)
    ]
    for trace in data:
        trace["connectgaps"] = True
    found = layout(x, [y], height=520)
    found["xaxis"] |= {"range": [0, 1]}
    found["yaxis"] |= {"range": [0, 1]}
    return Plot([reference, *data], found)


def _style(series: Series, position: int) -> int:
    return position if series.style is None else series.style


LOG = {"type": "log", "exponentformat": "power", "dtick": 1}
"""Of an axis: logarithmic, with a tick at each power of ten."""


def line(
    series: Series, *, x: str, y: str, style: int, panel: int = 0, marks: bool = False
) -> dict[str, Any]:
    """Return the trace of a series.

    Args:
        series: the points.
        x: what the horizontal axis is, for hovering.
        y: what the vertical axis is.
        style: which colour and symbol.
        panel: which panel of :func:`layout`, counted from 0 at the top.
        marks: whether points have markers.
    """
    hover = f"{text(x)} %{{x}}<br>{text(y)} %{{y}}"
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": text(series.name),
        "x": numbers(series.x),
        "y": numbers(series.y),
        "mode": "lines+markers" if marks else "lines",
        "line": {"color": COLOURS[style % len(COLOURS)], "width": 2},
        "hovertemplate": f"<b>{text(series.name)}</b><br>{hover}<extra></extra>",
    }
    if marks:
        trace["marker"] = {"symbol": SYMBOLS[style % len(SYMBOLS)], "size": 8}
    if panel:
        trace["yaxis"] = f"y{panel + 1}"
    if series.notes is not None:
        trace["text"] = [text(note) for note in series.notes]
        trace["hovertemplate"] = trace["hovertemplate"].replace("<extra>", "<br>%{text}<extra>")
    return trace


def _with_spread(trace: dict[str, Any], series: Series) -> dict[str, Any]:
    if series.spread is not None:
        colour = trace["line"]["color"]
        trace["error_y"] = {"array": numbers(series.spread), "color": colour, "thickness": 1.5}
    return trace


def layout(x: str, panels: Sequence[str], *, height: int) -> dict[str, Any]:
    """Return the layout of panels one above the other, which share the horizontal axis.

    Args:
        x: what the horizontal axis is.
        panels: what the vertical axis of each is, from the top.
        height: of the whole plot, in pixels; its width is the page's.
    """
    count = len(panels)
    share = (1 - _GAP * (count - 1)) / count
    found = base_layout(height)
    found["xaxis"] = axis(x) | {"anchor": "y" if count == 1 else f"y{count}"}
    for position, title in enumerate(panels):
        low = 1 - position * (share + _GAP) - share
        key = "yaxis" if position == 0 else f"yaxis{position + 1}"
        domain = [round(max(low, 0.0), 4), round(low + share, 4)]
        found[key] = axis(title) | {"domain": domain}
    return found


def base_layout(height: int) -> dict[str, Any]:
    """Return what all plots share: clear backgrounds, the page's ink, the legend below."""
    return {
        "height": height,
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"bgcolor": SOFT, "bordercolor": LINE, "font": {"color": INK}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": _CLEAR,
        },
        "margin": {"l": 60, "r": 12, "t": 36, "b": 48},
        "modebar": {"bgcolor": _CLEAR, "color": INK, "activecolor": COLOURS[0]},
        # What a reader has zoomed and toggled stays when light and dark change.
        "uirevision": "page",
    }


def axis(title: str) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": {"text": text(title), "standoff": 8}, **_AXIS}


def numbers(values: Iterable[float]) -> list[float | None]:
    """Return numbers as JSON holds them: six significant digits, None where one is not finite.

    >>> numbers([1 / 3, 1e9 / 7, float("nan")])
    [0.333333, 142857000.0, None]
    """
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def text(name: str) -> str:
    """Return a name such that plotly shows it as it is; it takes some tags otherwise.

    >>> text("a < b & c")
    'a &lt; b &amp; c'
    """
    return html.escape(name, quote=False)


def plotly_script() -> str | None:
    """Return plotly.js, for a page to hold, or None where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    script: str = get_plotlyjs()
    return script
