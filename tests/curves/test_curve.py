"""Curves and chains: points, speeds and lengths against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

from fge.curves import Bezier, Chain, Curve, PolyChain, make_family, straight_points
from fge.curves.curve import elevate
from fge.curves.families import FAMILIES, Family
from fge.errors import UserError
from fge.networks import Layout

TS = st.floats(0, 1)
REFERENCE_POINTS = torch.tensor([[0, 0, 1], [1, 2, 3], [4, 0, -1]], dtype=torch.float64)


def points_of(rows: Any) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.float64)


def random_points(count: int = 3, size: int = 7, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=rng, dtype=torch.float64)


def curve_of(name: str = "bezier", count: int = 3, seed: int = 0) -> Curve:
    return Curve(make_family(name, count), random_points(count, seed=seed))


def valley(height: float) -> Curve:
    return Curve(Bezier(3), points_of([[-1, 0], [0, 2 * height], [1, 0]]))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


# Points and velocities


@pytest.mark.parametrize(
    ("family", "t", "expected"),
    [
        # The published reference implementation's.
        (Bezier(3), 0.25, [0.625, 0.75, 1.625]),
        (Bezier(3), 0.5, [1.5, 1, 1.5]),
        (PolyChain(3), 0.75, [2.5, 1, 1]),
    ],
)
def test_reference_points(family: Family, t: float, expected: list[float]) -> None:
    assert Curve(family, REFERENCE_POINTS).at(t).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_ends_are_bitwise_those_given(name: str, count: int, dtype: torch.dtype) -> None:
    points = random_points(count, 500).to(dtype)
    points[:, 0] = torch.tensor([-0.0, *[1.0] * (count - 2), -0.0])
    curve = Curve(make_family(name, count), points)
    for t, row in ((0, 0), (1, -1), (0.0, 0), (1.0, -1)):
        assert curve.at(t).dtype == dtype
        assert torch.equal(bits(curve.at(t)), bits(points[row]))


def test_points_on_the_curve_are_copies() -> None:
    curve = curve_of()
    for t in (0, 0.5, 1):
        curve.at(t).fill_(math.nan)
        curve.velocity(t).fill_(math.nan)
    assert bool(curve.points.isfinite().all())


def test_corners_of_a_chain_are_its_points_bitwise() -> None:
    points = random_points(50)
    curve = Curve(PolyChain(50), points)
    for k in range(50):
        assert torch.equal(curve.at(k / 49), points[k])


@given(name=st.sampled_from(sorted(FAMILIES)), count=st.integers(2, 6), t=TS)
def test_points_and_velocities_are_sums(name: str, count: int, t: float) -> None:
    curve = curve_of(name, count)
    family = curve.family
    torch.testing.assert_close(
        curve.at(t), family.coefficients(t) @ curve.points, rtol=1e-12, atol=1e-13
    )
    torch.testing.assert_close(
        curve.velocity(t), family.derivative(t) @ curve.points, rtol=1e-11, atol=1e-11
    )
    assert curve.speed(t) == pytest.approx(float(curve.velocity(t).norm()), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("t", [0.1, 0.37, 0.9])
def test_velocities_are_finite_differences(name: str, t: float) -> None:
    curve, step = curve_of(name, 4), 1e-5
    difference = (curve.at(t + step) - curve.at(t - step)) / (2 * step)
    torch.testing.assert_close(curve.velocity(t), difference, rtol=0, atol=1e-8)


def test_velocities_are_the_derivatives_that_autograd_finds() -> None:
    points = random_points(3)

    def at(t: Tensor) -> Tensor:
        return (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]

    curve = Curve(Bezier(3), points)
    for t in (0.0, 0.2, 0.5, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        expected = torch.autograd.functional.jacobian(at, time)
        torch.testing.assert_close(curve.velocity(t), expected, rtol=1e-13, atol=1e-14)
        assert curve.speed(t) == pytest.approx(float(expected.norm()), rel=1e-12)


def test_speeds_keep_their_digits_far_from_the_origin() -> None:
    points = (random_points(3) * 100).round() / 128  # multiples of 1/128: exact when shifted
    near, far = Curve(Bezier(3), points), Curve(Bezier(3), points + 2.0**40)
    for t in (0.0, 0.3, 1.0):
        assert far.speed(t) == pytest.approx(near.speed(t), rel=1e-12)
        torch.testing.assert_close(far.velocity(t), near.velocity(t), rtol=1e-12, atol=1e-12)
    assert far.length() == pytest.approx(near.length(), rel=1e-12)


def test_points_of_low_precision_have_speeds_in_float64() -> None:
    points = random_points(3).float()
    low, high = Curve(Bezier(3), points), Curve(Bezier(3), points.double())
    assert (low.speed(0.3), low.length()) == (high.speed(0.3), high.length())
    assert torch.equal(low.gram(), high.gram())
    assert low.velocity(0.3).dtype == torch.float32


# Lengths


def test_the_reference_length_over_60_chords() -> None:
    assert Curve(Bezier(3), REFERENCE_POINTS).length() == pytest.approx(5.84993, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chords", [1, 7, 60])
def test_lengths_are_sums_of_chords(name: str, chords: int) -> None:
    curve = curve_of(name, 4)
    places = torch.stack([curve.at(k / chords) for k in range(chords + 1)])
    expected = float(places.diff(dim=0).norm(dim=1).sum())
    assert curve.length(chords) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("height", [0.1, 1.0, 5.0])
def test_the_length_of_a_parabola(height: float) -> None:
    exact = math.sqrt(1 + 4 * height**2) + math.asinh(2 * height) / (2 * height)
    curve = valley(height)
    integral, _ = quad(curve.speed, 0, 1, epsabs=1e-12)
    assert integral == pytest.approx(exact, rel=1e-9)
    errors = [exact - curve.length(chords) for chords in (60, 120)]
    assert 0 < errors[0] < 1e-3 * exact
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05), "of second order"
    assert curve.length(10_000) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_the_length_of_a_polygonal_chain(count: int) -> None:
    points = random_points(count)
    pieces = points.diff(dim=0).norm(dim=1)
    curve = Curve(PolyChain(count), points)
    assert curve.length() == pytest.approx(float(pieces.sum()), rel=1e-12)
    for k, piece in enumerate(pieces.tolist()):
        assert curve.speed((k + 0.5) / (count - 1)) == pytest.approx(piece * (count - 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_straight_curves_are_as_long_as_their_chord(name: str) -> None:
    start, end = random_points(2)
    curve = Curve(make_family(name, 5), straight_points(start, end, 5))
    distance = float((end - start).norm())
    assert curve.length() == pytest.approx(distance, rel=1e-12)
    assert curve.speed(0.77) == pytest.approx(distance, rel=1e-12)


def test_a_curve_of_one_place_has_no_length() -> None:
    curve = Curve(Bezier(3), torch.ones(3, 5))
    assert (curve.length(), curve.speed(0.5)) == (0, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_arc_lengths_go_from_zero_to_the_length(name: str) -> None:
    curve = curve_of(name, 4)
    ts = [k / 60 for k in range(61)]
    arcs = curve.arc_lengths(ts)
    assert arcs.dtype == torch.float64
    assert arcs[0] == 0
    assert float(arcs[-1]) == curve.length()
    places = torch.stack([curve.at(t) for t in ts])
    torch.testing.assert_close(arcs.diff(), places.diff(dim=0).norm(dim=1), rtol=1e-10, atol=0)


def test_arc_lengths_at_any_times_are_integrals_of_the_speed() -> None:
    curve = valley(1.0)
    ts = [0.73, 0.0, 0.2, 0.731, 1.0, 0.2]
    expected = [quad(curve.speed, 0, t, epsabs=1e-12)[0] for t in ts]
    assert curve.arc_lengths(ts, chords=3000).tolist() == pytest.approx(expected, abs=1e-6)
    assert curve.arc_lengths(torch.tensor([0.5])).tolist() == pytest.approx(  # type: ignore[arg-type]
        curve.arc_lengths([0.5]).tolist()
    )
    assert curve.arc_lengths([]).tolist() == []


@pytest.mark.parametrize("make", [curve_of, lambda: Chain([curve_of()])])
def test_bad_times_and_chords_are_refused(make: Callable[[], Curve | Chain]) -> None:
    curve = make()
    for use in (curve.at, curve.velocity, curve.speed, lambda t: curve.arc_lengths([0, t])):
        for t in (-0.01, 1.01, math.nan):
            with pytest.raises(UserError, match=r"t must be in \[0, 1\], got"):
                use(t)
    with pytest.raises(UserError, match=r"^chords must be >= 1, got 0$"):
        curve.length(0)


# Construction, names


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(2, 4), r"must have shape \(3, P\), got \(2, 4\)"),
        (torch.zeros(3), r"must have shape \(3, P\), got \(3,\)"),
        (torch.zeros(3, 4, dtype=torch.int64), r"must be floating-point, got torch\.int64"),
        (torch.zeros(3, 9), r"the layout has 4 parameters, the points have 9"),
    ],
)
def test_points_that_do_not_fit_are_refused(points: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Curve(Bezier(3), points, Layout(("w",), ((2, 2),)))


def test_curves_record_no_graph() -> None:
    curve = Curve(Bezier(3), nn.Parameter(random_points(3)))
    assert not curve.points.requires_grad
    assert not curve.at(0.5).requires_grad


def test_state_dicts_have_names_shapes_and_their_own_memory() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 1)).double()
    layout = Layout.of(model)
    curve = Curve(Bezier(3), random_points(3, layout.numel), layout)
    state = curve.state_dict(0.3)
    expected = layout.split(curve.at(0.3))
    assert list(state) == list(model.state_dict())
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name])
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 8
    model.load_state_dict(state)
    for nameless in (curve_of(), Chain([curve_of()])):
        with pytest.raises(UserError, match=r"needs names; give the curve a layout"):
            nameless.state_dict(0.5)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_degree_elevation_leaves_the_curve_as_it_is(count: int) -> None:
    layout = Layout(("w",), ((7,),))
    curve = Curve(Bezier(count), random_points(count), layout)
    higher = elevate(curve)
    assert higher.family == Bezier(count + 1)
    assert higher.layout == layout
    assert torch.equal(higher.points[[0, -1]], curve.points[[0, -1]])
    for t in (0, 0.1, 0.5, 0.83, 1):
        torch.testing.assert_close(higher.at(t), curve.at(t), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(higher.velocity(t), curve.velocity(t), rtol=1e-12, atol=1e-12)
    assert higher.length() == pytest.approx(curve.length(), rel=1e-12)


def test_only_bezier_curves_are_elevated() -> None:
    with pytest.raises(UserError, match="only a Bezier curve can be elevated, got a polychain"):
        elevate(curve_of("polychain"))


# Chains


def bent_chain() -> Chain:
    """Return three bent curves of several kinds, joined."""
    stops = random_points(4, seed=3)
    families = [Bezier(3), PolyChain(4), Bezier(4)]
    curves = []
    for number, (family, ends) in enumerate(zip(families, itertools.pairwise(stops), strict=True)):
        bends = random_points(family.num_points - 2, seed=number)
        curves.append(Curve(family, torch.stack([ends[0], *bends, ends[1]])))
    return Chain(curves)


def test_a_chain_of_one_curve_is_that_curve() -> None:
    curve = curve_of()
    chain = Chain([curve])
    for t in (0, 0.3, 1):
        assert torch.equal(chain.at(t), curve.at(t))
        assert torch.equal(chain.velocity(t), curve.velocity(t))
        assert chain.speed(t) == curve.speed(t)
    assert chain.length() == curve.length()
    assert torch.equal(chain.arc_lengths([0.2, 1]), curve.arc_lengths([0.2, 1]))


def test_time_is_shared_equally() -> None:
    chain = bent_chain()
    for number, curve in enumerate(chain.curves):
        for part in (0.0, 0.25, 0.5, 0.875):
            t = (number + part) / 3
            torch.testing.assert_close(chain.at(t), curve.at(part), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(chain.velocity(t), 3 * curve.velocity(part))
            assert chain.speed(t) == pytest.approx(3 * curve.speed(part), rel=1e-9)
            assert chain.speed(t) == pytest.approx(float(chain.velocity(t).norm()), rel=1e-9)


def test_a_chain_goes_through_its_networks_bitwise() -> None:
    chain = bent_chain()
    stops = [curve.points[0] for curve in chain.curves]
    for number, stop in enumerate([*stops, chain.curves[-1].points[-1]]):
        assert torch.equal(chain.at(number / 3), stop)


def test_chain_velocities_are_finite_differences() -> None:
    chain, step = bent_chain(), 1e-6
    for t in (0.1, 0.36, 0.5, 0.9):
        difference = (chain.at(t + step) - chain.at(t - step)) / (2 * step)
        torch.testing.assert_close(chain.velocity(t), difference, rtol=0, atol=1e-6)


def test_lengths_of_a_chain_add_up() -> None:
    chain = bent_chain()
    lengths = [curve.length() for curve in chain.curves]
    assert chain.length() == pytest.approx(sum(lengths), rel=1e-14)
    ts = [1 / 3, 0, 1, 2 / 3, 0.5]
    first, second, third = lengths
    middle = first + float(chain.curves[1].arc_lengths([0.5])[0])
    expected = [first, 0, first + second + third, first + second, middle]
    assert chain.arc_lengths(ts).tolist() == pytest.approx(expected, rel=1e-12)
    corners = [1 / 3, 4 / 9, 5 / 9, 2 / 3]
    integral, _ = quad(chain.speed, 0, 1, points=corners, limit=500)
    assert chain.length(3000) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("closed", [False, True])
def test_a_chain_through_networks_is_straight_between_them(family: str, closed: bool) -> None:
    stops = random_points(4)
    layout = Layout(("w",), ((7,),))
    for points in (stops, list(stops)):
        chain = Chain.through(points, family=family, num_points=4, closed=closed, layout=layout)
        assert chain.closed is closed
        assert len(chain.curves) == 4 if closed else 3
        assert {curve.family for curve in chain.curves} == {make_family(family, 4)}
        assert list(chain.state_dict(0.4)) == ["w"]
        ring = [*stops, stops[0]] if closed else list(stops)
        length = sum(float((b - a).norm()) for a, b in itertools.pairwise(ring))
        assert chain.length() == pytest.approx(length, rel=1e-12)
        assert torch.equal(chain.at(1), ring[-1])


def test_a_polygon_by_numpy() -> None:
    stops = random_points(5)
    chain = Chain.through(stops, num_points=3)
    for t in np.linspace(0, 1, 23):
        expected = [np.interp(t, np.linspace(0, 1, 5), column) for column in stops.T.numpy()]
        assert chain.at(t).tolist() == pytest.approx(expected, abs=1e-13)


def test_a_chain_of_two_networks_may_come_back_another_way() -> None:
    chain = Chain.through(random_points(2), closed=True)
    assert chain.closed
    assert len(chain.curves) == 2


def test_curves_that_do_not_meet_are_refused() -> None:
    one, other = curve_of(), curve_of(seed=1)
    with pytest.raises(UserError, match="curve 1 of the chain does not start at the previous end"):
        Chain([one, other])
    meeting = Curve(other.family, torch.cat([one.points[-1:], other.points[1:]]))
    Chain([one, meeting])
    named = Curve(meeting.family, meeting.points, Layout(("w",), ((7,),)))
    with pytest.raises(UserError, match="curve 1 of the chain has another layout than the first"):
        Chain([one, named])
    with pytest.raises(UserError, match="a chain needs at least one curve, got none"):
        Chain([])


def test_chains_need_two_networks_that_differ() -> None:
    stops = random_points(3)
    with pytest.raises(UserError, match="a chain needs at least two networks, got 1"):
        Chain.through(stops[:1])
    with pytest.raises(UserError, match="start and end are the same weights"):
        Chain.through([stops[0], stops[1], stops[1]])
    with pytest.raises(UserError, match="start and end are the same weights"):
        Chain.through([stops[0], stops[1], stops[0]], closed=True)
    with pytest.raises(UserError, match="unknown curve family"):
        Chain.through(stops, family="spline")
