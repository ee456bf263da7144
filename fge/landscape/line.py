"""Straight lines through weight space."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fge.curves import Ends, Networks
from fge.errors import UserError
from fge.landscape.directions import random_direction, with_layout
from fge.networks import (
    Layout,
    Point,
    architecture_of,
    as_vectors,
    buffers_of_points,
    check_vectors,
)
from fge.observer import counted


@dataclass(frozen=True, eq=False)
class Line(Networks):
    """The weights start + t direction for any t, to evaluate like a curve.

    Attributes:
        start: weights (P,) at t = 0.
        direction: (P,) float64, from t = 0 to t = 1.
        layout: names and shapes of the parameters, if known.
        buffers: of the networks at t = 0 and 1, by name, if known; beyond them those of the nearer.

    Raises:
        UserError: start and direction are not finite vectors (P,) of equal length, or the direction
            is 0.
    """

    start: Tensor
    direction: Tensor
    layout: Layout | None = None
    buffers: Ends | None = None

    def __post_init__(self) -> None:
        check_vectors({"start": self.start, "direction": self.direction})
        if not bool(self.direction.any()):
            raise UserError("the direction of a line is 0; give two networks that differ")

    def __repr__(self) -> str:
        """Return the number of parameters and the distance from t = 0 to t = 1."""
        length = float(self.direction.double().norm())
        return f"Line({counted(len(self.start), 'parameter')}, length {length:.4g})"

    @classmethod
    def through(cls, start: Point, end: Point, *, model: nn.Module | None = None) -> Line:
        """Return the line with ``start`` at t = 0, ``end`` at t = 1, given as to a plane.

        Raises:
            UserError: they are equal, or as in :meth:`Plane.through`.
        """
        given = [start, end]
        start, end = as_vectors(given, model)
        check_vectors({"start": start, "end": end})
        architecture, known = architecture_of(given, model), buffers_of_points(given, model)
        layout = None if architecture is None else Layout.of(architecture)
        origin = start.detach().double()
        ends = None if known is None else (known[0], known[1])
        return cls(start.detach(), end.detach().to(origin) - origin, layout, ends)

    @classmethod
    def random(
        cls,
        center: Point,
        layout: Layout | None = None,
        seed: int = 0,
        *,
        biases: bool = False,
        model: nn.Module | None = None,
    ) -> Line:
        """Return the line through ``center`` along the first axis of :meth:`Plane.random`.

        Raises:
            UserError: as for :meth:`Plane.random`.
        """
        vector, layout = with_layout(center, layout, model)
        direction = random_direction(vector, layout, seed, 0, biases=biases)
        known = buffers_of_points([center], model)
        ends = None if known is None else (known[0], known[0])
        return cls(vector.detach(), direction, layout, ends)

    def at(self, t: float) -> Tensor:
        """Return the weights (P,) at t, in the dtype of the start."""
        return (self.start.double() + t * self.direction.double()).to(self.start.dtype)

    def ends_at(self, t: float) -> tuple[Ends | None, float]:
        """Return the buffers at t = 0 and 1, if known, and t."""
        return self.buffers, float(t)

    def all_ends(self) -> list[Ends | None]:
        """Return the buffers at t = 0 and 1, in a list."""
        return [self.buffers]
