"""Distances and angles of weight vectors against shapes whose geometry is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fge.curves import angle, distance, geometry, turning_angles
from fge.curves.geometry import cosine
from fge.errors import UserError


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_vectors(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def polygon(corners: int, steps: int) -> list[Tensor]:
    """Return a walk along the sides of a regular polygon, in a plane askew in 5 dimensions."""
    plane = torch.linalg.qr(random_vectors(2, 5).T)[0]
    turns = 2 * math.pi / corners * torch.arange(steps, dtype=torch.float64)
    points = torch.stack([turns.cos(), turns.sin()], dim=1).cumsum(dim=0)
    return list(points @ plane.T)


def test_distances_and_angles_of_a_right_triangle() -> None:
    a, b = vector(3.0, 0.0, 0.0), vector(0.0, 4.0, 0.0)
    assert distance(a, b) == 5.0
    assert (cosine(a, b), angle(a, b)) == (0.0, 90.0)
    assert angle(a, vector(1.0, 1.0, 0.0)) == pytest.approx(45.0, rel=0, abs=1e-12)
    assert angle(a, vector(-1.0, 0.0, math.sqrt(3))) == pytest.approx(120.0, rel=0, abs=1e-12)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_the_same_and_the_opposite_direction_are_at_the_ends_of_the_range(
    scale: float, seed: int
) -> None:
    (a,) = random_vectors(1, 30, seed)
    assert cosine(a, scale * a) == pytest.approx(1.0, rel=0, abs=1e-14)
    assert angle(a, scale * a) == pytest.approx(0.0, rel=0, abs=2e-6)
    assert angle(a, -scale * a) == pytest.approx(180.0, rel=0, abs=2e-6)
    assert distance(a, a) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_sums_over_parts_are_those_of_whole_vectors(
    monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(geometry, "_CHUNK", chunk)
    vectors = random_vectors(4, 100).to(dtype)
    exact = vectors.double().numpy()
    steps = np.diff(exact, axis=0)
    norms = np.linalg.norm(exact, axis=1)
    lengths = np.linalg.norm(steps, axis=1)
    for k in range(3):
        a, b = vectors[k], vectors[k + 1]
        assert distance(a, b) == pytest.approx(lengths[k], rel=1e-13)
        wanted = exact[k] @ exact[k + 1] / norms[k] / norms[k + 1]
        assert cosine(a, b) == pytest.approx(wanted, rel=0, abs=1e-13)
    turns = np.sum(steps[1:] * steps[:-1], axis=1) / lengths[1:] / lengths[:-1]
    found = np.cos(np.radians(turning_angles(vectors).numpy()))
    assert found == pytest.approx(turns, rel=0, abs=1e-13)


@pytest.mark.parametrize("corners", [3, 4, 6, 360])
def test_a_walk_around_a_polygon_turns_by_its_outer_angle(corners: int) -> None:
    path = polygon(corners, 7)
    assert turning_angles(path).tolist() == pytest.approx([360 / corners] * 5, rel=0, abs=1e-9)


def test_a_trajectory_goes_straight_on_and_turns_back() -> None:
    start, step = vector(5.0, -1.0), vector(1.0, 2.0)
    path = [start, start + step, start + 3 * step, start + 2 * step]
    assert turning_angles(path).tolist() == pytest.approx([0.0, 180.0], rel=0, abs=2e-6)


def test_small_steps_far_from_the_origin_are_measured_in_float64() -> None:
    path = torch.tensor([[4096.0, 0.0], [4096.0 + 2**-11, 0.0], [4096.0 + 2**-11, 2**-11]])
    assert path.dtype == torch.float32
    assert [distance(path[0], path[1]), distance(path[1], path[2])] == [2**-11, 2**-11]
    assert turning_angles(path).tolist() == [90.0]


def test_parameters_are_taken_and_no_graph_is_kept() -> None:
    a, b = nn.Parameter(vector(1.0, 0.0)), nn.Parameter(vector(1.0, 1.0))
    assert distance(a, b) == 1.0
    assert not turning_angles([a, b, a]).requires_grad


GOOD = [vector(1.0, 2.0), vector(2.0, 1.0), vector(0.0, 1.0)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 2), r"vector 2 has shape \(1, 2\); give flat weights \(P,\)"),
        (torch.zeros(3), "vector 2 has 3 weights, vector 0 has 2; compare networks of one"),
        (vector(1.0, math.nan), "vector 2 holds values that are not finite"),
        (vector(-math.inf, 1.0), "vector 2 holds values that are not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_named(bad: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        turning_angles([*GOOD[:2], bad])


@pytest.mark.parametrize("function", [distance, cosine, angle])
def test_two_vectors_that_do_not_fit_are_refused(function: Callable[..., float]) -> None:
    with pytest.raises(UserError, match=r"^vector 1 has 3 weights, vector 0 has 2"):
        function(vector(1.0, 2.0), vector(1.0, 2.0, 3.0))


@pytest.mark.parametrize("function", [cosine, angle])
def test_a_vector_of_length_0_has_no_direction(function: Callable[..., float]) -> None:
    with pytest.raises(
        UserError, match=r"^vector 1 has length 0, so it has no direction; leave it out$"
    ):
        function(vector(1.0, 2.0), vector(0.0, 0.0))


def test_a_trajectory_that_stays_where_it_is_does_not_turn() -> None:
    with pytest.raises(UserError, match=r"^the step from vector 1 to 2 has length 0"):
        turning_angles([GOOD[0], GOOD[1], GOOD[1], GOOD[2]])


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(UserError, match=r"^give at least 3 vectors of weights, got 2$"):
        turning_angles(GOOD[:2])
