"""Geometry of weight vectors: distances between networks, and turns of a trajectory.

Whether training crosses barriers or moves along a valley shows in the losses between networks and
in the steps between them (Gotmare et al. 2018, arXiv 1806.06977); this module measures the steps.
All sums are float64, over blocks of the vectors, so memory does not grow with the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fge.errors import UserError

_CHUNK = 1 << 20
"""Elements of a vector per float64 block."""

Vectors = Sequence[Tensor] | Tensor


def distance(a: Tensor, b: Tensor) -> float:
    """Return the Euclidean distance |a - b| of two vectors (P,).

    Raises:
        UserError: they are not finite vectors of equal length.
    """
    _check((a, b))
    return math.sqrt(sum(float((x - y).square().sum()) for x, y in _parts(a, b)))


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two vectors (P,), in [-1, 1]."""
    _check((a, b))
    return _cosine(_parts(a, b), ("vector 0", "vector 1"))


def angle(a: Tensor, b: Tensor) -> float:
    """Return the angle between two vectors (P,), in degrees from 0 to 180.

    It is exact to about 1e-6 degrees at the ends of that range, and to rounding elsewhere.

    Raises:
        UserError: they are not finite vectors of equal length, or one is 0.
    """
    return math.degrees(math.acos(cosine(a, b)))


def turning_angles(path: Vectors) -> Tensor:
    """Return the angles between consecutive steps of a trajectory, in degrees.

    The k-th is between w[k+1] - w[k] and w[k+2] - w[k+1]: 0 if the trajectory continues straight,
    90 if it turns at a right angle (as independent steps in many dimensions nearly do), 180 if it
    turns back.

    Args:
        path: (K, P), or K vectors (P,), in the order of the trajectory; K >= 3.

    Returns:
        angles (K - 2,) float64, in [0, 180].

    Raises:
        UserError: there are fewer than three vectors, they are not finite and of equal length, or
            two consecutive vectors are equal.
    """
    if len(path) < 3:
        raise UserError(f"give at least 3 vectors of weights, got {len(path)}")
    _check(path)
    cosines = [
        _cosine(
            ((v - u, w - v) for u, v, w in _parts(path[k], path[k + 1], path[k + 2])),
            (f"the step from vector {k} to {k + 1}", f"the step from vector {k + 1} to {k + 2}"),
        )
        for k in range(len(path) - 2)
    ]
    return torch.tensor([math.degrees(math.acos(c)) for c in cosines], dtype=torch.float64)


def _cosine(pairs: Iterable[tuple[Tensor, ...]], names: tuple[str, str]) -> float:
    """Return the cosine between two vectors given in blocks; ``names`` are for errors."""
    squares, product = [0.0, 0.0], 0.0
    for a, b in pairs:
        product += float(a @ b)
        squares[0] += float(a @ a)
        squares[1] += float(b @ b)
    for name, square in zip(names, squares, strict=True):
        if square == 0:
            raise UserError(f"{name} has length 0, so it has no direction; leave it out")
    return min(1.0, max(-1.0, product / (math.sqrt(squares[0]) * math.sqrt(squares[1]))))


def _parts(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the vectors block by block, in float64 on the CPU."""
    for start in range(0, len(vectors[0]), _CHUNK):
        yield tuple(
            vector[start : start + _CHUNK].detach().to("cpu", torch.float64) for vector in vectors
        )


def _check(vectors: Vectors) -> None:
    for position, vector in enumerate(vectors):
        if vector.ndim != 1:
            raise UserError(
                f"vector {position} has shape {tuple(vector.shape)}; give flat weights (P,)"
            )
        if len(vector) != len(vectors[0]):
            raise UserError(
                f"vector {position} has {len(vector)} weights, vector 0 has {len(vectors[0])}; "
                "compare networks of one architecture"
            )
        if not bool(torch.isfinite(vector).all()):
            raise UserError(f"vector {position} holds values that are not finite")
