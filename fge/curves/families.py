"""Families of curves: the coefficients c_i(t) of w(t) = sum_i c_i(t) w_i."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fge.errors import UserError, unknown

_ROUNDING = 1e-15
"""What a t may be off by where two pieces meet: a few roundings of numbers up to 1."""


@dataclass(frozen=True)
class Family(ABC):
    """A family of curves w(t) = sum_i c_i(t) w_i with ``num_points`` points, t in [0, 1]."""

    num_points: int
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_num_points(self.num_points)

    @abstractmethod
    def coefficients(self, t: float) -> Tensor:
        """Return c(t) (B,) float64, which sums to 1."""

    @abstractmethod
    def derivative(self, t: float) -> Tensor:
        """Return dc/dt (B,) float64, which sums to 0."""


class Bezier(Family):
    """A Bezier curve: c_i(t) = binomial(n, i) t^i (1 - t)^(n - i) with n = num_points - 1.

    https://arxiv.org/abs/1802.10026, section 3.

    >>> Bezier(3).coefficients(0.5).tolist()
    [0.25, 0.5, 0.25]

    Raises:
        UserError: ``num_points`` is below 2.
    """

    name = "bezier"

    def coefficients(self, t: float) -> Tensor:
        """Return c(t) (B,) float64, which sums to 1; t outside [0, 1] is a UserError."""
        return torch.tensor(_bernstein(self.num_points - 1, _checked(t)), dtype=torch.float64)

    def derivative(self, t: float) -> Tensor:
        """Return dc/dt (B,) float64, which sums to 0; t outside [0, 1] is a UserError."""
        degree = self.num_points - 1
        lower = [0.0, *_bernstein(degree - 1, _checked(t)), 0.0]
        slopes = [degree * (lower[i] - lower[i + 1]) for i in range(degree + 1)]
        return torch.tensor(slopes, dtype=torch.float64)


class PolyChain(Family):
    """A polygonal chain: num_points - 1 straight pieces, each with an equal part of t.

    https://arxiv.org/abs/1802.10026, section 3. At a corner the derivative is that of the piece
    that starts there.

    >>> PolyChain(3).coefficients(0.75).tolist()
    [0.0, 0.5, 0.5]

    Raises:
        UserError: ``num_points`` is below 2.
    """

    name = "polychain"

    def coefficients(self, t: float) -> Tensor:
        """Return c(t) (B,) float64, which sums to 1; t outside [0, 1] is a UserError."""
        piece, part = locate(t, self.num_points - 1)
        values = torch.zeros(self.num_points, dtype=torch.float64)
        values[piece], values[piece + 1] = 1 - part, part
        return values

    def derivative(self, t: float) -> Tensor:
        """Return dc/dt (B,) float64, which sums to 0; t outside [0, 1] is a UserError."""
        pieces = self.num_points - 1
        piece, _ = locate(t, pieces)
        values = torch.zeros(self.num_points, dtype=torch.float64)
        values[piece], values[piece + 1] = -pieces, pieces
        return values


FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Bezier, PolyChain)}


def make_family(name: str, num_points: int) -> Family:
    """Return the family called ``name``: ``"bezier"`` or ``"polychain"``.

    Raises:
        UserError: the name is unknown, or ``num_points`` is below 2.
    """
    if name not in FAMILIES:
        raise unknown("curve family", name, FAMILIES)
    return FAMILIES[name](num_points)


def locate(t: float, pieces: int) -> tuple[int, float]:
    """Return the piece that t in [0, 1] is in, and the position on that piece, in [0, 1].

    The pieces divide [0, 1] equally; a t between two, to rounding, belongs to the second, at 0.

    >>> locate(0.625, 4), locate(0.5, 4), locate(1, 4)
    ((2, 0.5), (2, 0.0), (3, 1.0))
    """
    t = _checked(t)
    position = t * pieces
    if abs(position - round(position)) <= _ROUNDING * pieces:  # a t as of linspace may be off
        position = round(position)
    piece = min(int(position), pieces - 1)
    return piece, float(position - piece)


def check_num_points(num_points: int) -> None:
    """Raise a UserError if there are fewer points than ends."""
    if num_points < 2:
        raise UserError(f"num_points counts both ends and must be >= 2, got {num_points}")


def _checked(t: float) -> float:
    t = float(t)
    if not 0 <= t <= 1:
        raise UserError(f"t must be in [0, 1], got {t:g}")
    return t


def _bernstein(degree: int, t: float) -> list[float]:
    """Return binomial(n, i) t^i (1 - t)^(n - i) for i = 0 ... n; for n = 0 it is 1."""
    return [math.comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in range(degree + 1)]
