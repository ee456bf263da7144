"""A warm-up: the learning rate of any schedule, raised linearly where a network starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch.optim import Optimizer

from fge.errors import check_at_least
from fge.train.recipes import MakeSchedule, Stage
from fge.train.schedules import ClosedFormLR


class WarmUpLR(ClosedFormLR):
    """Another schedule with lower rates at first: that of step s is multiplied by (s + 1) / steps.

    From step ``steps - 1`` on, the rates are those of the other schedule, whose minima and descents
    are this one's too: its steps go on during the warm-up.

    >>> import torch
    >>> from fge.train import LinearTailLR
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    >>> schedule = WarmUpLR(LinearTailLR(optimizer, steps=8, final=1.0), steps=4)
    >>> for _ in range(5):
    ...     print(round(schedule.get_last_lr()[0], 3))
    ...     optimizer.step()
    ...     schedule.step()
    0.2
    0.4
    0.6
    0.8
    0.8

    Args:
        schedule: at its first step.
        steps: of the warm-up, at least 1.
        done: steps of it that were taken before, by earlier schedules.

    Raises:
        UserError: ``steps`` is below 1, or ``done`` below 0.
    """

    def __init__(self, schedule: ClosedFormLR, *, steps: int, done: int = 0) -> None:
        check_at_least(1, steps=steps)
        check_at_least(0, done=done)
        self.schedule = schedule
        self.steps = steps
        first = schedule.last_epoch
        self.offset = done - first
        super().__init__(schedule.optimizer)
        self.load_state_dict({"last_epoch": first})

    def join_groups(self) -> None:
        """Take the groups that were added to the optimizer into both schedules."""
        self.schedule.join_groups()
        super().join_groups()

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        self.schedule.last_epoch = self.last_epoch
        rates = self.schedule.get_lr()
        self.schedule._last_lr = [float(rate) for rate in rates]
        factor = self._factor
        return rates if factor == 1 else [rate * factor for rate in rates]

    @property
    def _factor(self) -> float:
        """What the current rates are multiplied by."""
        return max(0.0, min(1.0, (self.last_epoch + self.offset + 1) / self.steps))

    @property
    def at_minimum(self) -> bool:
        """Whether the other schedule is at one."""
        return self.schedule.at_minimum

    @property
    def rate_kept(self) -> float:
        """The learning rate to record with a snapshot saved now."""
        return self.schedule.rate_kept * self._factor

    @property
    def descent(self) -> tuple[int, int] | None:
        """That of the other schedule."""
        return self.schedule.descent


def warmed_up(stage: Stage, before: Sequence[Stage], epochs: float) -> Stage:
    """Return a stage with what is left of a warm-up after the stages from which it goes on.

    A warm-up begins where the optimizer begins: in the first stage and in fresh ones.

    Args:
        stage: one of a training.
        before: the stages that it has before this one, in order.
        epochs: of the warm-up.
    """
    done = _trained(stage, before)
    if epochs <= done:
        return stage
    return replace(stage, schedule=partial(_schedule, stage.schedule, epochs, done))


def _trained(stage: Stage, before: Sequence[Stage]) -> int:
    """Return the epochs of the optimizer before a stage."""
    if stage.fresh is not None or not before:
        return 0
    names = [other.name for other in before]
    position = len(before) - 1 if stage.after is None else names.index(stage.after)
    last = before[position]
    return last.last_epoch - last.first_epoch + _trained(last, before[:position])


def _schedule(
    make: MakeSchedule, epochs: float, done: int, optimizer: Optimizer, steps_per_epoch: int
) -> ClosedFormLR:
    steps = max(1, round(epochs * steps_per_epoch))
    schedule = make(optimizer, steps_per_epoch)
    return WarmUpLR(schedule, steps=steps, done=done * steps_per_epoch)
