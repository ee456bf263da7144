"""The spectral density of a loss's Hessian, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape.hessian import CHUNK, GRAPH_MEMORY, HessianOperator
from fge.landscape.lanczos import BandLanczos
from fge.landscape.sharpness import random_signs
from fge.networks.apply import ForwardFn, LossFn
from fge.seeds import generator

_MARGIN = 4.0
"""How many sigma the grid goes beyond the outermost nodes."""


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
    _check(num_vectors, num_steps, num_points, sigma)
    operator = HessianOperator(
        model, loss_fn, batches, weight_decay=weight_decay, batch_statistics=batch_statistics,
        forward_fn=forward_fn, chunk=chunk, graph_memory=graph_memory,
    )  # fmt: skip
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


def _check(num_vectors: int, num_steps: int, num_points: int, sigma: float | None) -> None:
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
