"""The one training loop: epochs of optimizer steps under a schedule, with hooks for the caller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fge.errors import DivergenceError
from fge.train.learner import Learner
from fge.train.schedules import ClosedFormLR

_CHECK_EVERY = 50
"""Steps between looks at the loss."""


class Batches(Protocol):
    """A re-iterable of ``(inputs, targets, ...)``; ``set_epoch`` is called where there is one."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate once over the epoch."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""


@dataclass(frozen=True)
class EpochEnd:
    """What one epoch came to: 0-based ``epoch``, mean training loss (nats), images seen."""

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
    on_minimum: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
) -> None:
    """Train for the epochs [first_epoch, last_epoch), one schedule step per optimizer step.

    Each epoch begins with a seed of its own for what the model draws (dropout), so that training
    can go on from the end of any epoch. Of several processes each draws differently. They call
    back together, and where one fails there, all do.

    Args:
        learner: what is trained.
        schedule: sets the learning rates; is asked after each step whether it is ``at_minimum``.
        batches: iterated once per epoch.
        first_epoch: 0-based.
        last_epoch: the epoch before which to stop.
        seed: of the model's own randomness.
        on_minimum: called with the number of completed epochs, counting a finished one, whenever
            the schedule is at a minimum.
        on_epoch: called at the end of each epoch.

    Raises:
        DivergenceError: the loss is not finite; it names the step and the learning rate.
    """
    for epoch in range(first_epoch, last_epoch):
        if hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch)
        learner.ranks.seed(seed, epoch)
        learner.model.train()
        losses = _Losses(epoch * len(batches))
        for number, batch in enumerate(batches, start=1):
            rate = float(schedule.get_last_lr()[0])
            parts = batch if isinstance(batch, list | tuple) and len(batch) > 1 else (batch,)
            losses.add(learner.step(*parts), rate, learner.joint_images(batch))
            schedule.step()
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
    """Check what no loss has seen yet: weights and running statistics after the last step."""
    statistics = [
        (f"{name}.{kind}", getattr(module, kind))
        for name, module in learner.model.named_modules()
        for kind in ("running_mean", "running_var")
        if isinstance(getattr(module, kind, None), Tensor)
    ]
    named = [*learner.model.named_parameters(), *statistics]
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named])
    for (name, _), sound in zip(named, finite.tolist(), strict=True):
        if not sound:
            raise diverged(f"the weights {name!r} are not finite", step, rate)


def diverged(what: str, step: int, rate: float) -> DivergenceError:
    """Return the error that names the 0-based step and the learning rate."""
    return DivergenceError(
        f"{what} after step {step} with learning rate {rate:g}; lower the learning rates"
    )


class _Losses:
    """The losses of an epoch, fetched from the device without waiting for it."""

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
        """Look at all losses so far.

        Raises:
            DivergenceError: one is not finite.
        """
        self._fetch()
        self._look(wait=True)

    def _fetch(self) -> None:
        """Send the losses to the host; on a GPU without waiting until they are there."""
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
