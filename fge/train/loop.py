"""The training loop: epochs of optimizer steps with a schedule, and callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fge.errors import DivergenceError
from fge.networks import first_not_finite, train_mode
from fge.train.learner import Learner
from fge.train.schedules import ClosedFormLR

_CHECK_EVERY = 50
"""Steps between checks of the loss."""


class Batches(Protocol):
    """A re-iterable of ``(inputs, targets, ...)``; its ``set_epoch``, if any, is called."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over one epoch."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""


@dataclass(frozen=True)
class EpochEnd:
    """The result of an epoch: its 0-based number, mean training loss (nats), number of images."""

    epoch: int
    train_loss: float
    images: int


def train(
    learner: Learner,
    schedule: ClosedFormLR,
    batches: Batches,
    *,
    first_epoch: int,
    last_epoch: int,
    seed: int = 0,
    average: float = 0.0,
    on_minimum: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
) -> None:
    """Train for the epochs [first_epoch, last_epoch), one schedule step per optimizer step.

    Each epoch sets its own seed for random numbers in the model (dropout), so training can resume
    at the end of any epoch. With several processes each draws different numbers; they run the
    callbacks together, and if one fails there, all fail.

    Args:
        learner: the model with its optimizer.
        schedule: sets the learning rates; its ``at_minimum`` is checked after each step.
        batches: iterated once per epoch.
        first_epoch: 0-based.
        last_epoch: one past the last epoch.
        seed: of random numbers in the model.
        average: the last part of each descent of the schedule whose weights the learner averages;
            0 for none.
        on_minimum: called with the number of completed epochs, the current one included if it
            ends here, whenever the schedule is at a minimum.
        on_epoch: called after each epoch.

    Raises:
        DivergenceError: the loss is not finite; the message names the step and the learning rate.
    """
    for epoch in range(first_epoch, last_epoch):
        if hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch)
        learner.ranks.seed(seed, epoch)
        train_mode(learner.model)
        losses = _Losses(epoch * len(batches))
        for number, batch in enumerate(batches, start=1):
            rate = float(schedule.get_last_lr()[0])
            # Named tuples, say, stay whole: forward_fn may want their names.
            parts = batch if type(batch) in (list, tuple) and len(batch) > 1 else (batch,)
            losses.add(learner.step(*parts), rate, learner.joint_images(batch))
            schedule.step()
            tail = schedule.tail_step(average) if average else None
            if tail is not None:
                learner.include(first=tail == 0)
            if schedule.at_minimum and on_minimum:
                learner.synchronise()
                losses.check()
                step = epoch * len(batches) + number - 1
                _check_weights(learner, step, rate)
                try:
                    with learner.ranks.together():
                        on_minimum(epoch + (number == len(batches)))
                except DivergenceError as error:
                    raise diverged(str(error), step, rate) from None
        end = EpochEnd(epoch, losses.mean(), losses.images)
        learner.synchronise()
        if on_epoch:
            with learner.ranks.together():
                on_epoch(end)


def _check_weights(learner: Learner, step: int, rate: float) -> None:
    """Check weights and running statistics, which no loss has used since the last step."""
    name = not_finite_part(learner.model)
    if name is not None:
        raise diverged(f"the weights {name!r} are not finite", step, rate)


def not_finite_part(model: nn.Module) -> str | None:
    """Return the name of a trained weight or running statistic with NaN or infinity, or None."""
    statistics = [
        (f"{name}.{kind}", getattr(module, kind))
        for name, module in model.named_modules()
        for kind in ("running_mean", "running_var")
        if isinstance(getattr(module, kind, None), Tensor)
    ]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return first_not_finite([*trained, *statistics])


def diverged(what: str, step: int, rate: float) -> DivergenceError:
    """Return the error for divergence at a 0-based step and a learning rate."""
    return DivergenceError(
        f"{what} after step {step} with learning rate {rate:g}; lower the learning rates"
    )


class _Losses:
    """The losses of an epoch, copied from the device without waiting for it."""

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self.images = 0
        self._unchecked: list[Tensor] = []
        self._fetched: list[tuple[Tensor, torch.cuda.Event | None]] = []
        self._rates: list[float] = []
        self._sizes: list[int] = []
        self._checked = 0
        self._total = 0.0

    def add(self, loss: Tensor, rate: float, size: int) -> None:
        self._unchecked.append(loss)
        self._rates.append(rate)
        self._sizes.append(size)
        self.images += size
        if len(self._unchecked) >= _CHECK_EVERY:
            self._fetch()
            self._look(wait=False)

    def check(self) -> None:
        """Check all losses so far; wait for those still on the device."""
        self._fetch()
        self._look(wait=True)

    def _fetch(self) -> None:
        """Start copying the losses to the host; on a GPU, do not wait for them to arrive."""
        if not self._unchecked:
            return
        losses, event = torch.stack(self._unchecked), None
        if losses.is_cuda:
            on_device, event = losses, torch.cuda.Event()  # type: ignore[no-untyped-call]
            losses = torch.empty_like(on_device, device="cpu", pin_memory=True)
            losses.copy_(on_device, non_blocking=True)
            event.record()
        self._fetched.append((losses, event))
        self._unchecked.clear()

    def _look(self, *, wait: bool) -> None:
        """Check and add up the losses that have arrived, or all of them."""
        while self._fetched:
            losses, event = self._fetched[0]
            if event is not None and not event.query():  # type: ignore[no-untyped-call]
                if not wait:
                    return
                event.synchronize()
            del self._fetched[0]
            for loss in losses.tolist():
                self._take(loss)

    def _take(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} at step {self.first_step + self._checked} with learning "
                f"rate {self._rates[self._checked]:g}; lower the learning rates"
            )
        self._total += loss * self._sizes[self._checked]
        self._checked += 1

    def mean(self) -> float:
        self.check()
        return self._total / max(self.images, 1)
