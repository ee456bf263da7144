"""Cosine learning rates with warm restarts, for snapshot ensembles and cyclical SGLD."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from fge.errors import UserError, check_at_least, check_not_negative
from fge.train.schedules import ClosedFormLR


def cosine_factor(step: int, cycle_steps: int) -> float:
    """Return the factor of the base rate at a step, counted from 0, of a cosine with restarts.

    With u = (step mod c) / c for a cycle of c steps: (1 + cos(pi u)) / 2 (Huang et al. 2017,
    arXiv 1704.00109, equation 2; Zhang et al. 2020, arXiv 1902.03932, equation 1).

    >>> [round(cosine_factor(s, 4), 4) for s in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 1.0]
    """
    return (1 + math.cos(math.pi * (step % cycle_steps) / cycle_steps)) / 2


class CosineRestartsLR(ClosedFormLR):
    """The learning rate of snapshot ensembles: a cosine that starts anew in every cycle.

    ``at_minimum`` is true when a cycle is complete: the moment to keep a snapshot (arXiv
    1704.00109).

    Args:
        optimizer: its learning rates are the base rates.
        cycle_steps: optimizer steps per cycle.
        last_epoch: the step to go on from, as in PyTorch's schedulers; -1 starts anew.

    Raises:
        UserError: ``cycle_steps`` is below 1.
    """

    def __init__(self, optimizer: Optimizer, *, cycle_steps: int, last_epoch: int = -1) -> None:
        check_at_least(1, cycle_steps=cycle_steps)
        self.cycle_steps = cycle_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the present step."""
        factor = cosine_factor(self.last_epoch, self.cycle_steps)
        return [base * factor for base in self.base_lrs]

    @property
    def at_minimum(self) -> bool:
        """Whether a cycle has just been completed."""
        return self.last_epoch > 0 and self.last_epoch % self.cycle_steps == 0

    @property
    def rate_kept(self) -> float:
        """The learning rate of the last step: the next one may start a cycle."""
        factor = cosine_factor(max(0, self.last_epoch - 1), self.cycle_steps)
        return float(self.base_lrs[0] * factor)


class CyclicalSGLDLR(CosineRestartsLR):
    """Learning rate and temperature of cyclical SGLD: each cycle explores first, then samples.

    In the exploration stage the optimizer's temperature is 0, which is plain SGD; in the last
    ``sampling`` of each cycle it is ``temperature``. ``at_minimum`` is true at the end of each of
    the last ``samples`` stretches of ``sample_steps`` steps of a cycle (Zhang et al. 2020, arXiv
    1902.03932, algorithm 1). In cycles so short that the first of these stretches would begin
    before the noise does, the noise begins with it: no sample is kept that has not had a whole
    stretch of it.

    Args:
        optimizer: an :class:`fge.train.SGLD`, whose groups hold a ``temperature``.
        cycle_steps: optimizer steps per cycle, a multiple of ``sample_steps``.
        sample_steps: steps from one sample to the next: an epoch.
        samples: kept per cycle.
        sampling: the part of a cycle with noise, in (0, 1], at the least.
        temperature: of the sampling stage.
        last_epoch: the step to go on from, as in PyTorch's schedulers; -1 starts anew.

    Raises:
        UserError: a value out of its range, or more samples than a cycle has stretches.
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
        """Return the learning rates at the present step; set the temperatures too."""
        noisy_steps = max(self.cycle_steps * self.sampling, self.samples * self.sample_steps)
        noisy = self.last_epoch % self.cycle_steps >= self.cycle_steps - noisy_steps
        for group in self.optimizer.param_groups:
            group["temperature"] = self.temperature if noisy else 0.0
        return super().get_lr()

    @property
    def at_minimum(self) -> bool:
        """Whether the weights as they are now are a sample to keep."""
        if self.last_epoch <= 0 or self.last_epoch % self.sample_steps:
            return False
        left = -self.last_epoch % self.cycle_steps
        return left < self.samples * self.sample_steps
