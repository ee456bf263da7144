"""Straight lines and random directions in weight space; the maths is in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fge.errors import UserError
from fge.networks.flat import Layout
from fge.seeds import generator


@dataclass(frozen=True, eq=False)
class Line:
    """The weights start + t direction for any t: something to evaluate as a curve.

    Raises:
        UserError: start and direction are not finite vectors (P,) of one length, or the direction
            is 0.
    """

    start: Tensor
    direction: Tensor

    def __post_init__(self) -> None:
        check_vectors({"start": self.start, "direction": self.direction})
        if not bool(self.direction.any()):
            raise UserError("the direction of a line is 0; give two networks that differ")

    @classmethod
    def through(cls, start: Tensor, end: Tensor) -> Line:
        """Return the line with ``start`` (P,) at t = 0 and ``end`` at t = 1.

        Raises:
            UserError: they coincide, or are not finite vectors of one length.
        """
        check_vectors({"start": start, "end": end})
        origin = start.detach().double()
        return cls(start.detach(), end.detach().to(origin) - origin)

    @classmethod
    def random(cls, center: Tensor, layout: Layout, seed: int = 0, *, biases: bool = False) -> Line:
        """Return the line through ``center`` along the first axis of :meth:`Plane.random`.

        Raises:
            UserError: as there.
        """
        check_vectors({"center": center})
        return cls(center.detach(), random_direction(center, layout, seed, 0, biases=biases))

    def at(self, t: float) -> Tensor:
        """Return the weights (P,) at t, in the dtype of the start."""
        return (self.start.double() + t * self.direction.double()).to(self.start.dtype)


def filter_normalised(
    direction: Tensor, weights: Tensor, layout: Layout, *, biases: bool = False
) -> Tensor:
    """Return a direction (P,) float64 whose filters are as long as those of the weights.

    d_ij <- d_ij |w_ij| / |d_ij| for the j-th filter of tensor i (Li et al. 2018, arXiv 1712.09913,
    section 4): an output channel of a convolution, a row of a linear layer. Parameters of fewer
    than two dimensions, that is biases and those of normalisation layers, become 0; with ``biases``
    each counts as one filter.

    Raises:
        UserError: direction or weights do not fit the layout.
    """
    scaled = torch.zeros_like(weights, dtype=torch.float64, requires_grad=False)
    parts = (layout.split(vector.detach().double()).values() for vector in (direction, weights))
    for out, along, own in zip(layout.split(scaled).values(), *parts, strict=True):
        if own.numel() == 0 or (own.ndim < 2 and not biases):
            continue
        filters = len(own) if own.ndim >= 2 else 1
        step = along.reshape(filters, -1)
        lengths = step.norm(dim=1, keepdim=True)
        wanted = own.reshape(filters, -1).norm(dim=1, keepdim=True)
        # A filter that the direction does not touch is 0 already; it must not become 0/0.
        out.copy_((step * (wanted / lengths.where(lengths > 0, 1.0))).reshape(own.shape))
    return scaled


def random_direction(
    center: Tensor, layout: Layout, seed: int, axis: int, *, biases: bool = False
) -> Tensor:
    """Return a Gaussian direction (P,) float64, filter-normalised to the weights ``center``.

    Args:
        center: weights (P,), canonical.
        layout: their names and shapes.
        seed: of the direction.
        axis: number of the direction; those of one seed are independent of one another.
        biases: see :func:`filter_normalised`.

    Raises:
        UserError: ``center`` does not fit the layout, or no filter of it differs from 0.
    """
    rng = generator(seed, "direction", axis)
    gaussian = torch.randn(layout.numel, generator=rng, dtype=torch.float64).to(center.device)
    direction = filter_normalised(gaussian, center, layout, biases=biases)
    if not bool(direction.any()):
        kind = "weights" if biases else "weights of two dimensions and more"
        raise UserError(f"a random direction is scaled to the filters, but all {kind} are 0")
    return direction


def check_vectors(vectors: Mapping[str, Tensor]) -> None:
    """Check that named vectors of weights are flat, of one length, and finite.

    Raises:
        UserError: one is not; it is named.
    """
    first = next(iter(vectors))
    for name, vector in vectors.items():
        if vector.ndim != 1 or not vector.is_floating_point():
            raise UserError(
                f"{name} must be a floating-point vector (P,), got {vector.dtype} of shape "
                f"{tuple(vector.shape)}; fge.networks.flat.flatten makes one of a network"
            )
        if len(vector) != len(vectors[first]):
            raise UserError(
                f"{name} has {len(vector)} weights, {first} has {len(vectors[first])}; "
                "give networks of one architecture"
            )
        if not bool(torch.isfinite(vector).all()):
            raise UserError(f"{name} holds values that are not finite")
