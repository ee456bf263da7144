"""The learning rates of a training with a scheduler of its own, beside those of ``FGE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fge.ensemble import FGE


class Rates:
    """Sets the rates of an optimizer to those of the training, or to those of an ``FGE``.

    A scheduler of the training that has come to rest still writes its rate at each of its steps.
    What it writes is replaced by the rate of the cycle, and it is told that rate, because
    libraries log what their scheduler says.

    Args:
        optimizer: its rates now are those of the training.
        schedulers: of the training.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Any] = ()) -> None:
        self.optimizer = optimizer
        self.schedulers = schedulers
        self._own = _rates_of(optimizer)

    def restore(self) -> None:
        """Set the rates of the training."""
        _set(self.optimizer, self._own)

    def take_back(self, cycle: FGE) -> None:
        """Set the rates of the cycle where a scheduler has replaced them.

        Rates that neither has set stay, so that ``FGE`` refuses them.
        """
        due = cycle.scheduler.get_last_lr()
        for scheduler in self.schedulers:
            if _rates_of(self.optimizer) == [float(rate) for rate in scheduler.get_last_lr()]:
                _set(self.optimizer, due)

    def tell(self, cycle: FGE) -> None:
        """Have the schedulers of the training say the rates of the cycle."""
        for scheduler in self.schedulers:
            scheduler._last_lr = list(cycle.scheduler.get_last_lr())


def at_rest(scheduler: Any, first: int, last: int) -> bool:
    """Return whether a scheduler is known to set one rate from a step of its own to another.

    That is known of a ``LambdaLR``, which all constant schedules and warm-ups of transformers are.
    """
    if not isinstance(scheduler, LambdaLR):
        return False
    return all(
        len({float(factor(step)) for step in range(first, max(last, first) + 1)}) == 1
        for factor in scheduler.lr_lambdas
    )


def _rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _set(optimizer: Optimizer, rates: Sequence[float | Tensor]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):  # as in capturable and compiled optimizers
            group["lr"].fill_(float(rate))
        else:
            group["lr"] = float(rate)
