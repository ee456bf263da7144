"""Planes and lines through weight space, and random directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fge.curves import AnyCurve
from fge.errors import UserError
from fge.networks import Layout, Weights, flatten
from fge.observer import counted
from fge.seeds import generator

Bounds = tuple[float, float, float, float]
"""The lowest x, the highest x, the lowest y and the highest y of a rectangle in a plane."""
Point = Tensor | Weights
"""A network as a weight vector (P,), a module, a state dict or a path."""
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

    Raises:
        UserError: the axes are not two finite, linearly independent vectors of the origin's size.
    """

    origin: Tensor
    axes: Tensor
    anchors: Tensor = field(default_factory=lambda: torch.zeros(1, 2, dtype=torch.float64))
    extent: Bounds = (-1.0, 1.0, -1.0, 1.0)

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
            f"x {left:.4g} to {right:.4g}, y {low:.4g} to {high:.4g})"
        )

    @classmethod
    def through(cls, w0: Point, w1: Point, w2: Point, *, model: nn.Module | None = None) -> Plane:
        """Return the plane through three networks, its origin at ``w0``.

        They are weight vectors (P,), modules, state dicts (items of a store are such) or paths.
        ``model`` is their architecture; it is not needed for vectors, or if one is a module.

        The first axis is u = (w2 - w0)/|w2 - w0|, the second the normalised Gram-Schmidt remainder
        of w1 - w0, so ``w1`` has y > 0 (arXiv 1802.10026, appendix). Gram-Schmidt is applied twice,
        which makes the axes perpendicular to rounding even if the three are almost on a line.
        ``anchors`` are the coordinates of w0, w1, w2.

        Raises:
            UserError: two of them are equal or all are on a line, up to the rounding of their
                dtype, they are not finite vectors of equal length or weights of one architecture,
                or it is not known.
        """
        w0, w1, w2 = as_vectors([w0, w1, w2], model)
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
        return _spanned(w0.detach(), torch.stack([u, side / side.norm()]), [w0, w1, w2])

    @classmethod
    def random(
        cls, center: Tensor, layout: Layout, seed: int = 0, *, biases: bool = False
    ) -> Plane:
        """Return the plane through ``center`` along two random filter-normalised directions.

        The axes are not orthonormal: a step of 1 along an axis moves each filter by its own norm.
        ``extent`` is one such step to each side.

        Args:
            center: weights (P,), canonical.
            layout: their names and shapes.
            seed: of the Gaussian directions.
            biases: also move parameters of fewer than two dimensions; by default they are fixed.

        Raises:
            UserError: ``center`` is not finite, does not fit the layout, or all its filters are 0.
        """
        check_vectors({"center": center})
        axes = [random_direction(center, layout, seed, axis, biases=biases) for axis in range(2)]
        return cls(center.detach(), torch.stack(axes))

    @classmethod
    def principal(
        cls, trajectory: Tensor | Sequence[Tensor], *, center: Tensor | None = None
    ) -> Plane:
        """Return the plane of the first two principal components of a trajectory.

        They are the components of w_k - center: with the last weights as ``center`` this is the
        plane of Li et al. 2018. Only a K x K matrix is decomposed, the triangular factor of a QR
        decomposition accumulated over blocks of columns; unlike a Gram matrix it does not square
        small values. Along each axis the end of the trajectory is on the positive side of its
        start.

        Args:
            trajectory: (K, P), or K vectors (P,), in order.
            center: weights (P,) at the origin; the mean of the trajectory by default.

        Raises:
            UserError: there are fewer than three vectors, they are not finite and of equal length,
                or all are on a line through the center.
        """
        if len(trajectory) < 3:
            raise UserError(f"principal components need at least 3 vectors, got {len(trajectory)}")
        rows = [vector.detach() for vector in trajectory]
        given = {} if center is None else {"center": center}
        check_vectors({**{f"vector {k}": row for k, row in enumerate(rows)}, **given})
        origin = _mean(rows) if center is None else center.detach().to(rows[0])
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

    def coordinates(self, weights: Tensor) -> tuple[float, float]:
        """Return (x, y) of the point of the plane nearest to weights (P,).

        Raises:
            UserError: they are not a finite vector of the plane's size.
        """
        x, y = torch.linalg.solve(self.gram, (self.axes @ self._from_origin(weights)).cpu())
        return float(x), float(y)

    def residual(self, weights: Tensor) -> float:
        """Return the distance of weights (P,) from the plane.

        Raises:
            UserError: they are not a finite vector of the plane's size.
        """
        x, y = self.coordinates(weights)
        return float((self._from_origin(weights) - x * self.axes[0] - y * self.axes[1]).norm())

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

    def _from_origin(self, weights: Tensor) -> Tensor:
        check_vectors({"origin": self.origin, "weights": weights})
        return weights.detach().to(self.axes) - self.origin.double()


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


@dataclass(frozen=True, eq=False)
class Line:
    """The weights start + t direction for any t, to evaluate like a curve.

    Raises:
        UserError: start and direction are not finite vectors (P,) of equal length, or the direction
            is 0.
    """

    start: Tensor
    direction: Tensor

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
        start, end = as_vectors([start, end], model)
        check_vectors({"start": start, "end": end})
        origin = start.detach().double()
        return cls(start.detach(), end.detach().to(origin) - origin)

    @classmethod
    def random(cls, center: Tensor, layout: Layout, seed: int = 0, *, biases: bool = False) -> Line:
        """Return the line through ``center`` along the first axis of :meth:`Plane.random`.

        Raises:
            UserError: as for :meth:`Plane.random`.
        """
        check_vectors({"center": center})
        return cls(center.detach(), random_direction(center, layout, seed, 0, biases=biases))

    def at(self, t: float) -> Tensor:
        """Return the weights (P,) at t, in the dtype of the start."""
        return (self.start.double() + t * self.direction.double()).to(self.start.dtype)


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


def as_vectors(weights: Sequence[Point], model: nn.Module | None) -> list[Tensor]:
    """Return weights as vectors (P,); the first module among them is the architecture of all."""
    modules = [w for w in weights if isinstance(w, nn.Module)]
    architecture = model if model is not None or not modules else modules[0]
    vectors = []
    for point in weights:
        if isinstance(point, Tensor):
            vectors.append(point)
        elif architecture is None:
            raise UserError(
                f"a {type(point).__name__} does not say which tensors are parameters; give "
                "model=, the architecture"
            )
        else:
            vectors.append(flatten(point, architecture))
    return vectors


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
