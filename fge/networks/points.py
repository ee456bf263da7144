"""Networks as points of weight space: vectors, modules, state dicts or paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.networks.flat import flatten
from fge.networks.state import Weights, buffers_within

Point = Tensor | Weights
"""A network as a weight vector (P,), a module, a state dict or a path."""


def as_vectors(points: Sequence[Point], model: nn.Module | None) -> list[Tensor]:
    """Return networks as vectors (P,); see :func:`architecture_of`.

    Raises:
        UserError: one is neither, or does not fit the architecture, or this is not known.
    """
    architecture = architecture_of(points, model)
    vectors = []
    for point in points:
        if isinstance(point, Tensor):
            vectors.append(point)
        elif not isinstance(point, nn.Module | Mapping | str | Path):
            raise UserError(
                f"a network is a vector (P,), a module, a state dict or a path, got a "
                f"{type(point).__name__}"
            )
        elif architecture is None:
            raise UserError(
                f"a {type(point).__name__} does not say which tensors are parameters; give "
                "model=, the architecture"
            )
        else:
            vectors.append(flatten(point, architecture))
    return vectors


def architecture_of(points: Sequence[Point], model: nn.Module | None) -> nn.Module | None:
    """Return the architecture of networks: the given one, or the first module among them."""
    modules = [point for point in points if isinstance(point, nn.Module)]
    return model if model is not None or not modules else modules[0]


def buffers_of_points(
    points: Sequence[Point], model: nn.Module | None
) -> list[dict[str, Tensor]] | None:
    """Return the buffers of each network by name; None if those of one are not known.

    Raises:
        UserError: a buffer is of another shape than the architecture's.
    """
    architecture = architecture_of(points, model)
    if architecture is None:
        return None
    given = [p for p in points if not isinstance(p, Tensor)]
    found = [b for p in given if (b := buffers_within(p, architecture))]
    return found if len(found) == len(points) else None


def check_vectors(vectors: Mapping[str, Tensor]) -> None:
    """Raise a UserError unless named weight vectors are flat, finite and of equal length."""
    first = next(iter(vectors))
    for name, vector in vectors.items():
        if vector.ndim != 1 or not vector.is_floating_point():
            raise UserError(
                f"{name} must be a floating-point vector (P,), got {vector.dtype} of shape "
                f"{tuple(vector.shape)}; fge.networks.flatten makes one from a network"
            )
        if len(vector) != len(vectors[first]):
            raise UserError(
                f"{name} has {len(vector)} weights, {first} has {len(vectors[first])}; "
                "give networks of one architecture"
            )
        if not bool(torch.isfinite(vector).all()):
            raise UserError(f"{name} holds values that are not finite")
