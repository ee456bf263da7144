"""Lanczos on dense symmetric matrices of known spectra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fge.landscape.lanczos import BandLanczos, Product, largest_eigenpairs

SIZE = 60


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(values: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(draw(len(values), len(values), seed=9))
    return (basis * values) @ basis.T


def product(matrix: Tensor, counts: list[int] | None = None) -> Product:
    def multiply(vector: Tensor) -> Tensor:
        if counts is not None:
            counts.append(1)
        return matrix @ vector

    return multiply


SPREAD = torch.linspace(-3, 5, SIZE, dtype=torch.float64)
CLUSTERED = torch.cat([torch.linspace(0, 1, SIZE - 2, dtype=torch.float64) ** 0.2, SPREAD[-2:]])


@pytest.mark.parametrize("width", [1, 3])
def test_the_recurrence_holds_at_every_step_and_through_a_restart(width: int) -> None:
    matrix = with_spectrum(SPREAD)
    lanczos = BandLanczos(product(matrix), draw(width, SIZE), 16)
    restarts = 0
    for _ in range(40):
        if lanczos.full:
            lanczos.restart(6)
            restarts += 1
        assert lanczos.step()
        size, done = lanczos.size, lanczos.processed
        basis, small = lanczos._basis[:size], lanczos._matrix[:size, :done]
        assert (basis @ basis.T - torch.eye(size)).abs().max() < 1e-13
        assert (matrix @ basis[:done].T - basis.T @ small).abs().max() < 1e-12
        values, coordinates, residuals = lanczos.ritz()
        vectors = lanczos.vectors(coordinates)
        exact = torch.linalg.vector_norm(vectors @ matrix - values[:, None] * vectors, dim=1)
        assert (exact - residuals).abs().max() < 1e-12
    assert restarts > 1


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "spectrum", [SPREAD, CLUSTERED, -SPREAD.exp()], ids=["even", "near", "neg"]
)
def test_the_largest_eigenvalues_are_found(count: int, spectrum: Tensor) -> None:
    matrix = with_spectrum(spectrum)
    counts: list[int] = []
    found = largest_eigenpairs(
        product(matrix, counts), draw(count, SIZE), tolerance=1e-9, max_products=10_000
    )
    expected = spectrum.sort(descending=True).values[:count]
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)
    assert found.converged
    assert found.products == len(counts)
    errors = found.vectors @ matrix - found.values[:, None] * found.vectors
    assert (torch.linalg.vector_norm(errors, dim=1) <= 1e-9 * expected.abs() + 1e-12).all()
    assert (found.vectors @ found.vectors.T - torch.eye(count)).abs().max() < 1e-12


@pytest.mark.slow
def test_restarts_bound_the_basis_and_reach_the_same() -> None:
    matrix = with_spectrum(torch.linspace(0, 1, 400, dtype=torch.float64) ** 0.5)
    for capacity in (8, 400):
        found = largest_eigenpairs(
            product(matrix), draw(2, 400), tolerance=1e-6, max_products=5000, capacity=capacity
        )
        assert found.converged
        expected = torch.tensor([1.0, (398 / 399) ** 0.5], dtype=torch.float64)
        torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("copies", [2, 4])
def test_as_many_start_vectors_find_as_many_copies(copies: int) -> None:
    spectrum = SPREAD.clone()
    spectrum[-copies:] = 7.0
    matrix = with_spectrum(spectrum)
    found = largest_eigenpairs(
        product(matrix), draw(copies, SIZE), tolerance=1e-9, max_products=10_000
    )
    assert (found.values - 7).abs().max() < 1e-9
    single = BandLanczos(product(matrix), draw(1, SIZE), SIZE)
    for _ in range(25):
        single.step()
    assert ((single.ritz()[0] - 7).abs() < 1e-9).sum() == 1, "one start vector sees one copy"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_small_invariant_spaces_end_it_exactly(count: int) -> None:
    for matrix in (torch.zeros(4, 4), torch.eye(4), torch.diag(torch.tensor([0.0, 2, 0, 0]))):
        found = largest_eigenpairs(
            product(matrix.double()), draw(count, 4), tolerance=1e-2, max_products=100
        )
        expected = torch.linalg.eigvalsh(matrix.double()).flip(0)[:count]
        torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)
        assert found.converged
        assert found.products <= 4


def test_it_stops_at_the_last_product_without_convergence() -> None:
    found = largest_eigenpairs(
        product(with_spectrum(SPREAD)), draw(2, SIZE), tolerance=1e-9, max_products=9
    )
    assert (found.products, found.converged) == (9, False)
    assert found.residuals.max() > 1e-3


def test_float32_reaches_its_own_precision() -> None:
    matrix = with_spectrum(CLUSTERED).float()
    found = largest_eigenpairs(
        product(matrix), draw(3, SIZE).float(), tolerance=1e-12, max_products=10_000
    )
    assert found.vectors.dtype == torch.float32
    assert found.converged, "at rounding"
    expected = torch.linalg.eigvalsh(matrix.double()).flip(0)[:3]
    torch.testing.assert_close(found.values, expected, rtol=0, atol=5e-6)
