"""What a curve is compared with: other points just as far from its start.

How good is the ensemble of the two networks w(0) and w(t)? Garipov et al. 2018 (arXiv 1802.10026,
section 4) draw its error against the distance s(t) = |w(t) - w(0)| along the curve and along the
segment between the ends. The further baselines here ask which part of the curve's advantage is
its distance, its angle to the chord, or its whole shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fge.curves.curve import Curve
from fge.errors import UserError, unknown
from fge.seeds import generator

_COLUMNS = 1 << 20
"""Columns of the points that are decomposed at a time, so that float64 copies stay small."""


class Baseline(ABC):
    """Points at the distances of a curve from its start; calculated in float64.

    Args:
        curve: of any family and number of points.
        seed: of what is random. Baselines of one seed are independent of one another.

    Raises:
        UserError: the curve's ends coincide.
    """

    name: ClassVar[str]

    def __init__(self, curve: Curve, *, seed: int = 0) -> None:
        self.curve = curve
        self._start = curve.points[0].double()
        chord = curve.points[-1].double() - self._start
        self._coordinates = _coordinates(curve.points)
        self._axis = chord / chord.norm()
        self._prepare(generator(seed, "baseline", self.name))

    def distance(self, t: float) -> float:
        """Return s(t) = |w(t) - w(0)|.

        Raises:
            UserError: t is outside [0, 1].
        """
        return math.hypot(*self._components(t))

    @abstractmethod
    def at(self, t: float) -> Tensor:
        """Return the point (P,), canonical and in the curve's dtype, at the distance s(t).

        Raises:
            UserError: t is outside [0, 1].
        """

    def _prepare(self, rng: torch.Generator) -> None:
        """Draw what is random."""
        del rng  # a baseline may draw nothing

    def _components(self, t: float) -> tuple[float, float]:
        """Return the parts of w(t) - w(0) along the chord and perpendicular to it (>= 0)."""
        position = self.curve.family.coefficients(t) @ self._coordinates
        return float(position[0]), float(position[1:].norm())

    def _from_start(self, displacement: Tensor) -> Tensor:
        return (self._start + displacement).to(self.curve.points.dtype)


class Segment(Baseline):
    """The straight line from w(0) towards w(1): w(0) + s(t) u with u the chord's unit vector.

    Where the curve is further from its start than its end is, the line passes beyond w(1).
    """

    name = "segment"

    def at(self, t: float) -> Tensor:
        """Return the point (P,) at s(t); see :class:`Baseline`."""
        return self._from_start(self.distance(t) * self._axis)


class RandomDirection(Baseline):
    """A straight line from w(0) in one direction, uniform on the sphere."""

    name = "random-direction"

    def _prepare(self, rng: torch.Generator) -> None:
        (self._direction,) = _random_frame(1, rng, self._axis.new_empty(0, len(self._axis)))

    def at(self, t: float) -> Tensor:
        """Return the point (P,) at s(t); see :class:`Baseline`."""
        return self._from_start(self.distance(t) * self._direction)


class RandomAtAngle(Baseline):
    """At the curve's own distance and angle to the chord, turned around the chord at random.

    With w(t) - w(0) = a(t) u + p(t), p perpendicular to the chord's unit vector u, the point is
    w(0) + a(t) u + |p(t)| v, where the unit vector v is uniform among those perpendicular to u.

    Raises:
        UserError: the curve's ends coincide, or it has a single parameter.
    """

    name = "random-at-angle"

    def _prepare(self, rng: torch.Generator) -> None:
        if len(self._axis) < 2:
            raise UserError(
                "a direction at an angle to the chord needs at least 2 parameters, got 1"
            )
        (self._side,) = _random_frame(1, rng, self._axis[None])

    def at(self, t: float) -> Tensor:
        """Return the point (P,) at s(t); see :class:`Baseline`."""
        along, across = self._components(t)
        return self._from_start(along * self._axis + across * self._side)


class SameGramArc(Baseline):
    """A curve of the same shape elsewhere: the bends turned around the chord at random.

    The bends' components perpendicular to the chord are mapped by one random isometry of the
    space perpendicular to the chord. The Gram matrix of the points relative to w(0) is the
    curve's, and with it each distance, the speed and the length; the ends are the curve's, bitwise.
    A curve whose bends lie on the chord is its own arc.

    Attributes:
        arc: the turned curve, of the same family and layout.
    """

    name = "same-gram-arc"

    def _prepare(self, rng: torch.Generator) -> None:
        side = self._coordinates.shape[1] - 1
        frame = torch.stack([self._axis, *_random_frame(side, rng, self._axis[None])])
        points = self.curve.points.clone()
        for i in range(1, len(points) - 1):
            points[i] = self._from_start(self._coordinates[i].to(frame.device) @ frame)
        self.arc = Curve(self.curve.family, points, self.curve.layout)

    def at(self, t: float) -> Tensor:
        """Return the arc's point (P,) at t; see :class:`Baseline`."""
        return self.arc.at(t)


BASELINES: dict[str, type[Baseline]] = {
    kind.name: kind for kind in (Segment, RandomDirection, RandomAtAngle, SameGramArc)
}


def make_baseline(name: str, curve: Curve, *, seed: int = 0) -> Baseline:
    """Return the baseline of that name, a key of ``BASELINES``, for a curve.

    Raises:
        UserError: there is none, or it cannot be made for this curve.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    return BASELINES[name](curve, seed=seed)


def _coordinates(points: Tensor) -> Tensor:
    """Return the points (B, P) relative to the first in an orthonormal frame, (B, n) float64.

    The frame's first axis is the chord, from the first point to the last; n <= min(B - 1, P).
    These are the R factor of a QR decomposition, gathered over blocks of columns: unlike a Gram
    matrix, it keeps the digits of small components beside large ones.

    Raises:
        UserError: the first and last point coincide.
    """
    if torch.equal(points[0], points[-1]):
        raise UserError("the curve's ends coincide: it has no chord to compare it with")
    order = [len(points) - 1, *range(1, len(points) - 1)]
    factor = torch.zeros(0, len(order), dtype=torch.float64, device=points.device)
    for block in torch.split(points, _COLUMNS, dim=1):
        differences = block[order].double() - block[0].double()
        factor = torch.linalg.qr(torch.cat([factor, differences.T]), mode="r").R
    factor[0] *= factor[0, 0].sign()
    coordinates = torch.zeros(len(points), len(factor), dtype=torch.float64)
    coordinates[order] = factor.T.cpu()
    return coordinates


def _random_frame(count: int, rng: torch.Generator, fixed: Tensor) -> list[Tensor]:
    """Return ``count`` random unit vectors (P,), perpendicular to each other and to ``fixed``.

    Uniform among such frames: Gaussian vectors made orthonormal one after the other, each twice,
    which is enough for float64. ``fixed`` (F, P) holds orthonormal rows.
    """
    frame = fixed
    for _ in range(count):
        vector = torch.randn(fixed.shape[1], generator=rng, dtype=torch.float64).to(fixed.device)
        for _ in range(2):
            vector = vector - frame.T @ (frame @ vector)
        frame = torch.cat([frame, (vector / vector.norm())[None]])
    return list(frame[len(fixed) :])
