"""Planes: orthonormal axes and coordinates, against closed forms and numpy's SVD."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fge.curves import Bezier, Chain, Curve
from fge.errors import UserError
from fge.landscape import Line, Plane
from fge.landscape import plane as plane_module
from fge.landscape.directions import random_direction
from fge.networks import Layout, encode_weights, flatten

REFERENCE = {
    "w0": [0, 0, 0],
    "w1": [1, 2, 2],
    "w2": [4, 0, 0],
    "atol": 1e-9,
    "coordinates": [[0, 0], [1, 2.8284271247461903], [4, 0]],
    "bezier_middle": [1.5, 1.4142135623730951],
}


def vector(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def random_vectors(count: int, size: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=rng, dtype=torch.float64) + 2


def test_the_reference_plane() -> None:
    points = torch.tensor([REFERENCE[name] for name in ("w0", "w1", "w2")], dtype=torch.float64)
    plane = Plane.through(*points)
    found = torch.tensor([plane.coordinates(point) for point in points], dtype=torch.float64)
    wanted = torch.tensor(REFERENCE["coordinates"], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=REFERENCE["atol"])
    torch.testing.assert_close(plane.anchors, wanted, rtol=0, atol=REFERENCE["atol"])
    (middle,) = plane.project(Curve(Bezier(3), points), [0.5]).tolist()
    assert middle == pytest.approx(REFERENCE["bezier_middle"], rel=0, abs=REFERENCE["atol"])
    assert plane.extent == pytest.approx((0, 4, 0, math.sqrt(8)), rel=0, abs=1e-12)
    wanted_bounds = (-0.8, 4.8, -0.2 * math.sqrt(8), 1.2 * math.sqrt(8))
    assert plane.bounds() == pytest.approx(wanted_bounds, rel=0, abs=1e-12)
    assert plane.bounds(0) == plane.extent


def test_the_box_holds_a_network_beyond_the_ends() -> None:
    plane = Plane.through(vector(0, 0), vector(-3, 1), vector(2, 0))
    assert plane.extent == pytest.approx((-3, 2, 0, 1), rel=0, abs=1e-12)


@pytest.mark.parametrize("angle", [1.0, 1e-3, 1e-7, 1e-10])
def test_the_axes_are_orthonormal_however_flat_the_triangle_is(angle: float) -> None:
    w0, along, across = random_vectors(3, 500)
    u = along / along.norm()
    across = across - (across @ u) * u
    v = (across - (across @ u) * u) / across.norm()
    w1 = w0 + 3 * (math.cos(angle) * u + math.sin(angle) * v)
    plane = Plane.through(w0, w1, w0 + 5 * u)
    torch.testing.assert_close(plane.gram, torch.eye(2).double(), rtol=0, atol=1e-14)
    x, y = plane.coordinates(w1)
    # w1 itself is rounded to 2e-16 a weight, some 1e-14 in all.
    assert x == pytest.approx(3 * math.cos(angle), rel=0, abs=1e-13)
    assert y == pytest.approx(3 * math.sin(angle), rel=0, abs=1e-13)
    torch.testing.assert_close(plane.point(x, y), w1, rtol=0, atol=1e-14)
    assert plane.residual(w1) < 1e-13


@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 3))
def test_coordinates_and_residual_take_a_point_apart(
    seed: int, x: float, y: float, height: float
) -> None:
    vectors = random_vectors(4, 30, seed)
    for plane in (
        Plane.through(*vectors[:3]),
        Plane.random(vectors[0], Layout(("w",), ((5, 6),)), seed),
    ):
        above = vectors[3].clone()
        basis, _ = torch.linalg.qr(plane.axes.T)
        for _ in range(2):
            above -= basis @ (basis.T @ above)
        point = plane.point(x, y) + height * above / above.norm()
        assert plane.coordinates(point) == pytest.approx((x, y), rel=0, abs=1e-10)
        assert plane.residual(point) == pytest.approx(height, rel=0, abs=1e-10)


def test_points_come_in_the_dtype_of_the_weights_and_give_them_back() -> None:
    w0, w1, w2 = random_vectors(3, 1000).float()
    plane = Plane.through(w0, w1, w2)
    assert plane.axes.dtype == torch.float64
    for w in (w0, w1, w2):
        assert torch.equal(plane.point(*plane.coordinates(w)), w)
    assert plane.point(1, 1).dtype == torch.float32


def test_a_chain_is_projected_where_it_goes() -> None:
    points = random_vectors(3, 40)
    plane = Plane.through(*points)
    path = plane.project(Chain.through(points, closed=True))
    assert path.shape == (61, 2)
    wanted = plane.anchors[[0, 1, 2, 0]]
    torch.testing.assert_close(path[::20], wanted, rtol=0, atol=1e-12)
    assert plane.project(Chain.through(points), []).shape == (0, 2)


GOOD = [vector(0, 0, 0), vector(1, 2, 2), vector(4, 0, 0)]
LINE = random_vectors(2, 1000)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([GOOD[0], GOOD[0], GOOD[2]], "w0 and w1 are equal up to rounding; give three"),
        ([GOOD[0], GOOD[2], GOOD[2]], "w1 and w2 are equal up to rounding"),
        ([GOOD[0], GOOD[1], GOOD[0]], "w2 and w0 are equal up to rounding"),
        (
            [GOOD[0], GOOD[2] / 2, GOOD[2]],
            "w0, w1 and w2 are on one line up to rounding: w1 is 0 off the line",
        ),
        (
            [LINE[0], 0.3 * LINE[0] + 0.7 * LINE[1], LINE[1]],
            "w0, w1 and w2 are on one line up to rounding: w1",
        ),
        (
            [LINE[0].float(), 0.3 * LINE[0].float() + 0.7 * LINE[1].float(), LINE[1].float()],
            "w0, w1 and w2 are on one line up to rounding: w1 is .*e-0. off the line",
        ),
        ([GOOD[0], vector(1, 2), GOOD[2]], "w1 has 2 weights, w0 has 3; give networks of one"),
        ([GOOD[0], GOOD[1], torch.ones(3, 1)], r"w2 must be a floating-point vector \(P,\), got"),
        ([torch.ones(3).int(), *GOOD[1:]], r"w0 must be a floating-point vector \(P,\), got"),
        ([GOOD[0], vector(1, math.nan, 0), GOOD[2]], "w1 holds values that are not finite"),
    ],
)
def test_points_that_span_no_plane_are_refused(points: list[Tensor], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Plane.through(*points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (2, 0)])
def test_points_one_rounding_apart_count_as_the_same(
    one: int, other: int, dtype: torch.dtype
) -> None:
    points = [w.to(dtype) for w in random_vectors(3, 1000)]
    points[other] = torch.nextafter(points[one], torch.full_like(points[one], torch.inf))
    assert not torch.equal(points[one], points[other])
    with pytest.raises(UserError, match=f"^w{one} and w{other} are equal up to rounding"):
        Plane.through(*points)
    noise = torch.finfo(dtype).eps * float(points[one].norm())
    points[other] = points[one] + 20 * noise / math.sqrt(1000)
    Plane.through(*points)


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(UserError, match=r"^margin must be >= 0, a fraction of the extent, got"):
        Plane.through(*GOOD).bounds(margin)


@pytest.mark.parametrize("ask", [Plane.coordinates, Plane.residual])
def test_weights_of_another_network_have_no_coordinates(
    ask: Callable[[Plane, Tensor], object],
) -> None:
    with pytest.raises(UserError, match=r"^weights has 2 weights, origin has 3"):
        ask(Plane.through(*GOOD), vector(1, 2))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (torch.ones(1, 2), "a plane has two axes, got 1"),
        (torch.ones(2, 2), "the axes of a plane must not be zero or parallel"),
        (torch.zeros(2, 2), "the axes of a plane must not be zero or parallel"),
        (torch.ones(2, 3), r"axes\[0\] has 3 weights, origin has 2"),
    ],
)
def test_axes_that_span_no_plane_are_refused(axes: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Plane(torch.zeros(2, dtype=torch.float64), axes.double())


def test_a_random_plane_has_filter_normalised_axes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)).double()
    center, layout = flatten(model, model), Layout.of(model)
    for biases in (False, True):
        plane = Plane.random(center, layout, 4, biases=biases)
        for axis in range(2):
            wanted = random_direction(center, layout, 4, axis, biases=biases)
            assert torch.equal(plane.axes[axis], wanted)
        assert torch.equal(plane.point(0, 0), center)
        assert plane.bounds(0.5) == (-2.0, 2.0, -2.0, 2.0)
        assert plane.anchors.tolist() == [[0.0, 0.0]]
    assert not torch.equal(Plane.random(center, layout, 5).axes, Plane.random(center, layout).axes)


def test_a_center_that_is_no_network_has_no_random_plane() -> None:
    with pytest.raises(UserError, match=r"^center holds values that are not finite"):
        Plane.random(vector(math.inf), Layout(("w",), ((1, 1),)))
    with pytest.raises(UserError, match=r"^a vector of the model's parameters has shape \(2,\)"):
        Plane.random(vector(1.0), Layout(("w",), ((1, 2),)))
    with pytest.raises(UserError, match=r"^the axes of a plane must not be zero or parallel"):
        Plane.random(vector(1.0), Layout(("w",), ((1, 1),)))


def trajectory(count: int = 7, size: int = 60) -> Tensor:
    """Return a walk whose steps differ much in size, so that components are well separated."""
    steps = random_vectors(count, size, 5) * (torch.arange(count).double() + 1)[:, None] ** 2
    return steps.cumsum(0)


@pytest.mark.parametrize("columns", [7, 60, 1 << 20])
@pytest.mark.parametrize("centered", [False, True])
def test_principal_components_are_those_of_numpy(
    monkeypatch: pytest.MonkeyPatch, columns: int, centered: bool
) -> None:
    monkeypatch.setattr(plane_module, "_COLUMNS", columns)
    path = trajectory()
    center = path[-1] if centered else path.mean(0)
    plane = Plane.principal(path, center=path[-1] if centered else None)
    differences = (path - center).numpy()
    _, sizes, right = np.linalg.svd(differences)
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]
    for axis in range(2):
        found = plane.axes[axis].numpy()
        assert abs(float(found @ right[axis])) == pytest.approx(1, rel=0, abs=1e-12)
        assert float(np.linalg.norm(differences @ found)) == pytest.approx(sizes[axis], rel=1e-12)
        assert float(plane.anchors[-1, axis] - plane.anchors[0, axis]) > 0
    torch.testing.assert_close(plane.origin, center, rtol=0, atol=1e-12)
    torch.testing.assert_close(plane.gram, torch.eye(2).double(), rtol=0, atol=1e-14)
    wanted = torch.from_numpy(differences) @ plane.axes.T
    torch.testing.assert_close(plane.anchors, wanted, rtol=0, atol=1e-10)
    low, high = wanted.amin(0), wanted.amax(0)
    box = [low[0], high[0], low[1], high[1]]
    assert plane.extent == pytest.approx([float(v) for v in box], rel=0, abs=1e-10)


def test_a_second_component_a_hundred_million_times_smaller_keeps_its_direction() -> None:
    first, second = torch.linalg.qr(random_vectors(2, 200).T)[0].T
    times = torch.linspace(-1, 1, 9, dtype=torch.float64)
    bend = times**2 - (times**2).mean()  # perpendicular to times
    path = times[:, None] * first + 1e-8 * bend[:, None] * second
    plane = Plane.principal(list(path))
    # A Gram matrix would square the ratio to 1e-16 and lose it; here 1e-16/1e-8 is left.
    assert abs(float(plane.axes[1] @ second)) == pytest.approx(1, rel=0, abs=1e-6)
    torch.testing.assert_close(plane.gram, torch.eye(2).double(), rtol=0, atol=1e-14)


def test_a_trajectory_in_single_precision_gives_points_in_it() -> None:
    path = trajectory().float()
    plane = Plane.principal(path, center=path[-1])
    assert torch.equal(plane.point(0, 0), path[-1])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (LINE, "principal components need at least 3 vectors, got 2"),
        ([*LINE, LINE[0]], "the 3 vectors are on a line through the center"),
        ([*LINE.float(), LINE.float().mean(0)], "the 3 vectors are on a line through the center"),
        ([vector(1), vector(2), vector(4)], "the 3 vectors are on a line through the center"),
        ([LINE[0]] * 3, "the 3 vectors are on a line through the center"),
        ([*LINE, LINE[0] / 0], "vector 2 holds values that are not finite"),
        ([*LINE, LINE[0, :-1]], "vector 2 has 999 weights, vector 0 has 1000"),
    ],
)
def test_trajectories_without_two_components_are_refused(path: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Plane.principal(path)


def test_a_center_of_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"^center has 2 weights, vector 0 has 60"):
        Plane.principal(trajectory(), center=vector(1, 2))


def test_planes_and_lines_go_through_networks_however_they_are_given(tmp_path: Path) -> None:
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double())
    vectors = [flatten(model, model) for model in models]
    expected, line = Plane.through(*vectors), Line.through(*vectors[:2])
    file = tmp_path / "w.safetensors"
    file.write_bytes(encode_weights(models[2].state_dict()))
    mixed: list[Any] = [models[0], models[1].state_dict(), file]
    for networks in (models, mixed):
        assert torch.equal(Plane.through(*networks).axes, expected.axes)
    states = [model.state_dict() for model in models]
    assert torch.equal(Plane.through(*states, model=models[0]).axes, expected.axes)
    assert torch.equal(Line.through(*mixed[:2]).direction, line.direction)
    message = r"^a dict does not say which tensors are parameters; give model=, the architecture$"
    with pytest.raises(UserError, match=message):
        Plane.through(*(dict(state) for state in states))
