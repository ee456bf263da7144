"""Figures of loss surfaces: levels against their formula, and what is drawn where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from fge.errors import UserError
from fge.landscape import PlaneGrid
from fge.report import (
    draw,
    line_chart,
    line_table,
    line_verdict,
    plane_chart,
    plane_verdict,
    save_figure,
)
from fge.report.planes import contour_levels

POINTS = {"first": (0.0, 0.0), "bend": (1.0, 1.5), "second": (2.0, 0.0)}
LINES: dict[str, Any] = {
    "curve": torch.tensor([[0.0, 0.0], [1.0, 0.75], [2.0, 0.0]]),
    "segment": [(0.0, 0.0), (2.0, 0.0)],
}


def grid_of(scale: float = 1.0, odd: float | None = None) -> PlaneGrid:
    """Return a grid of x + 10 y², with one odd value where there is one."""
    xs, ys = np.linspace(-1, 3, 9), np.linspace(-1, 2, 7)
    values = xs[None] + 10 * ys[:, None] ** 2
    if odd is not None:
        values[6, 8] = odd
    return PlaneGrid(xs, ys, {"train_loss": values}, np.zeros((1, 2)), scale * np.eye(2))


def plane_figure(*args: Any, **options: Any) -> Figure:
    return draw(plane_chart(*args, **options))


def surface_figure(*args: Any, **options: Any) -> Figure:
    return draw(plane_chart(*args, **options, raised=True))


def filled_of(figure: Figure) -> QuadContourSet:
    (filled,) = [
        c for c in figure.axes[0].collections if isinstance(c, QuadContourSet) and c.filled
    ]
    return filled


def labels_of(axes: Axes) -> dict[str, Any]:
    return {str(text.get_text()).strip(): text for text in axes.texts}


@pytest.mark.parametrize("count", [2, 5, 8])
def test_levels_lie_a_constant_factor_apart_from_the_minimum_to_the_cap(count: int) -> None:
    values = np.array([[3.0, 0.5], [math.inf, math.nan]])
    levels = contour_levels(values, 2.5, count)
    assert len(levels) == count
    assert levels[0] == 0.5
    assert levels[-1] == 2.5
    above = levels[1:] - 0.5
    np.testing.assert_allclose(above[1:] / above[:-1], math.exp(5 / (count - 1)), rtol=1e-12)


def test_the_cap_is_a_percentile_where_none_is_given() -> None:
    values = np.append(np.arange(101.0), math.inf)
    assert contour_levels(values)[-1] == 80.0


def test_a_flat_surface_has_levels_too() -> None:
    for value in (0.0, -3.0, 1e6):
        levels = contour_levels(np.full((3, 3), value))
        assert bool((np.diff(levels) > 0).all())


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, 2.0], {"cap": 1.0}, "cap must be finite and above the lowest value, 1, got 1"),
        ([1.0, 2.0], {"cap": math.nan}, "cap must be finite and above the lowest value, 1, got"),
        ([1.0, 2.0], {"cap": math.inf}, "cap must be finite and above the lowest value, 1, got"),
        ([1.0, 2.0], {"count": 1}, "count, the number of levels, must be >= 2, got 1"),
        ([math.nan, math.inf], {}, "a figure needs finite values, got none"),
    ],
)
def test_levels_that_cannot_be_are_refused(
    values: list[float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        contour_levels(np.array(values), **options)


def test_the_contours_are_those_of_the_values_and_merge_above_the_cap() -> None:
    grid = grid_of()
    figure = plane_figure(grid, "train_loss", points=POINTS, lines=LINES, cap=5.0)
    filled = filled_of(figure)
    np.testing.assert_allclose(filled.levels, contour_levels(grid.values["train_loss"], 5.0))
    assert filled.extend == "max"
    assert len(filled.get_paths()) == 8  # seven bands between the levels, one above the cap
    # Above the cap are the points with |y| > 1 or so, all around the valley at y = 0.
    above = filled.get_paths()[-1]
    assert above.contains_point((0.0, 1.9))
    assert above.contains_point((2.9, -0.99))
    assert not above.contains_point((0.0, 0.0))
    assert filled.get_paths()[0].contains_point((-0.999, 0.0))
    bar = figure.axes[1]
    ticks = [label.get_text() for label in bar.get_yticklabels()]
    assert ticks[0] == "-1"
    assert ticks[-1] == "> 5"
    assert bar.get_ylabel() == "train loss (nats)"


def test_networks_curve_and_segment_lie_where_they_are() -> None:
    axes = plane_figure(grid_of(), "train_loss", points=POINTS, lines=LINES).axes[0]
    drawn = {line.get_label(): line for line in axes.get_lines()}
    for name, line in LINES.items():
        np.testing.assert_array_equal(drawn[name].get_xydata(), np.asarray(line))
    assert drawn["curve"].get_linestyle() != drawn["segment"].get_linestyle()
    dots = [tuple(line.get_xydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"]
    assert dots == list(POINTS.values())
    assert {name: label.xy for name, label in labels_of(axes).items()} == POINTS
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(LINES)


def test_the_axes_say_whether_they_are_distances() -> None:
    orthonormal = plane_figure(grid_of(), "train_loss").axes
    assert orthonormal[0].get_xlabel() == "x (distance in weight space)"
    assert orthonormal[0].get_aspect() == 1.0
    assert orthonormal[0].get_xlim() == (-1, 3)
    assert orthonormal[0].get_ylim() == (-1, 2)
    assert orthonormal[1].get_ylabel() == "train loss (nats)"
    other = plane_figure(grid_of(4.0), "train_loss").axes[0]
    assert other.get_ylabel() == "y (multiples of the direction)"
    assert other.get_aspect() == "auto"
    assert other.get_legend() is None


@pytest.mark.parametrize("odd", [math.inf, math.nan, 1e30])
def test_values_that_are_not_finite_count_as_above_the_cap(odd: float) -> None:
    figure = plane_figure(grid_of(odd=odd), "train_loss", cap=50.0)
    above = filled_of(figure).get_paths()[-1]
    assert above.contains_point((2.99, 1.99))
    assert not above.contains_point((1.0, 1.0))


def test_the_surface_is_cut_off_at_the_cap_and_carries_the_marks() -> None:
    points = {**POINTS, "outside": (9.0, 9.0)}
    figure = surface_figure(grid_of(), "train_loss", points=points, lines=LINES, cap=5.0)
    axes: Any = figure.axes[0]
    assert axes.get_zlabel() == "train loss (nats)"
    low, high = axes.zz_dataLim.intervalx
    assert (low, high) == pytest.approx((-1.0, 5.0), rel=0, abs=1e-12)
    assert set(labels_of(axes)) == set(POINTS)
    heights = {name: text._z for name, text in labels_of(axes).items()}
    assert heights == pytest.approx({"first": 0.0, "bend": 5.0, "second": 2.0}, rel=0, abs=1e-12)
    drawn = {line.get_label(): line.get_data_3d() for line in axes.get_lines()}
    x, y, z = drawn["segment"]
    assert len(x) > 20  # the segment lies on the surface, not straight above or below it
    np.testing.assert_allclose(z, x, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(y, 0)


def test_figures_are_written_as_png(tmp_path: Path) -> None:
    for name, figure in (("plane", plane_figure), ("surface", surface_figure)):
        path = tmp_path / f"{name}.png"
        save_figure(figure(grid_of(odd=math.inf), "train_loss", points=POINTS, lines=LINES), path)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [plane_figure, surface_figure])
def test_an_unknown_key_is_named_with_the_nearest(draw: Any) -> None:
    with pytest.raises(UserError, match=r"^unknown key of the grid 'loss'; did you mean 'train_l"):
        draw(grid_of(), "loss")
    with pytest.raises(UserError, match=r"^cap must be finite and above the lowest value, -1"):
        draw(grid_of(), "train_loss", cap=-2.0)


def records_of(*values: float) -> list[dict[str, float]]:
    return [{"t": float(t), "arc": 2.0 * t, "loss": value} for t, value in enumerate(values)]


def test_lines_are_drawn_against_t_or_along_the_way() -> None:
    lines = {"curve": records_of(3.0, 2.0), "segment": records_of(3.0, 5.0)}
    for x, label, end in (("t", "t", 1.0), ("arc", "length along the line", 2.0)):
        chart = line_chart(lines, x=x)
        (panel,) = chart.panels
        assert (chart.x, panel.label) == (label, "loss (nats)")
        shown = {one.name: (list(one.x), list(one.y)) for one in panel.series}
        assert shown == {"curve": ([0, end], [3, 2]), "segment": ([0, end], [3, 5])}


def test_lines_without_the_key_are_refused() -> None:
    with pytest.raises(UserError, match=r"^a chart needs at least one line, got none$"):
        line_chart({})
    with pytest.raises(UserError, match=r"^unknown key of the records 'los'; did you mean 'loss'"):
        line_chart({"curve": records_of(1.0)}, key="los")
    with pytest.raises(UserError, match=r"^unknown key of the records 'tt'"):
        line_chart({"curve": records_of(1.0)}, x="tt")


@pytest.mark.parametrize(("low", "on_rim"), [((3, 4), False), ((0, 4), True), ((3, 8), True)])
def test_a_lowest_point_on_the_rim_is_not_called_a_minimum(
    low: tuple[int, int], on_rim: bool
) -> None:
    grid = grid_of()
    values = np.ones_like(grid.values["train_loss"])
    values[low] = 0.5
    grid.values.update(train_loss=values, test_error=values)
    network = {"name": "first", "x": 0.0, "y": 0.0}
    sentences = plane_verdict(grid, [network])
    assert ("on the rim of the plane, so it is no minimum" in " ".join(sentences)) == on_rim
    assert len(sentences) == 2 + on_rim


def on_line(*losses: float) -> list[dict[str, float]]:
    places = np.linspace(0, 1, len(losses)).tolist()
    return [
        {"t": t, "arc": t, "train_loss": loss, "test_error": 10.0}
        for t, loss in zip(places, losses, strict=True)
    ]


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_what_has_overflowed_on_a_line_is_the_highest_wherever_it_is(odd: float) -> None:
    lines = {"plain": on_line(1.0, 2.0, 1.0), "far": on_line(1.0, odd, 5.0)}
    for given in (lines, dict(reversed(lines.items()))):
        highest, between, _ = line_verdict(given, "made up", barriers=True)
        assert highest == "The highest barrier of the training loss is inf nats, on far."
        assert between.startswith("The training loss lies between 1.0000 and inf, the test error")
    table = line_table({"far": on_line(odd, 1.0, 5.0)}, "", barriers=False)
    assert table.rows[0][2:6] == ["inf", "5.0000", "1.0000", "inf"]


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_and_so_it_is_on_a_plane(odd: float) -> None:
    grid = grid_of(odd=odd)
    grid.values["test_error"] = grid.values["train_loss"]
    network = {"name": "a", "x": 0.0, "y": 0.0}
    assert plane_verdict(grid, [network])[-1] == (
        "The training loss lies between -1.0000 and inf, the test error between -1.00 and inf %."
    )
