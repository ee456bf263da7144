"""Results of planes and lines: tables, sentences and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from fge.curves import summarise_curve
from fge.errors import UserError, unknown
from fge.landscape import PlaneGrid
from fge.report.page import Table

Array = NDArray[np.float64]
Points = Mapping[str, tuple[float, float]]
Lines = Mapping[str, Any]
"""Paths (T, 2) in the plane by name: arrays, tensors or lists."""
_INK, _PAPER = "#111827", "#ffffff"
_STYLES = ("-", "--", ":", "-.")
_DECAY = 5.0
"""Over how many factors of e the levels stretch: that of the published figures."""
_FACES = 80
"""At least so many along each side of a drawn surface, a whole number to each cell of the grid."""
LINE_AXES = {"t": "t", "arc": "length along the line", "distance": "distance from t = 0"}
"""What the keys of records along a line are called on the horizontal axis."""
_UNITS = {"loss": "loss (nats)", "error": "error (%)", "nll": "NLL (nats)"}


def contour_levels(values: Array, cap: float | None = None, count: int = 8) -> Array:
    """Return levels from the lowest value to a cap, their distances above it a geometric series.

    level_k = min + (cap - min) exp(-5 (1 - k / (count - 1))) for k >= 1: each level is the same
    factor further above the minimum than the one below, which shows the floor of a valley and its
    walls at once (arXiv 1802.10026, figure 1).

    Args:
        values: of any shape; those that are not finite are left aside.
        cap: values above it are shown alike; the 80th percentile of the values by default.
        count: number of levels.

    Returns:
        levels (count,) float64, ascending.

    Raises:
        UserError: no value is finite, the cap is not above the lowest, or ``count`` is below 2.

    >>> contour_levels(np.array([1.0, 3.0]), cap=2.0, count=3).round(4).tolist()
    [1.0, 1.0821, 2.0]
    """
    finite = values[np.isfinite(values)]
    if count < 2:
        raise UserError(f"count, the number of levels, must be >= 2, got {count}")
    if finite.size == 0:
        raise UserError("a figure needs finite values, and there are none")
    lowest = float(finite.min())
    if cap is None:
        # A flat surface still needs levels that ascend.
        cap = max(float(np.quantile(finite, 0.8)), lowest + 1e-6 * max(abs(lowest), 1.0))
    if not lowest < cap < np.inf:
        raise UserError(f"cap must be finite and above the lowest value, {lowest:.4g}, got {cap:g}")
    shares = np.exp(-_DECAY * (1 - np.arange(count) / (count - 1)))
    shares[0], shares[-1] = 0.0, 1.0
    levels: Array = lowest + (cap - lowest) * shares
    levels[-1] = cap
    return levels


def plane_figure(
    grid: PlaneGrid,
    key: str = "loss",
    *,
    points: Points | None = None,
    lines: Lines | None = None,
    cap: float | None = None,
    label: str | None = None,
    cmap: str = "jet_r",
) -> Figure:
    """Draw a plane as filled contours at logarithmic levels, as arXiv 1802.10026 does (figure 1).

    Args:
        grid: of :func:`fge.evaluate_plane`.
        key: of ``grid.values``.
        points: coordinates of networks, drawn as dots, by label.
        lines: paths (T, 2) by label, a projected curve or a segment, in different dashes.
        cap: values above are shown alike; see :func:`contour_levels`.
        label: what the colours mean; from the key by default.
        cmap: a Matplotlib colour map; the paper's runs from red (low) to blue (high).

    Raises:
        UserError: no such key, or a cap that is not above the lowest value.
    """
    values = grid_values(grid, key)
    levels = contour_levels(values, cap)
    colours = mpl.colormaps[cmap](np.linspace(0, 1, len(levels)))
    shown = finite_values(values, levels[-1])
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = figure.subplots()
    filled = axes.contourf(
        grid.xs, grid.ys, shown, levels=levels, colors=colours, extend="max", alpha=0.6
    )
    axes.contour(grid.xs, grid.ys, shown, levels=levels[1:], colors=colours[1:], linewidths=1)
    bar = figure.colorbar(filled, ax=axes, ticks=levels, spacing="uniform")
    bar.ax.set_yticklabels(tick_labels(levels))
    bar.set_label(label or text_of(key))
    _frame(axes, grid)
    _mark(axes, points or {}, lines or {})
    return figure


def surface_figure(
    grid: PlaneGrid,
    key: str = "loss",
    *,
    points: Points | None = None,
    lines: Lines | None = None,
    cap: float | None = None,
    label: str | None = None,
    cmap: str = "jet_r",
) -> Figure:
    """Draw a plane as a surface in three dimensions, cut off at the cap.

    Colours are those of :func:`plane_figure`, which has the arguments explained; points and lines
    lie on the surface, and those outside the grid are left out.

    Raises:
        UserError: no such key, or a cap that is not above the lowest value.
    """
    values = grid_values(grid, key)
    levels = contour_levels(values, cap)
    interpolated = RegularGridInterpolator(
        (grid.xs, grid.ys), finite_values(values, levels[-1]).T, bounds_error=False
    )

    def height(places: Any) -> Array:
        heights: Array = np.minimum(interpolated(places), levels[-1])
        return heights

    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d")
    axes.computed_zorder = False  # otherwise the surface hides the marks on it
    fine = [refined(side[:, None], -(-_FACES // (len(side) - 1))) for side in (grid.xs, grid.ys)]
    x, y = np.meshgrid(*fine)
    z = height(np.stack([x, y], axis=-1))
    colours = ListedColormap(mpl.colormaps[cmap](np.linspace(0, 1, len(levels))))
    faces = colours(BoundaryNorm(levels, len(levels), extend="max")(z))
    axes.plot_surface(x, y, z, facecolors=faces, rstride=1, cstride=1, linewidth=0)
    _mark_surface(axes, height, points or {}, lines or {})
    axes.set(xlabel="x", ylabel="y", zlabel=label or text_of(key))
    axes.set_box_aspect((1, 1, 0.6))
    return figure


def line_figure(
    lines: Mapping[str, Sequence[Mapping[str, float]]], *, key: str = "loss", x: str = "t"
) -> Figure:
    """Draw one figure of merit along lines, curves or chains.

    Args:
        lines: records of :func:`fge.landscape.evaluate_line` by label.
        key: of the records, for the vertical axis.
        x: of the records, for the horizontal one: ``t``, ``arc`` or ``distance``.

    Raises:
        UserError: there are no lines, or records without such a key.
    """
    if not lines:
        raise UserError("a figure needs at least one line, got none")
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for style, (name, records) in zip(_cycled(lines), lines.items(), strict=True):
        for wanted in (key, x):
            if any(wanted not in record for record in records):
                raise unknown("key of the records", wanted, records[0])
        axes.plot([r[x] for r in records], [r[key] for r in records], style, label=name)
    axes.set_xlabel(LINE_AXES.get(x, x))
    axes.set_ylabel(text_of(key))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def grid_values(grid: PlaneGrid, key: str) -> Array:
    """Return the values (Y, X) under a key.

    Raises:
        UserError: no such key.
    """
    if key not in grid.values:
        raise unknown("key of the grid", key, grid.values)
    return grid.values[key]


def finite_values(values: Array, cap: float) -> Array:
    """Return the values, those that are not finite above the cap and above all others."""
    finite = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, max(float(finite.max()), 2 * cap - finite.min()))


def text_of(key: str) -> str:
    """Return what a key such as ``train_loss`` means, with its unit."""
    split, _, name = key.rpartition("_")
    return f"{split} {_UNITS.get(name, name)}".strip()


def tick_labels(levels: Array) -> list[str]:
    """Return levels as text, the last one as the cap that values lie above."""
    return [*(f"{level:.3g}" for level in levels[:-1]), f"> {levels[-1]:.3g}"]


def _mark(axes: Axes, points: Points, lines: Lines) -> None:
    for style, (name, line) in zip(_cycled(lines), lines.items(), strict=True):
        path = np.asarray(line, dtype=np.float64)
        effects = [withStroke(linewidth=4, foreground=_PAPER)]
        axes.plot(*path.T, style, color=_INK, linewidth=1.8, label=name, path_effects=effects)
    middle = sum(axes.get_xlim()) / 2
    for name, (x, y) in points.items():
        axes.plot([x], [y], "o", color=_INK, markeredgecolor=_PAPER, markersize=8, zorder=5)
        side, away = ("left", 7) if x <= middle else ("right", -7)  # not out of the frame
        axes.annotate(
            name,
            (x, y),
            (away, 7),
            textcoords="offset points",
            ha=side,
            zorder=6,
            path_effects=_halo(),
        )
    if lines:
        axes.legend(framealpha=0.9)


def _mark_surface(axes: Any, height: Callable[[Any], Array], points: Points, lines: Lines) -> None:
    """Draw points and lines at the heights that the surface has there."""
    for style, (name, line) in zip(_cycled(lines), lines.items(), strict=True):
        path = refined(np.asarray(line, dtype=np.float64))
        axes.plot(*path.T, height(path), style, color=_INK, label=name, zorder=5)
    for name, place in points.items():
        (top,) = height([place])
        if np.isfinite(top):
            axes.plot(*place, top, "o", color=_INK, zorder=6)
            axes.text(*place, top, f"  {name}", zorder=7, path_effects=_halo())
    if lines:
        axes.legend(frameon=False, loc="upper right")


def refined(path: Array, steps: int = 30) -> Array:
    """Return a path (T, D) with so many steps between neighbours, to lie on a curved surface."""
    places = np.linspace(0, len(path) - 1, steps * (len(path) - 1) + 1)
    columns = [np.interp(places, np.arange(len(path)), column) for column in path.T]
    return np.stack(columns, axis=1)


def _halo() -> list[withStroke]:
    return [withStroke(linewidth=3, foreground=_PAPER)]


def _cycled(names: Iterable[str]) -> list[str]:
    return [_STYLES[k % len(_STYLES)] for k, _ in enumerate(names)]


def _frame(axes: Axes, grid: PlaneGrid) -> None:
    """Set limits and names of the axes; one scale for both where they are distances."""
    axes.set_xlim(grid.xs[0], grid.xs[-1])
    axes.set_ylim(grid.ys[0], grid.ys[-1])
    distances = np.allclose(grid.gram, np.eye(2), rtol=0, atol=1e-6)
    unit = "distance in weight space" if distances else "multiples of the direction"
    axes.set_xlabel(f"x ({unit})")
    axes.set_ylabel(f"y ({unit})")
    ratio = np.ptp(grid.xs) / np.ptp(grid.ys)
    if distances and 1 / 3 < ratio < 3:
        axes.set_aspect("equal")


def plane_table(networks: Sequence[Mapping[str, Any]], note: str) -> Table:
    """Return the table of the networks on a plane.

    Args:
        networks: each with ``name``, ``x``, ``y``, ``off_plane`` (its distance from the plane) and
            the keys of :func:`fge.evaluate_plane` for ``train`` and ``test``.
        note: what was measured.
    """
    headings = ["network", "x", "y", "off the plane", "train loss", "train error %"]
    headings += ["test error %", "test NLL"]
    rows = []
    for found in networks:
        # Rounded first, and added to 0: a coordinate of -1e-16 is no "-0.000".
        cells = [f"{round(found[key], 3) + 0.0:.3f}" for key in ("x", "y", "off_plane")]
        cells.append(f"{found['train_loss']:.4f}")
        cells += [f"{found[key]:.2f}" for key in ("train_error", "test_error")]
        rows.append([found["name"], *cells, f"{found['test_nll']:.4f}"])
    return Table("Networks on the plane", headings, rows, note)


def plane_verdict(grid: PlaneGrid, networks: Sequence[Mapping[str, Any]]) -> str:
    """Say in words where the training loss is low, and how far from the networks.

    Args:
        grid: with ``train_loss`` and ``test_error``.
        networks: as in :func:`plane_table`.
    """
    loss, error = grid.values["train_loss"], grid.values["test_error"]
    finite = np.where(np.isfinite(loss), loss, np.inf)
    row, column = np.unravel_index(int(finite.argmin()), loss.shape)
    place = np.array([grid.xs[column], grid.ys[row]])
    apart = {n["name"]: _distance(grid, place - np.array([n["x"], n["y"]])) for n in networks}
    near = min(apart, key=lambda name: apart[name])
    return (
        f"Over {len(grid.xs)} x {len(grid.ys)} points the training loss runs from "
        f"{finite.min():.4f} to {loss.max():.4g} and the test error from {error.min():.2f} to "
        f"{error.max():.2f} %. The loss is lowest at ({place[0]:.3g}, {place[1]:.3g}), "
        f"{apart[near]:.3g} from {near}, the nearest network."
    )


def line_table(
    lines: Mapping[str, Sequence[Mapping[str, float]]], note: str, *, barriers: bool
) -> Table:
    """Return the table of lines, or parts of one.

    Args:
        lines: records of :func:`fge.landscape.evaluate_line` for ``train`` and ``test``, by name.
        note: what was measured.
        barriers: whether the lines join networks, between which there may be a barrier.
    """
    headings = ["line", "length", "train loss: start", "end", "lowest", "highest"]
    headings += [*(["barrier"] if barriers else []), "test error %: start", "end", "highest"]
    rows = []
    for name, records in lines.items():
        losses, errors = ([r[key] for r in records] for key in ("train_loss", "test_error"))
        found = [losses[0], losses[-1], min(losses), max(losses)]
        found += [_barrier(records)] if barriers else []
        row = [name, f"{records[-1]['arc'] - records[0]['arc']:.3f}"]
        row += [f"{value:.4f}" for value in found]
        rows.append([*row, *(f"{value:.2f}" for value in (errors[0], errors[-1], max(errors)))])
    if barriers:
        note += (
            " A barrier is the most by which the training loss lies above the straight line "
            "between its values at the ends."
        )
    return Table("Along the line", headings, rows, note)


def line_verdict(
    lines: Mapping[str, Sequence[Mapping[str, float]]], what: str, *, barriers: bool
) -> str:
    """Say in words how high loss and error go along lines; arguments as in :func:`line_table`."""
    losses, errors = (
        [record[key] for records in lines.values() for record in records]
        for key in ("train_loss", "test_error")
    )
    text = (
        f"Along {what}, the training loss lies between {min(losses):.4f} and {max(losses):.4g} and "
        f"the test error between {min(errors):.2f} and {max(errors):.2f} %"
    )
    if not barriers:
        return f"{text}."
    highest = max(lines, key=lambda name: _barrier(lines[name]))
    return f"{text}; the highest barrier, {_barrier(lines[highest]):.4f} nats, is on {highest}."


def _barrier(records: Sequence[Mapping[str, float]]) -> float:
    """Return the most by which the training loss lies above the straight line between its ends."""
    low, high = records[0]["t"], records[-1]["t"]
    part = [{**record, "t": (record["t"] - low) / (high - low)} for record in records]
    return summarise_curve(part, "train_loss")["barrier"]


def _distance(grid: PlaneGrid, step: Any) -> float:
    return math.sqrt(max(float(step @ grid.gram @ step), 0.0))
