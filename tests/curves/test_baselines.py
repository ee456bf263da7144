"""Baselines of a curve: distances, angles and Gram matrices against direct float64 ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fge.curves import BASELINES, Bezier, Curve, PolyChain, baselines, make_baseline
from fge.curves.baselines import Baseline, RandomAtAngle, RandomDirection, SameGramArc, Segment
from fge.errors import UserError
from fge.networks import Layout

TS = [0.0, 0.1, 0.25, 0.5, 0.7, 0.95, 1.0]
FAMILIES = [Bezier(2), Bezier(3), Bezier(5), PolyChain(2), PolyChain(3), PolyChain(6)]
KINDS = list(BASELINES.values())
RANDOM = [RandomDirection, RandomAtAngle, SameGramArc]


def family_id(family: Bezier | PolyChain) -> str:
    return f"{family.name}{family.num_points}"


def make_curve(
    family: Bezier | PolyChain, size: int = 40, dtype: torch.dtype = torch.float64
) -> Curve:
    rng = torch.Generator().manual_seed(family.num_points)
    points = torch.randn(family.num_points, size, generator=rng, dtype=torch.float64) + 3
    return Curve(family, points.to(dtype))


def from_start(curve: Curve, point: Tensor) -> Tensor:
    return (point - curve.points[0]).double()


def chord(curve: Curve) -> Tensor:
    return from_start(curve, curve.points[-1])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def across(curve: Curve, point: Tensor) -> Tensor:
    """Return the part of ``point - w(0)`` that is perpendicular to the chord."""
    axis = chord(curve) / chord(curve).norm()
    step = from_start(curve, point)
    return step - (step @ axis) * axis


def moving_part(baseline: Baseline, t: float = 0.4) -> Tensor:
    """Return the unit vector that the baseline drew at random."""
    point = baseline.at(t)
    if isinstance(baseline, RandomDirection):
        vector = from_start(baseline.curve, point)
    else:
        vector = across(baseline.curve, point)
    return vector / vector.norm()


@pytest.mark.parametrize("family", FAMILIES, ids=family_id)
@pytest.mark.parametrize("kind", KINDS)
def test_every_baseline_is_as_far_from_the_start_as_the_curve(
    kind: type[Baseline], family: Bezier
) -> None:
    curve = make_curve(family)
    baseline = kind(curve, seed=3)
    for t in TS:
        distance = float(from_start(curve, curve.at(t)).norm())
        point = baseline.at(t)
        assert point.shape == (40,)
        assert baseline.distance(t) == pytest.approx(distance, rel=1e-9, abs=1e-12)
        assert float(from_start(curve, point).norm()) == pytest.approx(
            distance, rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_baseline_begins_at_the_start_of_the_curve_bitwise(kind: type[Baseline]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        curve = make_curve(Bezier(4), dtype=dtype)
        start = kind(curve).at(0.0)
        assert start.dtype == dtype
        assert torch.equal(start, curve.points[0])


def test_the_segment_leads_along_the_chord_and_beyond_its_end() -> None:
    points = torch.tensor([[1.0, 1.0], [9.0, 5.0], [3.0, 1.0]], dtype=torch.float64)
    segment = Segment(Curve(PolyChain(3), points))
    torch.testing.assert_close(segment.at(1.0), points[2], rtol=0, atol=1e-14)
    far = torch.tensor([1 + math.sqrt(80), 1.0], dtype=torch.float64)
    torch.testing.assert_close(segment.at(0.5), far, rtol=0, atol=1e-13)


def test_the_segment_leads_forwards_where_the_curve_goes_backwards() -> None:
    points = torch.tensor([[0.0, 0.0], [-2.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    point = Segment(Curve(PolyChain(3), points)).at(0.5)
    torch.testing.assert_close(point, torch.tensor([2.0, 0.0], dtype=torch.float64))


def test_a_random_direction_is_a_straight_line() -> None:
    baseline = RandomDirection(make_curve(Bezier(3)), seed=5)
    first, *others = (moving_part(baseline, t) for t in TS[1:])
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=family_id)
@pytest.mark.parametrize("kind", [RandomAtAngle, SameGramArc])
def test_the_angle_to_the_chord_is_the_curves(kind: type[Baseline], family: Bezier) -> None:
    curve = make_curve(family)
    baseline = kind(curve, seed=3)
    for t in TS[1:]:
        expected = cosine(from_start(curve, curve.at(t)), chord(curve))
        actual = cosine(from_start(curve, baseline.at(t)), chord(curve))
        assert actual == pytest.approx(expected, abs=1e-9)
        width = float(across(curve, curve.at(t)).norm())
        assert float(across(curve, baseline.at(t)).norm()) == pytest.approx(width, abs=1e-9)


def test_an_obtuse_angle_to_the_chord_is_kept() -> None:
    points = torch.tensor([[0.0, 0, 0], [-2.0, 1.0, 0], [1.0, 0, 0]], dtype=torch.float64)
    point = RandomAtAngle(Curve(PolyChain(3), points), seed=1).at(0.5)
    assert float(point[0]) == pytest.approx(-2.0, abs=1e-12)
    assert float(point[1:].norm()) == pytest.approx(1.0, abs=1e-12)


def test_the_random_part_at_an_angle_is_one_direction_perpendicular_to_the_chord() -> None:
    curve = make_curve(Bezier(3))
    baseline = RandomAtAngle(curve, seed=2)
    first, *others = (moving_part(baseline, t) for t in TS[1:-1])
    assert abs(cosine(first, chord(curve))) < 1e-12
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=family_id)
def test_the_arc_has_the_curves_gram_matrix_speed_and_length(family: Bezier) -> None:
    curve = make_curve(family)
    arc = SameGramArc(curve, seed=7).arc
    differences = curve.points - curve.points[0]
    turned = arc.points - arc.points[0]
    gram = differences @ differences.T
    torch.testing.assert_close(turned @ turned.T, gram, rtol=0, atol=1e-9 * float(gram.max()))
    assert arc.length() == pytest.approx(curve.length(), rel=1e-9)
    for t in TS:
        assert arc.speed(t) == pytest.approx(curve.speed(t), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_arc_is_a_curve_of_the_same_kind_with_the_same_ends(dtype: torch.dtype) -> None:
    layout = Layout(("w", "b"), ((4, 9), (4,)))
    family = Bezier(4)
    curve = Curve(family, make_curve(family, dtype=dtype).points, layout)
    before = curve.points.clone()
    baseline = SameGramArc(curve)
    assert torch.equal(baseline.arc.points[[0, -1]], curve.points[[0, -1]])
    assert baseline.arc.points.dtype == dtype
    assert baseline.arc.layout == layout
    assert type(baseline.arc.family) is Bezier
    assert torch.equal(baseline.at(0.3), baseline.arc.at(0.3))
    assert float((baseline.arc.points[1:-1] - curve.points[1:-1]).norm(dim=1).min()) > 1
    assert torch.equal(curve.points, before)


def test_small_bends_beside_a_long_chord_keep_their_digits() -> None:
    points = torch.zeros(4, 30, dtype=torch.float64)
    points[3, 0], points[1, 0], points[2, 0] = 1e6, 3e5, 7e5
    points[1, 1], points[2, 1], points[2, 2] = 1e-3, 2e-3, 1e-3
    curve = Curve(Bezier(4), points)
    arc = SameGramArc(curve, seed=1).arc
    wide = torch.stack([across(curve, p) for p in curve.points[1:3]])
    turned = arc.points[1:3, 1:]
    torch.testing.assert_close(turned @ turned.T, wide @ wide.T, rtol=1e-9, atol=0)
    width = float(across(curve, RandomAtAngle(curve).at(0.5)).norm())
    assert width == pytest.approx(float(across(curve, curve.at(0.5)).norm()), rel=1e-9)


@pytest.mark.parametrize("columns", [1, 3, 7, 40])
def test_points_are_decomposed_in_blocks_of_columns(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    curve = make_curve(PolyChain(6))
    expected = [float(from_start(curve, curve.at(t)).norm()) for t in TS]
    monkeypatch.setattr(baselines, "_COLUMNS", columns)
    for kind in (Segment, SameGramArc):
        baseline = kind(curve)
        assert [baseline.distance(t) for t in TS] == pytest.approx(expected, rel=1e-12)
        actual = [float(from_start(curve, baseline.at(t)).norm()) for t in TS]
        assert actual == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", [RandomAtAngle, SameGramArc])
def test_a_curve_on_its_chord_gives_the_points_of_the_chord(kind: type[Baseline]) -> None:
    start, end = torch.tensor([1.0, 0, 2, 0]), torch.tensor([3.0, 4, 2, 1])
    points = torch.stack([start, start + 0.7 * (end - start), end]).double()
    curve = Curve(Bezier(3), points)
    baseline, segment = kind(curve), Segment(curve)
    for t in TS:
        torch.testing.assert_close(baseline.at(t), segment.at(t), rtol=0, atol=1e-6)
        torch.testing.assert_close(baseline.at(t), curve.at(t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [RandomDirection, SameGramArc])
def test_curves_with_fewer_parameters_than_points_have_baselines(kind: type[Baseline]) -> None:
    for size in (1, 2, 3):
        curve = make_curve(Bezier(6), size=size)
        for t in TS:
            distance = float(from_start(curve, curve.at(t)).norm())
            point = kind(curve, seed=4).at(t)
            assert float(from_start(curve, point).norm()) == pytest.approx(distance, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RANDOM)
def test_random_parts_have_the_moments_of_the_uniform_distribution(kind: type[Baseline]) -> None:
    size, draws = 12, 1500
    curve = make_curve(Bezier(3), size=size)
    units = torch.stack([moving_part(kind(curve, seed=seed)) for seed in range(draws)])
    axis = chord(curve) / chord(curve).norm()
    room = torch.eye(size, dtype=torch.float64)
    if kind is not RandomDirection:
        room -= torch.outer(axis, axis)
    dimension = float(room.trace())
    bound = 5 / math.sqrt(draws * dimension)
    assert float((units.mean(0)).abs().max()) < bound, "the mean is 0"
    second = units.T @ units / draws
    # Var(x_i x_j) <= 2 / (d (d + 2)) * (1 + ...) < 3 / d^2 on the unit sphere in d dimensions.
    assert float((second - room / dimension).abs().max()) < 5 * math.sqrt(3 / draws) / dimension


def test_the_bends_of_an_arc_are_turned_by_one_isometry() -> None:
    curve = make_curve(Bezier(4), size=6)
    first, second = (across(curve, p) for p in curve.points[1:3])
    cosines = []
    for seed in range(200):
        arc = SameGramArc(curve, seed=seed).arc
        turned = [across(curve, p) for p in arc.points[1:3]]
        assert cosine(*turned) == pytest.approx(cosine(first, second), abs=1e-9)
        cosines.append(cosine(turned[0], first))
    assert abs(sum(cosines) / 200) < 5 / math.sqrt(200 * 5)


@pytest.mark.parametrize("kind", RANDOM)
def test_a_seed_gives_the_same_baseline_again_and_another_another(kind: type[Baseline]) -> None:
    curve = make_curve(Bezier(3), size=2000)
    assert torch.equal(kind(curve, seed=1).at(0.4), kind(curve, seed=1).at(0.4))
    one, other = (moving_part(kind(curve, seed=seed)) for seed in (1, 2))
    assert abs(cosine(one, other)) < 5 / math.sqrt(2000)


def test_baselines_of_one_seed_are_independent_and_leave_the_global_generator_alone() -> None:
    curve = make_curve(Bezier(3), size=2000)
    state = torch.get_rng_state()
    first, second, third = (moving_part(kind(curve, seed=1)) for kind in RANDOM)
    for a, b in ((first, second), (first, third), (second, third)):
        assert abs(cosine(a, b)) < 5 / math.sqrt(2000)
    assert torch.equal(torch.get_rng_state(), state)


def test_baselines_are_made_by_name() -> None:
    curve = make_curve(Bezier(3))
    assert list(BASELINES) == ["segment", "random-direction", "random-at-angle", "same-gram-arc"]
    for name, kind in BASELINES.items():
        baseline = make_baseline(name, curve, seed=2)
        assert type(baseline) is kind
        assert torch.equal(baseline.at(0.3), kind(curve, seed=2).at(0.3))


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown baseline 'segmnt'; did you mean 'segment'\?"):
        make_baseline("segmnt", make_curve(Bezier(3)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_curve_has_no_chord(kind: type[Baseline]) -> None:
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    with pytest.raises(
        UserError,
        match=r"^the curve's ends coincide, so it has no chord; give two ends that differ$",
    ):
        kind(Curve(Bezier(3), points))


def test_one_parameter_leaves_no_angle_to_the_chord() -> None:
    with pytest.raises(UserError, match=r"at least 2 parameters that differ .*, got 1"):
        RandomAtAngle(make_curve(Bezier(3), size=1))


def partly_held(free: int) -> Curve:
    """Return a curve with ``free`` parameters that differ along it, and 30 that do not."""
    curve = make_curve(Bezier(4), size=30 + free)
    curve.points[:, :30] = curve.points[0, :30]
    return Curve(curve.family, curve.points, Layout(("frozen", "free"), ((30,), (free,))))


def test_one_free_parameter_is_as_one() -> None:
    curve = partly_held(1)
    with pytest.raises(UserError, match=r"at least 2 parameters that differ .*, got 1"):
        RandomAtAngle(curve)
    torch.testing.assert_close(SameGramArc(curve).arc.points, curve.points)


@pytest.mark.parametrize("free", [2, 3])
@pytest.mark.parametrize("kind", [RandomAtAngle, SameGramArc])
def test_few_free_parameters_keep_distance_and_angle(kind: type[Baseline], free: int) -> None:
    curve = partly_held(free)
    baseline = kind(curve)
    for t in (0.2, 0.7):
        ours, theirs = from_start(curve, baseline.at(t)), from_start(curve, curve.at(t))
        assert torch.equal(baseline.at(t)[:30], curve.points[0, :30])
        torch.testing.assert_close(ours.norm(), theirs.norm())
        torch.testing.assert_close(ours @ chord(curve), theirs @ chord(curve))


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_points_outside_the_curve_are_refused(kind: type[Baseline], t: float) -> None:
    baseline = kind(make_curve(Bezier(3)))
    for method in (baseline.at, baseline.distance):
        with pytest.raises(UserError, match=r"\[0, 1\]"):
            method(t)
