"""Loss and error on a grid of a plane or along lines; each point is saved as it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fge.arrays import read_npz, write_npz
from fge.curves import (
    AnyCurve,
    Record,
    WeightsEvaluator,
    check_model,
    evaluate_curve,
    warn_of_interpolated,
)
from fge.errors import UserError, check_at_least
from fge.files import append_record, checked, read_records
from fge.landscape.plane import Bounds, Plane
from fge.networks import REFRESH_IMAGES, ForwardFn, Layout, LossFn, TargetFn, preserved
from fge.schemas import Count, Infinite
from fge.seeds import generator
from fge.tasks import Task
from fge.train import Speed

Array = NDArray[np.float64]
_REMEDY = "give another file, or remove this one to measure again"
_AXES = ("xs", "ys", "anchors", "gram")


def evaluate_plane(
    model: nn.Module,
    plane: Plane,
    batches: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    resolution: int = 21,
    margin: float = 0.2,
    bounds: Bounds | None = None,
    refresh: Iterable[Any] | None = None,
    num_images: int | None = REFRESH_IMAGES,
    loss_fn: LossFn | None = None,
    weight_decay: float = 0.0,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    speed: Speed | None = None,
    task: Task | None = None,
    store: str | Path | None = None,
    on_point: Callable[[int, int], None] | None = None,
) -> PlaneGrid:
    """Measure a model on a grid of a plane, with batch-norm statistics estimated at each point.

    Running statistics of instance norm are estimated too. Other buffers are those that the plane
    has there, with a warning if those of its networks differ, or else the model's. The grid of
    arXiv 1802.10026 (figure 1) has 21 x 21 points and a margin of 0.2. The model is unchanged
    afterwards.

    Args:
        model: the architecture, on the device to use; any module.
        plane: through weights of that architecture.
        batches: re-iterable of ``(x, y)``, without augmentation; or a mapping such as ``{"train":
            ..., "test": ...}``, then keys are ``train_loss``, ``test_error``, ...
        resolution: points along each axis.
        margin: around the plane's extent, as a fraction of its width and height.
        bounds: lowest x, highest x, lowest y and highest y, to use instead of ``margin``.
        refresh: data for estimating batch-norm statistics, varied as in training; by default the
            first of ``batches``.
        num_images: at most this many of them; None for all, 0 to keep the model's statistics.
        loss_fn: of outputs and targets, averaged over the batch; by default that of the ``task``,
            or the cross-entropy.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        speed: autocast and memory format; compilation is not used.
        task: whose loss and figures are measured, as in :func:`fge.evaluate_curve`.
        store: a JSON-lines file for the measured points; the points of an interrupted call are
            not measured again, so data and loss must stay the same.
        on_point: called after each point with the number of finished points and of all points.

    Raises:
        UserError: the resolution is below 2, the margin is negative, bounds do not ascend, the
            plane is of another architecture, the store of another grid, or a split yields nothing
            or can be iterated only once.
    """
    _check_fits(model, plane, buffers=num_images != 0)
    xs, ys = _grid_lines(plane, resolution, margin, bounds)
    evaluate = WeightsEvaluator(
        model,
        batches,
        refresh=refresh,
        num_images=num_images,
        loss_fn=loss_fn,
        weight_decay=weight_decay,
        forward_fn=forward_fn,
        target_fn=target_fn,
        speed=speed,
        task=task,
    )
    statistics = plane.statistics(model)
    if num_images != 0:
        warn_of_interpolated(statistics.interpolated, statistics.places)
    header = {"xs": xs.tolist(), "ys": ys.tolist(), **_described(evaluate, plane)}
    if statistics.interpolated:
        header["buffers"] = list(statistics.interpolated)
    points = GridStore(None if store is None else Path(store), header)
    with preserved(model):
        for row, column in np.ndindex(len(ys), len(xs)):
            if (row, column) not in points.records:
                x, y = float(xs[column]), float(ys[row])
                record, _ = evaluate(plane.point(x, y), plane.buffers_at(x, y))
                points.add((row, column), record)
                if on_point:
                    on_point(len(points.records), xs.size * ys.size)
    return PlaneGrid(xs, ys, points.arrays(), plane.anchors.numpy(), plane.gram.numpy())


def evaluate_line(
    model: nn.Module,
    path: AnyCurve,
    batches: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    num_points: int = 61,
    **options: Any,
) -> list[Record]:
    """Measure a model at even steps along a line, a curve or a chain of networks.

    Args:
        model: the architecture, on the device to use; any module.
        path: a ``Line`` between two networks or in a random direction, a ``Curve``, a ``Chain``.
        batches: as in :func:`fge.evaluate_curve`.
        bounds: lowest and highest t. Curves and chains end at 0 and 1; lines do not.
        num_points: number of values of t, the bounds included.
        options: other options of :func:`fge.evaluate_curve`.

    Returns:
        Records of :func:`fge.evaluate_curve`; ``distance`` is the distance from t = 0.

    Raises:
        UserError: there are fewer than two points, bounds do not ascend or, on a curve, leave
            [0, 1]; or as in :func:`fge.evaluate_curve`.
    """
    check_at_least(2, num_points=num_points)
    low, high = bounds
    if not -math.inf < low < high < math.inf:
        raise UserError(f"bounds must be two finite numbers that ascend, got {bounds}")
    ts = np.linspace(low, high, num_points).tolist()
    return evaluate_curve(model, path, batches, ts=ts, **options)


def _check_fits(model: nn.Module, plane: Plane, *, buffers: bool) -> None:
    count = Layout.of(model).numel
    if count != len(plane.origin):
        raise UserError(
            f"the model has {count} parameters, the plane has {len(plane.origin)}; give a plane of "
            "the model's architecture"
        )
    for network in plane.buffers or () if buffers else ():
        check_model(model, network, "the plane")


def _grid_lines(
    plane: Plane, resolution: int, margin: float, bounds: Bounds | None
) -> tuple[Array, Array]:
    """Return the xs and ys of a grid, after checking the options."""
    if resolution < 2:
        raise UserError(f"resolution, the points along each axis, must be >= 2, got {resolution}")
    left, right, bottom, top = rectangle = plane.bounds(margin) if bounds is None else bounds
    if not (-math.inf < left < right < math.inf and -math.inf < bottom < top < math.inf):
        raise UserError(
            "bounds must be the lowest and highest x, then the lowest and highest y, finite, got "
            f"{rectangle}"
        )
    return np.linspace(left, right, resolution), np.linspace(bottom, top, resolution)


def _described(evaluate: WeightsEvaluator, plane: Plane) -> dict[str, Any]:
    """Return what identifies a grid, as JSON values.

    The plane's vectors are identified by their lengths and their products with one random vector,
    which rounding (another number of threads, for example) changes only in the last digits.
    """
    vectors = [plane.origin.double(), *plane.axes]
    rng = generator(0, "plane")
    probe = torch.randn(len(plane.origin), generator=rng, dtype=torch.float64)
    loss = evaluate.loss_fn
    return {
        "plane": [value for vector in vectors for value in _sketch(vector.cpu(), probe)],
        "splits": list(evaluate.splits),
        "num_images": evaluate.num_images,
        "loss_fn": getattr(loss, "__qualname__", type(loss).__name__),
        "weight_decay": evaluate.weight_decay,
    }


def _sketch(vector: Tensor, probe: Tensor) -> tuple[float, float]:
    length = float(vector.norm())
    return length, float(vector @ probe) / (length or 1.0)


@dataclass(frozen=True, eq=False)
class PlaneGrid:
    """Measurements on a grid of points of a plane.

    Attributes:
        xs: (X,) float64, ascending; distances in weight space if the axes are orthonormal.
        ys: (Y,) float64, like ``xs``.
        values: arrays (Y, X) by key: ``loss``, ``error`` (percent), ``nll`` (nats per example),
            or those of a task; a split's name and ``_`` come before each key.
        anchors: coordinates (K, 2) of the weights that define the plane.
        gram: dot products (2, 2) of the plane's axes; the distance between two points that differ
            by (dx, dy) is sqrt((dx, dy) G (dx, dy)ᵀ).

    Raises:
        UserError: an array has another shape.
    """

    xs: Array
    ys: Array
    values: dict[str, Array]
    anchors: Array
    gram: Array

    def __post_init__(self) -> None:
        expected = {key: (len(self.ys), len(self.xs)) for key in self.values}
        shapes = {key: value.shape for key, value in self.values.items()}
        expected |= {"anchors": (len(self.anchors), 2), "gram": (2, 2)}
        shapes |= {"anchors": self.anchors.shape, "gram": self.gram.shape}
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise UserError(f"{name!r} of a plane must have shape {shape}, got {shapes[name]}")

    def __repr__(self) -> str:
        """Return the number of points along each axis and what was measured there."""
        measured = ", ".join(self.values)
        return f"PlaneGrid({len(self.xs)} x {len(self.ys)} points, {measured})"

    def save(self, path: str | Path) -> None:
        """Write the arrays to an ``.npz`` file, atomically.

        It holds ``xs``, ``ys``, ``anchors``, ``gram``, each of ``values`` under its key, and the
        list of these ``keys``.

        Raises:
            OSError: the file could not be written; an existing file is unchanged.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _AXES} | self.values
        write_npz(Path(path), {"keys": list(self.values), **arrays})

    @classmethod
    def load(cls, path: str | Path) -> PlaneGrid:
        """Return the grid in a file that :meth:`save` wrote, bitwise and without unpickling.

        Raises:
            UserError: there is no such file, it is damaged, or it holds no grid.
        """
        keys = [str(key) for key in np.atleast_1d(read_npz(Path(path), ["keys"])["keys"])]
        arrays = read_npz(Path(path), [*_AXES, *keys])
        return cls(values={key: arrays.pop(key) for key in keys}, **arrays)


class _Point(TypedDict):
    """Where a point of a grid is; its other keys are figures."""

    row: Count
    column: Count


class GridStore:
    """The records of a grid's points by row and column, saved in a JSON-lines file.

    The first line, ``header``, identifies the grid; one line per point follows. Lists of numbers in
    the header are compared to 1e-9 of their largest number, because they are computed. Without a
    path the records are only in memory.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[int, int], Record] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_records(path, dict)
        if not lines:
            append_record(path, dict(header))
            return
        for key, value in header.items():
            if not _agree(lines[0].get(key), value):
                raise UserError(f"{path} holds another grid, its {key!r} differ; {_REMEDY}")
        damaged = f"{path} is damaged and holds no grid"
        for line in lines[1:]:
            row, column = (checked(line, _Point, damaged, _REMEDY)[k] for k in ("row", "column"))
            figures = {k: v for k, v in line.items() if k not in _Point.__annotations__}
            figures = checked(figures, dict[str, float | Infinite], damaged, _REMEDY)
            self._keep((row, column), {key: float(value) for key, value in figures.items()})

    def _keep(self, cell: tuple[int, int], record: Record) -> None:
        other = next(iter(self.records.values()), record)
        if record.keys() != other.keys():
            raise UserError(
                f"{self.path} is damaged and holds no grid: its points have different keys; "
                f"{_REMEDY}"
            )
        self.records[cell] = record

    def add(self, cell: tuple[int, int], record: Record) -> None:
        """Save the record of a row and column.

        Raises:
            UserError: it has other keys than those before.
        """
        self._keep(cell, record)
        if self.path is not None:
            # JSON has no infinity, which losses far away can reach.
            values = {k: v if math.isfinite(v) else str(v) for k, v in record.items()}
            append_record(self.path, {"row": cell[0], "column": cell[1], **values})

    def arrays(self) -> dict[str, Array]:
        """Return the records of a complete grid as arrays (rows, columns) by key.

        Raises:
            UserError: there are points outside the grid.
        """
        cells = sorted(self.records)
        rows, columns = np.array(cells[-1]) + 1
        if len(cells) != rows * columns:
            raise UserError(f"{self.path} is damaged: it has points outside the grid; {_REMEDY}")
        return {
            key: np.array([self.records[cell][key] for cell in cells]).reshape(rows, columns)
            for key in self.records[cells[0]]
        }


def _agree(saved: Any, wanted: Any) -> bool:
    if not (isinstance(wanted, list) and all(isinstance(v, float) for v in wanted)):
        return bool(saved == wanted)
    if not isinstance(saved, list) or len(saved) != len(wanted):
        return False
    if not all(isinstance(v, int | float) for v in saved):
        return False
    largest = max(map(abs, wanted))
    numbers = [float(v) for v in saved]
    return bool(np.allclose(numbers, wanted, rtol=0, atol=1e-9 * largest))
