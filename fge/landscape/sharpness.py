"""How sharp a loss is: top Hessian eigenvalues, trace, and the density of the spectrum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape.hessian import CHUNK, GRAPH_MEMORY, HessianOperator
from fge.landscape.lanczos import BandLanczos, largest_eigenpairs
from fge.networks import ForwardFn, LossFn
from fge.seeds import generator

_LEANING = 10.0
"""How much stronger than the others an eigenvector may be in a start vector."""
_MARGIN = 4.0
"""How many sigma the grid goes beyond the outermost nodes."""


@dataclass(frozen=True)
class EigenResult:
    """The k largest eigenvalues of a Hessian, and what they took.

    Attributes:
        values: (k,), largest first, float64 on the CPU, in units of loss per squared weight.
        residuals: (k,), the norms |H x - value x| for unit vectors x; an eigenvalue lies within
            that distance of each value.
        iterations: Krylov steps, each of k products.
        hessian_products: Hessian-vector products.
        gradient_cost: an estimate of their cost, in gradients over the whole data; see
            :class:`fge.landscape.HessianOperator`.
        converged: whether all residuals are within the tolerance.
        vectors: (k, P), orthonormal, by trainable parameters in order and each in C order; None
            unless asked for.
    """

    values: Tensor
    residuals: Tensor
    iterations: int
    hessian_products: int
    gradient_cost: float
    converged: bool
    vectors: Tensor | None = None


def top_eigenvalues(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    k: int = 1,
    *,
    tolerance: float = 1e-2,
    max_iterations: int = 100,
    weight_decay: float = 0.0,
    batch_statistics: bool = False,
    forward_fn: ForwardFn | None = None,
    chunk: int = CHUNK,
    graph_memory: int = GRAPH_MEMORY,
    seed: int = 0,
    vectors: bool = False,
) -> EigenResult:
    """Return the k (algebraically) largest eigenvalues of the Hessian of a mean loss.

    Block Lanczos with full reorthogonalisation from k random vectors (see :func:`start_vectors`):
    an eigenvalue of multiplicity m is found min(m, k) times. By default there is an eigenvalue
    within 1 % of each value for certain; the value's own error is of the order of the residual
    squared. Memory: 4 k + 24 vectors (P,), and the graphs that are kept.

    Args:
        model: any module; only parameters with ``requires_grad`` count. It is not changed.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y, ...)``, in the same order at each pass.
        k: how many, from 1 to P.
        tolerance: stop when |H x - value x| <= tolerance * |value| for each of the k.
        max_iterations: stop after so many steps of k products all the same.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss: it shifts each eigenvalue by
            exactly itself.
        batch_statistics: batch norm uses the statistics of each chunk, not its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        chunk: the most examples at a time.
        graph_memory: bytes of autograd graphs to keep for the next product; 0 keeps none.
        seed: of the start vectors.
        vectors: whether to return the eigenvectors too.

    Raises:
        UserError: k, ``tolerance`` or another option is out of range; or what
            :class:`fge.landscape.HessianOperator` refuses: no data, data that can be read only
            once, a loss that is not twice differentiable, a product that is not finite.
    """
    operator = HessianOperator(
        model,
        loss_fn,
        batches,
        weight_decay=weight_decay,
        batch_statistics=batch_statistics,
        forward_fn=forward_fn,
        chunk=chunk,
        graph_memory=graph_memory,
    )
    _check(operator, k, tolerance, max_iterations)
    found = largest_eigenpairs(
        operator.matvec,
        start_vectors(operator, k, seed),
        tolerance=tolerance,
        max_products=max_iterations * k,
    )
    return EigenResult(
        values=found.values,
        residuals=found.residuals,
        iterations=-(-found.products // k),
        hessian_products=operator.products,
        gradient_cost=operator.cost,
        converged=found.converged,
        vectors=found.vectors if vectors else None,
    )


@dataclass(frozen=True)
class TraceResult:
    """The trace of a Hessian, estimated.

    Attributes:
        value: the mean of the samples.
        standard_error: of the mean.
        samples: (n,) float64, each an unbiased estimate.
        hessian_products: Hessian-vector products.
        gradient_cost: an estimate of their cost, in gradients over the whole data; see
            :class:`fge.landscape.HessianOperator`.
    """

    value: float
    standard_error: float
    samples: Tensor
    hessian_products: int
    gradient_cost: float


def trace(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    num_samples: int = 32,
    weight_decay: float = 0.0,
    batch_statistics: bool = False,
    forward_fn: ForwardFn | None = None,
    chunk: int = CHUNK,
    graph_memory: int = GRAPH_MEMORY,
    seed: int = 0,
) -> TraceResult:
    """Estimate the trace of the Hessian of a mean loss, with its standard error.

    Hutchinson (1990, https://doi.org/10.1080/03610919008812866): the mean of zᵀHz over vectors z
    of random signs, whose variance is twice the squared sum of H's entries off the diagonal.
    PyHessian (arXiv 1912.07145) uses the same. Options are those of :func:`top_eigenvalues`.

    Args:
        model: any module; it is not changed.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y, ...)``, in the same order at each pass.
        num_samples: vectors z, at least 2; each takes a product.
        weight_decay: adds weight_decay * P to the trace, without variance.
        batch_statistics: batch norm uses the statistics of each chunk, not its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs``.
        chunk: the most examples at a time.
        graph_memory: bytes of autograd graphs to keep for the next product; 0 keeps none.
        seed: of the signs.

    Raises:
        UserError: ``num_samples`` is below 2, or what :func:`top_eigenvalues` refuses.
    """
    operator = HessianOperator(
        model,
        loss_fn,
        batches,
        weight_decay=weight_decay,
        batch_statistics=batch_statistics,
        forward_fn=forward_fn,
        chunk=chunk,
        graph_memory=graph_memory,
    )
    if num_samples < 2:
        raise UserError(f"num_samples must be >= 2 for a standard error, got {num_samples}")
    rng = generator(seed, "trace")
    samples = torch.empty(num_samples, dtype=torch.float64)
    for index in range(num_samples):
        signs = random_signs(operator, rng)
        samples[index] = torch.dot(signs.double(), operator.matvec(signs).double())
    return TraceResult(
        value=float(samples.mean()),
        standard_error=float(samples.std()) / math.sqrt(num_samples),
        samples=samples,
        hessian_products=operator.products,
        gradient_cost=operator.cost,
    )


@dataclass(frozen=True)
class SpectralDensity:
    """A probability distribution over eigenvalues, as nodes and weights and as a smooth curve.

    Attributes:
        nodes: (n,) float64, of all random vectors, in units of the eigenvalues.
        weights: (n,), nonnegative, sum to 1: the share of the P eigenvalues near each node.
        vectors: (n,) integers, the random vector that each node is from.
        grid: (g,) eigenvalues, ascending.
        density: (g,), per unit of eigenvalue: the nodes smoothed by a Gaussian.
        sigma: the Gaussian's standard deviation.
        hessian_products: Hessian-vector products.
        gradient_cost: an estimate of their cost, in gradients over the whole data; see
            :class:`fge.landscape.HessianOperator`.
    """

    nodes: Tensor
    weights: Tensor
    vectors: Tensor
    grid: Tensor
    density: Tensor
    sigma: float
    hessian_products: int
    gradient_cost: float

    def at(self, points: Tensor, sigma: float | None = None) -> Tensor:
        """Return the density (g,) at eigenvalues (g,), smoothed by ``sigma``.

        Raises:
            UserError: sigma is not positive.
        """
        return smoothed(self.nodes, self.weights, points, self.sigma if sigma is None else sigma)

    def moment(self, power: int) -> float:
        """Return the mean of eigenvalue^power: times P, an estimate of the trace of H^power."""
        return float((self.weights * self.nodes**power).sum())


def spectral_density(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    num_vectors: int = 4,
    num_steps: int = 60,
    sigma: float | None = None,
    num_points: int = 512,
    weight_decay: float = 0.0,
    batch_statistics: bool = False,
    forward_fn: ForwardFn | None = None,
    chunk: int = CHUNK,
    graph_memory: int = GRAPH_MEMORY,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate how the eigenvalues of the Hessian of a mean loss are distributed.

    From each vector of random signs, Lanczos makes a tridiagonal matrix; its eigenvalues and the
    squared first entries of its eigenvectors are the nodes and weights of a Gauss quadrature,
    exact for polynomials below degree 2 num_steps (Golub and Welsch 1969; Lin, Saad and Yang,
    arXiv 1308.5467; on networks Ghorbani et al., arXiv 1901.10159). Lanczos reorthogonalises in
    full, so that no eigenvalue is counted twice. Memory: num_steps + 1 vectors (P,), and the
    graphs that are kept.

    Args:
        model: any module; only parameters with ``requires_grad`` count. It is not changed.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y, ...)``, in the same order at each pass.
        num_vectors: random vectors; the error falls as 1 / sqrt(num_vectors P).
        num_steps: products per vector, and its nodes, or fewer where they give all it can see.
        sigma: of the Gaussian, in units of the eigenvalues; by default 1 % of the nodes' range.
        num_points: of the grid.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        batch_statistics: batch norm uses the statistics of each chunk, not its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs``.
        chunk: the most examples at a time.
        graph_memory: bytes of autograd graphs to keep for the next product; 0 keeps none.
        seed: of the signs.

    Raises:
        UserError: an option is out of range, or what :func:`fge.landscape.top_eigenvalues`
            refuses.
    """
    _check_spectrum(num_vectors, num_steps, num_points, sigma)
    operator = HessianOperator(
        model,
        loss_fn,
        batches,
        weight_decay=weight_decay,
        batch_statistics=batch_statistics,
        forward_fn=forward_fn,
        chunk=chunk,
        graph_memory=graph_memory,
    )
    rng = generator(seed, "spectrum")
    rules = [
        _quadrature(operator, random_signs(operator, rng), num_steps) for _ in range(num_vectors)
    ]
    nodes = torch.cat([nodes for nodes, _ in rules])
    weights = torch.cat([weights for _, weights in rules]) / num_vectors
    width = _default_sigma(nodes) if sigma is None else sigma
    grid = _grid(nodes, width, num_points)
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        vectors=torch.repeat_interleave(torch.tensor([len(nodes) for nodes, _ in rules])),
        grid=grid,
        density=smoothed(nodes, weights, grid, width),
        sigma=width,
        hessian_products=operator.products,
        gradient_cost=operator.cost,
    )


def stability_threshold(lr: float, momentum: float) -> float:
    """Return 2 (1 + momentum) / lr.

    On a quadratic loss, full-batch descent with heavy-ball momentum diverges along eigenvectors
    whose eigenvalue is larger (Polyak 1964; arXiv 2103.00065, section 2). It is no bound for
    training with small batches.

    Raises:
        UserError: ``lr`` is not above 0.

    >>> round(stability_threshold(0.05, 0.9), 6)
    76.0
    """
    if not lr > 0:
        raise UserError(f"lr must be above 0 for a stability threshold, got {lr}")
    return 2 * (1 + momentum) / lr


def start_vectors(operator: HessianOperator, k: int, seed: int) -> Tensor:
    """Return k random vectors (k, P), the first of which leans towards the gradient.

    The gradient lies mostly among the top eigenvectors (Gur-Ari et al. 2018, arXiv 1812.04754),
    and it is at hand once the graph is made. No more of it is added than makes an eigenvector on
    which all of it lies ten times as strong as the others: with more, Lanczos could settle there
    while a larger eigenvalue, to which the gradient is perpendicular, has not shown up yet.

    Args:
        operator: the Hessian.
        k: how many.
        seed: of the random part, which is the same on every device.

    Raises:
        UserError: what :meth:`fge.landscape.HessianOperator.gradient` refuses.
    """
    draws = torch.randn(k, operator.size, generator=generator(seed, "lanczos"))
    starts = draws.to(operator.device, vector_dtype(operator))
    gradient = operator.gradient().to(starts.dtype)
    norm = float(torch.linalg.vector_norm(gradient))
    if norm > 0:
        # The draws have norm sqrt(P), a part of norm 1 on each eigenvector.
        starts[0].add_(gradient, alpha=min(_LEANING, math.sqrt(operator.size)) / norm)
    return starts


def _check(operator: HessianOperator, k: int, tolerance: float, max_iterations: int) -> None:
    if not 1 <= k <= operator.size:
        raise UserError(f"k must be from 1 to the {operator.size} trainable parameters, got {k}")
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance must be between 0 and 1, got {tolerance}")
    if max_iterations < 1:
        raise UserError(f"max_iterations must be >= 1, got {max_iterations}")


def vector_dtype(operator: HessianOperator) -> torch.dtype:
    """Return the dtype of vectors: the parameters', but float32 where they have less."""
    return torch.promote_types(operator.dtype, torch.float32)


def random_signs(operator: HessianOperator, rng: torch.Generator) -> Tensor:
    """Return a vector (P,) of -1 and 1, the same on every device."""
    signs = torch.randint(0, 2, (operator.size,), generator=rng) * 2 - 1
    return signs.to(operator.device, vector_dtype(operator))


def smoothed(nodes: Tensor, weights: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Return the sum over nodes (n,) of weight (n,) times the normal density at points (g,).

    Raises:
        UserError: sigma is not positive.
    """
    _check_sigma(sigma)
    distances = (points.double()[:, None] - nodes) / sigma
    bells = torch.exp(-(distances**2) / 2) / (sigma * math.sqrt(2 * math.pi))
    return bells @ weights


def _quadrature(operator: HessianOperator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights, which sum to 1, that Lanczos gives for one vector."""
    lanczos = BandLanczos(operator.matvec, start[None], steps + 1)
    while lanczos.processed < steps and lanczos.step():
        pass
    nodes, coordinates, _ = lanczos.ritz()
    return nodes, coordinates[0] ** 2


def _default_sigma(nodes: Tensor) -> float:
    """Return 1 % of the nodes' range, or of their size where they are all one."""
    spread, size = float(nodes.max() - nodes.min()), float(nodes.abs().max())
    return 0.01 * (spread if spread > 1e-6 * size else size or 1.0)


def _grid(nodes: Tensor, sigma: float, num_points: int) -> Tensor:
    low, high = float(nodes.min()) - _MARGIN * sigma, float(nodes.max()) + _MARGIN * sigma
    return torch.linspace(low, high, num_points, dtype=torch.float64)


def _check_spectrum(num_vectors: int, num_steps: int, num_points: int, sigma: float | None) -> None:
    for name, number in (("num_vectors", num_vectors), ("num_steps", num_steps)):
        if number < 1:
            raise UserError(f"{name} must be >= 1, got {number}")
    if num_points < 2:
        raise UserError(f"num_points must be >= 2, got {num_points}")
    if sigma is not None:
        _check_sigma(sigma)


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise UserError(f"sigma must be positive and finite, got {sigma}")
