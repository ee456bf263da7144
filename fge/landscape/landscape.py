"""The loss surface on planes and lines through weight space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.curves.curve_evaluation import AnyCurve, evaluate_curve
from fge.curves.evaluate import Record, WeightsEvaluator
from fge.errors import UserError
from fge.landscape.directions import Line, filter_normalised
from fge.landscape.grid import Array, GridStore, PlaneGrid
from fge.landscape.plane import Bounds, Plane
from fge.networks.apply import ForwardFn, LossFn
from fge.networks.flat import Layout
from fge.networks.state import preserved
from fge.seeds import generator
from fge.train.learner import Speed

__all__ = ["Line", "Plane", "PlaneGrid", "evaluate_line", "evaluate_plane", "filter_normalised"]


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
