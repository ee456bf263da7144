"""Results of planes and lines: tables, sentences and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from fge.config import CURVE_ENSEMBLE
from fge.curves import summarise_curve
from fge.errors import UserError, unknown
from fge.landscape import PlaneGrid
from fge.report.charts import Chart, PlaneChart, Series, lines_chart, refined
from fge.report.page import Table
from fge.tasks import MANY_CLASSES, Task

Array = NDArray[np.float64]
Points = Mapping[str, tuple[float, float]]
Lines = Mapping[str, Any]
"""Paths (T, 2) in the plane by name: arrays, tensors or lists."""
_DECAY = 5.0
"""The range of the levels, in factors of e: that of the published figures."""
_RIM = (
    "That point is on the rim of the plane, so it is no minimum: the loss may be lower outside; a "
    "larger --margin shows more."
)
_PARTS = ("train", "test")
_FACES = 56
"""The least number of points along each side of a drawing; each cell has a whole number."""
_COLOURS = "jet_r"
"""The paper's colours run from red (low) to blue (high)."""
LINE_AXES = {"t": "t", "arc": "length along the line", "distance": "distance from t = 0"}
"""Labels of the horizontal axis, by key of the records along a line."""


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
        raise UserError("a figure needs finite values, got none")
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


def plane_chart(
    grid: PlaneGrid,
    key: str = "loss",
    *,
    points: Points | None = None,
    lines: Lines | None = None,
    cap: float | None = None,
    raised: bool = False,
    task: Task = MANY_CLASSES,
) -> PlaneChart:
    """Return a plane at logarithmic levels, as arXiv 1802.10026 draws it (figure 1).

    Between the measured points heights are interpolated linearly. Points and lines lie on a raised
    surface; those outside the grid are left out.

    Args:
        grid: of :func:`fge.evaluate_plane`.
        key: of ``grid.values``.
        points: coordinates of networks, drawn as dots, by label.
        lines: paths (T, 2) by label, a projected curve or a segment, in different dashes.
        cap: values above are shown alike; see :func:`contour_levels`.
        raised: whether it is a surface in three dimensions.
        task: whose figures the values are.

    Raises:
        UserError: no such key, or a cap that is not above the lowest value.
    """
    if key not in grid.values:
        raise unknown("key of the grid", key, grid.values)
    values = grid.values[key]
    levels = contour_levels(values, cap)
    at = RegularGridInterpolator((grid.xs, grid.ys), finite_values(values, levels[-1]).T)
    xs, ys = (
        refined(side[:, None], -(-_FACES // (len(side) - 1)))[:, 0] for side in (grid.xs, grid.ys)
    )
    distances = bool(np.allclose(grid.gram, np.eye(2), rtol=0, atol=1e-6))
    unit = "distance in weight space" if distances else "multiples of the direction"
    ratio = np.ptp(grid.xs) / np.ptp(grid.ys)
    return PlaneChart(
        measured=np.stack(np.meshgrid(grid.xs, grid.ys), axis=-1).reshape(-1, 2),
        values=values.ravel(),
        xs=xs,
        ys=ys,
        heights=at(np.stack(np.meshgrid(xs, ys), axis=-1)),
        levels=levels,
        colours=_colours(len(levels)),
        label=text_of(key, task),
        axes=(f"x ({unit})", f"y ({unit})"),
        points=points or {},
        paths={name: np.asarray(path, dtype=np.float64) for name, path in (lines or {}).items()},
        equal=distances and bool(1 / 3 < ratio < 3),
        raised=raised,
    )


def _colours(count: int) -> list[str]:
    """Return a colour for each band, so light that names on it can be read."""
    full = mpl.colormaps[_COLOURS](np.linspace(0, 1, count))[:, :3]
    return [to_hex(colour) for colour in 0.48 * full + 0.52]


def line_chart(
    lines: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    key: str = "loss",
    x: str = "t",
    task: Task = MANY_CLASSES,
) -> Chart:
    """Return one figure of merit along lines, curves or chains.

    Args:
        lines: records of :func:`fge.landscape.evaluate_line` by label.
        key: of the records, for the vertical axis.
        x: of the records, for the horizontal one: ``t``, ``arc`` or ``distance``.
        task: whose figures the records have.

    Raises:
        UserError: there are no lines, or records without such a key.
    """
    if not lines:
        raise UserError("a chart needs at least one line, got none")
    for records in lines.values():
        for wanted in (key, x):
            if any(wanted not in record for record in records):
                raise unknown("key of the records", wanted, records[0])
    series = [
        Series(
            name,
            [r[x] for r in records],
            [r[key] for r in records],
            like=CURVE_ENSEMBLE if name == "curve" else "",
        )
        for name, records in lines.items()
    ]
    return lines_chart(series, x=LINE_AXES.get(x, x), y=text_of(key, task))


def finite_values(values: Array, cap: float) -> Array:
    """Return the values, those that are not finite above the cap and above all others."""
    finite = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, max(float(finite.max()), 2 * cap - finite.min()))


def numbers(values: Array) -> Array:
    """Return the values, those that are no number as infinite: what has overflowed is high."""
    return np.where(np.isnan(values), np.inf, values)


def _column(records: Sequence[Mapping[str, float]], key: str) -> list[float]:
    found: list[float] = numbers(np.array([record[key] for record in records])).tolist()
    return found


def text_of(key: str, task: Task = MANY_CLASSES) -> str:
    """Return what a key such as ``train_loss`` means, with its unit."""
    split, _, name = key.rpartition("_")
    units = {measure.key: measure.axis for measure in (task.training, task.measure)}
    return f"{split} {({**units, 'nll': 'NLL (nats)'}).get(name, name)}".strip()


def plane_table(
    networks: Sequence[Mapping[str, Any]], note: str, *, task: Task = MANY_CLASSES
) -> Table:
    """Return the table of the networks on a plane.

    Args:
        networks: each with ``name``, ``x``, ``y``, ``off_plane`` (its distance from the plane) and
            the keys of :func:`fge.evaluate_plane` for ``train`` and ``test``.
        note: what was measured.
        task: whose figures they are.
    """
    measure = task.measure
    headings = ["network", "x", "y", "off the plane", "train loss", f"train {measure.heading}"]
    headings += [f"test {measure.heading}", "test NLL"]
    rows = []
    for found in networks:
        # Rounded first, and added to 0: a coordinate of -1e-16 is no "-0.000".
        cells = [f"{round(found[key], 3) + 0.0:.3f}" for key in ("x", "y", "off_plane")]
        cells.append(f"{found['train_loss']:.4f}")
        cells += [measure.form.format(found[f"{part}_{measure.key}"]) for part in _PARTS]
        rows.append([found["name"], *cells, f"{found['test_nll']:.4f}"])
    return Table("Networks on the plane", headings, rows, note)


def plane_verdict(
    grid: PlaneGrid, networks: Sequence[Mapping[str, Any]], *, task: Task = MANY_CLASSES
) -> list[str]:
    """Say where the training loss is lowest, how far from the networks, and its range.

    Args:
        grid: with ``train_loss`` and ``test_error``, or the measure of another task.
        networks: as in :func:`plane_table`.
        task: whose figures they are.
    """
    measure = task.measure
    loss, tested = (numbers(grid.values[key]) for key in ("train_loss", f"test_{measure.key}"))
    row, column = np.unravel_index(int(loss.argmin()), loss.shape)
    place = np.array([grid.xs[column], grid.ys[row]])
    apart = {n["name"]: _distance(grid, place - np.array([n["x"], n["y"]])) for n in networks}
    near = min(apart, key=lambda name: apart[name])
    on_rim = row in (0, len(grid.ys) - 1) or column in (0, len(grid.xs) - 1)
    return [
        f"The training loss is lowest at ({place[0]:.3g}, {place[1]:.3g}), at a distance of "
        f"{apart[near]:.3g} from the nearest network, {near} (measured at {len(grid.xs)} x "
        f"{len(grid.ys)} points).",
        *([_RIM] if on_rim else []),
        f"The training loss lies between {loss.min():.4f} and {loss.max():.4g}, the test "
        f"{measure.word} {measure.between(tested.min(), tested.max())}.",
    ]


def line_table(
    lines: Mapping[str, Sequence[Mapping[str, float]]],
    note: str,
    *,
    barriers: bool,
    task: Task = MANY_CLASSES,
) -> Table:
    """Return the table of lines, or parts of one.

    Args:
        lines: records of :func:`fge.landscape.evaluate_line` for ``train`` and ``test``, by name.
        note: what was measured.
        barriers: whether the lines join networks, between which there may be a barrier.
        task: whose figures the records have.
    """
    measure = task.measure
    headings = ["line", "length", "train loss: start", "end", "lowest", "highest"]
    headings += ["barrier"] if barriers else []
    headings += [f"test {measure.heading}: start", "end", "highest"]
    rows = []
    for name, records in lines.items():
        losses, tested = (_column(records, k) for k in ("train_loss", f"test_{measure.key}"))
        found = [losses[0], losses[-1], min(losses), max(losses)]
        found += [_barrier(records)] if barriers else []
        row = [name, f"{records[-1]['arc'] - records[0]['arc']:.3f}"]
        row += [f"{value:.4f}" for value in found]
        row += [measure.form.format(value) for value in (tested[0], tested[-1], max(tested))]
        rows.append(row)
    if barriers:
        note += (
            " The barrier is the largest height of the training loss above the straight line "
            "between its values at the ends."
        )
    return Table("Along the line", headings, rows, note)


def line_verdict(
    lines: Mapping[str, Sequence[Mapping[str, float]]],
    what: str,
    *,
    barriers: bool,
    task: Task = MANY_CLASSES,
) -> list[str]:
    """Say how high loss and measure go along lines; arguments as in :func:`line_table`."""
    measure, training = task.measure, task.training
    losses, tested = (
        [value for records in lines.values() for value in _column(records, key)]
        for key in ("train_loss", f"test_{measure.key}")
    )
    ranges = (
        f"The training loss lies between {min(losses):.4f} and {max(losses):.4g}, the test "
        f"{measure.word} {measure.between(min(tested), max(tested))}"
    )
    along = f"The line is {what}."
    if not barriers:
        return [f"{ranges} (one line, one test set).", along]
    highest = max(lines, key=lambda name: _barrier(lines[name]))
    return [
        "The highest barrier of the training loss is "
        f"{training.difference.format(_barrier(lines[highest]))}, on {highest}.",
        f"{ranges}.",
        along,
    ]


def _barrier(records: Sequence[Mapping[str, float]]) -> float:
    """Return the largest height of the training loss above the straight line between its ends."""
    low, high = records[0]["t"], records[-1]["t"]
    losses = zip(records, _column(records, "train_loss"), strict=True)
    part = [{**r, "t": (r["t"] - low) / (high - low), "train_loss": loss} for r, loss in losses]
    return summarise_curve(part, "train_loss")["barrier"]


def _distance(grid: PlaneGrid, step: Any) -> float:
    return math.sqrt(max(float(step @ grid.gram @ step), 0.0))
