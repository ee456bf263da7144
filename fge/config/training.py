"""Options of the commands that train one network: cycles of FGE, and the other methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fge.config.base import HOW_TO_RUN, MAY_BE_ADDED, MAY_BE_DROPPED, Rates, rates_of
from fge.config.invocation import is_factory
from fge.config.options import Options, TrainingConfig
from fge.errors import (
    UserError,
    check_at_least,
    check_learning_rates,
    check_not_negative,
    check_positive,
    unknown,
)

START_FRACTION = 0.75
"""Where the cycles begin by default, as a part of the budget, if two snapshots fit."""
METHOD_NAMES = ("single", "fge", "sse", "swa", "csgld", "ema")
"""Methods that train one network, described in ``fge.methods``."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """What to measure while a network trains."""

    group: ClassVar[str] = "measurement"
    sharpness_every: int | None = field(default=None, metadata=MAY_BE_DROPPED)
    """Measure the top Hessian eigenvalue of the training loss after every N epochs and at every
    snapshot. 0 stops measuring; it can be given with --resume too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, sharpness_every=self.sharpness_every)


@dataclass(frozen=True, kw_only=True)
class CycleConfig(ProbeOptions, TrainingConfig):
    """Options of the cycles of FGE."""

    group: ClassVar[str] = "schedule"
    start_epoch: int | None = None
    """First epoch of the cycles, counted from 0. By default at about 75 % of the budget, so that
    the last cycle ends at a minimum of the learning rate."""
    cycle_epochs: int | None = None
    """Epochs per cycle, an even number. By default about a tenth of the budget."""
    max_lr: float | None = None
    """Learning rate at the start of a cycle. By default the one that suits the model."""
    min_lr: float | None = None
    """Learning rate in the middle of a cycle, where a snapshot is kept. By default the one that
    suits the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """The learning rates of the run, each as given or the default for the model."""
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
class PretrainedOptions(Options):
    """The weights from which a run starts."""

    group: ClassVar[str] = "model"
    pretrained: Path | None = None
    """Weights file (.safetensors, or a .pt state dict) to start from. The cycles begin at once."""


@dataclass(frozen=True, kw_only=True)
class FGEConfig(PretrainedOptions, CycleConfig):
    """Train one network with a cyclic learning rate and ensemble its snapshots (FGE)."""

    group: ClassVar[str] = "ensemble"
    single: bool = False
    """Also train a single network with the same budget. It shares the first part of the run."""
    refit: Literal["bezier", "polychain"] | None = field(default=None, metadata=MAY_BE_ADDED)
    """Connect consecutive snapshots by curves of low loss, and ensemble points on them too."""
    refit_points: int = field(default=1, metadata=MAY_BE_ADDED)
    """Members to take from each curve between its ends, evenly spaced in t."""
    refit_epochs: int | None = field(default=None, metadata=MAY_BE_ADDED)
    """Epochs of each fit. By default half a cycle."""
    baseline: Path | None = field(default=None, metadata=HOW_TO_RUN)
    """Folder of a finished curve-ensemble run on the same data and model, to compare with."""

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, kw_only=True)
class MethodConfig(CycleConfig):
    """Options of all methods together."""

    group: ClassVar[str] = "method"
    sse_cycles: int = 5
    """sse: cosine cycles in the budget (arXiv 1704.00109: 5 in 200 epochs)."""
    csgld_cycles: int = 4
    """csgld: cycles in the budget (arXiv 1902.03932: 4 in 200 epochs)."""
    csgld_samples: int = 3
    """csgld: snapshots per cycle, one at the end of each of its last epochs
    (arXiv 1902.03932)."""
    csgld_lr: float = 0.5
    """csgld: initial learning rate, without momentum (arXiv 1902.03932)."""
    csgld_temperature: float | None = None
    """csgld: temperature. By default 1 / training images (reference code of
    arXiv 1902.03932)."""
    csgld_noise_scale: float = 1.0
    """csgld: factor on the standard deviation of the noise."""
    ema_decay: float = 0.999
    """ema: decay of the averaged weights per step (PyTorch's default)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, sse_cycles=self.sse_cycles, csgld_cycles=self.csgld_cycles)
        check_at_least(1, csgld_samples=self.csgld_samples)
        check_positive(csgld_lr=self.csgld_lr)
        check_not_negative(csgld_noise_scale=self.csgld_noise_scale)
        if self.csgld_temperature is not None:
            check_not_negative(csgld_temperature=self.csgld_temperature)
        if not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay must be in (0, 1), got {self.ema_decay}")

    def check_method(self, method: str) -> None:
        """Check that a method exists and that the budget is enough for its cycles.

        Raises:
            UserError: the method does not exist, or the budget is too small; the message names the
            smallest budget.
        """
        if method not in METHOD_NAMES and not is_factory(method):
            raise unknown("method", method, METHOD_NAMES)
        needed, what = 1, ""
        if method == "sse":
            needed, what = self.sse_cycles, f"{self.sse_cycles} cycles of 1 epoch"
        if method == "csgld":
            needed = self.csgld_cycles * self.csgld_samples
            what = f"{self.csgld_cycles} cycles of {self.csgld_samples} samples, one an epoch"
        if self.epochs < needed:
            raise UserError(
                f"{method} needs epochs >= {needed} ({what}), got {self.epochs}; "
                f"or use fewer cycles with --{method}-cycles"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MethodConfig):
    """Train one network by a method (single, fge, sse, swa, csgld, ema or your own)."""

    group: ClassVar[str] = "method"
    method: str = "single"
    """single, fge, sse, swa, csgld, ema, or your own fge.Method as package.module:method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_method(self.method)
