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

from fge.ensemble.ensemble import ForwardFn, call_model, predict_proba
from fge.errors import DivergenceError, UserError
from fge.networks.apply import count_examples
from fge.parallel import Ranks, other_buffers
from fge.train.joint_step import JointStep

LossFn = Callable[[Any, Any], Tensor]

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
        loss_fn: of outputs (logits (N, C)) and targets, averaged over the batch.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        ranks: the processes that train the model together, each with its share of every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        speed: Speed | None = None,
        *,
        batch_size: int | None = None,
        loss_fn: LossFn = F.cross_entropy,
        forward_fn: ForwardFn | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.ranks = ranks or Ranks()
        self.optimizer = optimizer
        self.speed = speed or Speed()
        self.batch_size = batch_size
        self.loss_fn = loss_fn
        self.forward_fn = forward_fn or call_model
        if self.speed.channels_last:
            model.to(memory_format=torch.channels_last)
        self._compiled = torch.compile(model, dynamic=False) if self.speed.compile else None
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.speed.amp == "fp16")
        self._joint = JointStep(model, self.ranks)

    def step(self, *batch: Any) -> Tensor:
        """Take one optimizer step; return the loss before it, detached, without waiting.

        Of several processes, each gives its share of the batch, and gets the joint mean loss.

        Args:
            batch: ``inputs, targets, ...``; a batch that is one object (a dict, say) is given to
                ``forward_fn`` and as the targets to ``loss_fn``.

        Raises:
            UserError: there are no targets for the cross-entropy.
        """
        whole = batch[0] if len(batch) == 1 else batch
        if self.ranks.size == 1:
            loss = self._backward(whole)
        else:
            count = count_examples(whole)
            loss = self._joint.reduce(self._backward(whole) if count else None, count)
        self._update()
        return loss

    def joint_images(self, batch: Any) -> int:
        """Return the images of the last step's batch, of which this process had ``batch``."""
        return count_examples(batch) if self.ranks.size == 1 else self._joint.images

    def synchronise(self) -> None:
        """Make buffers that are no running statistics those of the first process."""
        if self.ranks.size > 1:
            self.ranks.broadcast(other_buffers(self.model))

    def _backward(self, batch: Any) -> Tensor:
        """Add the gradient of a batch's loss, scaled where there is a scaler; return the loss."""
        with self._autocast():
            outputs = self._forward(batch, self.batch_size)
            loss = self.loss_fn(outputs, self._targets(batch))
        scaled = self.scaler.scale(loss) if self.scaler.is_enabled() else loss
        scaled.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self) -> None:
        """Let the optimizer use the gradients, and drop them."""
        with self.ranks.common_draws():
            if self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _targets(self, batch: Any) -> Any:
        if isinstance(batch, list | tuple) and len(batch) > 1:
            return batch[1]
        if self.loss_fn is F.cross_entropy:
            raise UserError(
                f"batches must yield (inputs, targets, ...), got a {type(batch).__name__}; give "
                "targets, or a loss_fn that does without"
            )
        return batch

    def predict(self, batches: Iterable[Any]) -> Tensor:
        """Return class probabilities (N, C) float64 on the CPU, in evaluation mode.

        Raises:
            DivergenceError: they are not finite.
        """
        first: list[int] = []

        def forward(_: nn.Module, batch: Any) -> Tensor:
            first.append(count_examples(batch))
            with self._autocast():
                return self._forward(batch, first[0]).float()

        probs = predict_proba(self.model, batches, forward_fn=forward)
        if not bool(torch.isfinite(probs).all()):
            raise DivergenceError("the model's predictions are not finite")
        return probs

    def _forward(self, batch: Any, full: int | None) -> Tensor:
        """Apply the model; batches of another size than ``full`` go around the compiled one."""
        compiled = self._compiled is not None and count_examples(batch) == full
        return self.forward_fn(self._compiled if compiled else self.model, batch)  # type: ignore[arg-type]

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.speed.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def kept(self) -> AbstractContextManager[int]:
        """Have the weights in the model that a snapshot keeps: those that are trained.

        The block gets the images that were passed forward for their batch-norm statistics.
        """
        return nullcontext(0)

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
