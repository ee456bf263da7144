"""Lanczos with full reorthogonalisation: eigenpairs of a symmetric matrix from products with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Maps a vector (P,) to a symmetric matrix times it."""

_ENOUGH = 0.7
"""Orthogonalise again unless this fraction of the norm remains (Daniel et al. 1976)."""


class BandLanczos:
    """An orthonormal basis of a Krylov space of one or several start vectors.

    Each step multiplies one vector of the basis by the matrix and appends the new part of the
    product to the basis; with b start vectors this is block Lanczos with blocks of b (Ruhe 1979,
    https://doi.org/10.1090/S0025-5718-1979-0521282-9), which finds up to b copies of a multiple
    eigenvalue, while one start vector finds one. All vectors are fully orthogonalised against all
    others. With A the matrix, V the multiplied vectors and W the others, A V = V T + W C holds to
    rounding, so residuals need no further product.

    The basis has the dtype of ``start``, which is that of the products: they have its rounding
    anyway, and for P = 10^7 the basis takes most of the memory. T and C are float64, on the CPU.

    Args:
        product: multiplies a vector by the matrix A.
        start: (b, P), linearly independent.
        capacity: the largest size of the basis; above b.

    Attributes:
        size: the number of vectors in the basis.
        processed: how many of them, from the first on, have been multiplied.
    """

    def __init__(self, product: Product, start: Tensor, capacity: int) -> None:
        self._product = product
        self.capacity = min(capacity, start.shape[1])
        self.size = self.processed = 0
        self._basis = start.new_empty(self.capacity, start.shape[1])
        self._matrix = torch.zeros(self.capacity, self.capacity, dtype=torch.float64)
        self._scale = 0.0
        self._tiny = 100 * torch.finfo(start.dtype).eps
        for vector in start:
            rest, _ = self._orthogonalise(vector)
            self._append(rest, float(torch.linalg.vector_norm(rest)))

    @property
    def full(self) -> bool:
        """Whether the capacity is reached although the basis does not span the whole space."""
        return self.size == self.capacity < self._basis.shape[1]

    def step(self) -> bool:
        """Multiply one vector; return False if none is left, because the space is invariant."""
        assert not self.full, "restart first"
        if self.processed == self.size:
            return False
        column = self.processed
        image = self._product(self._basis[column])
        self._scale = max(self._scale, float(torch.linalg.vector_norm(image)))
        image, coefficients = self._orthogonalise(image)
        self._matrix[: self.size, column] = coefficients
        self._matrix[column, : self.size] = coefficients
        self.processed += 1
        rest = float(torch.linalg.vector_norm(image))
        if rest > self._tiny * self._scale and self.size < self.capacity:
            self._matrix[self.size, column] = self._matrix[column, self.size] = rest
            self._append(image, rest)
        return True

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values (m,), largest first, coordinates (m, m) and residual norms (m,).

        The columns of the coordinates are the Ritz vectors in the basis of the m multiplied
        vectors; the residual of a Ritz vector x is |A x - theta x|. All are float64.
        """
        done = self.processed
        values, coordinates = torch.linalg.eigh(self._matrix[:done, :done])
        values, coordinates = values.flip(0), coordinates.flip(1)
        waiting = self._matrix[done : self.size, :done]
        return values, coordinates, torch.linalg.vector_norm(waiting @ coordinates, dim=0)

    def rounding(self) -> float:
        """Return the norm below which a residual is only rounding."""
        return self._tiny * self._scale

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return the vectors (k, P) with coordinates (m, k)."""
        return coordinates.T.to(self._basis) @ self._basis[: self.processed]

    def restart(self, keep: int) -> None:
        """Reduce the basis to the ``keep`` largest Ritz vectors and the vectors not yet multiplied.

        A thick restart (Wu and Simon 2000, https://doi.org/10.1137/S0895479898334605): A V = V T
        + W C still holds, with a diagonal T.
        """
        values, coordinates, _ = self.ritz()
        coordinates = coordinates[:, :keep]
        waiting = self._matrix[self.processed : self.size, : self.processed] @ coordinates
        size = keep + len(waiting)
        self._basis[:keep], self._basis[keep:size] = (
            self.vectors(coordinates),
            self._basis[self.processed : self.size].clone(),
        )
        self._matrix.zero_()
        self._matrix[:keep, :keep] = torch.diag(values[:keep])
        self._matrix[keep:size, :keep] = waiting
        self._matrix[:keep, keep:size] = waiting.T
        self.size, self.processed = size, keep

    def _append(self, vector: Tensor, norm: float) -> None:
        self._basis[self.size] = vector / norm
        self.size += 1

    def _orthogonalise(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return a vector's part outside the basis, and its coordinates (size,) in the basis."""
        basis = self._basis[: self.size]
        total = torch.zeros(self.size, dtype=torch.float64)
        rest, norm = vector, float(torch.linalg.vector_norm(vector))
        for _ in range(4):
            coordinates = basis @ rest
            rest = torch.addmv(rest, basis.T, coordinates, alpha=-1)
            total += coordinates.double().cpu()
            before, norm = norm, float(torch.linalg.vector_norm(rest))
            if norm > _ENOUGH * before:
                break
        return rest, total


@dataclass(frozen=True)
class Eigenpairs:
    """The k largest eigenvalues found, with Ritz vectors (k, P)."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    products: int
    converged: bool


def largest_eigenpairs(
    product: Product,
    start: Tensor,
    *,
    tolerance: float,
    max_products: int,
    capacity: int | None = None,
) -> Eigenpairs:
    """Return the (algebraically) largest eigenpairs, as many as there are start vectors.

    Args:
        product: multiplies a vector by the symmetric matrix.
        start: (k, P), random; up to k copies of an eigenvalue are found.
        tolerance: stop when each residual |A x - theta x| is at most tolerance * |theta|, or
            rounding.
        max_products: stop after this many.
        capacity: the size of the basis at a restart, above 2 k; 4 k + 24 by default.

    Returns:
        Values (k,), largest first, and residuals (k,), float64 on the CPU; vectors (k, P) in the
        dtype of ``start``.
    """
    count = len(start)
    lanczos = BandLanczos(product, start, capacity or 4 * count + 24)
    products, more, converged = 0, True, False
    while True:
        if lanczos.full:
            lanczos.restart(count + (lanczos.processed - count) // 2)
        more = lanczos.step()
        products += more
        if lanczos.processed < count:
            continue
        values, coordinates, residuals = lanczos.ritz()
        bounds = (tolerance * values[:count].abs()).clamp(min=lanczos.rounding())
        converged = bool((residuals[:count] <= bounds).all())
        if converged or not more or products >= max_products:
            vectors = lanczos.vectors(coordinates[:, :count])
            return Eigenpairs(values[:count], residuals[:count], vectors, products, converged)
