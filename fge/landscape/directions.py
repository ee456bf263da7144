"""Random directions in weight space, scaled to the filters of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.networks import Layout, Point, architecture_of, as_vectors, check_vectors
from fge.seeds import generator


def filter_normalised(
    direction: Tensor, weights: Tensor, layout: Layout, *, biases: bool = False
) -> Tensor:
    """Return a direction (P,) float64 whose filters have the norms of the weights' filters.

    d_ij <- d_ij |w_ij| / |d_ij| for the j-th filter of tensor i (Li et al. 2018, arXiv 1712.09913,
    section 4): an output channel of a convolution, a row of a linear layer. Parameters of fewer
    than two dimensions, that is biases and those of normalisation layers, become 0; with ``biases``
    each counts as one filter.
    """
    scaled = torch.zeros_like(weights, dtype=torch.float64, requires_grad=False)
    parts = (layout.split(vector.detach().double()).values() for vector in (direction, weights))
    for out, along, weight in zip(layout.split(scaled).values(), *parts, strict=True):
        if weight.numel() == 0 or (weight.ndim < 2 and not biases):
            continue
        filters = len(weight) if weight.ndim >= 2 else 1
        step = along.reshape(filters, -1)
        lengths = step.norm(dim=1, keepdim=True)
        wanted = weight.reshape(filters, -1).norm(dim=1, keepdim=True)
        # Where a filter of the direction is 0 it stays 0, and must not become 0/0.
        out.copy_((step * (wanted / lengths.where(lengths > 0, 1.0))).reshape(weight.shape))
    return scaled


def random_direction(
    center: Tensor, layout: Layout, seed: int, axis: int, *, biases: bool = False
) -> Tensor:
    """Return a Gaussian direction (P,) float64, filter-normalised to the weights ``center``.

    Directions with the same seed and different ``axis`` numbers are independent.
    """
    rng = generator(seed, "direction", axis)
    gaussian = torch.randn(layout.numel, generator=rng, dtype=torch.float64).to(center.device)
    direction = filter_normalised(gaussian, center, layout, biases=biases)
    if not bool(direction.any()):
        kind = "weights" if biases else "weights of two or more dimensions"
        raise UserError(
            f"a random direction is scaled to the filters, but all {kind} are 0; give a trained "
            "network"
        )
    return direction


def with_layout(
    center: Point, layout: Layout | None, model: nn.Module | None
) -> tuple[Tensor, Layout]:
    """Return a network as a vector (P,), with the layout of its parameters.

    Raises:
        UserError: it is not finite, or its architecture is not known.
    """
    architecture = architecture_of([center], model)
    (vector,) = as_vectors([center], model)
    check_vectors({"center": vector})
    if layout is not None:
        return vector, layout
    if architecture is None:
        raise UserError(
            "a vector does not say where its filters are; give layout=Layout.of(model), or model="
        )
    return vector, Layout.of(architecture)
