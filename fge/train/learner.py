"""A model and its optimizer, run with a chosen precision, memory format and compilation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fge.errors import DivergenceError
from fge.files import checked
from fge.networks import (
    REFRESH_IMAGES,
    ExponentialAverage,
    ForwardFn,
    LossFn,
    OutputKind,
    StepAverage,
    TargetFn,
    UniformAverage,
    call_model,
    check_differentiable,
    count_examples,
    cut,
    loss_of,
    predict,
    refresh_batch_norm,
    unwrap,
)
from fge.parallel import Ranks, other_buffers
from fge.tasks import MANY_CLASSES, Task
from fge.train.graphed import GraphedPass
from fge.train.joint import JointStep, parts_in
from fge.train.restoring import DAMAGED, Memory, restore_memory, restore_model

_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Speed:
    """How a model is run: memory format, compilation, autocast precision (off, bf16, fp16).

    With ``cuda_graphs``, full training batches replay a recorded CUDA graph, unless several
    processes train the model together.
    """

    channels_last: bool = False
    compile: bool = False
    amp: str = "off"
    cuda_graphs: bool = False

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast, or None if it is off."""
        return _DTYPES[self.amp]


class _State(Memory):
    """The state of a learner."""

    model: dict[str, Tensor]


class _AveragedState(_State):
    """The state of a learner that keeps an average of its weights."""

    average: dict[str, Any]


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
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        ranks: the processes that train the model together, each with its share of every batch.
        accumulate: cut batches of more than ``batch_size`` examples, and add up the gradients of
            the parts: the step is that of the mean loss of the whole batch, to rounding. In batch
            norm each part is a batch.
        clip_norm: the largest norm of the gradient; larger ones are scaled down to it.
        task: how outputs become predictions; several classes by default.
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
        target_fn: TargetFn | None = None,
        ranks: Ranks | None = None,
        accumulate: bool = False,
        clip_norm: float | None = None,
        task: Task = MANY_CLASSES,
    ) -> None:
        self.model = model
        self.ranks = ranks or Ranks()
        self.optimizer = optimizer
        self.speed = speed or Speed()
        self.batch_size = batch_size
        self.part_size = batch_size if accumulate else None
        self.clip_norm = clip_norm
        self.task = task
        self.loss_fn = loss_fn
        self.forward_fn = call_model if forward_fn is None else forward_fn
        self.target_fn = target_fn
        if self.speed.channels_last:
            model.to(memory_format=torch.channels_last)
        self._compiled = torch.compile(model, dynamic=False) if self.speed.compile else None
        self.device = next(model.parameters()).device
        graphs = self.speed.cuda_graphs and not accumulate  # a replay overwrites the gradients
        self._graphed = GraphedPass(self._compute, model.parameters()) if graphs else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.speed.amp == "fp16")
        if self.scaler.is_enabled():
            _make_momentum(optimizer)
        self._joint = JointStep(model, self.ranks, self.target_fn) if self.ranks.size > 1 else None

    def step(self, *batch: Any) -> Tensor:
        """Take one optimizer step; return the loss before it, detached, without waiting.

        Of several processes, each gives its share of the batch, and gets the joint mean loss.

        Args:
            batch: ``inputs, targets``; a batch that is one object (a dict, say) is given to
                ``forward_fn`` and, without a ``target_fn``, as the targets to ``loss_fn``.

        Raises:
            UserError: there are no targets, several parts may be the targets, or the loss does not
                depend on a trainable parameter.
        """
        whole = batch[0] if len(batch) == 1 else batch
        if self._joint is None:
            loss = self._accumulated(whole) if self.part_size else self._backward(whole)
        else:
            loss = self._joint.take(
                whole, self._loss, self._differentiate, part_size=self.part_size
            )
        self._update()
        return loss

    def joint_images(self, batch: Any) -> int:
        """Return the images of the last step's batch, of which this process had ``batch``."""
        return self._count(batch) if self._joint is None else self._joint.images

    def _count(self, batch: Any) -> int:
        """Return the examples of a batch, or of the parts that a step was given."""
        alone = isinstance(batch, tuple) and len(batch) == 1
        return count_examples(batch[0] if alone else batch, self.target_fn)

    def synchronise(self) -> None:
        """Make buffers that are no running statistics those of the first process."""
        if self.ranks.size > 1:
            self.ranks.broadcast(other_buffers(self.model))

    def disband(self) -> bool:
        """End what processes do together; return whether this one continues, alone.

        The first one does.
        """
        self._joint = None  # it holds on to the process group
        return self.ranks.disband()

    def _backward(self, batch: Any) -> Tensor:
        """Add the gradient of a batch's loss, scaled if there is a scaler; return the loss."""
        full = self._count(batch) == self.batch_size
        return self._graphed(batch) if self._graphed and full else self._compute(batch)

    def _accumulated(self, batch: Any) -> Tensor:
        """Add the gradient of a batch's mean loss, part by part; return the loss."""
        assert self.part_size is not None
        count = self._count(batch)
        pieces = parts_in(count, self.part_size)
        parts = cut(batch, -(-count // pieces), model=self.model, target_fn=self.target_fn)
        return torch.stack([self._compute(part, size / count) for part, size in parts]).sum()

    def _compute(self, batch: Any, share: float = 1.0) -> Tensor:
        """Run the forward and backward pass of a share of a batch; return its part of the loss."""
        loss = self._loss(batch)
        if share != 1:
            loss = loss * share
        self._differentiate(loss)
        return loss.detach()

    def _loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch with its graph."""
        with self._autocast():
            outputs = self._forward(batch, self.batch_size)
            return loss_of(outputs, batch, self.loss_fn, self.target_fn)

    def _differentiate(self, loss: Tensor) -> None:
        """Run the backward pass of a loss, scaled if there is a scaler."""
        check_differentiable(loss)
        scaled = self.scaler.scale(loss) if self.scaler.is_enabled() else loss
        scaled.backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        """Let the optimizer use the gradients, and drop them."""
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            groups = self.optimizer.param_groups
            trained = [parameter for group in groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.clip_norm)
        with self.ranks.common_draws():
            if self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def predict(self, batches: Iterable[Any]) -> Tensor:
        """Return predictions, class probabilities (N, C), float64 on the CPU, in evaluation mode.

        Raises:
            DivergenceError: they are not finite.
        """
        first: list[int] = []

        def forward(_: nn.Module, batch: Any) -> Tensor:
            first.append(self._count(batch))
            with self._autocast():
                return self._forward(batch, first[0]).float()

        kind = OutputKind(self.task.output)
        probs = predict(self.model, batches, forward_fn=forward, kind=kind)
        if not bool(torch.isfinite(probs).all()):
            raise DivergenceError("the model's predictions are not finite")
        return probs

    def _forward(self, batch: Any, full: int | None) -> Tensor:
        """Apply the model; batches of another size than ``full`` go around the compiled one."""
        compiled = self._compiled is not None and self._count(batch) == full
        return self.forward_fn(self._compiled if compiled else self.model, batch)  # type: ignore[arg-type]

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.speed.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def include(self, *, first: bool) -> None:
        """Include the weights in the average that snapshots keep, of a learner that has one.

        Args:
            first: start a new average with them.
        """

    def forget_average(self) -> None:
        """Start the next average at the next step that is included."""

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Go on from other weights, as if nothing had been trained."""
        unwrap(self.model).load_state_dict(weights)
        self.optimizer.state.clear()
        if self.scaler.is_enabled():  # the same scaler, whose scale a recorded graph reads
            self.scaler.load_state_dict(torch.amp.GradScaler(self.device.type).state_dict())
            _make_momentum(self.optimizer)

    def kept(self) -> AbstractContextManager[int]:
        """Have the weights in the model that a snapshot keeps: those that are trained.

        The block gets the images that were passed forward for their batch-norm statistics.
        """
        return nullcontext(0)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, buffers and what the optimizer remembers; not its options."""
        return {
            "model": unwrap(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state; the optimizer's options stay the given ones.

        Raises:
            UserError: it is damaged, or of another model or optimizer.
        """
        saved = checked(state, _State, DAMAGED)
        restore_model(self.model, saved["model"])
        restore_memory(self.optimizer, self.scaler, saved)
        _lay_out_as_parameters(self.optimizer)


class AveragingLearner(Learner):
    """A learner whose snapshots are an average of its weights over steps.

    Args:
        arguments: of :class:`fge.train.Learner`.
        average: of the model's parameters.
        refresh: training images, varied as in training, which give the average its batch-norm
            statistics.
        options: of :class:`fge.train.Learner`.
    """

    def __init__(
        self, *arguments: Any, average: StepAverage, refresh: Iterable[Any], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.average = average
        self.refresh = refresh

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Go on from other weights, as if nothing had been trained or averaged."""
        super().restart(weights)
        self.average.reset()

    @contextmanager
    def kept(self) -> Iterator[int]:
        """Put the average, with its own statistics, into the model during a block.

        The block gets the images that were passed forward for them. Of several processes one may
        do this alone: nothing is exchanged. Where no step was included, the weights stay.
        """
        if self.average.updates == 0:
            yield 0
            return
        with self.average.swapped(self.model):
            yield refresh_batch_norm(
                self.model,
                self.refresh,
                num_images=REFRESH_IMAGES,
                forward_fn=self.forward_fn,
                target_fn=self.target_fn,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state with that of the average."""
        return {**super().state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        super().load_state_dict(state)
        self.average.load_state_dict(checked(state, _AveragedState, DAMAGED)["average"])


class EmaLearner(AveragingLearner):
    """A learner whose snapshots are the exponential average of its weights over the steps.

    Args:
        model: of :class:`fge.train.Learner`.
        arguments: of :class:`fge.train.Learner`.
        decay: of the average, per step; see :class:`fge.networks.ExponentialAverage`.
        options: of :class:`AveragingLearner`.
    """

    def __init__(self, model: nn.Module, *arguments: Any, decay: float, **options: Any) -> None:
        average = ExponentialAverage(model, decay=decay)
        super().__init__(model, *arguments, average=average, **options)

    def _update(self) -> None:
        super()._update()
        self.average.update(self.model)


class TailLearner(AveragingLearner):
    """A learner whose snapshots are the mean of its weights over the tail of a descent.

    :func:`fge.train.train` names the steps of the tail.

    Args:
        model: of :class:`fge.train.Learner`.
        arguments: of :class:`fge.train.Learner`.
        options: of :class:`AveragingLearner`.
    """

    def __init__(self, model: nn.Module, *arguments: Any, **options: Any) -> None:
        self.mean = UniformAverage(model)
        super().__init__(model, *arguments, average=self.mean, **options)

    def include(self, *, first: bool) -> None:
        """Include the weights in the mean, or start a new one with them."""
        self.mean.include(self.model, first=first)

    def forget_average(self) -> None:
        """Start the next average at the next step that is included."""
        self.average.reset()


def _make_momentum(optimizer: Optimizer) -> None:
    """Give SGD its momentum buffers, zero, before the first step.

    A fused first step that the scaler skips would leave their memory uninitialised.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Bring what an optimizer remembers of each parameter into its memory format.

    Files hold contiguous tensors; a fused step takes tensors of one parameter to be laid out alike.
    """
    for parameter, memory in optimizer.state.items():
        for name, value in memory.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype)
                memory[name] = like.copy_(value) if value.stride() != like.stride() else value
