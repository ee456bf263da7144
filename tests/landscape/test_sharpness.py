"""Top eigenvalues and traces against closed forms, dense Hessians and scipy's eigsh."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape import HessianOperator, spectral_density, top_eigenvalues, trace
from fge.landscape.sharpness import EigenResult, start_vectors
from fge.networks import nothing_yielded
from fge.seeds import generator

CLASSES = 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data_of(count: int = 23, features: int = 4) -> list[tuple[Tensor, Tensor]]:
    inputs, targets = draw(count, features), torch.arange(count) % CLASSES
    return list(zip(torch.split(inputs, 9), torch.split(targets, 9), strict=True))


def mlp() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=20 + index))
    return model


def zero_regression() -> nn.Module:
    model = nn.Linear(4, CLASSES, bias=False).double()
    nn.init.zeros_(model.weight)
    return model


def top(model: nn.Module, k: int = 1, **options: Any) -> EigenResult:
    return top_eigenvalues(model, F.cross_entropy, data_of(), k, **options)


def dense(model: nn.Module, **options: Any) -> Tensor:
    """Checked against torch.func in test_hessian.py."""
    return HessianOperator(model, F.cross_entropy, data_of(), **options).dense()


def test_softmax_regression_at_zero_has_its_eigenvalue_as_often_as_classes_less_one() -> None:
    inputs = torch.cat([x for x, _ in data_of()])
    moments = torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs)).flip(0) / CLASSES
    for k in (1, CLASSES - 1, CLASSES + 1):
        found = top(zero_regression(), k, tolerance=1e-10)
        expected = moments.repeat_interleave(CLASSES - 1)[:k]
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=0)
        assert found.converged


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 10])
def test_eigenvalues_are_those_of_scipys_eigsh(k: int) -> None:
    model = mlp()
    hessian = HessianOperator(model, F.cross_entropy, data_of())

    def matvec(vector: Any) -> Any:
        return hessian.matvec(torch.from_numpy(np.asarray(vector).ravel().copy())).numpy()

    linear = LinearOperator((hessian.size, hessian.size), matvec=matvec, dtype=np.float64)
    expected = np.sort(eigsh(linear, k=k, which="LA", tol=1e-12)[0])[::-1].copy()
    found = top(model, k, tolerance=1e-9, vectors=True)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    vectors = found.vectors
    assert vectors is not None
    matrix = dense(model)
    errors = torch.linalg.vector_norm(vectors @ matrix - found.values[:, None] * vectors, dim=1)
    assert (errors - found.residuals).abs().max() < 1e-11
    assert (vectors @ vectors.T - torch.eye(k)).abs().max() < 1e-12


def test_the_default_tolerance_bounds_residual_and_error() -> None:
    expected = torch.linalg.eigvalsh(dense(mlp())).flip(0)
    for k in (1, 4):
        found = top(mlp(), k)
        assert found.converged
        assert found.vectors is None
        assert (found.residuals <= 1e-2 * found.values).all()
        assert ((found.values - expected[:k]).abs() <= found.residuals + 1e-12).all()
        # Rayleigh quotients in a subspace lie below: the error is quadratic in the residual.
        assert ((expected[:k] - found.values) <= 1e-3 * expected[:k]).all()


def test_all_eigenvalues_of_a_small_model_can_be_had() -> None:
    model = zero_regression()
    model.weight.data += 0.3 * draw(CLASSES, 4, seed=3)
    expected = torch.linalg.eigvalsh(dense(model)).flip(0)
    found = top(model, 20, tolerance=1e-9)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)
    assert found.hessian_products == 20


def test_weight_decay_shifts_each_eigenvalue_by_itself() -> None:
    plain = top(mlp(), 3, tolerance=1e-12).values
    shifted = top(mlp(), 3, tolerance=1e-12, weight_decay=0.25).values
    torch.testing.assert_close(shifted, plain + 0.25, rtol=0, atol=1e-13)


def test_chunks_and_kept_graphs_do_not_matter() -> None:
    whole = top(mlp(), 2, tolerance=1e-9)
    parts = top(mlp(), 2, tolerance=1e-9, chunk=4, graph_memory=0)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-12, atol=0)
    count = whole.hessian_products
    assert parts.hessian_products == count
    assert whole.iterations == -(-count // 2)
    assert whole.gradient_cost == pytest.approx(1.3 + 2.6 * count)
    assert parts.gradient_cost == pytest.approx(1.3 + 3.9 * count)


def test_the_seed_decides_everything() -> None:
    once, again, other = (top(mlp(), seed=seed) for seed in (3, 3, 4))
    assert once.values == again.values
    assert once.values != other.values


@pytest.mark.parametrize("k", [1, 2])
def test_a_gradient_along_a_lower_eigenvector_does_not_mislead(k: int) -> None:
    curvatures = torch.linspace(0, 1, 2000, dtype=torch.float64)
    curvatures[-3:] = torch.tensor([2.0, 2.5, 3.0])
    model = nn.Linear(2000, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    model.weight.data[0, -3] = 1.0

    def loss_fn(outputs: Tensor, _: Tensor) -> Tensor:
        return (model.weight**2 @ curvatures).sum() / 2 + 0 * outputs.sum()

    for seed in range(20):
        found = top_eigenvalues(model, loss_fn, [(draw(2, 2000), draw(2))], k, seed=seed)
        expected = torch.tensor([3.0, 2.5][:k], dtype=torch.float64)
        torch.testing.assert_close(found.values, expected, rtol=1e-2, atol=0)


def test_the_start_leans_towards_the_gradient_and_no_more() -> None:
    hessian = HessianOperator(mlp(), F.cross_entropy, data_of())
    starts, gradient = start_vectors(hessian, 2, 0), hessian.gradient()
    unit = gradient / gradient.norm()
    strength = min(10, hessian.size**0.5)
    draws = torch.randn(2, hessian.size, generator=generator(0, "lanczos")).double()
    torch.testing.assert_close(starts[0] - draws[0], strength * unit, rtol=0, atol=1e-12)
    assert torch.equal(starts[1], draws[1])


def test_iterations_are_limited_and_the_result_says_so() -> None:
    found = top(mlp(), 2, tolerance=1e-9, max_iterations=3)
    assert (found.iterations, found.hessian_products, found.converged) == (3, 6, False)
    assert found.residuals.max() > 1e-6


def test_batch_statistics_change_the_matrix() -> None:
    model = nn.Sequential(nn.Linear(4, CLASSES, dtype=torch.float64), nn.BatchNorm1d(CLASSES))
    model.double()
    for flag in (False, True):
        expected = torch.linalg.eigvalsh(dense(model, batch_statistics=flag))[-1]
        found = top(model, tolerance=1e-9, batch_statistics=flag).values[0]
        assert float(found) == pytest.approx(float(expected), rel=1e-10)
    assert dense(model, batch_statistics=True).sub(dense(model)).abs().max() > 1e-3


def test_low_precision_models_have_float32_vectors() -> None:
    model = zero_regression().bfloat16()
    data = [(x.bfloat16(), y) for x, y in data_of()]
    found = top_eigenvalues(model, F.cross_entropy, data, tolerance=0.05, vectors=True)
    assert found.vectors is not None
    assert found.vectors.dtype == torch.float32
    assert float(found.values) == pytest.approx(float(top(zero_regression()).values), rel=0.05)


def test_the_traces_samples_are_quadratic_forms_of_signs() -> None:
    matrix = dense(mlp())
    found = trace(mlp(), F.cross_entropy, data_of(), num_samples=400)
    exact = float(matrix.trace())
    off_diagonal = matrix - torch.diag(matrix.diag())
    deviation = float((2 * off_diagonal.square().sum()).sqrt())
    assert found.standard_error == pytest.approx(deviation / 20, rel=0.15)
    assert abs(found.value - exact) < 4 * deviation / 20
    assert found.value == pytest.approx(float(found.samples.mean()))
    assert found.hessian_products == len(found.samples) == 400
    assert found.gradient_cost == pytest.approx(1.3 + 400 * 2.6)


def test_a_diagonal_hessian_has_an_exact_trace() -> None:
    model = nn.Linear(3, 1, bias=False).double()

    def loss_fn(outputs: Tensor, _: Tensor) -> Tensor:
        return (model.weight**2 * torch.tensor([1.0, 2.0, 3.0])).sum() + 0 * outputs.sum()

    found = trace(model, loss_fn, [(draw(2, 3), draw(2))], num_samples=3, weight_decay=0.5)
    assert found.value == pytest.approx(12 + 1.5, abs=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (0, {}, "k must be from 1 to the 20 trainable parameters, got 0"),
        (21, {}, "k must be from 1 to the 20 trainable parameters, got 21"),
        (1.5, {}, "k must be from 1 to the 20 trainable parameters, got 1.5"),
        (1, {"max_iterations": 2.5}, "max_iterations must be a whole number, got 2.5"),
        (1, {"tolerance": 0.0}, "tolerance must be between 0 and 1, got 0.0"),
        (1, {"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
        (1, {"chunk": 0}, "chunk must be >= 1, got 0"),
    ],
)
def test_odd_options_are_refused(k: float, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        top(zero_regression(), k, **options)


def test_a_trace_needs_two_samples() -> None:
    with pytest.raises(UserError, match="num_samples must be >= 2"):
        trace(mlp(), F.cross_entropy, data_of(), num_samples=1)


@pytest.mark.parametrize("measure", [top_eigenvalues, trace])
def test_data_and_losses_are_checked(measure: Any) -> None:
    for data, loss_fn, message in (
        (iter(data_of()), F.cross_entropy, "must be iterable more than once"),
        ([], F.cross_entropy, f"^{nothing_yielded()}$"),
        (data_of(), lambda out, _: (out - out.detach()).abs().sqrt().sum(), "is not finite"),
        (data_of(), lambda out, _: out.detach().sum(), "not twice differentiable"),
    ):
        with pytest.raises(UserError, match=message):
            measure(mlp(), loss_fn, data)


def test_products_are_told_as_they_come() -> None:
    model, batches = nn.Linear(4, 3), [(torch.randn(8, 4), torch.arange(8) % 3)]
    for measure, most in (
        (partial(top_eigenvalues, k=2, max_iterations=7), 14),
        (partial(trace, num_samples=5), 5),
        (partial(spectral_density, num_vectors=2, num_steps=3), 6),
    ):
        told: list[tuple[int, int]] = []
        found = measure(
            model, F.cross_entropy, batches, on_product=lambda *now, told=told: told.append(now)
        )
        assert told == [(done, most) for done in range(1, found.hessian_products + 1)]
