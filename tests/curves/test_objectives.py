"""Objectives of curve fits: unbiased, of low variance, resumable; checked by quadrature."""

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
from torch import Tensor

from fge.curves import Bezier, Objective, PolyChain, gram_matrix, stratified_uniform
from fge.curves.families import Family
from fge.curves.objectives import (
    OBJECTIVES,
    ArcLength,
    Draw,
    MinMax,
    Shape,
    Uniform,
    make_objective,
    place_in_cells,
)
from fge.errors import UserError

POINTS = torch.tensor([[-1.0, 0.0], [0.3, 1.4], [0.2, -0.9], [1.0, 0.4]], dtype=torch.float64)


def points_of(family: Family) -> Tensor:
    return POINTS[[0, 1, 3]] if family.num_points == 3 else POINTS


def loss_at(w: Tensor) -> Tensor:
    """Return a smooth, curved loss of w (..., 2)."""
    x, y = w[..., 0], w[..., 1]
    return (y - x.sin()) ** 2 + 0.3 * (2 * x + y).cos() + 0.1 * x**2


def shape_of(family: Family, points: Tensor) -> Shape:
    return Shape(family, gram_matrix(points))


def estimate(draw: Draw, points: Tensor, family: Family, baseline: float) -> Tensor:
    """Return the gradient (B, 2) of all points that a draw gives."""
    w = (family.coefficients(draw.t) @ points).requires_grad_()
    loss = loss_at(w)
    (g,) = torch.autograd.grad(loss, w)
    result = torch.outer(draw.scale, g)
    if draw.pull is not None:
        result = result + (loss.detach() - baseline) * (draw.pull @ points)
    return result


def midpoints(count: int) -> list[float]:
    return [(k + 0.5) / count for k in range(count)]


def mean_along(points: Tensor, family: Family, count: int = 6000) -> Tensor:
    """Return (1/l) * integral of L * s dt, differentiable in the points."""
    ts = midpoints(count)
    c = torch.stack([family.coefficients(t) for t in ts])
    d = torch.stack([family.derivative(t) for t in ts])
    speed = (d @ points).norm(dim=1)
    return (loss_at(c @ points) * speed).sum() / speed.sum()


FAMILIES = [Bezier(3), Bezier(4), PolyChain(3), PolyChain(4)]
IDS = [f"{family.name}-{family.num_points}" for family in FAMILIES]


def test_a_block_of_steps_visits_each_stratum_once_in_random_order() -> None:
    blocks = [
        [int(8 * stratified_uniform(3, 8 * block + step, 8)) for step in range(8)]
        for block in range(50)
    ]
    assert all(sorted(block) == list(range(8)) for block in blocks)
    assert len({tuple(block) for block in blocks}) == 50


@pytest.mark.parametrize("strata", [1, 4, 8])
def test_each_step_of_a_block_is_uniform_by_itself(strata: int) -> None:
    for position in (0, strata - 1):
        values = np.sort(
            [stratified_uniform(5, strata * k + position, strata) for k in range(2000)]
        )
        distance = np.abs(values - (np.arange(2000) + 0.5) / 2000).max()
        assert distance < 1.95 / math.sqrt(2000), "Kolmogorov-Smirnov, p = 0.001"


def test_the_number_of_a_step_follows_from_seed_and_step_alone() -> None:
    assert stratified_uniform(1, 13, 4) == stratified_uniform(1, 13, 4)
    assert stratified_uniform(1, 13, 4) != stratified_uniform(2, 13, 4)


@given(
    st.floats(0, 1, exclude_max=True),
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=9),
)
def test_the_place_has_the_cdf_of_the_cells(u: float, shares: list[float]) -> None:
    p = np.array(shares) / np.sum(shares)
    t = place_in_cells(u, torch.tensor(p))
    assert 0 <= t <= 1
    reached = np.interp(t, np.linspace(0, 1, len(p) + 1), [0, *p.cumsum()])
    assert reached == pytest.approx(u, abs=1e-12)


def test_uniform_takes_the_number_for_t_and_the_coefficients_for_the_scale() -> None:
    draw = Uniform().draw(0.3, Shape(Bezier(3)))
    assert draw.t == 0.3
    assert draw.scale.tolist() == pytest.approx([0.49, 0.42, 0.09], rel=1e-15)
    assert draw.pull is None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_the_arclength_gradient_is_unbiased_for_any_baseline(family: Family) -> None:
    points = points_of(family).clone().requires_grad_()
    (expected,) = torch.autograd.grad(mean_along(points, family), points)
    points = points.detach()
    objective, shape = ArcLength(), shape_of(family, points)
    draws = [objective.draw(u, shape) for u in midpoints(1000)]
    for baseline in (0.0, 0.8):
        mean = torch.stack([estimate(d, points, family, baseline) for d in draws]).mean(0)
        error = (mean - expected)[1:-1].norm() / expected[1:-1].norm()
        assert error < 2e-3
    without = torch.stack([estimate(Draw(d.t, d.scale), points, family, 0.0) for d in draws]).mean(
        0
    )
    assert (without - expected)[1:-1].norm() / expected[1:-1].norm() > 0.03, "the pull matters"


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_arclength_draws_are_uniform_along_the_curve(family: Family) -> None:
    points = points_of(family)
    objective, shape = ArcLength(), shape_of(family, points)
    ts = [0.0, *(objective.draw(k / 20, shape).t for k in range(1, 20)), 1.0]
    lengths = []
    for a, b in itertools.pairwise(ts):
        fine = [a + (b - a) * k / 600 for k in range(601)]
        path = torch.stack([family.coefficients(t) @ points for t in fine])
        lengths.append(float((path[1:] - path[:-1]).norm(dim=1).sum()))
    np.testing.assert_allclose(lengths, np.mean(lengths), rtol=2e-3)


def test_the_pull_does_not_see_a_shift_of_all_points() -> None:
    draw = ArcLength().draw(0.7, shape_of(Bezier(4), POINTS))
    assert draw.pull is not None
    assert draw.pull.sum(1).abs().max() < 1e-12
    shifted = ArcLength().draw(0.7, shape_of(Bezier(4), POINTS + 1e3))
    assert shifted.t == pytest.approx(draw.t, abs=1e-9)


def test_a_curve_that_stands_still_somewhere_gives_finite_terms() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for family in (Bezier(3), PolyChain(3)):
        for u in (0.0, 1e-9, 0.5, 1 - 1e-12):
            draw = ArcLength().draw(u, shape_of(family, points))
            assert draw.pull is not None
            assert bool(torch.isfinite(draw.pull).all())
            assert 0 <= draw.t <= 1


@pytest.mark.slow
@pytest.mark.parametrize("objective", [Uniform(), ArcLength()], ids=["uniform", "arclength"])
def test_stratified_draws_have_less_noise_than_as_many_independent_ones(
    objective: Objective,
) -> None:
    family, points = Bezier(3), POINTS[[0, 1, 3]]
    shape = shape_of(family, points)

    def noise(strata: int) -> float:
        gradients = [
            estimate(objective.draw(stratified_uniform(0, k, strata), shape), points, family, 0.8)[
                1
            ]
            for k in range(1600)
        ]
        blocks = torch.stack(gradients).view(200, 8, 2).mean(1)
        return float(blocks.var(0).sum().sqrt())

    assert noise(8) < 0.5 * noise(1)
    assert noise(4) < 0.7 * noise(1)


def test_the_baseline_is_the_mean_of_the_losses_before() -> None:
    objective, draw = ArcLength(memory=3), Draw(0.5, torch.zeros(3))
    assert objective.baseline() is None
    for loss in (1.0, 3.0, math.nan, math.inf):
        objective.observe(draw, torch.tensor(loss, dtype=torch.float64))
    assert float(objective.baseline()) == pytest.approx(2.0, rel=1e-15)  # type: ignore[arg-type]
    objective.observe(draw, torch.tensor(5.0))
    assert float(objective.baseline()) == pytest.approx(3.0, rel=1e-15)  # type: ignore[arg-type]


def test_a_first_loss_that_is_not_finite_counts_as_zero_in_the_baseline() -> None:
    objective, draw = ArcLength(), Draw(0.5, torch.zeros(3))
    objective.observe(draw, torch.tensor(math.nan))
    objective.observe(draw, torch.tensor(4.0))
    assert float(objective.baseline()) == 2.0  # type: ignore[arg-type]


def told(objective: MinMax, pairs: list[tuple[float, float]]) -> MinMax:
    for t, loss in pairs:
        objective.observe(Draw(t, torch.zeros(3)), torch.tensor(loss, dtype=torch.float64))
    return objective


def test_bins_are_drawn_by_their_smoothed_mean_losses() -> None:
    objective = MinMax(strata=1, bins=4, temperature=0.5, uniform=0.2, rate=0.25)
    assert objective.probabilities().tolist() == [0.25] * 4
    told(objective, [(0.0, 1.0), (0.3, 2.0), (0.6, 4.0), (1.0, 3.0), (0.3, 6.0)])
    raw = [1.0, 3.0, 4.0, 3.0]  # 2 + 0.25 * (6 - 2) in the second
    smooth = np.array([raw[0] * 2 + raw[1], sum(raw[:3]), sum(raw[1:]), raw[2] + 2 * raw[3]]) / 3
    likely = np.exp(smooth / (0.5 * smooth.std()))
    expected = 0.8 * likely / likely.sum() + 0.05
    np.testing.assert_allclose(objective.probabilities(), expected, rtol=1e-12)
    ts = [objective.draw(u, Shape(Bezier(3))).t for u in midpoints(4000)]
    np.testing.assert_allclose(np.histogram(ts, 4, (0, 1))[0] / 4000, expected, atol=1e-3)


def test_a_bin_not_met_yet_counts_as_the_highest() -> None:
    objective = told(MinMax(strata=1, bins=9), [(0.0, 1.0), (0.12, 1.0), (0.99, 3.0)])
    probabilities = objective.probabilities()
    assert int(probabilities.argmin()) == 0
    assert float(probabilities[4]) == pytest.approx(float(probabilities.max()))


def test_losses_wait_for_the_end_of_their_block_and_bad_ones_are_left_out() -> None:
    objective = told(MinMax(strata=3, bins=3), [(0.1, 1.0), (0.5, 2.0)])
    assert objective.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    told(objective, [(0.9, math.nan)])
    assert objective.state_dict()["means"] == [1.0, 2.0, None]


def test_equal_losses_are_drawn_evenly() -> None:
    objective = told(MinMax(strata=1, bins=5), [((k + 0.5) / 5, 0.25) for k in range(5)])
    assert objective.probabilities().tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_restored_objective_goes_on_as_the_saved_one(name: str) -> None:
    one, other = make_objective(name), make_objective(name)
    shape = shape_of(Bezier(3), POINTS[[0, 1, 3]])

    def play(objective: Objective, first: int, last: int) -> list[Any]:
        seen: list[Any] = []
        for step in range(first, last):
            draw = objective.draw(stratified_uniform(0, step, objective.strata), shape)
            baseline = objective.baseline()
            loss = torch.tensor(math.sin(step) + draw.t, dtype=torch.float64)
            objective.observe(draw, loss)
            seen += [draw.t, None if baseline is None else float(baseline)]
        return seen

    play(one, 0, 29)
    other.load_state_dict(one.state_dict())
    assert play(other, 29, 60) == play(one, 29, 60)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        *(("arclength", s) for s in ({}, {"mean": 1.0}, {"mean": "x", "count": 1}, [])),
        ("arclength", {"mean": 1.0, "count": -1}),
        *(("minmax", s) for s in ({}, {"means": [None] * 21}, {"means": 3, "waiting": []})),
        ("minmax", {"means": [1.0] * 3, "waiting": []}),
        ("minmax", {"means": [1.0] * 21, "waiting": [[21, 1.0]]}),
        ("minmax", {"means": [1.0] * 21, "waiting": [[1, 1.0, 2]]}),
    ],
)
def test_a_damaged_state_is_refused(name: str, state: Any) -> None:
    with pytest.raises(
        UserError, match=r"the saved state of the objective is damaged: .*; restore"
    ):
        make_objective(name).load_state_dict(state)


def test_options_tell_objectives_apart() -> None:
    assert MinMax(bins=9).options() != MinMax().options() == MinMax().options()
    assert ArcLength(memory=9).options() != ArcLength().options()
    assert Uniform(strata=1).options() != Uniform().options()
    assert {make_objective(name).options()["name"] for name in OBJECTIVES} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(strata=0), "strata must be >= 1, got 0"),
        (lambda: ArcLength(memory=0), "memory must be >= 1, got 0"),
        (lambda: MinMax(bins=1), "bins must be >= 2, got 1"),
        (lambda: MinMax(uniform=0.0), r"uniform must be in \(0, 1\], got 0.0"),
        (lambda: MinMax(rate=1.5), r"rate must be in \(0, 1\], got 1.5"),
        (lambda: MinMax(temperature=-1.0), "temperature must be finite and above 0, got -1.0"),
        (lambda: make_objective("arc-length"), "unknown objective 'arc-length'; did you mean 'arc"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], Objective], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_an_objective_of_ones_own_is_taken_as_it_is() -> None:
    class Middle(Objective):
        name = "middle"

    objective = Middle(strata=1)
    assert make_objective(objective) is objective
