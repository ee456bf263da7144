"""Stages of training, as data: each a stretch of epochs under one learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from fge.train.schedules import ClosedFormLR

MakeSchedule = Callable[[Optimizer, int], ClosedFormLR]


@dataclass(frozen=True)
class Stage:
    """A stretch of training: epochs [first_epoch, last_epoch) under one schedule.

    ``schedule(optimizer, steps_per_epoch)`` is at its first step when ``first_epoch`` begins. The
    stage goes on from the weights and the optimizer's state at the end of the stage ``after``;
    without one, from those that training has come to, at first the initial ones. Every stage
    counts among the epochs of those behind it, also where they do not go on from it. Snapshots
    go to the folder ``store``: where the schedule is ``at_minimum``, or at the end of the stage.
    """

    name: str
    first_epoch: int
    last_epoch: int
    schedule: MakeSchedule
    after: str | None = None
    store: str | None = None
    keep: Literal["minima", "end"] = "minima"
