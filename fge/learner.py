"""A model and its optimizer, run with a chosen precision, memory format and compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fge.ensemble import predict_proba
from fge.errors import DivergenceError

LossFn = Callable[[Tensor, Tensor], Tensor]

_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Speed:
    """How a model is run: memory format, compilation, autocast precision (off, bf16, fp16)."""

    channels_last: bool = False
    compile: bool = False
    amp: str = "off"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast, or None where it is off."""
        return _DTYPES[self.amp]


class Learner:
    """A model and its optimizer, with the precision, memory format and compilation in use.

    Args:
        model: trained in place, on its device.
        optimizer: over the model's parameters.
        speed: how to run it; see :class:`Speed`.
        batch_size: the size of full training batches: what a compiled model is made for.
        loss_fn: of logits (N, C) and targets, averaged over the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        speed: Speed | None = None,
        *,
        batch_size: int | None = None,
        loss_fn: LossFn = F.cross_entropy,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.speed = speed or Speed()
        self.batch_size = batch_size
        self.loss_fn = loss_fn
        if self.speed.channels_last:
            model.to(memory_format=torch.channels_last)
        self._compiled = torch.compile(model, dynamic=False) if self.speed.compile else None
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.speed.amp == "fp16")

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one optimizer step; return the loss before it, detached, without waiting."""
        with self._autocast():
            loss = self.loss_fn(self._forward(inputs, self.batch_size), targets)
        if self.scaler.is_enabled():
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def predict(self, batches: Iterable[Any]) -> Tensor:
        """Return class probabilities (N, C) float64 on the CPU, in evaluation mode.

        Raises:
            DivergenceError: they are not finite.
        """
        first: list[int] = []

        def forward(_: nn.Module, batch: Any) -> Tensor:
            first.append(len(batch[0]))
            with self._autocast():
                return self._forward(batch[0], first[0]).float()

        probs = predict_proba(self.model, batches, forward_fn=forward)
        if not bool(torch.isfinite(probs).all()):
            raise DivergenceError("the model's predictions are not finite")
        return probs

    def _forward(self, inputs: Tensor, full: int | None) -> Tensor:
        """Apply the model; batches of another size than ``full`` go around the compiled one."""
        compiled = self._compiled is not None and len(inputs) == full
        outputs: Tensor = (self._compiled if compiled else self.model)(inputs)  # type: ignore[misc]
        return outputs

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.speed.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, buffers and what the optimizer remembers; not its options."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state; the optimizer's options stay as they were given."""
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
