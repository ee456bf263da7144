"""Planes through weight space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fge.curves import AnyCurve, Buffers, Statistics, mixed, statistics_of
from fge.errors import UserError
from fge.landscape.directions import random_direction, with_layout
from fge.networks import Layout, Point, as_vectors, buffers_of_points, check_vectors
from fge.observer import counted

Bounds = tuple[float, float, float, float]
"""The lowest x, the highest x, the lowest y and the highest y of a rectangle in a plane."""
_ROUNDING = 1e-12
_COLUMNS = 1 << 20
"""Columns of a trajectory per block, so that float64 copies stay small."""


@dataclass(frozen=True, eq=False)
class Plane:
    """The weights origin + x axes[0] + y axes[1].

    Planes from :meth:`through` and :meth:`principal` have orthonormal axes, so x and y are
    distances in weight space. The axes of :meth:`random` have the lengths of filter normalisation
    and are not exactly perpendicular; ``gram`` gives the distances.

    Attributes:
        origin: weights (P,) at (0, 0); points have their dtype.
        axes: (2, P) float64.
        anchors: coordinates (K, 2) float64 of the weights that define the plane.
        extent: the rectangle to show, without a margin.
        buffers: of the three anchors, by name, or of the one, if they are known.

    Raises:
        UserError: the axes are not two finite, linearly independent vectors of the origin's size.
    """

    origin: Tensor
    axes: Tensor
    anchors: Tensor = field(default_factory=lambda: torch.zeros(1, 2, dtype=torch.float64))
    extent: Bounds = (-1.0, 1.0, -1.0, 1.0)
    buffers: Sequence[Buffers] | None = None

    def __post_init__(self) -> None:
        if len(self.axes) != 2:
            raise UserError(f"a plane has two axes, got {len(self.axes)}")
        check_vectors({"origin": self.origin, "axes[0]": self.axes[0], "axes[1]": self.axes[1]})
        (a, b), (_, c) = self.gram.tolist()
        if not (a > 0 and c > 0 and (b / math.sqrt(a) / math.sqrt(c)) ** 2 < 1 - 1e-12):
            raise UserError("the axes of a plane must not be zero or parallel; give two directions")

    def __repr__(self) -> str:
        """Return the number of parameters and anchors, and the extent."""
        left, right, low, high = self.extent
        return (
            f"Plane({counted(len(self.origin), 'parameter')}, "
            f"{counted(len(self.anchors), 'anchor')}, "
            f"x {_short(left)} to {_short(right)}, y {_short(low)} to {_short(high)})"
        )

    @classmethod
    def through(cls, w0: Point, w1: Point, w2: Point, *, model: nn.Module | None = None) -> Plane:
        """Return the plane through three networks, its origin at ``w0``.

        They are weight vectors (P,), modules, state dicts (items of a store are such) or paths.
        ``model`` is their architecture; it is not needed for vectors, or if one is a module.

        The first axis is u = (w2 - w0)/|w2 - w0|, the second the normalised Gram-Schmidt remainder
        of w1 - w0, so ``w1`` has y > 0 (arXiv 1802.10026, appendix). Gram-Schmidt is applied twice,
        which makes the axes perpendicular to rounding even if the three are almost on a line.
        ``anchors`` are the coordinates of w0, w1, w2; ``buffers`` are theirs, unless one is a
        vector.

        Raises:
            UserError: two of them are equal or all are on a line, up to the rounding of their
                dtype, they are not finite vectors of equal length or weights of one architecture,
                or it is not known.
        """
        given = [w0, w1, w2]
        w0, w1, w2 = as_vectors(given, model)
        vectors = {"w0": w0, "w1": w1, "w2": w2}
        check_vectors(vectors)
        noise = torch.finfo(w0.dtype).eps * max(float(w.double().norm()) for w in vectors.values())
        start = w0.detach().double()
        u, side = (w.detach().to(start) - start for w in (w2, w1))
        apart = {("w0", "w1"): side, ("w1", "w2"): u - side, ("w2", "w0"): u}
        for (first, second), difference in apart.items():
            if float(difference.norm()) <= noise:
                raise UserError(
                    f"{first} and {second} are equal up to rounding; give three networks that "
                    "differ"
                )
        u = u / u.norm()
        for _ in range(2):
            side = side - (side @ u) * u
        if float(side.norm()) <= noise:
            raise UserError(
                f"w0, w1 and w2 are on one line up to rounding: w1 is {float(side.norm()):.2g} off "
                "the line through w0 and w2; give three networks that span a plane"
            )
        plane = _spanned(w0.detach(), torch.stack([u, side / side.norm()]), [w0, w1, w2])
        return replace(plane, buffers=buffers_of_points(given, model))

    @classmethod
    def random(
        cls,
        center: Point,
        layout: Layout | None = None,
        seed: int = 0,
        *,
        biases: bool = False,
        model: nn.Module | None = None,
    ) -> Plane:
        """Return the plane through ``center`` along two random filter-normalised directions.

        The axes are not orthonormal: a step of 1 along an axis moves each filter by its own norm.
        ``extent`` is one such step to each side.

        Args:
            center: a network, given as to :meth:`through`.
            layout: names and shapes of its parameters; needed if it is a vector without ``model``.
            seed: of the Gaussian directions.
            biases: also move parameters of fewer than two dimensions; by default they are fixed.
            model: its architecture, where it is neither a vector nor a module.

        Raises:
            UserError: ``center`` is not finite, does not fit the layout, or all its filters are 0,
                or the architecture is not known.
        """
        vector, layout = with_layout(center, layout, model)
        axes = [random_direction(vector, layout, seed, axis, biases=biases) for axis in range(2)]
        buffers = buffers_of_points([center], model)
        return cls(vector.detach(), torch.stack(axes), buffers=buffers)

    @classmethod
    def principal(
        cls,
        trajectory: Tensor | Sequence[Point],
        *,
        center: Point | None = None,
        model: nn.Module | None = None,
    ) -> Plane:
        """Return the plane of the first two principal components of a trajectory.

        They are the components of w_k - center: with the last weights as ``center`` this is the
        plane of Li et al. 2018. Only a K x K matrix is decomposed, the triangular factor of a QR
        decomposition accumulated over blocks of columns; unlike a Gram matrix it does not square
        small values. Along each axis the end of the trajectory is on the positive side of its
        start.

        Args:
            trajectory: (K, P), or K networks in order, given as to :meth:`through`.
            center: the network at the origin; the mean of the trajectory by default.
            model: their architecture, as to :meth:`through`.

        Raises:
            UserError: there are fewer than three vectors, they are not finite and of equal length,
                or all are on a line through the center.
        """
        if len(trajectory) < 3:
            raise UserError(f"principal components need at least 3 vectors, got {len(trajectory)}")
        middle = [] if center is None else [center]
        rows = [vector.detach() for vector in as_vectors([*trajectory, *middle], model)]
        named = {f"vector {k}": row for k, row in enumerate(rows)}
        if middle:
            named["center"] = named.pop(f"vector {len(trajectory)}")
        check_vectors(named)
        origin = rows.pop().to(rows[0]) if middle else _mean(rows)
        left, sizes = _decomposed(rows, origin)
        noise = torch.finfo(rows[0].dtype).eps * max(float(row.double().norm()) for row in rows)
        if len(sizes) < 2 or float(sizes[1]) <= noise * math.sqrt(len(rows)):
            raise UserError(
                f"the {len(rows)} vectors are on a line through the center, so there is no second "
                "principal component; give a longer trajectory"
            )
        return _spanned(origin, _components(rows, origin, left, sizes), rows)

    @property
    def gram(self) -> Tensor:
        """Dot products (2, 2) float64 of the axes: |x axes[0] + y axes[1]|² = (x, y) G (x, y)ᵀ."""
        return (self.axes @ self.axes.T).cpu()

    def point(self, x: float, y: float) -> Tensor:
        """Return the weights (P,) at (x, y), in the origin's dtype; at (0, 0) the origin."""
        point = torch.add(self.origin.double(), self.axes[0], alpha=x)
        return point.add_(self.axes[1], alpha=y).to(self.origin.dtype)

    def coordinates(self, weights: Point, *, model: nn.Module | None = None) -> tuple[float, float]:
        """Return (x, y) of the point of the plane nearest to a network.

        Args:
            weights: given as to :meth:`through`.
            model: its architecture, where it is neither a vector nor a module.

        Raises:
            UserError: it is not finite, not of the plane's size, or of an unknown architecture.
        """
        offset = self._from_origin(weights, model)
        x, y = torch.linalg.solve(self.gram, (self.axes @ offset).cpu())
        return float(x), float(y)

    def residual(self, weights: Point, *, model: nn.Module | None = None) -> float:
        """Return the distance of a network from the plane.

        Raises:
            UserError: as :meth:`coordinates`.
        """
        x, y = self.coordinates(weights, model=model)
        offset = self._from_origin(weights, model)
        return float((offset - x * self.axes[0] - y * self.axes[1]).norm())

    def buffers_at(self, x: float, y: float) -> dict[str, Tensor]:
        """Return the buffers at (x, y) by name: a network has its own, bitwise.

        Elsewhere in the triangle of the three networks they are linear, and those that are not
        floating-point the nearest one's. Outside it negative barycentric coordinates count as 0.
        Around a single network they are its own. There are none if they are not known.
        """
        if self.buffers is None:
            return {}
        if len(self.buffers) == 1:
            return mixed(self.buffers, [1.0])
        corners = torch.cat([self.anchors.T, torch.ones(1, 3, dtype=torch.float64)])
        parts = torch.linalg.solve(corners, torch.tensor([x, y, 1.0], dtype=torch.float64))
        parts = parts.clamp(min=0)
        return mixed(self.buffers, (parts / parts.sum()).tolist())

    def statistics(self, model: nn.Module) -> Statistics:
        """Return which buffers the networks of the plane have; printed, it is a text.

        Args:
            model: the architecture.
        """
        known = self.buffers
        pairs = [None] if known is None else list(itertools.pairwise([*known, known[0]]))
        return replace(statistics_of(model, pairs), own_ends=False, places="networks of the plane")

    def project(self, curve: AnyCurve, ts: Sequence[float] | None = None) -> Tensor:
        """Return the coordinates (T, 2) float64 of a curve's points, at 61 even ts by default.

        Raises:
            UserError: a t is outside the curve's range, or the curve has other parameters.
        """
        grid = [k / 60 for k in range(61)] if ts is None else ts
        points = [self.coordinates(curve.at(t)) for t in grid]
        return torch.tensor(points, dtype=torch.float64).reshape(len(points), 2)

    def bounds(self, margin: float = 0.2) -> Bounds:
        """Return the extent with a margin on each side, as a fraction of its width and height.

        Raises:
            UserError: the margin is negative or not finite.
        """
        if not 0 <= margin < math.inf:
            raise UserError(f"margin must be >= 0, a fraction of the extent, got {margin:g}")
        left, right, bottom, top = self.extent
        dx, dy = margin * (right - left), margin * (top - bottom)
        return left - dx, right + dx, bottom - dy, top + dy

    def _from_origin(self, weights: Point, model: nn.Module | None) -> Tensor:
        (vector,) = as_vectors([weights], model)
        check_vectors({"origin": self.origin, "weights": vector})
        return vector.detach().to(self.axes) - self.origin.double()


def _short(coordinate: float) -> str:
    """Return a coordinate in few digits; what is left of rounding around 0 is 0."""
    return f"{0.0 if abs(coordinate) < _ROUNDING else coordinate:.4g}"


def _spanned(origin: Tensor, axes: Tensor, weights: Sequence[Tensor]) -> Plane:
    """Return a plane with ``weights`` as anchors and the box around them as extent."""
    plane = Plane(origin, axes)
    anchors = torch.tensor([plane.coordinates(w) for w in weights], dtype=torch.float64)
    (left, bottom), (right, top) = anchors.amin(0).tolist(), anchors.amax(0).tolist()
    return replace(plane, anchors=anchors, extent=(left, right, bottom, top))


def _mean(rows: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(rows[0], dtype=torch.float64)
    for row in rows:
        total += row.to(total)
    return (total / len(rows)).to(rows[0].dtype)


def _differences(rows: Sequence[Tensor], origin: Tensor) -> Iterator[Tensor]:
    """Yield the columns of w_k - origin, (K, columns) float64, block by block."""
    for start in range(0, len(origin), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        center = origin[part].double()
        yield torch.stack([row[part].to(center) for row in rows]) - center


def _decomposed(rows: Sequence[Tensor], origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return left singular vectors (K, n) and singular values (n,) of D = rows - origin (K, P).

    With Dᵀ = QR, Rᵀ has the same ones.
    """
    factor = torch.zeros(0, len(rows), dtype=torch.float64, device=origin.device)
    for block in _differences(rows, origin):
        factor = torch.linalg.qr(torch.cat([factor, block.T]), mode="r").R
    left, sizes, _ = torch.linalg.svd(factor.T, full_matrices=False)
    return left, sizes


def _components(rows: Sequence[Tensor], origin: Tensor, left: Tensor, sizes: Tensor) -> Tensor:
    """Return the first two right singular vectors (2, P), made perpendicular to rounding."""
    forwards = torch.where(left[-1, :2] < left[0, :2], -1.0, 1.0)
    weighting = (left[:, :2] * forwards / sizes[:2]).T
    axes = torch.cat([weighting @ block for block in _differences(rows, origin)], dim=1)
    axes[0] /= axes[0].norm()
    for _ in range(2):
        axes[1] -= (axes[1] @ axes[0]) * axes[0]
    axes[1] /= axes[1].norm()
    return axes
