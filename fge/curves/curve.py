"""Curves through weight space: points, speed and length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from fge.curves.buffers import Ends, check_buffers, end_buffers
from fge.curves.curve_file import read_points, write_points
from fge.curves.families import (
    Bezier,
    Family,
    check_num_points,
    locate,
    make_family,
)
from fge.curves.networks import Networks
from fge.errors import UserError, check_at_least
from fge.networks import (
    Layout,
    Point,
    Weights,
    architecture_of,
    as_vectors,
    buffers_of_points,
    check_distinct,
    flatten,
)
from fge.observer import counted

_COLUMNS = 1 << 20
"""Columns per block of the Gram matrix, so that float64 copies stay small."""


class Curve(Networks):
    """A curve through weight space: a family and its points.

    Args:
        family: coefficients as functions of t.
        points: (B, P), the first and last are the ends; not copied, so do not change them later.
        layout: names and shapes of the parameters, for state dicts.
        buffers: of the networks at the two ends, by name; not copied. They need a layout.

    Raises:
        UserError: the points do not fit the family or the layout, or the ends differ in the names
            or shapes of their buffers.
    """

    def __init__(
        self,
        family: Family,
        points: Tensor,
        layout: Layout | None = None,
        buffers: Ends | None = None,
    ) -> None:
        if points.ndim != 2 or len(points) != family.num_points:
            raise UserError(
                f"the points of this curve must have shape ({family.num_points}, P), "
                f"got {tuple(points.shape)}"
            )
        if not points.is_floating_point():
            raise UserError(f"the points of a curve must be floating-point, got {points.dtype}")
        if layout is not None and layout.numel != points.shape[1]:
            raise UserError(
                f"the layout has {layout.numel} parameters, the points have {points.shape[1]}"
            )
        if buffers is not None:
            if layout is None:
                raise UserError("buffers need the names of the parameters too; give a layout")
            check_buffers(buffers)
        self.family = family
        self.points = points.detach()
        self.layout = layout
        self.buffers = buffers

    def __repr__(self) -> str:
        """Return family, number of points and parameters, length, and whether ends have buffers."""
        count, parameters = self.points.shape
        return (
            f"Curve({self.family.name}, {counted(count, 'point')}, "
            f"{counted(parameters, 'parameter')}, length {self.length():.4g}, "
            f"{self._ends_in_words()})"
        )

    def at(self, t: float) -> Tensor:
        """Return w(t) (P,), a new tensor in the points' dtype; at 0 and 1 it is an end, bitwise.

        Raises:
            UserError: t is outside [0, 1].
        """
        point = combination(self.family.coefficients(t).tolist(), self.points)
        for part in self.held:
            point[part] = self.points[0, part]
        return point

    @cached_property
    def held(self) -> list[slice]:
        """Parts of the vectors: parameters that are the same at all points, such as frozen ones.

        They are the same at every t, bitwise; a sum of products would round them. A curve without
        a layout has none.
        """
        return equal_parts(self.points, self.layout)

    def velocity(self, t: float) -> Tensor:
        """Return dw/dt (P,), a new tensor in the points' dtype.

        Raises:
            UserError: t is outside [0, 1].
        """
        slopes = self.family.derivative(t).tolist()
        velocity = torch.zeros_like(self.points[0])
        for slope, point in zip(slopes[1:], self.points[1:], strict=True):
            velocity.add_(point - self.points[0], alpha=slope)
        return velocity

    def speed(self, t: float) -> float:
        """Return |dw/dt|, from the Gram matrix.

        Raises:
            UserError: t is outside [0, 1].
        """
        return self._norm(self.family.derivative(t))

    def length(self, chords: int = 60) -> float:
        """Return the length of the curve as the sum of ``chords`` chords, evenly spaced in t.

        Raises:
            UserError: ``chords`` is below 1.
        """
        return float(self.arc_lengths([1.0], chords=chords)[0])

    def arc_lengths(self, ts: Sequence[float], *, chords: int = 60) -> Tensor:
        """Return the length (T,) float64 of the curve from 0 to each t.

        It is the sum of the chords between ``chords`` + 1 evenly spaced points and ``ts``.

        Raises:
            UserError: ``chords`` is below 1, or a t is outside [0, 1].
        """
        check_at_least(1, chords=chords)
        grid = sorted({*(k / chords for k in range(chords + 1)), *map(float, ts)})
        coefficients = [self.family.coefficients(t) for t in grid]
        total, reached = 0.0, {grid[0]: 0.0}
        for k in range(1, len(grid)):
            total += self._norm(coefficients[k] - coefficients[k - 1])
            reached[grid[k]] = total
        return torch.tensor([reached[float(t)] for t in ts], dtype=torch.float64)

    def gram(self) -> Tensor:
        """Return the Gram matrix (B, B) float64 of the points; see :func:`gram_matrix`."""
        return self._gram.clone()

    @cached_property
    def _gram(self) -> Tensor:
        return gram_matrix(self.points)

    def _norm(self, coefficients: Tensor) -> float:
        """Return |sum_i a_i w_i| for coefficients a (B,) that sum to 0."""
        return math.sqrt(max(float(coefficients @ self._gram @ coefficients), 0.0))

    def ends_at(self, t: float) -> tuple[Ends | None, float]:
        """Return the buffers of the ends, if known, and t."""
        return self.buffers, float(t)

    def all_ends(self) -> list[Ends | None]:
        """Return the buffers of the ends, in a list."""
        return [self.buffers]

    def save(self, path: str | Path) -> None:
        """Write the curve to a ``.safetensors`` file, atomically.

        Each parameter is a tensor (B, ...) under its name, with its values at the B points, and
        each buffer one (2, ...) with its values at the ends; without a layout there is one tensor
        ``points`` (B, P). The metadata hold the family and the order of the parameters.

        Raises:
            OSError: the file could not be written; an existing file is unchanged.
        """
        write_points(Path(path), self.family, self.points, self.layout, self.buffers)

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Return the curve in a file that :meth:`save` wrote, bitwise, on the CPU.

        Raises:
            UserError: there is no such file, it is damaged, or it holds no curve.
        """
        parts = read_points(Path(path))
        try:
            return cls(*parts)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def elevate(curve: Curve) -> Curve:
    """Return the same Bezier curve with one more point (degree elevation), its ends bitwise.

    With n = num_points - 1 the new points are i/(n+1) w_(i-1) + (1 - i/(n+1)) w_i.
    """
    if not isinstance(curve.family, Bezier):
        raise UserError(f"only a Bezier curve can be elevated, got a {curve.family.name}")
    count = curve.family.num_points
    points = curve.points
    middle = [
        combination([i / count, 1 - i / count], points[i - 1 : i + 1]) for i in range(1, count)
    ]
    more = torch.stack([points[0], *middle, points[-1]])
    for part in curve.held:
        more[:, part] = points[0, part]
    return Curve(Bezier(count + 1), more, curve.layout, curve.buffers)


class Chain(Networks):
    """Curves joined end to end through several networks; each gets an equal part of t in [0, 1].

    A t between two curves belongs to the second. The interface is that of :class:`Curve`.

    Args:
        curves: each starts, bitwise, at the end of the previous one; all have the same layout.

    Raises:
        UserError: there are no curves, or two do not meet or have different layouts.
    """

    def __init__(self, curves: Sequence[Curve]) -> None:
        if not curves:
            raise UserError("a chain needs at least one curve, got none")
        self.curves = list(curves)
        self.layout = curves[0].layout
        for number in range(1, len(curves)):
            before, after = curves[number - 1], curves[number]
            if not torch.equal(before.points[-1], after.points[0]):
                raise UserError(f"curve {number} of the chain does not start at the previous end")
            if after.layout != self.layout:
                raise UserError(f"curve {number} of the chain has another layout than the first")

    @classmethod
    def through(
        cls,
        points: Tensor | Sequence[Point],
        *,
        family: str = "bezier",
        num_points: int = 3,
        closed: bool = False,
        layout: Layout | None = None,
        model: nn.Module | None = None,
    ) -> Chain:
        """Return straight curves through several networks, in order, which keep their buffers.

        Args:
            points: the networks: vectors (K, P), modules, state dicts or paths.
            family: of each curve.
            num_points: of each curve.
            closed: return from the last network to the first.
            layout: names and shapes of the parameters of vectors, unless there is a model.
            model: their architecture; not needed for vectors, or if one is a module.

        Raises:
            UserError: there are fewer than two networks, two neighbours are equal, or they are not
                weights of one architecture, or it is not known.
        """
        if len(points) < 2:
            raise UserError(f"a chain needs at least two networks, got {len(points)}")
        stops = [*points, points[0]] if closed else list(points)
        vectors, architecture = as_vectors(stops, model), architecture_of(stops, model)
        if layout is None and architecture is not None:
            layout = Layout.of(architecture)
        buffers = buffers_of_points(stops, model)
        curves = []
        for k, (start, end) in enumerate(itertools.pairwise(vectors)):
            check_distinct(start, end)
            bends = straight_points(start, end, num_points, layout)
            ends = None if buffers is None else (buffers[k], buffers[k + 1])
            curves.append(Curve(make_family(family, num_points), bends, layout, ends))
        return cls(curves)

    def __repr__(self) -> str:
        """Return the number of curves and parameters, length, and whether ends have buffers."""
        parameters = self.curves[0].points.shape[1]
        return (
            f"Chain({counted(len(self.curves), 'curve')}, "
            f"{counted(parameters, 'parameter')}, length {self.length():.4g}, "
            f"{self._ends_in_words()})"
        )

    @property
    def closed(self) -> bool:
        """Whether the last curve ends, bitwise, at the start of the first."""
        return torch.equal(self.curves[0].points[0], self.curves[-1].points[-1])

    def at(self, t: float) -> Tensor:
        """Return w(t) (P,); see :meth:`Curve.at`."""
        piece, part = locate(t, len(self.curves))
        return self.curves[piece].at(part)

    def velocity(self, t: float) -> Tensor:
        """Return dw/dt (P,); see :meth:`Curve.velocity`."""
        piece, part = locate(t, len(self.curves))
        return self.curves[piece].velocity(part) * len(self.curves)

    def speed(self, t: float) -> float:
        """Return |dw/dt|; see :meth:`Curve.speed`."""
        piece, part = locate(t, len(self.curves))
        return self.curves[piece].speed(part) * len(self.curves)

    def length(self, chords: int = 60) -> float:
        """Return the length from ``chords`` chords per curve; see :meth:`Curve.length`."""
        return sum(curve.length(chords) for curve in self.curves)

    def arc_lengths(self, ts: Sequence[float], *, chords: int = 60) -> Tensor:
        """Return the length (T,) from 0 to each t; see :meth:`Curve.arc_lengths`."""
        located = [locate(t, len(self.curves)) for t in ts]
        lengths = torch.zeros(len(located), dtype=torch.float64)
        before = 0.0
        for number, curve in enumerate(self.curves):
            inside = [k for k, (piece, _) in enumerate(located) if piece == number]
            parts = curve.arc_lengths([*(located[k][1] for k in inside), 1.0], chords=chords)
            lengths[inside] = before + parts[:-1]
            before += float(parts[-1])
        return lengths

    def ends_at(self, t: float) -> tuple[Ends | None, float]:
        """Return the buffers of the ends of the curve on which t lies, and the t on it."""
        piece, part = locate(t, len(self.curves))
        return self.curves[piece].buffers, part

    def all_ends(self) -> list[Ends | None]:
        """Return the buffers of the ends of each curve."""
        return [curve.buffers for curve in self.curves]


def straight_curve(
    model: nn.Module,
    start: Weights,
    end: Weights,
    *,
    family: str = "polychain",
    num_points: int = 2,
) -> Curve:
    """Return the straight curve between two networks, whose ends have their own buffers.

    Args:
        model: the architecture, on the device of the curve.
        start: weights at t = 0.
        end: weights at t = 1.
        family: of the curve.
        num_points: of the curve.

    Raises:
        UserError: the weights do not fit the model, or are equal.
    """
    first, last = flatten(start, model), flatten(end, model)
    check_distinct(first, last)
    layout, buffers = Layout.of(model), end_buffers(model, start, end)
    points = straight_points(first, last, num_points, layout)
    return Curve(make_family(family, num_points), points, layout, buffers)


def straight_points(
    start: Tensor, end: Tensor, num_points: int, layout: Layout | None = None
) -> Tensor:
    """Return points (num_points, P) evenly spaced from ``start`` to ``end`` (P,), both bitwise.

    With a layout, parameters that are the same at both ends are the same in between, bitwise.

    Raises:
        UserError: ``num_points`` is below 2, or the ends have different shapes.
    """
    check_num_points(num_points)
    if start.shape != end.shape or start.ndim != 1:
        raise UserError(
            f"start and end must be vectors of one length, got shapes {tuple(start.shape)} and "
            f"{tuple(end.shape)}"
        )
    last = num_points - 1
    points = start.detach().new_empty(num_points, len(start))
    points[0], points[last] = start.detach(), end.detach()
    for i in range(1, last):  # in place, to avoid a copy of a large network's weights
        torch.mul(points[0], 1 - i / last, out=points[i]).add_(points[last], alpha=i / last)
    for part in equal_parts(points[:: max(last, 1)], layout):
        points[1:last, part] = points[0, part]
    return points


def equal_parts(points: Tensor, layout: Layout | None) -> list[slice]:
    """Return the parts of vectors (B, P) whose parameter is the same in all, bitwise."""
    ends = itertools.accumulate(layout.sizes if layout else [], initial=0)
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    return [part for part in parts if all(_same(points[0, part], row[part]) for row in points[1:])]


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two vectors are equal; most of them differ in their first value."""
    return bool(a[:1].equal(b[:1])) and torch.equal(a, b)


def gram_matrix(points: Tensor) -> Tensor:
    """Return G (B, B) float64 on the CPU with G_ij = <w_i - w_0, w_j - w_0> for points (B, P).

    For coefficients a that sum to 0, such as those of velocities and chords, aᵀGa is
    |sum_i a_i w_i|². Taking differences first keeps its digits when the points are close together
    and far from the origin.
    """
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    for block in torch.split(points.detach(), _COLUMNS, dim=1):
        differences = block.double() - block[0].double()
        gram += differences @ differences.T
    return gram.cpu()


def combination(coefficients: Sequence[float], points: Tensor) -> Tensor:
    """Return sum_i c_i w_i (P,), a new tensor, for coefficients (B,) and points (B, P).

    Points with coefficient 0 are left out, so that 1 w_i is w_i bitwise.
    """
    total: Tensor | None = None
    for coefficient, point in zip(coefficients, points, strict=True):
        if coefficient == 0:
            continue
        total = point * coefficient if total is None else total.add_(point, alpha=coefficient)
    assert total is not None, "all coefficients are 0"
    return total
