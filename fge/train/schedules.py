"""Learning-rate schedules, as PyTorch ``LRScheduler`` objects that step once per update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Any, TypedDict

from msgspec import Meta
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fge.errors import UserError, check_at_least, check_learning_rates, check_not_negative
from fge.files import checked

STEP_MARKS = (0.3, 0.6, 0.8)
"""Epochs 60, 120 and 160 of 200 as fractions of the budget (arXiv 1806.06977)."""


def triangular(step: int, *, max_lr: float, min_lr: float, cycle_steps: int) -> float:
    """Return the learning rate of FGE at a step, counted from 0.

    With u = (step mod c) / c for a cycle of c steps, the rate falls linearly from ``max_lr`` to
    ``min_lr`` while u < 1/2 and then rises back (arXiv 1802.10026, equation 3)::

        max_lr * (1 - 2u) + min_lr * 2u            u <  1/2
        max_lr * (2u - 1) + min_lr * (2 - 2u)      u >= 1/2

    >>> [round(triangular(s, max_lr=0.5, min_lr=0.1, cycle_steps=4), 3) for s in range(5)]
    [0.5, 0.3, 0.1, 0.3, 0.5]
    """
    u = (step % cycle_steps) / cycle_steps
    if u < 0.5:
        return max_lr * (1 - 2 * u) + min_lr * 2 * u
    return max_lr * (2 * u - 1) + min_lr * (2 - 2 * u)


def endpoint_factor(epoch: int, epochs: int) -> float:
    """Return the factor of the base rate in an epoch, counted from 1, of the endpoint schedule.

    With alpha = epoch / epochs: 1 while alpha <= 0.5, then linear down to 0.01 at 0.9, then 0.01
    (the schedule of the reference implementation of arXiv 1802.10026).

    >>> [round(endpoint_factor(e, 10), 4) for e in (1, 5, 6, 9, 10)]
    [1.0, 1.0, 0.7525, 0.01, 0.01]
    """
    alpha = epoch / epochs
    if alpha <= 0.5:
        return 1.0
    if alpha <= 0.9:
        return 1.0 - (alpha - 0.5) / 0.4 * 0.99
    return 0.01


def mark_epochs(epochs: int, marks: Sequence[float] = STEP_MARKS) -> tuple[int, ...]:
    """Return the number of epochs after which each mark is passed.

    A mark is rounded to the nearest number of epochs, halves up, but at least 1, so that training
    starts at the base rate. In a short budget marks may coincide.

    >>> mark_epochs(200), mark_epochs(40), mark_epochs(7), mark_epochs(1)
    ((60, 120, 160), (12, 24, 32), (2, 4, 6), (1, 1, 1))
    """
    # The small term corrects products such as 0.29 * 50, which are just below their half.
    return tuple(max(1, math.floor(mark * epochs + 0.5 + 1e-9)) for mark in marks)


def steps_factor(
    epoch: int, epochs: int, *, marks: Sequence[float] = STEP_MARKS, factor: float = 0.2
) -> float:
    """Return the factor of the base rate in an epoch, counted from 1, of the stepwise schedule.

    It is ``factor`` to the power of the number of marks passed before the epoch.

    >>> [round(steps_factor(e, 10), 4) for e in (1, 3, 4, 6, 7, 8, 9, 10)]
    [1.0, 1.0, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008]
    """
    passed = sum(epoch > mark for mark in mark_epochs(epochs, marks))
    return float(factor**passed)


def cosine_factor(step: int, cycle_steps: int) -> float:
    """Return the factor of the base rate at a step, counted from 0, of a cosine with restarts.

    With u = (step mod c) / c for a cycle of c steps: (1 + cos(pi u)) / 2 (Huang et al. 2017,
    arXiv 1704.00109, equation 2; Zhang et al. 2020, arXiv 1902.03932, equation 1).

    >>> [round(cosine_factor(s, 4), 4) for s in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 1.0]
    """
    return (1 + math.cos(math.pi * (step % cycle_steps) / cycle_steps)) / 2


class _State(TypedDict):
    """The state of a schedule."""

    last_epoch: Annotated[int, Meta(ge=-1, le=2**53)]


class ClosedFormLR(LRScheduler):
    """A schedule that depends only on the step, so its state is the step.

    A parameter group that is added to the optimizer joins at the next :meth:`step`; its learning
    rate is then its base rate.
    """

    def __repr__(self) -> str:
        """Return the step and the learning rates of the parameter groups."""
        rates = ", ".join(f"{float(rate):.4g}" for rate in self.get_last_lr())
        return f"{type(self).__name__}(step {self.last_epoch}, learning rate {rates})"

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rates of the next step.

        Args:
            epoch: go to this step instead, as PyTorch's ``SequentialLR`` does.

        Raises:
            UserError: rates were given per group, and one was added.
        """
        self.join_groups()
        super().step(epoch)

    def join_groups(self) -> None:
        """Take the groups that were added to the optimizer into the schedule."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            rate = group["lr"]
            group.setdefault("initial_lr", rate.clone() if isinstance(rate, Tensor) else rate)
            self.base_lrs.append(group["initial_lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return the step; the options are not part of the state."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step and set its learning rates, if it has begun.

        Raises:
            UserError: the state holds no step.
        """
        state = checked(state_dict, _State, "the saved state of the learning rate is damaged")
        self.last_epoch = state["last_epoch"]
        self._step_count = self.last_epoch + 1
        if self.last_epoch < 0:  # it waits, in a SequentialLR: the rates are another's
            return
        self.join_groups()
        self._last_lr = [float(rate) for rate in self.get_lr()]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], float | int):
                group["lr"] = rate
            else:  # a tensor, as in capturable and compiled optimizers
                group["lr"].fill_(rate)

    @property
    def at_minimum(self) -> bool:
        """Whether to save a snapshot of the current weights."""
        return False

    @property
    def rate_kept(self) -> float:
        """The learning rate to record with a snapshot saved now: that of the next step."""
        return float(self.get_last_lr()[0])

    @property
    def descent(self) -> tuple[int, int] | None:
        """Steps of the current descent and how many of them are done; None between descents.

        A descent ends where its network is kept; a finished one still counts until the next step.
        """
        return None

    def tail_step(self, part: float) -> int | None:
        """Return which step of the tail of its descent the last one was, from 0; None outside.

        The tail is the last ``part`` of the descent's steps, at least one step.

        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> schedule = CosineRestartsLR(optimizer, cycle_steps=4)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     schedule.step()
        ...     print(schedule.tail_step(0.5))
        None
        None
        0
        1
        """
        if self.descent is None:
            return None
        steps, done = self.descent
        first = steps - max(1, round(part * steps)) + 1
        return done - first if done >= first else None


class TriangularLR(ClosedFormLR):
    """The cyclic learning rate of FGE: linear from ``max_lr`` to ``min_lr`` and back.

    Call :meth:`step` after every optimizer step. ``at_minimum`` is true before the step of a cycle
    that would use ``min_lr``: then save a snapshot.

    Args:
        optimizer: its learning rates are set, starting with the first.
        max_lr: rate at the start of a cycle; one number, also of groups that are added later, or
            one per parameter group.
        min_lr: rate in the middle of a cycle; one number, or one per parameter group.
        cycle_steps: optimizer steps per cycle, even.
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``cycle_steps`` is odd or below 2, a rate is negative, rates are in the wrong
            order, or their number is not that of the parameter groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_lr: float | Sequence[float],
        min_lr: float | Sequence[float],
        cycle_steps: int,
        last_epoch: int = -1,
    ) -> None:
        if cycle_steps < 2 or cycle_steps % 2:
            raise UserError(f"cycle_steps must be even and >= 2, got {cycle_steps}")
        self.cycle_steps = cycle_steps
        self.per_group = not (isinstance(max_lr, Real) and isinstance(min_lr, Real))
        self.max_lrs = _per_group("max_lr", max_lr, optimizer)
        self.min_lrs = _per_group("min_lr", min_lr, optimizer)
        for high, low in zip(self.max_lrs, self.min_lrs, strict=True):
            check_learning_rates(high, low)
        super().__init__(optimizer, last_epoch)

    def join_groups(self) -> None:
        """Give groups that were added the rates of the others.

        Raises:
            UserError: the rates were given per group, so that these have none.
        """
        added = len(self.optimizer.param_groups) - len(self.max_lrs)
        if added > 0 and self.per_group:
            raise UserError(
                f"the optimizer has {len(self.optimizer.param_groups)} parameter groups, but "
                f"max_lr and min_lr were given for {len(self.max_lrs)}: make a schedule with rates "
                "for all, and load this one's state_dict() into it"
            )
        self.max_lrs += self.max_lrs[:1] * added
        self.min_lrs += self.min_lrs[:1] * added
        super().join_groups()

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        return [
            triangular(self.last_epoch, max_lr=high, min_lr=low, cycle_steps=self.cycle_steps)
            for high, low in zip(self.max_lrs, self.min_lrs, strict=True)
        ]

    @property
    def at_minimum(self) -> bool:
        """Whether the next step would use ``min_lr``."""
        return self.last_epoch % self.cycle_steps == self.cycle_steps // 2

    @property
    def descent(self) -> tuple[int, int] | None:
        """The falling half of the cycle, in which the last step was."""
        done, half = self.last_epoch % self.cycle_steps, self.cycle_steps // 2
        return (half, done) if 1 <= done <= half else None


class EndpointLR(ClosedFormLR):
    """The conventional schedule of a single network, constant within an epoch.

    Args:
        optimizer: its learning rates are the base rates.
        epochs: length of the whole schedule.
        steps_per_epoch: optimizer steps per epoch.
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``epochs`` or ``steps_per_epoch`` is below 1 or no whole number.
    """

    def __init__(
        self, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int, last_epoch: int = -1
    ) -> None:
        check_at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        factor = endpoint_factor(self.last_epoch // self.steps_per_epoch + 1, self.epochs)
        return [base * factor for base in self.base_lrs]

    @property
    def descent(self) -> tuple[int, int]:
        """The whole schedule."""
        return self.epochs * self.steps_per_epoch, self.last_epoch


class StepsLR(ClosedFormLR):
    """A stepwise schedule: the rate is multiplied by ``factor`` at each mark of the budget.

    By default it is divided by 5 after 30, 60 and 80 % of the epochs (strategy G of arXiv
    1806.06977: after 60, 120 and 160 of 200). Marks are rounded as in :func:`mark_epochs`.

    Args:
        optimizer: its learning rates are the base rates.
        epochs: length of the whole schedule.
        steps_per_epoch: optimizer steps per epoch.
        marks: fractions of the budget, between 0 and 1, rising.
        factor: multiplies the rate at each mark, between 0 and 1.
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``epochs`` or ``steps_per_epoch`` is below 1, marks are out of order or out of
            (0, 1), or ``factor`` is not in (0, 1).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        epochs: int,
        steps_per_epoch: int,
        marks: Sequence[float] = STEP_MARKS,
        factor: float = 0.2,
        last_epoch: int = -1,
    ) -> None:
        check_at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
        rising = all(low < high for low, high in zip((0, *marks), (*marks, 1), strict=True))
        if not rising:
            raise UserError(f"marks must rise within (0, 1), got {tuple(marks)}")
        if not 0 < factor < 1:
            raise UserError(f"factor must be in (0, 1), got {factor}")
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.marks = tuple(marks)
        self.factor = factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        epoch = self.last_epoch // self.steps_per_epoch + 1
        factor = steps_factor(epoch, self.epochs, marks=self.marks, factor=self.factor)
        return [base * factor for base in self.base_lrs]


class CosineRestartsLR(ClosedFormLR):
    """The learning rate of snapshot ensembles: a cosine that restarts in every cycle.

    ``at_minimum`` is true at the end of a cycle: then save a snapshot (arXiv 1704.00109).

    Args:
        optimizer: its learning rates are the base rates.
        cycle_steps: optimizer steps per cycle.
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: ``cycle_steps`` is below 1.
    """

    def __init__(self, optimizer: Optimizer, *, cycle_steps: int, last_epoch: int = -1) -> None:
        check_at_least(1, cycle_steps=cycle_steps)
        self.cycle_steps = cycle_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        factor = cosine_factor(self.last_epoch, self.cycle_steps)
        return [base * factor for base in self.base_lrs]

    @property
    def at_minimum(self) -> bool:
        """Whether a cycle has just ended."""
        return self.last_epoch > 0 and self.last_epoch % self.cycle_steps == 0

    @property
    def descent(self) -> tuple[int, int] | None:
        """The cycle in which the last step was."""
        if self.last_epoch < 1:
            return None
        return self.cycle_steps, (self.last_epoch - 1) % self.cycle_steps + 1

    @property
    def rate_kept(self) -> float:
        """The learning rate of the last step, since the next step starts a cycle."""
        factor = cosine_factor(max(0, self.last_epoch - 1), self.cycle_steps)
        return float(self.base_lrs[0] * factor)


class CyclicalSGLDLR(CosineRestartsLR):
    """Learning rate and temperature of cyclical SGLD: each cycle explores first, then samples.

    In the exploration stage the optimizer's temperature is 0, which is plain SGD; in the last
    fraction ``sampling`` of each cycle it is ``temperature``. The last ``samples`` intervals of
    ``sample_steps`` steps in a cycle each end with a sample, where ``at_minimum`` is true (Zhang et
    al. 2020, arXiv 1902.03932, algorithm 1). In a short cycle the noise starts earlier, with the
    first of these intervals, so that every sample follows a full interval with noise.

    Args:
        optimizer: an :class:`fge.train.SGLD`, whose groups hold a ``temperature``.
        cycle_steps: optimizer steps per cycle, a multiple of ``sample_steps``.
        sample_steps: steps from one sample to the next: an epoch.
        samples: samples per cycle.
        sampling: the fraction of a cycle with noise, in (0, 1], at least.
        temperature: of the sampling stage.
        last_epoch: the step to resume from, as in PyTorch's schedulers; -1 starts at the beginning.

    Raises:
        UserError: a value is out of range, or a cycle has fewer intervals than samples.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        cycle_steps: int,
        sample_steps: int,
        samples: int,
        sampling: float,
        temperature: float,
        last_epoch: int = -1,
    ) -> None:
        check_at_least(1, sample_steps=sample_steps, samples=samples)
        check_not_negative(temperature=temperature)
        if not 0 < sampling <= 1:
            raise UserError(f"sampling must be in (0, 1], got {sampling}")
        if cycle_steps % sample_steps:
            raise UserError(f"cycle_steps must be a multiple of {sample_steps}, got {cycle_steps}")
        if samples * sample_steps > cycle_steps:
            raise UserError(f"{samples} samples do not fit in {cycle_steps // sample_steps} epochs")
        self.sample_steps = sample_steps
        self.samples = samples
        self.sampling = sampling
        self.temperature = temperature
        super().__init__(optimizer, cycle_steps=cycle_steps, last_epoch=last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the learning rates at the current step; set the temperatures too."""
        noisy_steps = max(self.cycle_steps * self.sampling, self.samples * self.sample_steps)
        noisy = self.last_epoch % self.cycle_steps >= self.cycle_steps - noisy_steps
        for group in self.optimizer.param_groups:
            group["temperature"] = self.temperature if noisy else 0.0
        return super().get_lr()

    @property
    def at_minimum(self) -> bool:
        """Whether the current weights are a sample to save."""
        if self.last_epoch <= 0 or self.last_epoch % self.sample_steps:
            return False
        left = -self.last_epoch % self.cycle_steps
        return left < self.samples * self.sample_steps


def _per_group(name: str, value: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    groups = len(optimizer.param_groups)
    if isinstance(value, float | Real):  # a number of NumPy, too
        return [float(value)] * groups
    rates = [float(rate) for rate in value]
    if len(rates) != groups:
        raise UserError(
            f"{name} must be one number or one per parameter group ({groups}), got {len(rates)}"
        )
    return rates
