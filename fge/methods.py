"""What the methods are, as data: stages of training, each under one learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch.optim import Optimizer

from fge.cycle_config import FGEConfig
from fge.schedule import ClosedFormLR, EndpointLR, TriangularLR

MakeSchedule = Callable[[Optimizer, int], ClosedFormLR]


@dataclass(frozen=True)
class Stage:
    """A stretch of training: epochs [first_epoch, last_epoch) under one schedule.

    ``schedule(optimizer, steps_per_epoch)`` is at its first step when ``first_epoch`` begins. The
    stage goes on from the weights and the optimizer's state at the end of the stage ``after``, or
    from initialisation. Snapshots go to the folder ``store``: where the schedule is
    ``at_minimum``, or at the end of the stage.
    """

    name: str
    first_epoch: int
    last_epoch: int
    schedule: MakeSchedule
    after: str | None = None
    store: str | None = None
    keep: Literal["minima", "end"] = "minima"


def fge_stages(config: FGEConfig) -> list[Stage]:
    """Return the stages of an FGE run (arXiv 1802.10026, section 4).

    A conventional start, then cycles of the learning rate up to the last minimum within the
    budget; with ``single``, the conventional schedule goes on from the same start to its end.
    """
    start = config.first_cycle_epoch
    stages = [
        Stage("start", 0, start, partial(_endpoint, epochs=config.epochs, first_epoch=0)),
        Stage(
            "fge",
            start,
            config.last_cycle_epoch,
            partial(_triangular, config),
            after="start",
            store="snapshots",
        ),
    ]
    if config.single:
        schedule = partial(_endpoint, epochs=config.epochs, first_epoch=start)
        stages.append(
            Stage(
                "single",
                start,
                config.epochs,
                schedule,
                after="start",
                store="single",
                keep="end",
            )
        )
    return stages


def _endpoint(
    optimizer: Optimizer, steps_per_epoch: int, *, epochs: int, first_epoch: int
) -> ClosedFormLR:
    schedule = EndpointLR(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
    schedule.load_state_dict({"last_epoch": first_epoch * steps_per_epoch})
    return schedule


def _triangular(config: FGEConfig, optimizer: Optimizer, steps_per_epoch: int) -> ClosedFormLR:
    return TriangularLR(
        optimizer,
        max_lr=config.cycle_lrs.max_lr,
        min_lr=config.cycle_lrs.min_lr,
        cycle_steps=config.cycle_length * steps_per_epoch,
    )
