"""Charts as static figures, by matplotlib: PNG, and SVG or PDF for papers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter

from fge.files import write_bytes
from fge.observer import visible
from fge.report.charts import DASHES, Bars, Chart, Dash, Panel, PlaneChart, Series, refined
from fge.report.palette import INK, LINE, light, marker_of

_LINES: dict[Dash, str] = dict(zip(DASHES, ("-", "--", ":", "-."), strict=True))
_WIDTH, _PIXELS = 8.0, 100
"""Inches of a figure, and pixels of a page in one of them."""
_ELEVATION, _AZIMUTH = 26, -135
"""From where a surface is seen, in degrees: as in the interactive plot."""
_DARK, _WHITE = light(INK), light("paper")
_NO_CLOCK = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata by format, such that the same figure makes the same file."""


def draw(chart: Chart | PlaneChart) -> Figure:
    """Return a chart as a figure of matplotlib, in the colours of a light page."""
    if isinstance(chart, PlaneChart):
        return _draw_surface(chart) if chart.raised else _draw_plane(chart)
    figure = Figure(figsize=(_WIDTH, chart.height / _PIXELS), layout="constrained")
    shares = [panel.share for panel in chart.panels]
    column = figure.subplots(len(shares), 1, sharex=True, squeeze=False, height_ratios=shares)
    for axes, panel in zip(column[:, 0], chart.panels, strict=True):
        _draw_panel(axes, panel)
        for place in chart.marks:
            axes.axvline(place, color=light(LINE), linewidth=0.8, zorder=0)
    bottom = column[-1, 0]
    bottom.set_xlabel(_text(chart.x))
    bottom.set_xlim(*chart.x_limits)
    if chart.whole:
        bottom.xaxis.set_major_locator(MultipleLocator(chart.x_step))
    if chart.legend:
        handles = [_handle(one) for one in chart.legend]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's name, atomically and without a clock."""
    buffer, form = io.BytesIO(), path.suffix.removeprefix(".")
    with mpl.rc_context({"svg.hashsalt": "fge"}):
        figure.savefig(buffer, format=form, dpi=120, metadata=_NO_CLOCK[form])
    write_bytes(path, buffer.getvalue())


def _text(name: str) -> str:
    """Return text in which matplotlib finds no formula: dollars are dollars."""
    return visible(name).replace("$", r"\$")


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.grid(color=light(LINE), linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel(_text(panel.label))
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if panel.dense else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*panel.y_limits)
    if panel.bars is not None:
        _draw_bars(axes, panel.bars)
    if panel.level is not None:
        axes.axhline(panel.level, color=_DARK, linewidth=0.8, linestyle=":")
    for one in panel.series:
        _draw_series(axes, one, panel)
    if not panel.series and panel.note:
        axes.text(0.5, 0.5, _text(panel.note), transform=axes.transAxes, ha="center")


def _draw_bars(axes: Axes, bars: Bars) -> None:
    axes.stairs(bars.counts, bars.edges, fill=True, color=light(bars.name))


def _draw_series(axes: Axes, series: Series, panel: Panel) -> None:
    axes.errorbar(
        series.x,
        series.y,
        yerr=series.spread,
        elinewidth=1,
        capsize=2.5 if series.spread else 0,
        label=_text(series.name),
        **_style(series),
    )
    if series.filled:
        floor = panel.y_limits[0]
        axes.fill_between(
            series.x, series.y, floor, color=light(series.style), alpha=0.15, linewidth=0
        )


def _style(series: Series) -> dict[str, Any]:
    return {
        "color": light(series.style),
        "linestyle": "none" if series.dash is None else _LINES[series.dash],
        "marker": marker_of(series.style)[0] if series.marker else "none",
        "markersize": 5,
        "linewidth": 1.5,
    }


def _handle(series: Series) -> Line2D:
    return Line2D([], [], label=_text(series.name), **_style(series))


def _draw_plane(chart: PlaneChart) -> Figure:
    """Draw filled contours at the levels, as arXiv 1802.10026 does (figure 1)."""
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = figure.subplots()
    surface = chart.xs, chart.ys, chart.heights
    filled = axes.contourf(*surface, levels=chart.levels, colors=list(chart.colours), extend="max")
    axes.contour(*surface, levels=chart.levels[1:], colors=_DARK, linewidths=0.5)
    bar = figure.colorbar(filled, ax=axes, ticks=chart.levels, spacing="uniform")
    bar.ax.set_yticklabels(chart.ticks)
    bar.set_label(_text(chart.label))
    axes.set(xlim=chart.xs[[0, -1]], ylim=chart.ys[[0, -1]])
    axes.set(xlabel=_text(chart.axes[0]), ylabel=_text(chart.axes[1]))
    if chart.equal:
        axes.set_aspect("equal")
    for dash, (name, path) in zip(_cycled(chart), chart.paths.items(), strict=True):
        axes.plot(
            *path.T, dash, color=_DARK, linewidth=1.8, label=_text(name), path_effects=_halo(4)
        )
    middle = sum(axes.get_xlim()) / 2
    for name, place in chart.points.items():
        axes.plot(*place, "o", color=_DARK, markeredgecolor=_WHITE, markersize=8, zorder=5)
        side, away = ("left", 7) if place[0] <= middle else ("right", -7)  # not out of the frame
        axes.annotate(
            _text(name),
            place,
            (away, 7),
            textcoords="offset points",
            ha=side,
            zorder=6,
            path_effects=_halo(3),
        )
    if chart.paths:
        axes.legend(framealpha=0.9)
    return figure


def _draw_surface(chart: PlaneChart) -> Figure:
    """Draw a surface in three dimensions; marks lie on it, and those outside are left out."""
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d")
    axes.computed_zorder = False  # otherwise the surface hides the marks on it
    x, y = np.meshgrid(chart.xs, chart.ys)
    shades = ListedColormap(list(chart.colours))
    norm = BoundaryNorm(chart.levels, len(chart.levels), extend="max")
    faces = shades(norm(chart.heights))
    axes.plot_surface(
        x, y, chart.surface, facecolors=faces, shade=False, rstride=1, cstride=1, linewidth=0
    )
    height = chart.on_surface()
    for dash, (name, path) in zip(_cycled(chart), chart.paths.items(), strict=True):
        fine = refined(path)
        axes.plot(*fine.T, height(fine), dash, color=_DARK, label=_text(name), zorder=5)
    for name, place in chart.points.items():
        (top,) = height([place])
        if np.isfinite(top):
            axes.plot(*place, top, "o", color=_DARK, zorder=6)
            axes.text(*place, top, f"  {_text(name)}", zorder=7, path_effects=_halo(3))
    if chart.paths:
        axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel="x", ylabel="y", zlabel=chart.label)
    axes.set_box_aspect((1, 1, 0.6))
    axes.view_init(elev=_ELEVATION, azim=_AZIMUTH)
    return figure


def _halo(width: float) -> list[withStroke]:
    return [withStroke(linewidth=width, foreground=_WHITE)]


def _cycled(chart: PlaneChart) -> list[str]:
    return [_LINES[DASHES[k % len(DASHES)]] for k, _ in enumerate(chart.paths)]
