"""Stochastic Lanczos quadrature against dense spectra and Gauss quadrature's exactness."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape import HessianOperator, spectral_density
from fge.landscape.sharpness import SpectralDensity, random_signs, smoothed
from fge.networks import nothing_yielded
from fge.seeds import generator

CLASSES = 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DATA = [(draw(17, 4), torch.arange(17) % CLASSES)]


def mlp() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=20 + index))
    return model


def density(**options: Any) -> SpectralDensity:
    return spectral_density(mlp(), F.cross_entropy, DATA, **options)


def dense() -> Tensor:
    return HessianOperator(mlp(), F.cross_entropy, DATA).dense()


def signs_used(count: int, seed: int = 0) -> list[Tensor]:
    rng = generator(seed, "spectrum")
    return [random_signs(HessianOperator(mlp(), F.cross_entropy, DATA), rng) for _ in range(count)]


def test_moments_are_exact_below_twice_the_steps() -> None:
    matrix = dense()
    for steps in (1, 3, 6):
        found = density(num_vectors=2, num_steps=steps)
        for power in range(2 * steps):
            matrix_power = torch.linalg.matrix_power(matrix, power)
            exact = sum(float(z @ matrix_power @ z) for z in signs_used(2)) / (2 * len(matrix))
            assert found.moment(power) == pytest.approx(exact, rel=1e-9)
    assert found.hessian_products == 12
    assert found.gradient_cost == pytest.approx(1.3 + 12 * 2.6)


def test_nodes_weights_and_vectors_belong_together() -> None:
    found = density(num_vectors=3, num_steps=7)
    assert found.vectors.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert (found.weights >= 0).all()
    for vector in range(3):
        share = float(found.weights[found.vectors == vector].sum())
        assert share == pytest.approx(1 / 3, abs=1e-13)
    values = torch.linalg.eigvalsh(dense())
    assert found.nodes.max() <= values[-1] + 1e-12
    assert found.nodes.min() >= values[0] - 1e-12


def test_with_all_steps_the_density_is_that_of_the_signs_spectrum() -> None:
    matrix = dense()
    values, vectors = torch.linalg.eigh(matrix)
    found = density(num_vectors=2, num_steps=len(matrix), sigma=0.2)
    shares = sum((vectors.T @ z) ** 2 for z in signs_used(2)) / (2 * len(matrix))
    assert isinstance(shares, Tensor)
    expected = smoothed(values, shares, found.grid, 0.2)
    torch.testing.assert_close(found.density, expected, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_the_mean_over_vectors_is_the_dense_density() -> None:
    values = torch.linalg.eigvalsh(dense())
    found = density(num_vectors=80, num_steps=15, sigma=0.3)
    exact = smoothed(values, torch.full_like(values, 1 / len(values)), found.grid, 0.3)
    distance = float(torch.trapezoid((found.density - exact).abs(), found.grid))
    assert distance < 0.03
    few = density(num_vectors=2, num_steps=15, sigma=0.3)
    assert float(torch.trapezoid((few.at(found.grid) - exact).abs(), found.grid)) > distance


def test_the_density_integrates_to_one() -> None:
    found = density(num_points=2000)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-3)
    assert found.sigma == pytest.approx(0.01 * float(found.nodes.max() - found.nodes.min()))


def test_smoothing_is_a_sum_of_normal_densities() -> None:
    points = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    found = smoothed(
        torch.tensor([0.0, 2.0]).double(), torch.tensor([0.25, 0.75]).double(), points, 0.5
    )
    for point, value in zip(points.tolist(), found.tolist(), strict=True):
        bells = [
            math.exp(-((point - n) ** 2) / 0.5) / (0.5 * math.sqrt(2 * math.pi)) for n in (0, 2)
        ]
        assert value == pytest.approx(0.25 * bells[0] + 0.75 * bells[1], rel=1e-12)


def test_weight_decay_shifts_the_nodes() -> None:
    plain, shifted = density(num_steps=8), density(num_steps=8, weight_decay=0.5)
    torch.testing.assert_close(shifted.nodes, plain.nodes + 0.5, rtol=0, atol=1e-10)
    torch.testing.assert_close(shifted.weights, plain.weights, rtol=0, atol=1e-10)


def test_a_spectrum_of_one_value_is_one_node() -> None:
    model = nn.Linear(3, 1, bias=False).double()

    def loss_fn(outputs: Tensor, _: Tensor) -> Tensor:
        return 2 * (model.weight**2).sum() + 0 * outputs.sum()

    found = spectral_density(model, loss_fn, [(draw(2, 3), draw(2))], num_vectors=2)
    torch.testing.assert_close(found.nodes, torch.full((2,), 4.0).double(), rtol=0, atol=1e-12)
    assert found.hessian_products == 2
    assert found.sigma == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_vectors": 0}, "num_vectors must be >= 1, got 0"),
        ({"num_steps": 0}, "num_steps must be >= 1, got 0"),
        ({"num_points": 1}, "num_points must be >= 2, got 1"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
    ],
)
def test_odd_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        density(**options)


def test_other_widths_are_checked_too() -> None:
    with pytest.raises(UserError, match="sigma must be positive"):
        density(num_steps=2).at(torch.zeros(1), sigma=-1.0)


def test_data_are_checked() -> None:
    for data, message in ((iter(DATA), "more than once"), ([], f"^{nothing_yielded()}$")):
        with pytest.raises(UserError, match=message):
            spectral_density(mlp(), F.cross_entropy, data)
