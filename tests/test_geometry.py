"""Distances and angles of weight vectors against shapes whose geometry is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fge import geometry
from fge.errors import UserError
from fge.geometry import (
    angle,
    cosine,
    distance,
    pairwise_cosines,
    pairwise_distances,
    step_lengths,
    turning_angles,
)


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
    apart = np.linalg.norm(exact[:, None] - exact[None], axis=2)
    assert pairwise_distances(vectors).numpy() == pytest.approx(apart, rel=1e-13, abs=0)
    wanted = exact @ exact.T / np.outer(norms, norms)
    assert pairwise_cosines(vectors).numpy() == pytest.approx(wanted, rel=0, abs=1e-13)
    lengths = np.linalg.norm(steps, axis=1)
    assert step_lengths(vectors).numpy() == pytest.approx(lengths, rel=1e-13)
    turns = np.sum(steps[1:] * steps[:-1], axis=1) / lengths[1:] / lengths[:-1]
    found = np.cos(np.radians(turning_angles(vectors).numpy()))
    assert found == pytest.approx(turns, rel=0, abs=1e-13)


def test_pairs_are_symmetric_float64_and_exact_on_the_diagonal() -> None:
    vectors = list(random_vectors(5, 40).float())
    for matrix, diagonal in ((pairwise_distances(vectors), 0.0), (pairwise_cosines(vectors), 1.0)):
        assert matrix.dtype == torch.float64
        assert matrix.shape == (5, 5)
        assert torch.equal(matrix, matrix.T)
        assert torch.equal(matrix.diagonal(), torch.full((5,), diagonal, dtype=torch.float64))
    assert float(pairwise_distances(vectors)[3, 1]) == distance(vectors[3], vectors[1])
    assert float(pairwise_cosines(vectors)[3, 1]) == cosine(vectors[3], vectors[1])


@pytest.mark.parametrize("corners", [3, 4, 6, 360])
def test_a_walk_around_a_polygon_turns_by_its_outer_angle(corners: int) -> None:
    path = polygon(corners, 7)
    assert step_lengths(path).tolist() == pytest.approx([1.0] * 6, rel=0, abs=1e-12)
    assert turning_angles(path).tolist() == pytest.approx([360 / corners] * 5, rel=0, abs=1e-9)


def test_a_trajectory_goes_straight_on_and_turns_back() -> None:
    start, step = vector(5.0, -1.0), vector(1.0, 2.0)
    path = [start, start + step, start + 3 * step, start + 2 * step]
    assert turning_angles(path).tolist() == pytest.approx([0.0, 180.0], rel=0, abs=2e-6)
    assert step_lengths(path).tolist() == pytest.approx([5**0.5, 20**0.5, 5**0.5], rel=1e-14)


def test_small_steps_far_from_the_origin_are_measured_in_float64() -> None:
    path = torch.tensor([[4096.0, 0.0], [4096.0 + 2**-11, 0.0], [4096.0 + 2**-11, 2**-11]])
    assert path.dtype == torch.float32
    assert step_lengths(path).tolist() == [2**-11, 2**-11]
    assert turning_angles(path).tolist() == [90.0]


def test_parameters_are_taken_and_no_graph_is_kept() -> None:
    a, b = nn.Parameter(vector(1.0, 0.0)), nn.Parameter(vector(1.0, 1.0))
    assert distance(a, b) == 1.0
    assert not pairwise_cosines([a, b]).requires_grad


GOOD = [vector(1.0, 2.0), vector(2.0, 1.0), vector(0.0, 1.0)]


@pytest.mark.parametrize("function", [pairwise_distances, pairwise_cosines, turning_angles])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 2), r"vector 2 has shape \(1, 2\); give flat weights \(P,\)"),
        (torch.zeros(3), "vector 2 has 3 weights, vector 0 has 2; compare networks of one"),
        (vector(1.0, math.nan), "vector 2 holds values that are not finite"),
        (vector(-math.inf, 1.0), "vector 2 holds values that are not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_named(
    function: Callable[[Any], Tensor], bad: Tensor, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        function([*GOOD[:2], bad])


@pytest.mark.parametrize("function", [distance, cosine, angle])
def test_two_vectors_that_do_not_fit_are_refused(function: Callable[..., float]) -> None:
    with pytest.raises(UserError, match=r"^vector 1 has 3 weights, vector 0 has 2"):
        function(vector(1.0, 2.0), vector(1.0, 2.0, 3.0))


@pytest.mark.parametrize("function", [cosine, angle])
def test_a_vector_of_length_0_has_no_direction(function: Callable[..., float]) -> None:
    with pytest.raises(UserError, match=r"^vector 1 has length 0 and no direction"):
        function(vector(1.0, 2.0), vector(0.0, 0.0))


def test_any_vector_of_length_0_is_named_among_many() -> None:
    for vectors in ([*GOOD, vector(0.0, 0.0)], [vector(0.0, 0.0)]):
        message = f"^vector {len(vectors) - 1} has length 0 and no direction"
        with pytest.raises(UserError, match=message):
            pairwise_cosines(vectors)


def test_a_trajectory_that_stays_where_it_is_does_not_turn() -> None:
    with pytest.raises(UserError, match=r"^the step from vector 1 to 2 has length 0"):
        turning_angles([GOOD[0], GOOD[1], GOOD[1], GOOD[2]])
    assert step_lengths([GOOD[1], GOOD[1]]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("function", "count"), [(step_lengths, 1), (turning_angles, 2), (pairwise_distances, 0)]
)
def test_too_few_vectors_are_refused(function: Callable[[Any], Tensor], count: int) -> None:
    with pytest.raises(UserError, match=f"^give at least {count + 1} vectors?.*, got {count}$"):
        function(GOOD[:count])
