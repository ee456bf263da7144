"""Interactive planes: heights, levels and colours are those of the static figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from plot_checks import check_plot, luminance

from fge.errors import UserError
from fge.landscape import PlaneGrid
from fge.report import Plot, plane_chart, plot_of
from fge.report.planes import contour_levels

XS, YS = np.array([0.0, 1.0, 2.0, 4.0]), np.array([-1.0, 0.0, 3.0])
X, Y = np.meshgrid(XS, YS)
VALUES = 1 + 2 * X + Y  # linear: interpolation between the points is exact
POINTS = {"w(0)": (0.0, 0.0), "a < b": (4.0, 3.0)}
LINES = {"curve": [(0.0, 0.0), (2.0, 1.0), (4.0, 3.0)], "segment": [(0.0, 0.0), (4.0, 3.0)]}


def grid(values: Any = VALUES, gram: Any = np.eye(2)) -> PlaneGrid:  # noqa: B008
    return PlaneGrid(XS, YS, {"train_loss": np.asarray(values)}, np.zeros((3, 2)), np.asarray(gram))


def plane_plot(*args: Any, **options: Any) -> Plot:
    return plot_of(plane_chart(*args, **options))


def surface_plot(*args: Any, **options: Any) -> Plot:
    return plane_plot(*args, **options, raised=True)


def by_name(plot: Any) -> dict[str, Any]:
    return {trace["name"]: trace for trace in plot.data}


def test_contours_lie_at_the_levels_of_the_figure() -> None:
    plot = plane_plot(grid(), "train_loss", points=POINTS, lines=LINES, cap=8.0)
    check_plot(plot)
    contour = by_name(plot)["train loss (nats)"]
    levels = contour_levels(VALUES, 8.0)
    x, y = np.meshgrid(contour["x"], contour["y"])
    heights = 1 + 2 * x + y
    assert heights.shape == np.shape(contour["z"])
    bands = np.array(contour["z"])
    assert np.floor(bands).tolist() == (np.searchsorted(levels, heights, "right") - 1).tolist()
    inside = heights <= 8.0
    exact = np.interp(heights, levels, np.arange(len(levels)))
    np.testing.assert_allclose(bands[inside], exact[inside], atol=1e-4)
    assert contour["contours"] == {"start": 0, "end": len(levels) - 1, "size": 1}
    assert contour["colorbar"]["ticktext"][-1] == "&gt; 8"
    assert contour["colorbar"]["ticktext"][0] == f"{levels[0]:.3g}"


def test_every_band_has_its_colour_in_contours_and_on_the_surface() -> None:
    contour = plane_plot(grid(), "train_loss").data[0]
    surface = surface_plot(grid(), "train_loss").data[0]
    count = len(contour["colorbar"]["tickvals"])
    in_bands = [colour for _, colour in contour["colorscale"][1:]]
    assert [place for place, _ in contour["colorscale"]] == [k / count for k in range(count + 1)]
    starts, ends = surface["colorscale"][::2], surface["colorscale"][1::2]
    assert [colour for _, colour in starts] == [colour for _, colour in ends] == in_bands
    assert [place for place, _ in starts] == [k / count for k in range(count)]
    assert len(set(in_bands)) == count
    low, high = to_rgb(in_bands[0]), to_rgb(in_bands[-1])
    assert low[0] > low[2]  # red where the loss is low, blue where it is high, as in the paper
    assert high[2] > high[0]


def test_names_can_be_read_on_every_band() -> None:
    plot = plane_plot(grid(), "train_loss", points=POINTS)
    ink = luminance(by_name(plot)["networks"]["textfont"]["color"])
    for _, colour in plot.data[0]["colorscale"]:
        assert (luminance(colour) + 0.05) / (ink + 0.05) >= 4.5


def test_nothing_on_a_surface_changes_with_light_and_dark() -> None:
    plot = surface_plot(grid(), "train_loss", points=POINTS, lines=LINES)
    traces, scene = by_name(plot), plot.layout["scene"]
    ground = luminance(scene["bgcolor"])
    inks = [traces["networks"]["textfont"]["color"], traces["curve"]["line"]["color"]]
    inks += [scene[f"{name}axis"]["color"] for name in "xyz"]
    for ink in map(luminance, inks):
        assert (ground + 0.05) / (ink + 0.05) >= 4.5
        for _, colour in traces["train loss (nats)"]["colorscale"]:
            assert (luminance(colour) + 0.05) / (ink + 0.05) >= 4.5


def test_measured_points_tell_their_values() -> None:
    values = VALUES.copy()
    values[0, 1] = np.inf
    plot = plane_plot(grid(values), "train_loss")
    check_plot(plot)
    points = by_name(plot)["measured points"]
    told = dict(zip(zip(points["x"], points["y"], strict=True), points["text"], strict=True))
    assert told[(4.0, 3.0)] == "12"
    assert told[(1.0, -1.0)] == "inf"
    assert len(told) == XS.size * YS.size


def test_networks_and_paths_are_marked() -> None:
    found = by_name(plane_plot(grid(), "train_loss", points=POINTS, lines=LINES))
    assert found["networks"]["text"] == ["w(0)", "a &lt; b"]
    assert (found["networks"]["x"], found["networks"]["y"]) == ([0, 4], [0, 3])
    assert (found["curve"]["x"], found["curve"]["y"]) == ([0, 2, 4], [0, 1, 3])
    assert found["curve"]["line"]["dash"] != found["segment"]["line"]["dash"]


def test_marks_lie_on_the_surface_and_outside_of_it_nowhere() -> None:
    points = {**POINTS, "outside": (5.0, 0.0)}
    plot = surface_plot(grid(), "train_loss", points=points, lines=LINES, cap=8.0)
    check_plot(plot)
    found = by_name(plot)
    surface = found["train loss (nats)"]
    assert np.max(surface["z"]) == 8.0
    x, y = np.meshgrid(surface["x"], surface["y"])
    np.testing.assert_allclose(surface["z"], np.minimum(1 + 2 * x + y, 8.0), atol=1e-4)
    lift = 0.01 * (8.0 - VALUES.min())
    assert found["networks"]["z"][:2] == pytest.approx([1 + lift, 8 + lift], abs=1e-4)
    assert found["networks"]["z"][2] is None
    line = found["segment"]
    on = np.minimum(1 + 2 * np.array(line["x"]) + np.array(line["y"]), 8.0) + lift
    np.testing.assert_allclose(line["z"], on, atol=1e-4)
    assert len(line["z"]) > 10  # bent with the surface


def test_equal_distances_look_equal_where_there_are_distances() -> None:
    assert plane_plot(grid(), "train_loss").layout["yaxis"]["scaleanchor"] == "x"
    other = plane_plot(grid(gram=[[4.0, 0.0], [0.0, 1.0]]), "train_loss").layout
    assert "scaleanchor" not in other["yaxis"]
    assert other["annotations"][0]["text"] == "x (multiples of the direction)"


def test_a_key_that_is_not_there_is_named() -> None:
    for draw in (plane_plot, surface_plot):
        with pytest.raises(UserError, match="unknown key of the grid 'train_los'"):
            draw(grid(), "train_los")


def test_a_cap_below_all_values_is_refused() -> None:
    with pytest.raises(UserError, match="cap must be finite and above"):
        plane_plot(grid(), "train_loss", cap=-5.0)
