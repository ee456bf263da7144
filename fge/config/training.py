"""Options of the commands that cycle the learning rate; see ``fge.config.base`` for the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fge.config.base import HOW_TO_RUN, MAY_BE_ADDED, MAY_BE_DROPPED, TrainingConfig
from fge.config.rates import Rates, rates_of
from fge.errors import UserError, check_at_least, check_learning_rates

START_FRACTION = 0.75
"""Where the cycles begin unless told otherwise, as a part of the budget, if two snapshots fit."""


@dataclass(frozen=True, kw_only=True)
class CycleConfig(TrainingConfig):
    """Options of the cycles of FGE."""

    start_epoch: int | None = None
    """First epoch of the cycles, counted from 0; by default about 75 %
    of the budget, placed so that it ends at a minimum of the rate."""
    cycle_epochs: int | None = None
    """Epochs per cycle, an even number; about a tenth of the budget by default."""
    max_lr: float | None = None
    """Learning rate at the start of a cycle; by default what suits the model."""
    min_lr: float | None = None
    """Learning rate in the middle of a cycle, where a snapshot is kept;
    by default what suits the model."""
    sharpness_every: int | None = field(default=None, metadata=MAY_BE_DROPPED)
    """Measure the top Hessian eigenvalue of the training loss every so many epochs
    and at every snapshot; 0, given on resuming too, measures no more."""

    def __post_init__(self) -> None:
        """Check the cycles as well.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        check_at_least(0, sharpness_every=self.sharpness_every)
        check_learning_rates(self.cycle_lrs.max_lr, self.cycle_lrs.min_lr)
        cycle = self.cycle_epochs
        if cycle is not None and (cycle < 2 or cycle % 2):
            raise UserError(f"cycle_epochs must be even and >= 2, got {cycle}")
        start, half = self.first_cycle_epoch, self.cycle_length // 2
        if not 0 <= start < self.epochs:
            raise UserError(f"start_epoch must be in [0, epochs) = [0, {self.epochs}), got {start}")
        if start + half > self.epochs:
            raise UserError(
                f"cycle_epochs {self.cycle_length} is too long: the first snapshot would end epoch "
                f"{start + half} of {self.epochs}; use cycle_epochs <= "
                f"{max(2 * (self.epochs - start), 2)} or epochs >= {start + half}"
            )

    @property
    def cycle_length(self) -> int:
        """Epochs per cycle: ``cycle_epochs``, or the even number nearest a tenth of the budget."""
        return self.cycle_epochs or 2 * max(1, round(self.epochs / 20))

    @property
    def cycle_lrs(self) -> Rates:
        """The learning rates of the run, each as given, or what suits the model."""
        usual = rates_of(self.model)
        high = usual.max_lr if self.max_lr is None else self.max_lr
        low = min(usual.min_lr, high) if self.min_lr is None else self.min_lr
        return Rates(self.base_lr, high, low)

    @property
    def first_cycle_epoch(self) -> int:
        """The epoch (0-based) at which the cycles begin."""
        if self.start_epoch is not None:
            return self.start_epoch
        cycle, half = self.cycle_length, self.cycle_length // 2
        cycles = round((self.epochs * (1 - START_FRACTION) - half) / cycle)
        fitting = max(0, (self.epochs - half) // cycle)
        return max(0, self.epochs - half - min(max(cycles, 1), fitting) * cycle)

    @property
    def last_cycle_epoch(self) -> int:
        """The epoch at which cycling stops: the last minimum within the budget."""
        half = self.cycle_length // 2
        cycles = (self.epochs - self.first_cycle_epoch - half) // self.cycle_length
        return self.first_cycle_epoch + half + cycles * self.cycle_length


@dataclass(frozen=True, kw_only=True)
class FGEConfig(CycleConfig):
    """Train one network with a cyclic learning rate and ensemble its snapshots (FGE)."""

    pretrained: Path | None = None
    """Start cycling from these weights (.safetensors, or a .pt state dict) at once."""
    single: bool = False
    """Also train the single network of the same budget, from the shared first part of the run."""
    refit: Literal["bezier", "polychain"] | None = field(default=None, metadata=MAY_BE_ADDED)
    """Connect consecutive snapshots by curves of low loss, and ensemble points on them too."""
    refit_points: int = field(default=1, metadata=MAY_BE_ADDED)
    """Members taken from each curve between its ends, evenly spaced in t."""
    refit_epochs: int | None = field(default=None, metadata=MAY_BE_ADDED)
    """Epochs of each fit; half a cycle by default."""
    baseline: Path | None = field(default=None, metadata=HOW_TO_RUN)
    """A finished curve-ensemble run on the same data and model to set the result beside."""

    def __post_init__(self) -> None:
        """Check what goes with the cycles.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        if self.pretrained is not None and self.start_epoch not in (None, 0):
            raise UserError(
                f"--pretrained starts cycling at epoch 0, got start_epoch {self.start_epoch}"
            )
        super().__post_init__()
        check_at_least(1, refit_points=self.refit_points, refit_epochs=self.refit_epochs)
        if self.refit is None and (self.refit_epochs is not None or self.refit_points != 1):
            raise UserError("--refit-points and --refit-epochs need --refit bezier or polychain")
        if self.pretrained is not None and self.single:
            raise UserError("--single shares the start of the run, which --pretrained leaves out")

    @property
    def first_cycle_epoch(self) -> int:
        """The epoch (0-based) at which the cycles begin."""
        return 0 if self.pretrained is not None else super().first_cycle_epoch
