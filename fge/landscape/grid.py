"""Loss and error on a grid of a plane or along lines; what is measured is kept as it comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fge.curves import AnyCurve, Record, WeightsEvaluator, evaluate_curve
from fge.errors import UserError
from fge.files import append_record, read_npz, read_records, write_npz
from fge.landscape.plane import Bounds, Plane
from fge.networks import ForwardFn, Layout, LossFn, preserved
from fge.seeds import generator
from fge.train import Speed

Array = NDArray[np.float64]
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
    num_images: int | None = 5120,
    loss_fn: LossFn = F.cross_entropy,
    weight_decay: float = 0.0,
    forward_fn: ForwardFn | None = None,
    speed: Speed | None = None,
    store: str | Path | None = None,
    on_point: Callable[[int, int], None] | None = None,
) -> PlaneGrid:
    """Measure a model on a grid of a plane, with batch-norm statistics estimated at each point.

    The grid of arXiv 1802.10026 (figure 1) has 21 x 21 points and a margin of 0.2. Give training
    data without augmentation. The model is afterwards as it was before.

    Args:
        model: the architecture, on the device to use; any module.
        plane: through weights of that architecture.
        batches: re-iterable of ``(x, y, ...)``; or a mapping such as ``{"train": ..., "test":
            ...}``, then keys are ``train_loss``, ``test_error``, ...
        resolution: points along each axis.
        margin: around the plane's extent, a fraction of its width and height.
        bounds: lowest and highest x, lowest and highest y instead of ``margin``.
        refresh: what batch-norm statistics are estimated on; the first of ``batches`` by default.
        num_images: as many images at most, None for all, 0 to leave the statistics as they are.
        loss_fn: of outputs and targets, averaged over the batch.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        speed: autocast and memory format; compilation is not used.
        store: a JSON-lines file that takes each point when it is measured; points that it holds
            from an interrupted call are not measured again. Keep data and loss the same meanwhile.
        on_point: called after each point with how many of how many are there.

    Raises:
        UserError: a resolution below 2, a negative margin, bounds that do not ascend, a plane of
            another architecture, a store of another grid, a split that yields nothing or can be
            iterated only once.
    """
    _check_fits(model, plane)
    xs, ys = _grid_lines(plane, resolution, margin, bounds)
    evaluate = WeightsEvaluator(
        model,
        batches,
        refresh=refresh,
        num_images=num_images,
        loss_fn=loss_fn,
        weight_decay=weight_decay,
        forward_fn=forward_fn,
        speed=speed,
    )
    header = {"xs": xs.tolist(), "ys": ys.tolist(), **_described(evaluate, plane)}
    kept = GridStore(None if store is None else Path(store), header)
    with preserved(model):
        for row, column in np.ndindex(len(ys), len(xs)):
            if (row, column) not in kept.records:
                kept.add((row, column), evaluate(plane.point(float(xs[column]), float(ys[row])))[0])
                if on_point:
                    on_point(len(kept.records), xs.size * ys.size)
    return PlaneGrid(xs, ys, kept.arrays(), plane.anchors.numpy(), plane.gram.numpy())


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
        bounds: lowest and highest t. Curves and chains end at 0 and 1; lines go on.
        num_points: values of t, the bounds among them.
        options: further ones of :func:`fge.evaluate_curve`.

    Returns:
        Records of :func:`fge.evaluate_curve`; ``distance`` is that from t = 0.

    Raises:
        UserError: fewer than two points, bounds that do not ascend or, on a curve, leave [0, 1]; or
            as in :func:`fge.evaluate_curve`.
    """
    if num_points < 2:
        raise UserError(f"num_points must be >= 2, got {num_points}")
    low, high = bounds
    if not -math.inf < low < high < math.inf:
        raise UserError(f"bounds must be two finite numbers that ascend, got {bounds}")
    ts = np.linspace(low, high, num_points).tolist()
    return evaluate_curve(model, path, batches, ts=ts, **options)


def _check_fits(model: nn.Module, plane: Plane) -> None:
    count = Layout.of(model).numel
    if count != len(plane.origin):
        raise UserError(f"the model has {count} parameters, the plane {len(plane.origin)}")


def _grid_lines(
    plane: Plane, resolution: int, margin: float, bounds: Bounds | None
) -> tuple[Array, Array]:
    """Return the xs and ys of a grid, checked."""
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
    """Return what tells one grid from another, as JSON takes it.

    The plane's vectors are known by their lengths and their products with one random vector, which
    other rounding (another number of threads, say) changes in the last digits only.
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
    """What was measured on a grid of points of a plane.

    Attributes:
        xs: (X,) float64, ascending; distances in weight space where the axes are orthonormal.
        ys: (Y,) float64, likewise.
        values: arrays (Y, X) by key: ``loss``, ``error`` (percent), ``nll`` (nats per example),
            each behind the split's name and ``_`` where there is one.
        anchors: coordinates (K, 2) of the weights that the plane was made from.
        gram: dot products (2, 2) of the plane's axes; the distance between points that lie (dx, dy)
            apart is sqrt((dx, dy) G (dx, dy)ᵀ).

    Raises:
        UserError: an array is not of these shapes.
    """

    xs: Array
    ys: Array
    values: dict[str, Array]
    anchors: Array
    gram: Array

    def __post_init__(self) -> None:
        expected = {key: (len(self.ys), len(self.xs)) for key in self.values}
        found = {key: value.shape for key, value in self.values.items()}
        expected |= {"anchors": (len(self.anchors), 2), "gram": (2, 2)}
        found |= {"anchors": self.anchors.shape, "gram": self.gram.shape}
        for name, shape in expected.items():
            if found[name] != shape:
                raise UserError(f"{name!r} of a plane must have shape {shape}, got {found[name]}")

    def __repr__(self) -> str:
        """Return the number of points along each axis and what was measured there."""
        measured = ", ".join(self.values)
        return f"PlaneGrid({len(self.xs)} x {len(self.ys)} points, {measured})"

    def save(self, path: str | Path) -> None:
        """Write the arrays to an ``.npz`` file, atomically.

        It holds ``xs``, ``ys``, ``anchors``, ``gram``, each of ``values`` under its key, and the
        list of these ``keys``.

        Raises:
            OSError: it could not be written; the file is as it was.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _AXES} | self.values
        write_npz(Path(path), {"keys": list(self.values), **arrays})

    @classmethod
    def load(cls, path: str | Path) -> PlaneGrid:
        """Return the grid in a file that :meth:`save` wrote, bitwise and without unpickling.

        Raises:
            UserError: no such file, or it is damaged or holds no grid.
        """
        keys = [str(key) for key in np.atleast_1d(read_npz(Path(path), ["keys"])["keys"])]
        arrays = read_npz(Path(path), [*_AXES, *keys])
        return cls(values={key: arrays.pop(key) for key in keys}, **arrays)


class GridStore:
    """The records of a grid's points, kept in a JSON-lines file while they come in.

    The first line says which grid it is; a line of each point follows.

    Args:
        path: the file, made where it does not exist; None keeps records in memory alone.
        header: what tells the grid from others, as JSON takes it. Lists of numbers are compared to
            1e-9 of their largest, for they are computed.

    Attributes:
        records: by row and column.

    Raises:
        UserError: the file holds another grid, or is damaged.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[int, int], Record] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _read_lines(path)
        if not found:
            append_record(path, dict(header))
            return
        for key, value in header.items():
            if not _agree(found[0].get(key), value):
                raise UserError(
                    f"{path} holds another grid, its {key!r} differ; give another file, or remove "
                    "it to measure anew"
                )
        try:
            for line in found[1:]:
                place = int(line.pop("row")), int(line.pop("column"))
                self.records[place] = {key: float(value) for key, value in line.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None
        if len({frozenset(record) for record in self.records.values()}) > 1:
            raise _damaged(path, "its points have different figures")

    def add(self, place: tuple[int, int], record: Record) -> None:
        """Keep the record of a row and column."""
        self.records[place] = record
        if self.path is not None:
            # JSON has no infinity, which losses far away do reach.
            figures = {k: v if math.isfinite(v) else str(v) for k, v in record.items()}
            append_record(self.path, {"row": place[0], "column": place[1], **figures})

    def arrays(self) -> dict[str, Array]:
        """Return the records of a complete grid as arrays (rows, columns) by key."""
        places = sorted(self.records)
        rows, columns = np.array(places[-1]) + 1
        return {
            key: np.array([self.records[place][key] for place in places]).reshape(rows, columns)
            for key in self.records[places[0]]
        }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = read_records(path)
    except ValueError as error:
        raise _damaged(path, error) from None
    if not all(isinstance(line, dict) for line in lines):
        raise _damaged(path, "a line is no record")
    return lines


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged and holds no grid: {reason}; give another file")


def _agree(found: Any, wanted: Any) -> bool:
    if not (isinstance(wanted, list) and all(isinstance(v, float) for v in wanted)):
        return bool(found == wanted)
    if not isinstance(found, list) or len(found) != len(wanted):
        return False
    if not all(isinstance(v, int | float) for v in found):
        return False
    largest = max(map(abs, wanted))
    return bool(np.allclose(found, wanted, rtol=0, atol=1e-9 * largest))
