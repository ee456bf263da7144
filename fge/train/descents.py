"""Linear descents of the learning rate: one, or one after the other."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from fge.errors import UserError, check_at_least
from fge.train.schedules import ClosedFormLR


def linear_factor(step: int, steps: int, *, final_factor: float = 0.0) -> float:
    """Return the factor of the base rate at a step, counted from 0, of the linear schedule.

    1 - (1 - final_factor) * step / steps. ``final_factor`` is reached after the last step, so no
    step is wasted on a rate of 0; later it stays constant.

    >>> [linear_factor(s, 4) for s in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return 1.0 - (1.0 - final_factor) * min(step / steps, 1.0)


class LinearTailLR(ClosedFormLR):
    """A linear descent that is not annealed to the end: what a mean over its tail wants.

    The rate falls step by step from the base rate to ``final`` times it, which the step after the
    last would use. A mean of the weights over the tail (:class:`fge.TailAverage`) takes away the
    noise that a smaller rate would (arXiv 2209.14981, 2306.03241). With ``hold`` the rate stays at
    the base rate first, and falls in the rest of the steps (arXiv 2405.18392).

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    >>> schedule = LinearTailLR(optimizer, steps=100)
    >>> round(schedule.get_last_lr()[0], 3), round(schedule.rate_at(100), 3)
    (0.2, 0.02)

    Args:
        optimizer: its learning rates are the base rates.
        steps: optimizer steps of the descent.
        final: the part of the base rate at the end, in [0, 1].
        hold: the part of the steps that stay at the base rate, in [0, 1).
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``steps`` is below 1, ``final`` is not in [0, 1], or ``hold`` not in [0, 1).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        steps: int,
        final: float = 0.1,
        hold: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        check_at_least(1, steps=steps)
        if not 0 <= final <= 1:
            raise UserError(f"final must be in [0, 1], got {final}")
        if not 0 <= hold < 1:
            raise UserError(f"hold must be in [0, 1), got {hold}")
        self.steps = steps
        self.final = final
        self.held = min(round(hold * steps), steps - 1)
        super().__init__(optimizer, last_epoch)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of the first parameter group at a step, counted from 0."""
        return float(self.base_lrs[0] * self._factor(step))

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        factor = self._factor(self._position)
        return [base * factor for base in self.base_lrs]

    @property
    def _position(self) -> int:
        """The step of the descent that comes next."""
        return self.last_epoch

    def _factor(self, step: int) -> float:
        """Return the factor of the base rate at a step, counted from 0."""
        falling = max(0, step - self.held)
        return linear_factor(falling, self.steps - self.held, final_factor=self.final)

    @property
    def descent(self) -> tuple[int, int]:
        """The whole schedule."""
        return self.steps, self.last_epoch


def linear_tail(
    epochs: int, final: float, optimizer: Optimizer, steps_per_epoch: int, *, hold: float = 0.0
) -> ClosedFormLR:
    """Return the descent of a stage of so many epochs, whose first step is the next one."""
    return LinearTailLR(optimizer, steps=epochs * steps_per_epoch, final=final, hold=hold)


class LinearDecayLR(LinearTailLR):
    """A schedule that falls linearly, step by step, over the whole budget of epochs.

    The step after the last would use ``final_factor`` times the base rate (strategy C of
    arXiv 1806.06977 decays linearly; the end at 0 is this package's default).

    Args:
        optimizer: its learning rates are the base rates.
        epochs: length of the whole schedule.
        steps_per_epoch: optimizer steps per epoch.
        final_factor: the fraction of the base rate at the end, in [0, 1].
        hold: the part of the steps that stay at the base rate first, in [0, 1).
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``epochs`` or ``steps_per_epoch`` is below 1, or ``final_factor`` is not in
            [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        epochs: int,
        steps_per_epoch: int,
        final_factor: float = 0.0,
        hold: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        check_at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
        if not 0 <= final_factor <= 1:
            raise UserError(f"final_factor must be in [0, 1], got {final_factor}")
        steps = epochs * steps_per_epoch
        super().__init__(
            optimizer, steps=steps, final=final_factor, hold=hold, last_epoch=last_epoch
        )


class LinearRestartsLR(LinearTailLR):
    """Linear descents of equal length, one after the other, each from the base rate.

    ``at_minimum`` is true at the end of each: then save a snapshot.

    Args:
        optimizer: its learning rates are the base rates.
        cycle_steps: optimizer steps of each descent.
        final: the part of the base rate at the end of each, in [0, 1].
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``cycle_steps`` is below 1, or ``final`` is not in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, *, cycle_steps: int, final: float = 0.1, last_epoch: int = -1
    ) -> None:
        check_at_least(1, cycle_steps=cycle_steps)
        super().__init__(optimizer, steps=cycle_steps, final=final, last_epoch=last_epoch)

    @property
    def _position(self) -> int:
        return self.last_epoch % self.steps

    @property
    def at_minimum(self) -> bool:
        """Whether a descent has just ended."""
        return self.last_epoch > 0 and self.last_epoch % self.steps == 0

    @property
    def rate_kept(self) -> float:
        """The learning rate at the end of a descent, since the next step starts another."""
        return self.rate_at(self.steps)

    @property
    def descent(self) -> tuple[int, int]:
        """The descent in which the last step was."""
        done = (self.last_epoch - 1) % self.steps + 1 if self.last_epoch > 0 else 0
        return self.steps, done
