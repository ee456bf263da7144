"""Loss, error and NLL of a model at given weights, with batch-norm statistics of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge import metrics
from fge.errors import UserError
from fge.networks.apply import (
    ForwardFn,
    LossFn,
    call_model,
    check_reiterable,
    count_examples,
    to_device,
)
from fge.networks.batchnorm import refresh_batch_norm
from fge.networks.flat import write_parameters
from fge.train.learner import Speed

Record = dict[str, float]
Probabilities = dict[str, Tensor]


class WeightsEvaluator:
    """Measures a model at any weights, each time with batch-norm statistics of those weights.

    The model's parameters and buffers change with each call: use :func:`fge.networks.preserved`.

    Args:
        model: any module.
        batches: re-iterable of ``(x, y, ...)``, or a mapping of such by name.
        refresh: re-iterable of ``x`` or ``(x, ...)`` that batch-norm statistics are estimated on;
            the first of ``batches`` by default.
        num_images: as many as are used for that (5,120 give a curve's error to 0.1 points), None
            for all; 0 keeps the statistics as they are.
        loss_fn: of outputs and targets, averaged over the batch.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        speed: autocast and memory format; compilation is not used.

    Raises:
        UserError: batches can be iterated only once, or there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | Mapping[str, Iterable[Any]],
        *,
        refresh: Iterable[Any] | None = None,
        num_images: int | None = 5120,
        loss_fn: LossFn = F.cross_entropy,
        weight_decay: float = 0.0,
        forward_fn: ForwardFn | None = None,
        speed: Speed | None = None,
    ) -> None:
        self.model = model
        self.splits = dict(batches) if isinstance(batches, Mapping) else {"": batches}
        if not self.splits:
            raise UserError("batches must name at least one split, got an empty mapping")
        self.refresh = next(iter(self.splits.values())) if refresh is None else refresh
        for given in (*self.splits.values(), self.refresh):
            check_reiterable(given)
        self.num_images = num_images
        self.loss_fn = loss_fn
        self.weight_decay = weight_decay
        self.forward_fn = forward_fn or call_model
        self.speed = speed or Speed()

    def __call__(self, vector: Tensor) -> tuple[Record, Probabilities]:
        """Return the record and the probabilities at weights (P,), canonical.

        The record has ``loss``, and where outputs are logits (N, C) of classes ``error`` (percent)
        and ``nll`` (nats per example), each behind the split's name and ``_`` where it has one;
        both are NaN where the probabilities are not finite.
        The probabilities (N, C) float64 on the CPU are those of each split of that kind.

        Raises:
            UserError: a split yields nothing, or the vector does not fit.
        """
        if self.speed.channels_last:
            self.model.to(memory_format=torch.channels_last)
        write_parameters(self.model, vector)
        if self.num_images != 0:
            refresh_batch_norm(
                self.model, self.refresh, num_images=self.num_images, forward_fn=self.forward_fn
            )
        penalty = self.weight_decay / 2 * float(vector.double().square().sum())
        record: Record = {}
        probabilities: Probabilities = {}
        self.model.eval()
        for name, batches in self.splits.items():
            prefix = f"{name}_" if name else ""
            loss, probs, targets = self._pass(name, batches)
            record[f"{prefix}loss"] = loss + penalty
            if probs is not None:
                finite = bool(torch.isfinite(probs).all())
                record[f"{prefix}error"] = metrics.error(probs, targets) if finite else math.nan
                record[f"{prefix}nll"] = metrics.nll(probs, targets) if finite else math.nan
                probabilities[name] = probs
        return record, probabilities

    @torch.no_grad()
    def _pass(self, name: str, batches: Iterable[Any]) -> tuple[float, Tensor | None, Tensor]:
        """Return mean loss, probabilities where outputs are of classes, and targets of a split."""
        device = next(self.model.parameters()).device
        dtype = self.speed.autocast_dtype
        losses, sizes, probs, labels = [], [], [], []
        for batch in batches:
            moved = to_device(batch, device)
            with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
                outputs = self.forward_fn(self.model, moved)
            if dtype is not None:
                outputs = outputs.float()
            targets = moved[1] if isinstance(moved, list) and len(moved) > 1 else moved
            losses.append(self.loss_fn(outputs, targets).double())
            sizes.append(count_examples(moved))
            if _of_classes(outputs, targets):
                probs.append(outputs.double().softmax(dim=1).cpu())
                labels.append(targets.cpu())
        if not sizes:
            where = f"batches {name!r}" if name else "batches"
            raise UserError(f"{where} yielded nothing: give data that can be iterated repeatedly")
        loss = float(np.average(torch.stack(losses).tolist(), weights=sizes))
        if len(probs) < len(sizes):
            return loss, None, torch.empty(0)
        return loss, torch.cat(probs), torch.cat(labels)


def _of_classes(outputs: Tensor, targets: Any) -> bool:
    return (
        isinstance(targets, Tensor)
        and not targets.is_floating_point()
        and outputs.ndim == 2
        and targets.shape == outputs.shape[:1]
    )
