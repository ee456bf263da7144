"""Coefficients of curves: reference values, sums, and derivatives against autograd."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fge.curves import Bezier, PolyChain, make_family
from fge.curves.families import FAMILIES, Family, locate
from fge.errors import UserError

TS = st.floats(0, 1)
COUNTS = st.integers(2, 12)
CLASSES = st.sampled_from([Bezier, PolyChain])


def de_casteljau(t: Tensor, count: int) -> Tensor:
    """Return Bezier coefficients by repeated interpolation, differentiable in t."""
    points = torch.eye(count, dtype=torch.float64)
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return points[0]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # The published reference implementation's, at t = 0.3.
        (Bezier(3), [0.49, 0.42, 0.09]),
        (Bezier(4), [0.343, 0.441, 0.189, 0.027]),
        (PolyChain(3), [0.4, 0.6, 0]),
        (PolyChain(4), [0.1, 0.9, 0, 0]),
        (Bezier(2), [0.7, 0.3]),
        (PolyChain(2), [0.7, 0.3]),
    ],
    ids=str,
)
def test_reference_coefficients(family: Family, expected: list[float]) -> None:
    coefficients = family.coefficients(0.3)
    assert coefficients.dtype == torch.float64
    assert coefficients.tolist() == pytest.approx(expected, abs=1e-14)


@given(kind=CLASSES, count=COUNTS, t=TS)
def test_coefficients_sum_to_one_and_slopes_to_zero(
    kind: type[Family], count: int, t: float
) -> None:
    family = kind(count)
    coefficients, slopes = family.coefficients(t), family.derivative(t)
    assert coefficients.shape == slopes.shape == (count,)
    assert coefficients.dtype == slopes.dtype == torch.float64
    assert float(coefficients.min()) >= 0
    assert float(coefficients.sum()) == pytest.approx(1, abs=1e-14)
    assert float(slopes.sum()) == pytest.approx(0, abs=1e-13)
    # w_i = i / n makes the straight line w(t) = t, for both families.
    line = torch.arange(count, dtype=torch.float64) / (count - 1)
    assert float(coefficients @ line) == pytest.approx(t, abs=1e-14)
    assert float(slopes @ line) == pytest.approx(1, abs=1e-12)


@given(count=COUNTS, t=TS)
def test_bezier_agrees_with_repeated_interpolation(count: int, t: float) -> None:
    family, time = Bezier(count), torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(
        family.coefficients(t), de_casteljau(time, count), rtol=1e-12, atol=1e-15
    )
    expected = torch.autograd.functional.jacobian(lambda x: de_casteljau(x, count), time)
    torch.testing.assert_close(family.derivative(t), expected, rtol=1e-11, atol=1e-13)


@given(count=COUNTS, t=TS)
def test_a_polygonal_chain_interpolates_linearly(count: int, t: float) -> None:
    knots = np.linspace(0, 1, count)
    expected = [np.interp(t, knots, row) for row in np.eye(count)]
    assert PolyChain(count).coefficients(t).tolist() == pytest.approx(expected, abs=1e-14)


@given(kind=CLASSES, count=COUNTS, t=st.floats(0.01, 0.98))
def test_slopes_are_the_differences_of_coefficients(
    kind: type[Family], count: int, t: float
) -> None:
    family, step = kind(count), 1e-6
    ahead = (family.coefficients(t + step) - family.coefficients(t)) / step
    if kind is PolyChain and int(t * (count - 1)) != int((t + 2 * step) * (count - 1)):
        return  # a corner in between
    torch.testing.assert_close(family.derivative(t), ahead, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", [Bezier, PolyChain])
@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_ends_are_exact(kind: type[Family], count: int) -> None:
    unit = torch.eye(count, dtype=torch.float64)
    assert torch.equal(kind(count).coefficients(0), unit[0])
    assert torch.equal(kind(count).coefficients(1), unit[-1])


@given(pieces=st.integers(1, 200), data=st.data())
def test_corners_are_exact_and_belong_to_the_piece_that_begins(
    pieces: int, data: st.DataObject
) -> None:
    corner = data.draw(st.integers(0, pieces - 1))
    family, t = PolyChain(pieces + 1), corner / pieces
    assert locate(t, pieces) == (corner, 0.0)
    assert family.coefficients(t)[corner] == 1
    slopes = family.derivative(t)
    assert (slopes[corner], slopes[corner + 1]) == (-pieces, pieces)


def test_a_corner_that_rounding_would_miss() -> None:
    assert 1 / 49 * 49 < 1, "the case is one"
    assert locate(1 / 49, 49) == (1, 0.0)


@pytest.mark.parametrize(("pieces", "each", "corner"), [(5, 1, 3), (2, 49, 1), (4, 49, 3)])
def test_corners_at_even_steps_of_numpy(pieces: int, each: int, corner: int) -> None:
    t = float(np.linspace(0, 1, pieces * each + 1)[corner * each])
    assert t != corner / pieces, "the case is one"
    assert locate(t, pieces) == (corner, 0.0)
    assert locate(t + 1e-12, pieces)[1] > 0


def test_the_last_piece_has_the_end() -> None:
    assert locate(1, 5) == (4, 1.0)
    assert PolyChain(4).derivative(1).tolist() == [0, 0, -3, 3]


def test_t_may_be_a_tensor() -> None:
    for t in (torch.tensor(0.5), np.float32(0.5), np.array(0.5)):
        assert Bezier(3).coefficients(t).tolist() == [0.25, 0.5, 0.25]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Bezier, PolyChain])
@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, math.nan, math.inf, -math.inf])
def test_times_outside_are_refused(kind: type[Family], t: float) -> None:
    for use in (kind(3).coefficients, kind(3).derivative):
        with pytest.raises(UserError, match=r"t must be in \[0, 1\], got"):
            use(t)


@pytest.mark.parametrize("kind", [Bezier, PolyChain])
@pytest.mark.parametrize("count", [1, 0, -3])
def test_fewer_than_two_points_are_refused(kind: type[Family], count: int) -> None:
    with pytest.raises(UserError, match=f"counts both ends and must be >= 2, got {count}"):
        kind(count)


def test_families_are_made_by_name() -> None:
    assert sorted(FAMILIES) == ["bezier", "polychain"]
    for name, kind in FAMILIES.items():
        family = make_family(name, 5)
        assert type(family) is kind
        assert (family.name, family.num_points) == (name, 5)
        assert family == kind(5)
        assert family != kind(4)
    assert Bezier(3) != PolyChain(3)
    with pytest.raises(UserError, match="unknown curve family 'beziér'; did you mean 'bezier'"):
        make_family("beziér", 3)


def test_a_family_needs_both_functions() -> None:
    class Half(Family):
        name = "half"

        def coefficients(self, t: float) -> Any:
            return t

    with pytest.raises(TypeError, match="abstract"):
        Half(3)  # type: ignore[abstract]
