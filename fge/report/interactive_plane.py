"""Interactive plots of the loss surface: planes as contours and as surfaces to turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from fge.landscape import PlaneGrid
from fge.report.interactive import DASHES, Plot, axis, base_layout, numbers, text
from fge.report.planes import (
    Lines,
    Points,
    contour_levels,
    finite_values,
    grid_values,
    refined,
    text_of,
    tick_labels,
)

Array = NDArray[np.float64]
_FACES = 56
"""At least so many along each side of what is drawn, a whole number to each cell of the grid."""
_COLOURS = "jet_r"
_DARK, _LIGHT = "#111827", "#ffffff"
"""Of marks on the colours, which are the same on a light page and on a dark one."""
_GRID = "#d1d5db"
"""Of lines on what is light on both."""
_PANEL = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class _Drawn:
    """A plane as it is drawn: finer than it was measured, levels as whole numbers, with marks."""

    grid: PlaneGrid
    levels: Array
    xs: Array
    ys: Array
    heights: Array
    label: str
    at: RegularGridInterpolator
    marks: list[dict[str, Any]]
    """Traces of paths and networks."""

    @classmethod
    def of(
        cls,
        grid: PlaneGrid,
        key: str,
        points: Points | None,
        lines: Lines | None,
        cap: float | None,
    ) -> _Drawn:
        values = grid_values(grid, key)
        levels = contour_levels(values, cap)
        shown = finite_values(values, levels[-1])
        at = RegularGridInterpolator((grid.xs, grid.ys), shown.T, bounds_error=False)
        xs, ys = (
            refined(side[:, None], -(-_FACES // (len(side) - 1)))[:, 0]
            for side in (grid.xs, grid.ys)
        )
        heights = at(np.stack(np.meshgrid(xs, ys), axis=-1))
        marks = [*_paths(lines or {}), *_networks(points or {})]
        return cls(grid, levels, xs, ys, heights, text_of(key), at, marks)

    def bands(self) -> list[list[float | None]]:
        """Return heights (y, x) as numbers of levels: k at level k, more than the last above it."""
        ends = [*self.levels, 2 * self.levels[-1] - self.levels[-2]]
        found = np.interp(self.heights, ends, np.arange(len(ends)))
        return [numbers(row) for row in found]

    def colours(self) -> list[str]:
        """Return the colour of each band between levels, and of what is above the last."""
        full = mpl.colormaps[_COLOURS](np.linspace(0, 1, len(self.levels)))[:, :3]
        # So light that names on them can be read.
        mixed = 0.5 * full + 0.5
        return [to_hex(colour) for colour in mixed]

    def bar(self) -> dict[str, Any]:
        """Return the bar that says what the colours mean."""
        return {
            "title": {"text": text(self.label), "side": "top"},
            "orientation": "h",
            "y": 1,
            "yanchor": "bottom",
            "tickvals": list(range(len(self.levels))),
            "ticktext": [text(tick) for tick in tick_labels(self.levels)],
            "thickness": 12,
            "outlinewidth": 0,
        }


def plane_plot(
    grid: PlaneGrid,
    key: str = "loss",
    *,
    points: Points | None = None,
    lines: Lines | None = None,
    cap: float | None = None,
) -> Plot:
    """Return a plane as filled contours; levels and colours are those of the figure in the paper.

    Arguments are those of :func:`fge.report.plane_figure`. Between the measured points, which
    tell their values on hovering, heights are interpolated linearly.

    Raises:
        UserError: no such key, or a cap that is not above the lowest value.
    """
    drawn = _Drawn.of(grid, key, points, lines, cap)
    count, colours = len(drawn.levels), drawn.colours()
    contours = {
        "type": "contour",
        "name": text(drawn.label),
        "x": numbers(drawn.xs),
        "y": numbers(drawn.ys),
        "z": drawn.bands(),
        "contours": {"start": 0, "end": count - 1, "size": 1},
        # Plotly looks up the colour of a band at (k + 1) / count.
        "colorscale": [[k / count, colour] for k, colour in enumerate([colours[0], *colours])],
        "colorbar": drawn.bar(),
        "line": {"width": 0.5, "color": _DARK},
        "hoverinfo": "skip",
    }
    data = [contours, _measured(drawn, key), *drawn.marks]
    found = _base(600)
    unit = "distance" if _distances(grid) else "multiples"
    for name, side in (("x", grid.xs), ("y", grid.ys)):
        found[f"{name}axis"] = axis(f"{name} ({unit})")
        found[f"{name}axis"] |= {"range": numbers([side[0], side[-1]]), "showgrid": False}
    # Plotly puts the title of a horizontal axis amiss where the axis is constrained.
    found["annotations"] = [_below(found["xaxis"].pop("title")["text"])]
    ratio = np.ptp(grid.xs) / np.ptp(grid.ys)
    if _distances(grid) and 1 / 3 < ratio < 3:
        found["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
        found["xaxis"] |= {"constrain": "domain"}
    return Plot(data, found)


def surface_plot(
    grid: PlaneGrid,
    key: str = "loss",
    *,
    points: Points | None = None,
    lines: Lines | None = None,
    cap: float | None = None,
) -> Plot:
    """Return a plane as a surface to turn, cut off at the cap; see :func:`plane_plot`.

    Points and lines lie on the surface; those outside the grid are left out.

    Raises:
        UserError: no such key, or a cap that is not above the lowest value.
    """
    drawn = _Drawn.of(grid, key, points, lines, cap)
    top, count = drawn.levels[-1], len(drawn.levels)
    edges = [(k, k + 1, colour) for k, colour in enumerate(drawn.colours())]
    surface = {
        "type": "surface",
        "name": text(drawn.label),
        "x": numbers(drawn.xs),
        "y": numbers(drawn.ys),
        "z": [numbers(row) for row in np.minimum(drawn.heights, top)],
        "surfacecolor": drawn.bands(),
        "cmin": 0,
        "cmax": count,
        "colorscale": [[end / count, colour] for *ends, colour in edges for end in ends],
        "colorbar": drawn.bar(),
        "hovertemplate": f"x %{{x}}<br>y %{{y}}<br>{text(drawn.label)} %{{z}}<extra></extra>",
        "lighting": {"ambient": 0.85, "diffuse": 0.4, "specular": 0.05},
    }
    lift = 0.01 * float(top - drawn.levels[0])
    data = [surface, *(_raised(trace, drawn, lift) for trace in drawn.marks)]
    found = _base(640)
    found["scene"] = _scene(drawn.label)
    found["margin"] |= {"l": 0, "r": 0, "b": 0}
    return Plot(data, found)


def _scene(height: str) -> dict[str, Any]:
    """Return axes in three dimensions, the upright one with a title of its own.

    The background is light on a dark page, too: names of networks may lie on it or on the surface,
    as the surface is turned.
    """
    side = {"backgroundcolor": _PANEL, "gridcolor": _GRID, "color": _DARK, "showspikes": False}
    titles = {"xaxis": "x", "yaxis": "y", "zaxis": height}
    axes = {name: {"title": {"text": text(title)}, **side} for name, title in titles.items()}
    return {
        **axes,
        "bgcolor": _LIGHT,
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.6},
        "camera": {"eye": {"x": -1.3, "y": -1.3, "z": 0.9}},
        "dragmode": "turntable",
    }


def _below(title: str) -> dict[str, Any]:
    """Return a title below the horizontal axis."""
    place = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0, "yanchor": "top"}
    return {"text": title, "showarrow": False, "yshift": -24, "font": {"size": 14}, **place}


def _base(height: int) -> dict[str, Any]:
    """Return the shared layout, with a legend in which marks are seen on a dark page, too."""
    found = base_layout(height)
    found["legend"] |= {"bgcolor": _LIGHT, "font": {"color": _DARK}}
    found["margin"] |= {"t": 100, "b": 64}
    return found


def _measured(drawn: _Drawn, key: str) -> dict[str, Any]:
    """Return the points that were measured, each with its value."""
    x, y = np.meshgrid(drawn.grid.xs, drawn.grid.ys)
    values = drawn.grid.values[key].ravel()
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "measured points",
        "x": numbers(x.ravel()),
        "y": numbers(y.ravel()),
        "text": [f"{value:.4g}" for value in values],
        "marker": {"color": _DARK, "size": 3, "opacity": 0.45},
        "hovertemplate": f"x %{{x}}<br>y %{{y}}<br>{text(drawn.label)} %{{text}}<extra></extra>",
    }


def _paths(lines: Lines) -> list[dict[str, Any]]:
    found = []
    for style, (name, path) in enumerate(lines.items()):
        x, y = np.asarray(path, dtype=np.float64).T
        found.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": text(name),
                "x": numbers(x),
                "y": numbers(y),
                "line": {"color": _DARK, "width": 2.5, "dash": DASHES[style % len(DASHES)]},
                "hoverinfo": "name",
            }
        )
    return found


def _networks(points: Points) -> list[dict[str, Any]]:
    if not points:
        return []
    x, y = zip(*points.values(), strict=True)
    return [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "networks",
            "x": numbers(x),
            "y": numbers(y),
            "text": [text(name) for name in points],
            "textposition": "top center",
            "textfont": {"color": _DARK},
            "marker": {"color": _DARK, "size": 10, "line": {"color": _LIGHT, "width": 1.5}},
            "hovertemplate": "%{text}<br>x %{x}<br>y %{y}<extra></extra>",
        }
    ]


def _raised(trace: Mapping[str, Any], drawn: _Drawn, lift: float) -> dict[str, Any]:
    """Return a trace in three dimensions, a little above the surface so that it is seen."""
    path = np.stack([trace["x"], trace["y"]], axis=1)
    if trace["mode"] == "lines":
        path = refined(path)
    heights = np.minimum(drawn.at(path), drawn.levels[-1]) + lift
    found = {**trace, "type": "scatter3d", "z": numbers(heights)}
    found |= {"x": numbers(path[:, 0]), "y": numbers(path[:, 1])}
    if trace["mode"] == "lines":
        found["line"] = {**trace["line"], "width": 5}
    else:
        found["marker"] = {**trace["marker"], "size": 5}
    return found


def _distances(grid: PlaneGrid) -> bool:
    """Say whether x and y are distances in weight space."""
    return bool(np.allclose(grid.gram, np.eye(2), rtol=0, atol=1e-6))
