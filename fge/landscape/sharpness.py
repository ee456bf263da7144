"""How sharp a loss is: top Hessian eigenvalues, trace, and the density of the spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError, check_at_least
from fge.landscape.agreement import Agreement
from fge.landscape.hessian import CHUNK, GRAPH_MEMORY, HessianOperator
from fge.landscape.lanczos import BandLanczos, Product, largest_eigenpairs
from fge.networks import ForwardFn, LossFn, TargetFn
from fge.seeds import generator

OnProduct = Callable[[int, int], None]
"""``on_product(done, most)``"""
_LEANING = 10.0
"""The largest ratio of one eigenvector's part in a start vector to the others'."""
_MARGIN = 4.0
"""The grid ends this many sigma beyond the outermost nodes."""


@dataclass(frozen=True)
class EigenResult:
    """The k largest eigenvalues of a Hessian, and their cost.

    Attributes:
        values: (k,), largest first, float64 on the CPU, in units of loss per squared weight.
        residuals: (k,), the norms |H x - value x| for unit vectors x; an eigenvalue is within
            that distance of each value.
        iterations: Krylov steps, each of k products.
        hessian_products: number of Hessian-vector products.
        gradient_cost: their estimated cost, in gradients over the whole data; see
            :class:`fge.landscape.HessianOperator`.
        converged: whether all residuals are within the tolerance.
        vectors: (k, P), orthonormal, trainable parameters in order, each in C order; None unless
            requested.
        agreement: how the products were checked before the first.
    """

    values: Tensor
    residuals: Tensor
    iterations: int
    hessian_products: int
    gradient_cost: float
    converged: bool
    vectors: Tensor | None = None
    agreement: Agreement | None = None


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
    target_fn: TargetFn | None = None,
    chunk: int = CHUNK,
    graph_memory: int = GRAPH_MEMORY,
    seed: int = 0,
    vectors: bool = False,
    on_product: OnProduct | None = None,
) -> EigenResult:
    """Return the k (algebraically) largest eigenvalues of the Hessian of a mean loss.

    Block Lanczos with full reorthogonalisation from k random vectors, the first of which leans
    towards the gradient; an eigenvalue of multiplicity m is found min(m, k) times. By default
    there is certainly an eigenvalue within 1 % of each value; the error of the value is of the
    order of the residual squared. Memory: 4 k + 24 vectors (P,), and the graphs that are kept.

    Args:
        model: any module; only parameters with ``requires_grad`` count. It is not changed.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y)``, in the same order on each pass.
        k: number of eigenvalues, from 1 to P.
        tolerance: stop when |H x - value x| <= tolerance * |value| for each of the k.
        max_iterations: stop after this many steps of k products in any case.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss, and so exactly weight_decay to
            each eigenvalue.
        batch_statistics: batch norm uses the statistics of each chunk, not its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        chunk: the largest number of examples at a time.
        graph_memory: bytes of autograd graphs to keep for the next product; 0 keeps none.
        seed: of the start vectors.
        vectors: whether to return the eigenvectors too.
        on_product: called after each product with the number so far and the most there may be.

    Raises:
        UserError: k, ``tolerance`` or another option is out of range; or as
            :class:`fge.landscape.HessianOperator`: there are no data, they can be read only once,
            the loss is not twice differentiable, or a product is not finite.
    """
    operator = HessianOperator(
        model,
        loss_fn,
        batches,
        weight_decay=weight_decay,
        batch_statistics=batch_statistics,
        forward_fn=forward_fn,
        target_fn=target_fn,
        chunk=chunk,
        graph_memory=graph_memory,
    )
    _check(operator, k, tolerance, max_iterations)
    pairs = largest_eigenpairs(
        _told(operator, on_product, max_iterations * k),
        start_vectors(operator, k, seed),
        tolerance=tolerance,
        max_products=max_iterations * k,
    )
    return EigenResult(
        values=pairs.values,
        residuals=pairs.residuals,
        iterations=-(-pairs.products // k),
        hessian_products=operator.products,
        gradient_cost=operator.cost,
        converged=pairs.converged,
        vectors=pairs.vectors if vectors else None,
        agreement=operator.agreement,
    )


@dataclass(frozen=True)
class TraceResult:
    """An estimate of the trace of a Hessian.

    Attributes:
        value: the mean of the samples.
        standard_error: of the mean.
        samples: (n,) float64, each an unbiased estimate.
        hessian_products: number of Hessian-vector products.
        gradient_cost: their estimated cost, in gradients over the whole data; see
            :class:`fge.landscape.HessianOperator`.
        agreement: how the products were checked before the first.
    """

    value: float
    standard_error: float
    samples: Tensor
    hessian_products: int
    gradient_cost: float
    agreement: Agreement | None = None


def trace(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    num_samples: int = 32,
    weight_decay: float = 0.0,
    batch_statistics: bool = False,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    chunk: int = CHUNK,
    graph_memory: int = GRAPH_MEMORY,
    seed: int = 0,
    on_product: OnProduct | None = None,
) -> TraceResult:
    """Estimate the trace of the Hessian of a mean loss, with its standard error.

    Hutchinson (1990, https://doi.org/10.1080/03610919008812866): the mean of zᵀHz over vectors z
    of random signs; the variance of zᵀHz is twice the sum of the squared off-diagonal entries of H.
    PyHessian (arXiv 1912.07145) uses the same. Options are those of :func:`top_eigenvalues`.

    Args:
        model: any module; it is not changed.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y)``, in the same order on each pass.
        num_samples: number of vectors z, at least 2; each costs a product.
        weight_decay: adds weight_decay * P to the trace, without variance.
        batch_statistics: batch norm uses the statistics of each chunk, not its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        chunk: the largest number of examples at a time.
        graph_memory: bytes of autograd graphs to keep for the next product; 0 keeps none.
        seed: of the signs.
        on_product: called after each product with the number so far and of all.

    Raises:
        UserError: ``num_samples`` is below 2, or as :func:`top_eigenvalues`.
    """
    operator = HessianOperator(
        model,
        loss_fn,
        batches,
        weight_decay=weight_decay,
        batch_statistics=batch_statistics,
        forward_fn=forward_fn,
        target_fn=target_fn,
        chunk=chunk,
        graph_memory=graph_memory,
    )
    check_at_least(2, num_samples=num_samples)
    rng = generator(seed, "trace")
    samples = torch.empty(num_samples, dtype=torch.float64)
    product = _told(operator, on_product, num_samples)
    for index in range(num_samples):
        signs = random_signs(operator, rng)
        samples[index] = torch.dot(signs.double(), product(signs).double())
    return TraceResult(
        value=float(samples.mean()),
        standard_error=float(samples.std()) / math.sqrt(num_samples),
        samples=samples,
        hessian_products=operator.products,
        gradient_cost=operator.cost,
        agreement=operator.agreement,
    )


@dataclass(frozen=True)
class SpectralDensity:
    """A probability distribution over eigenvalues, as nodes with weights and as a smooth curve.

    Attributes:
        nodes: (n,) float64, of all random vectors, in units of the eigenvalues.
        weights: (n,), nonnegative, sum to 1: the fraction of the P eigenvalues near each node.
        vectors: (n,) integers, the number of the random vector that each node comes from.
        grid: (g,) eigenvalues, ascending.
        density: (g,), per unit of eigenvalue: the nodes smoothed by a Gaussian.
        sigma: the Gaussian's standard deviation.
        hessian_products: number of Hessian-vector products.
        gradient_cost: their estimated cost, in gradients over the whole data; see
            :class:`fge.landscape.HessianOperator`.
        agreement: how the products were checked before the first.
    """

    nodes: Tensor
    weights: Tensor
    vectors: Tensor
    grid: Tensor
    density: Tensor
    sigma: float
    hessian_products: int
    gradient_cost: float
    agreement: Agreement | None = None

    def at(self, points: Tensor, sigma: float | None = None) -> Tensor:
        """Return the density (g,) at eigenvalues (g,), smoothed with ``sigma``.

        Raises:
            UserError: sigma is not positive.
        """
        return smoothed(self.nodes, self.weights, points, self.sigma if sigma is None else sigma)

    def moment(self, power: int) -> float:
        """Return the mean of eigenvalue^power; times P it estimates the trace of H^power."""
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
    target_fn: TargetFn | None = None,
    chunk: int = CHUNK,
    graph_memory: int = GRAPH_MEMORY,
    seed: int = 0,
    on_product: OnProduct | None = None,
) -> SpectralDensity:
    """Estimate how the eigenvalues of the Hessian of a mean loss are distributed.

    From each vector of random signs, Lanczos makes a tridiagonal matrix; its eigenvalues and the
    squared first entries of its eigenvectors are the nodes and weights of a Gauss quadrature,
    exact for polynomials below degree 2 num_steps (Golub and Welsch 1969; Lin, Saad and Yang,
    arXiv 1308.5467; for networks Ghorbani et al., arXiv 1901.10159). Full reorthogonalisation
    prevents counting an eigenvalue twice. Memory: num_steps + 1 vectors (P,), and the graphs that
    are kept.

    Args:
        model: any module; only parameters with ``requires_grad`` count. It is not changed.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y)``, in the same order on each pass.
        num_vectors: number of random vectors; the error falls as 1 / sqrt(num_vectors P).
        num_steps: products and nodes per vector; fewer if the Krylov space is exhausted earlier.
        sigma: of the Gaussian, in units of the eigenvalues; by default 1 % of the nodes' range.
        num_points: of the grid.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        batch_statistics: batch norm uses the statistics of each chunk, not its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        chunk: the largest number of examples at a time.
        graph_memory: bytes of autograd graphs to keep for the next product; 0 keeps none.
        seed: of the signs.
        on_product: called after each product with the number so far and of all.

    Raises:
        UserError: an option is out of range, or as :func:`fge.landscape.top_eigenvalues`.
    """
    _check_spectrum(num_vectors, num_steps, num_points, sigma)
    operator = HessianOperator(
        model,
        loss_fn,
        batches,
        weight_decay=weight_decay,
        batch_statistics=batch_statistics,
        forward_fn=forward_fn,
        target_fn=target_fn,
        chunk=chunk,
        graph_memory=graph_memory,
    )
    rng = generator(seed, "spectrum")
    product = _told(operator, on_product, num_vectors * num_steps)
    rules = [
        _quadrature(product, random_signs(operator, rng), num_steps) for _ in range(num_vectors)
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
        agreement=operator.agreement,
    )


def stability_threshold(lr: float, momentum: float) -> float:
    """Return 2 (1 + momentum) / lr.

    On a quadratic loss, full-batch descent with heavy-ball momentum diverges along eigenvectors
    with a larger eigenvalue (Polyak 1964; arXiv 2103.00065, section 2). It is not a bound for
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

    The gradient is mostly in the span of the top eigenvectors (Gur-Ari et al. 2018, arXiv
    1812.04754), and is available with the graph. Its weight is limited: if all of it is on one
    eigenvector, that one is at most ten times as strong as the others. With more, Lanczos could
    converge there before a larger eigenvalue, perpendicular to the gradient, appears. The random
    part is the same on every device.
    """
    draws = torch.randn(k, operator.size, generator=generator(seed, "lanczos"))
    starts = draws.to(operator.device, vector_dtype(operator))
    gradient = operator.gradient().to(starts.dtype)
    norm = float(torch.linalg.vector_norm(gradient))
    if norm > 0:
        # The draws have norm sqrt(P), that is norm 1 on each eigenvector.
        starts[0].add_(gradient, alpha=min(_LEANING, math.sqrt(operator.size)) / norm)
    return starts


def _told(operator: HessianOperator, on_product: OnProduct | None, most: int) -> Product:
    """Return the product with the operator, which calls ``on_product`` after each."""
    if on_product is None:
        return operator.matvec

    def product(vector: Tensor) -> Tensor:
        image = operator.matvec(vector)
        on_product(operator.products, most)
        return image

    return product


def _check(operator: HessianOperator, k: int, tolerance: float, max_iterations: int) -> None:
    if not 1 <= k <= operator.size or k != k // 1:
        raise UserError(f"k must be from 1 to the {operator.size} trainable parameters, got {k}")
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance must be between 0 and 1, got {tolerance}")
    check_at_least(1, max_iterations=max_iterations)


def vector_dtype(operator: HessianOperator) -> torch.dtype:
    """Return the dtype of vectors: that of the parameters, at least float32."""
    return torch.promote_types(operator.dtype, torch.float32)


def random_signs(operator: HessianOperator, rng: torch.Generator) -> Tensor:
    """Return a vector (P,) of -1 and 1, the same on every device."""
    signs = torch.randint(0, 2, (operator.size,), generator=rng) * 2 - 1
    return signs.to(operator.device, vector_dtype(operator))


def smoothed(nodes: Tensor, weights: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Return the sum over nodes (n,) of weight (n,) times the normal density at points (g,)."""
    _check_sigma(sigma)
    distances = (points.double()[:, None] - nodes) / sigma
    bells = torch.exp(-(distances**2) / 2) / (sigma * math.sqrt(2 * math.pi))
    return bells @ weights


def _quadrature(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights (summing to 1) of Lanczos for one vector."""
    lanczos = BandLanczos(product, start[None], steps + 1)
    while lanczos.processed < steps and lanczos.step():
        pass
    nodes, coordinates, _ = lanczos.ritz()
    return nodes, coordinates[0] ** 2


def _default_sigma(nodes: Tensor) -> float:
    """Return 1 % of the nodes' range, or of their size if all nodes are equal."""
    spread, size = float(nodes.max() - nodes.min()), float(nodes.abs().max())
    return 0.01 * (spread if spread > 1e-6 * size else size or 1.0)


def _grid(nodes: Tensor, sigma: float, num_points: int) -> Tensor:
    low, high = float(nodes.min()) - _MARGIN * sigma, float(nodes.max()) + _MARGIN * sigma
    return torch.linspace(low, high, num_points, dtype=torch.float64)


def _check_spectrum(num_vectors: int, num_steps: int, num_points: int, sigma: float | None) -> None:
    check_at_least(1, num_vectors=num_vectors, num_steps=num_steps)
    check_at_least(2, num_points=num_points)
    if sigma is not None:
        _check_sigma(sigma)


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise UserError(f"sigma must be positive and finite, got {sigma}")
