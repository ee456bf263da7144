"""Loss and error of the networks along a curve, each with its own batch-norm statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fge.curves.buffers import Buffers, Statistics, statistics_of, write_buffers
from fge.curves.networks import Networks
from fge.errors import UserError, check_at_least, unknown
from fge.networks import (
    REFRESH_IMAGES,
    ForwardFn,
    HostRows,
    LossFn,
    OutputKind,
    TargetFn,
    call_model,
    check_reiterable,
    count_examples,
    loss_of_targets,
    map_tensors,
    nothing_yielded,
    one_number,
    preserved,
    refresh_batch_norm,
    single_refused,
    targets_of,
    to_device,
    write_parameters,
)
from fge.observer import counted
from fge.tasks import MANY_CLASSES, Task
from fge.train import Speed

Record = dict[str, float]
_NOT_FINITE = math.nan, math.nan
Probabilities = dict[str, Tensor]
"""Predictions (N, ...) by split: probabilities of classes or labels, or numbers."""


class CurveRecords(list[Record]):
    """The records along a curve, a list, and which buffers its networks had.

    ``statistics`` says whether the ends had their own, and what was estimated in between.
    """

    def __init__(self, records: Iterable[Record], statistics: Statistics) -> None:
        super().__init__(records)
        self.statistics = statistics

    def __repr__(self) -> str:
        """Return the number of records, their range, and where their buffers come from."""
        ts = [record["t"] for record in self]
        reach = f", t = {ts[0]:g} to {ts[-1]:g}" if ts else ""
        return f"CurveRecords({counted(len(ts), 'record')}{reach}; {self.statistics})"


class AnyCurve(Protocol):
    """A curve through weight space: ``Curve``, ``Chain``, or another object with points w(t)."""

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
    num_images: int | None = REFRESH_IMAGES,
    loss_fn: LossFn | None = None,
    weight_decay: float = 0.0,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    speed: Speed | None = None,
    task: Task | None = None,
    on_point: Callable[[float, Probabilities], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    done: Iterable[Record] = (),
) -> CurveRecords:
    """Measure the networks w(t) on a curve, each with batch-norm statistics estimated at its t.

    Other buffers are those of the network at an end of the curve, if it has them. In between,
    running statistics of instance norm are estimated too; others are linear in t, with a warning
    if they differ. The default of 61 points is that of the reference implementation of arXiv
    1802.10026. The model is unchanged afterwards.

    Args:
        model: the architecture, on the device to use; any module.
        curve: a ``Curve`` or a ``Chain``.
        batches: re-iterable of ``(x, y)``, without augmentation; or a mapping such as ``{"train":
            ..., "test": ...}``, then keys of records are ``train_loss``, ``test_error``, ...
        num_points: number of evenly spaced values of t, 0 and 1 included.
        ts: values of t to use instead.
        refresh: data for estimating batch-norm statistics, varied as in training; by default the
            first of ``batches``, which suits networks that were trained without augmentation.
        num_images: at most this many of them; None for all, 0 to keep the model's buffers.
        loss_fn: of outputs and targets, averaged over the batch; by default that of the ``task``,
            or the cross-entropy.
        weight_decay: adds weight_decay / 2 * |w(t)|^2 to the loss.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        speed: autocast and memory format; compilation is not used.
        task: of :func:`fge.tasks.make_task`, whose loss and figures are measured; without one,
            outputs and targets tell whether it is classification.
        on_point: called with t and the predictions (N, ...) by split (``""`` if ``batches`` is not
            a mapping), for classification probabilities (N, C).
        on_record: called with each complete record, after ``on_point``.
        done: records of an earlier call, at the same or other ts; they are not measured again.

    Returns:
        Records in the order of t, a list whose ``statistics`` says which buffers the networks had,
        at the ends and in between. A record has ``t``; ``distance`` |w(t) - w(0)|; ``arc``, the
        length from the first t as the sum of chords between the ts; ``loss``; and for
        classification, that is logits (N, C), ``error`` (percent) and ``nll`` (nats per example).
        A task names its own figure: multilabel the ``error`` per label, a regression the ``rmse``
        in the units of the targets, with the ``nll`` of the noise variance that suits them best.

    Raises:
        UserError: a t is outside [0, 1], there are too few points, a split yields nothing or can
            be iterated only once, or the curve does not fit the model.
    """
    grid = _grid(num_points, ts)
    known = {record["t"]: dict(record) for record in done}
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
    if isinstance(curve, Networks):
        curve.check_fits(model, buffers=num_images != 0)
    if isinstance(curve, Networks) and num_images != 0:
        curve.warn_of_interpolated(model, (t for t in grid if t not in known))
    with preserved(model):
        for t, position in zip(grid, _along(curve, grid), strict=True):
            if t not in known:
                scores, probabilities = _measured(evaluate, curve, t)
                known[t] = {**position, **scores}
                if on_point:
                    on_point(t, probabilities)
                if on_record:
                    on_record(known[t])
            known[t] |= position  # the chords of an earlier call may have been longer
    ends = curve.all_ends() if isinstance(curve, Networks) else []
    found = statistics_of(model, ends, estimated=num_images != 0)
    return CurveRecords((known[t] for t in grid), found)


def _measured(
    evaluate: WeightsEvaluator, curve: AnyCurve, t: float
) -> tuple[Record, Probabilities]:
    """Measure the network at t, with its own buffers if the curve has them."""
    if isinstance(curve, Networks) and (buffers := curve.buffers_at(t)):
        return evaluate(curve.at(t), buffers, own=curve.knows(t))
    return evaluate(curve.at(t))


def _grid(num_points: int, ts: Sequence[float] | None) -> list[float]:
    if ts is not None:
        return sorted({float(t) for t in ts})
    check_at_least(2, num_points=num_points)
    return [k / (num_points - 1) for k in range(num_points)]


def _along(curve: AnyCurve, ts: Sequence[float]) -> Iterable[Record]:
    """Yield t, the distance from w(0) and the length of the chords so far, for each t."""
    start = curve.at(0.0)
    last, arc = None, 0.0
    for t in ts:
        point = curve.at(t)
        arc += 0.0 if last is None else _distance(last, point)
        yield {"t": t, "distance": _distance(start, point), "arc": arc}
        last = point


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b, dtype=torch.float64))


def summarise_curve(records: Sequence[Record], key: str = "loss") -> dict[str, float]:
    """Summarise a curve's records for one key, in that key's unit.

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
    """Return both sides of min_w L(w) <= E_t L(w(t)): ``lowest`` on the curve, and ``mean``.

    The mean loss over t on any curve is an upper bound of the lowest possible loss, for which the
    lowest loss on the curve stands here.

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


def _trapezoid(values: NDArray[np.float64], positions: NDArray[np.float64]) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(positions)).sum())


class WeightsEvaluator:
    """Measures a model at any weights, each time with batch-norm statistics of those weights.

    Each call changes the model's parameters and buffers: use :func:`fge.networks.preserved`.

    Args:
        model: any module.
        batches: re-iterable of ``(x, y)``, or a mapping of such by name.
        refresh: re-iterable of ``x`` or ``(x, ...)`` for estimating batch-norm statistics; by
            default the first of ``batches``.
        num_images: at most this many of them (the default gives a curve's error to 0.1 points);
            None for all, 0 to keep the model's statistics.
        loss_fn: of outputs and targets, averaged over the batch; by default that of the ``task``,
            or the cross-entropy.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        speed: autocast and memory format; compilation is not used.
        task: whose loss and figures are measured; without one, outputs and targets tell whether
            it is classification.

    Raises:
        UserError: batches can be iterated only once, or the mapping is empty.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | Mapping[str, Iterable[Any]],
        *,
        refresh: Iterable[Any] | None = None,
        num_images: int | None = REFRESH_IMAGES,
        loss_fn: LossFn | None = None,
        weight_decay: float = 0.0,
        forward_fn: ForwardFn | None = None,
        target_fn: TargetFn | None = None,
        speed: Speed | None = None,
        task: Task | None = None,
    ) -> None:
        self.model = model
        self.splits = dict(batches) if isinstance(batches, Mapping) else {"": batches}
        if not self.splits:
            raise UserError("batches must name at least one split, got an empty mapping")
        self.refresh = next(iter(self.splits.values())) if refresh is None else refresh
        for given in (*self.splits.values(), self.refresh):
            check_reiterable(given)
        self.num_images = num_images
        self.task = task or MANY_CLASSES
        self._sure = task is not None
        if loss_fn is None:
            loss_fn = self.task.path_loss(next(model.parameters()).device)
        self.loss_fn = loss_fn
        self.weight_decay = weight_decay
        usual = call_model if self.task.forward_fn is None else self.task.forward_fn
        self.forward_fn = usual if forward_fn is None else forward_fn
        self.target_fn = target_fn
        self.speed = speed or Speed()

    def __call__(
        self, vector: Tensor, buffers: Buffers | None = None, *, own: bool = False
    ) -> tuple[Record, Probabilities]:
        """Return the record and the predictions at weights (P,), canonical.

        They get ``buffers`` by name, or keep the model's. With ``own`` these are of the same
        network, and only batch-norm statistics are estimated, not those of instance norm.

        The record has ``loss`` and, for classification (logits (N, C)), ``error`` (percent) and
        ``nll`` (nats per example), or the figures of the task, NaN if the predictions are not
        finite; a split's name and ``_`` come before each key. The predictions, float64 on the CPU,
        are those of each split that has figures.

        Raises:
            UserError: a split yields nothing, or the vector does not fit.
        """
        if self.speed.channels_last:
            self.model.to(memory_format=torch.channels_last)
        write_parameters(self.model, vector)
        if self.num_images != 0:
            write_buffers(self.model, buffers or {})
            refresh_batch_norm(
                self.model,
                self.refresh,
                num_images=self.num_images,
                forward_fn=self.forward_fn,
                target_fn=self.target_fn,
                instance_norm=not own,
            )
        penalty = self.weight_decay / 2 * float(vector.double().square().sum())
        record: Record = {}
        probabilities: Probabilities = {}
        self.model.eval()
        for name, batches in self.splits.items():
            prefix = f"{name}_" if name else ""
            loss, predictions, targets = self._pass(name, batches)
            record[f"{prefix}loss"] = loss + penalty
            if predictions is not None:
                values = predictions.numpy()
                finite = bool(torch.isfinite(predictions).all())
                scores = self.task.scores(values, targets.numpy()) if finite else _NOT_FINITE
                for key, value in zip((self.task.measure.key, "nll"), scores, strict=True):
                    record[f"{prefix}{key}"] = value
                probabilities[name] = predictions
        return record, probabilities

    @torch.no_grad()
    def _pass(self, name: str, batches: Iterable[Any]) -> tuple[float, Tensor | None, Tensor]:
        """Return a split's mean loss and, if it has figures, predictions and targets."""
        device = next(self.model.parameters()).device
        dtype = self.speed.autocast_dtype
        losses: list[Tensor] = []
        sizes: list[int] = []
        rows, labels = HostRows(), HostRows()
        kind, judged = OutputKind(self.task.path_output), True
        for batch in batches:
            moved = to_device(batch, device)
            if (count := count_examples(moved, self.target_fn)) == 0:
                continue  # the mean of nothing is not a number
            amp = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
            with amp, single_refused():
                outputs = self.forward_fn(self.model, moved)
            if dtype is not None:
                outputs = map_tensors(outputs, _in_float32)
            targets = targets_of(moved, self.loss_fn, self.target_fn)
            loss = one_number(loss_of_targets(outputs, targets, self.loss_fn))
            losses.append(loss.double())
            sizes.append(count)
            judged = judged and (self._sure or _of_classes(outputs, targets))
            if judged:
                rows.add(kind.predictions(outputs))
                labels.add(targets)
        if not sizes:
            raise nothing_yielded(f"batches {name!r}" if name else "batches")
        mean = float(np.average(torch.stack(losses).tolist(), weights=sizes))
        if not judged:
            return mean, None, torch.empty(0)
        predictions, targets = rows.all(), labels.all()
        # A loss may have targets of its own, such as a class to leave out.
        known = self._sure or (
            int(targets.min()) >= 0 and int(targets.max()) < predictions.shape[1]
        )
        return (mean, predictions, targets) if known else (mean, None, torch.empty(0))


def _in_float32(part: Tensor) -> Tensor:
    return part.float() if part.is_floating_point() else part


def _of_classes(outputs: Any, targets: Any) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and not targets.is_floating_point()
        and outputs.ndim == 2
        and outputs.shape[1] > 1
        and targets.shape == outputs.shape[:1]
    )
