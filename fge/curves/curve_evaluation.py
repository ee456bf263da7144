"""Loss, error and NLL of the networks on a curve, with batch-norm statistics of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fge.curves.evaluate import Probabilities, Record, WeightsEvaluator
from fge.errors import UserError, unknown
from fge.networks.apply import ForwardFn, LossFn
from fge.networks.state import preserved
from fge.train.learner import Speed


class AnyCurve(Protocol):
    """A curve through weight space: ``Curve``, ``Chain``, and what else has points w(t)."""

    def at(self, t: float) -> Tensor:
        """Return w(t) (P,), canonical."""


def evaluate_curve(
    model: nn.Module,
    curve: AnyCurve,
    batches: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    num_points: int = 61,
    ts: Sequence[float] | None = None,
    refresh: Iterable[Any] | None = None,
    num_images: int | None = 5120,
    loss_fn: LossFn = F.cross_entropy,
    weight_decay: float = 0.0,
    forward_fn: ForwardFn | None = None,
    speed: Speed | None = None,
    on_point: Callable[[float, Probabilities], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    done: Iterable[Record] = (),
) -> list[Record]:
    """Measure the networks w(t) on a curve, each with batch-norm statistics estimated at its t.

    The defaults are those of the reference implementation of arXiv 1802.10026: 61 points. Give
    training data without augmentation. The model is afterwards as it was before.

    Args:
        model: the architecture, on the device to use; any module.
        curve: a ``Curve`` or a ``Chain``.
        batches: re-iterable of ``(x, y, ...)``; or a mapping such as ``{"train": ..., "test":
            ...}``, then keys of records are ``train_loss``, ``test_error``, ...
        num_points: evenly spaced values of t, 0 and 1 among them.
        ts: values of t instead.
        refresh: what batch-norm statistics are estimated on; the first of ``batches`` by default.
        num_images: as many images at most, None for all, 0 to leave the statistics as they are.
        loss_fn: of outputs and targets, averaged over the batch.
        weight_decay: adds weight_decay / 2 * |w(t)|^2 to the loss.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        speed: autocast and memory format; compilation is not used.
        on_point: called with t and the probabilities (N, C) by split (``""`` for ``batches`` that
            are no mapping).
        on_record: called with each record when it is complete, after ``on_point``.
        done: records of an earlier call; their ts are not measured again.

    Returns:
        Records in the order of t: ``t``; ``distance`` |w(t) - w(0)|; ``arc``, the length from the
        first t on over chords between the ts; ``loss``; where the outputs are logits (N, C) of
        classes, ``error`` (percent) and ``nll`` (nats per example).

    Raises:
        UserError: a t outside [0, 1], too few points, a split that yields nothing or can be
            iterated only once, or a curve that does not fit the model.
    """
    places = _places(num_points, ts)
    known = {record["t"]: record for record in done}
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
    with preserved(model):
        for place in _along(curve, places):
            t = place["t"]
            if t not in known:
                figures, probabilities = evaluate(curve.at(t))
                known[t] = {**place, **figures}
                if on_point:
                    on_point(t, probabilities)
                if on_record:
                    on_record(known[t])
    return [known[t] for t in places]


def _places(num_points: int, ts: Sequence[float] | None) -> list[float]:
    if ts is not None:
        return sorted({float(t) for t in ts})
    if num_points < 2:
        raise UserError(f"num_points must be >= 2, got {num_points}")
    return [k / (num_points - 1) for k in range(num_points)]


def _along(curve: AnyCurve, ts: Sequence[float]) -> Iterable[Record]:
    """Yield t, distance from w(0) and length of the chords so far for each t."""
    start = curve.at(0.0)
    last, arc = None, 0.0
    for t in ts:
        point = curve.at(t)
        arc += 0.0 if last is None else _distance(last, point)
        yield {"t": t, "distance": _distance(start, point), "arc": arc}
        last = point


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other, dtype=torch.float64))


def summarise_curve(records: Sequence[Record], key: str = "loss") -> dict[str, float]:
    """Return what a curve's records come to for one key, in that key's unit.

    Args:
        records: of :func:`evaluate_curve`.
        key: ``"loss"``, ``"test_error"``, ...

    Returns:
        ``min`` and ``max`` with ``t_min`` and ``t_max``; ``mean`` over t and ``arc_mean`` along the
        curve, (1/l) * integral of L dl, both by the trapezoid rule between the records; ``length``;
        ``barrier``, the maximum over t of L(t) - (1 - t) L(0) - t L(1), with ``t_barrier``.

    Raises:
        UserError: fewer than two records, none at t = 0 or t = 1, or no such key.
    """
    ordered = sorted(records, key=lambda record: record["t"])
    values, ts = _column(ordered, key), _column(ordered, "t")
    arc = _column(ordered, "arc") - ordered[0]["arc"]
    if len(ts) < 2 or ts[0] != 0 or ts[-1] != 1:
        raise UserError(
            f"a summary needs records from t = 0 to t = 1, got {len(ts)} from {ts[0]:g} to "
            f"{ts[-1]:g}"
        )
    above = values - (1 - ts) * values[0] - ts * values[-1]
    return {
        "min": float(values.min()),
        "t_min": float(ts[values.argmin()]),
        "max": float(values.max()),
        "t_max": float(ts[values.argmax()]),
        "mean": _trapezoid(values, ts),
        "arc_mean": _trapezoid(values, arc) / float(arc[-1]),
        "length": float(arc[-1]),
        "barrier": float(above.max()),
        "t_barrier": float(ts[above.argmax()]),
    }


def bound(records: Sequence[Record], key: str = "loss") -> dict[str, float]:
    """Return both sides of min_w L(w) <= E_t L(w(t)): ``lowest`` met on the curve, and ``mean``.

    The mean over t of the loss on any curve bounds the lowest loss there is from above; the lowest
    one met is what the left side is known by.

    Raises:
        UserError: as in :func:`summarise_curve`.
    """
    summary = summarise_curve(records, key)
    return {"lowest": summary["min"], "mean": summary["mean"]}


def _column(records: Sequence[Record], key: str) -> NDArray[np.float64]:
    if not records:
        raise UserError("a summary needs records, got none")
    if any(key not in record for record in records):
        raise unknown("key of the records", key, records[0])
    return np.array([record[key] for record in records], dtype=np.float64)


def _trapezoid(values: NDArray[np.float64], places: NDArray[np.float64]) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(places)).sum())
