"""Baselines of a curve: other points at the same distance from its start.

How good is the ensemble of the two networks w(0) and w(t)? Garipov et al. 2018 (arXiv 1802.10026,
section 4) plot its error against the distance s(t) = |w(t) - w(0)| along the curve and along the
segment between the ends. The other baselines here ask how much of the curve's advantage comes from
its distance, its angle to the chord, or its whole shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from fge.curves.curve import Curve
from fge.errors import UserError, unknown
from fge.seeds import generator

_COLUMNS = 1 << 20
"""Columns of the points per block, so that float64 copies stay small."""


class Baseline(ABC):
    """Points at the distances of a curve from its start, calculated in float64.

    The random numbers of different baselines with one seed are independent. Parameters that are
    the same on the whole curve, such as frozen ones, are the same at all points, bitwise.
    """

    name: ClassVar[str]

    def __init__(self, curve: Curve, *, seed: int = 0) -> None:
        self.curve = curve
        self._start = curve.points[0].double()
        chord = curve.points[-1].double() - self._start
        self._coordinates = _coordinates(curve.points)
        self._axis = chord / chord.norm()
        self._free = len(chord) - sum(part.stop - part.start for part in curve.held)
        self._prepare(generator(seed, "baseline", self.name))

    def distance(self, t: float) -> float:
        """Return s(t) = |w(t) - w(0)|."""
        return math.hypot(*self._components(t))

    @abstractmethod
    def at(self, t: float) -> Tensor:
        """Return the point (P,), canonical and in the curve's dtype, at the distance s(t)."""

    def _prepare(self, rng: torch.Generator) -> None:
        """Draw the random numbers."""
        del rng  # a baseline may need none

    def _components(self, t: float) -> tuple[float, float]:
        """Return the parts of w(t) - w(0) along the chord and perpendicular to it (>= 0)."""
        position = self.curve.family.coefficients(t) @ self._coordinates
        return float(position[0]), float(position[1:].norm())

    def _frame(self, count: int, rng: torch.Generator, fixed: Tensor) -> list[Tensor]:
        """Return random unit vectors (P,), perpendicular to each other and to ``fixed``."""
        return _random_frame(count, rng, fixed, self.curve.held)

    def _from_start(self, displacement: Tensor) -> Tensor:
        return (self._start + displacement).to(self.curve.points.dtype)


class Segment(Baseline):
    """The straight line from w(0) towards w(1): w(0) + s(t) u with u the chord's unit vector.

    If the curve is further from its start than its end is, the point is beyond w(1).
    """

    name = "segment"

    def at(self, t: float) -> Tensor:
        """Return the point (P,) at s(t); see :class:`Baseline`."""
        return self._from_start(self.distance(t) * self._axis)


class RandomDirection(Baseline):
    """A straight line from w(0) in one direction, uniform on the sphere."""

    name = "random-direction"

    def _prepare(self, rng: torch.Generator) -> None:
        (self._direction,) = self._frame(1, rng, self._axis.new_empty(0, len(self._axis)))

    def at(self, t: float) -> Tensor:
        """Return the point (P,) at s(t); see :class:`Baseline`."""
        return self._from_start(self.distance(t) * self._direction)


class RandomAtAngle(Baseline):
    """At the curve's own distance and angle to the chord, turned around the chord at random.

    With w(t) - w(0) = a(t) u + p(t), p perpendicular to the chord's unit vector u, the point is
    w(0) + a(t) u + |p(t)| v, where the unit vector v is uniform among those perpendicular to u.
    """

    name = "random-at-angle"

    def _prepare(self, rng: torch.Generator) -> None:
        if self._free < 2:
            raise UserError(
                "a direction at an angle to the chord needs at least 2 parameters that differ "
                "along the curve, got 1"
            )
        (self._side,) = self._frame(1, rng, self._axis[None])

    def at(self, t: float) -> Tensor:
        """Return the point (P,) at s(t); see :class:`Baseline`."""
        along, across = self._components(t)
        return self._from_start(along * self._axis + across * self._side)


class SameGramArc(Baseline):
    """A curve of the same shape elsewhere: the bends turned around the chord at random.

    One random isometry of the space perpendicular to the chord maps the bends' components in that
    space. The Gram matrix of the points relative to w(0) stays the same, and so do all distances,
    the speed and the length; the ends are the curve's, bitwise. A curve whose bends are on the
    chord is its own arc. ``arc`` is the turned curve, of the same family and layout.
    """

    name = "same-gram-arc"

    def _prepare(self, rng: torch.Generator) -> None:
        side = min(self._coordinates.shape[1], self._free) - 1
        frame = torch.stack([self._axis, *self._frame(side, rng, self._axis[None])])
        points = self.curve.points.clone()
        for i in range(1, len(points) - 1):
            part = self._coordinates[i, : len(frame)]
            points[i] = self._from_start(part.to(frame.device) @ frame)
        self.arc = Curve(self.curve.family, points, self.curve.layout)

    def at(self, t: float) -> Tensor:
        """Return the arc's point (P,) at t; see :class:`Baseline`."""
        return self.arc.at(t)


BASELINES: dict[str, type[Baseline]] = {
    kind.name: kind for kind in (Segment, RandomDirection, RandomAtAngle, SameGramArc)
}


def make_baseline(name: str, curve: Curve, *, seed: int = 0) -> Baseline:
    """Return the baseline called ``name``, a key of ``BASELINES``, for a curve.

    Args:
        name: ``"segment"``, ``"random-direction"``, ``"random-at-angle"`` or ``"same-gram-arc"``.
        curve: of any family and number of points.
        seed: of random numbers; those of different baselines are independent.

    Raises:
        UserError: the name is unknown, the curve's ends coincide, or a single parameter has no
            direction at an angle to the chord.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    return BASELINES[name](curve, seed=seed)


def _coordinates(points: Tensor) -> Tensor:
    """Return the points (B, P) relative to the first in an orthonormal frame, (B, n) float64.

    The frame's first axis is the chord, from the first point to the last; n <= min(B - 1, P).
    These are the R factor of a QR decomposition, accumulated over blocks of columns: unlike a Gram
    matrix, it keeps the digits of small components next to large ones.
    """
    if torch.equal(points[0], points[-1]):
        raise UserError("the curve's ends coincide, so it has no chord; give two ends that differ")
    order = [len(points) - 1, *range(1, len(points) - 1)]
    factor = torch.zeros(0, len(order), dtype=torch.float64, device=points.device)
    for block in torch.split(points, _COLUMNS, dim=1):
        differences = block[order].double() - block[0].double()
        factor = torch.linalg.qr(torch.cat([factor, differences.T]), mode="r").R
    factor[0] *= factor[0, 0].sign()
    coordinates = torch.zeros(len(points), len(factor), dtype=torch.float64)
    coordinates[order] = factor.T.cpu()
    return coordinates


def _random_frame(
    count: int, rng: torch.Generator, fixed: Tensor, still: Iterable[slice] = ()
) -> list[Tensor]:
    """Return ``count`` random unit vectors (P,), perpendicular to each other and to ``fixed``.

    They are uniform among such frames: Gaussian vectors made orthonormal one after the other,
    twice each, which is enough for float64. ``fixed`` (F, P) has orthonormal rows. The vectors are
    0 in the parts ``still``, in which ``fixed`` is 0 too.
    """
    frame = fixed
    for _ in range(count):
        vector = torch.randn(fixed.shape[1], generator=rng, dtype=torch.float64).to(fixed.device)
        for part in still:
            vector[part] = 0
        for _ in range(2):
            vector = vector - frame.T @ (frame @ vector)
        frame = torch.cat([frame, (vector / vector.norm())[None]])
    return list(frame[len(fixed) :])
