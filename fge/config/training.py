"""Options of the commands that train one network: cycles of FGE, and the other methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fge.config.base import (
    EPOCH,
    EPOCHS,
    EPOCHS_OR_NONE,
    HOW_TO_RUN,
    MAY_BE_ADDED,
    MAY_BE_DROPPED,
    THIS_INVOCATION,
    Rates,
    whole,
)
from fge.config.invocation import is_factory
from fge.config.learning import StartOptions, TrainingConfig
from fge.config.options import Options, ViewOptions
from fge.errors import (
    UserError,
    check_learning_rates,
    check_not_negative,
    check_positive,
    unknown,
)

START_FRACTION, AVERAGED_START = 0.75, 0.5
"""Where the cycles begin by default, as a part of the budget, if two snapshots fit: those of the
paper, and those whose members are averages."""
AVERAGE, CYCLE_AVERAGE = 0.2, 0.3
"""The last part of a descent over which weights are averaged by default: of one from the base rate,
and of one of FGE's cycles."""
FINAL_FACTOR = 0.05
"""The part of the base rate at which a descent ends by default where weights are averaged."""
HOLD = 0.25
"""The part of a descent of a whole budget that stays at the base rate by default."""
METHOD_NAMES = (
    *("single", "average", "fge", "fge-paper", "sse", "swa", "csgld", "ema"),
    *("star", "split", "auto"),
)
"""Methods of one training run, described in ``fge.methods``."""
PRESETS: dict[str, dict[str, float]] = {"garipov2018": {"average": 0.0, "val_fraction": 0.0}}
"""Options of published settings: of FGE's paper, arXiv 1802.10026, which trains on all images and
keeps the last weights of each cycle."""
_OF_MODELS: dict[str, dict[str, dict[str, float]]] = {
    "garipov2018": {
        "vgg16": {"cycle_epochs": 2, "weight_decay": 5e-4},
        "preresnet": {"cycle_epochs": 2, "weight_decay": 3e-4},
        "wrn28-10": {"cycle_epochs": 2, "weight_decay": 5e-4},
    }
}
"""What a preset has for models whose names begin so: the reference implementation's commands for
CIFAR-100. The rates there are the models' own by default."""


def preset_options(name: str, model: str) -> dict[str, float]:
    """Return the options of a preset for a model.

    >>> preset_options("garipov2018", "preresnet164")
    {'average': 0.0, 'val_fraction': 0.0, 'cycle_epochs': 2, 'weight_decay': 0.0003}

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    models = _OF_MODELS.get(name, {})
    own = next((models[start] for start in models if model.startswith(start)), {})
    return {**PRESETS[name], **own}


BASELINE_PARTS = 3
"""The least budget of a curve ensemble: an epoch for each network and one for the fit."""
_HIGH = 0.5
"""The highest rate of cycles whose members are averages, as a part of the base rate."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """What to measure while a network trains."""

    group: ClassVar[str] = "measurement"
    sharpness_every: int | None = field(default=None, metadata={**EPOCHS_OR_NONE, **MAY_BE_DROPPED})
    """Measure the top Hessian eigenvalue of the training loss after every N epochs and at every
    snapshot. 0 stops measuring; it can be given with --resume too."""


@dataclass(frozen=True, kw_only=True)
class CycleConfig(ProbeOptions, ViewOptions, TrainingConfig):
    """Options of the cycles of FGE."""

    group: ClassVar[str] = "schedule"
    start_epoch: int | None = field(default=None, metadata=EPOCH)
    """First epoch of the cycles, counted from 0. By default at about half of the budget (75 %
    with --average 0), so that the last cycle ends at a minimum of the learning rate."""
    cycle_epochs: int | None = field(default=None, metadata=EPOCH)
    """Epochs per cycle, an even number. By default about a fifth of the budget (a tenth with
    --average 0)."""
    max_lr: float | None = None
    """Learning rate at the start of a cycle. By default half of --lr; with --average 0 the
    papers'."""
    min_lr: float | None = None
    """Learning rate in the middle of a cycle, where a snapshot is kept. By default --final-factor
    times --lr; with --average 0 the papers'."""
    average: float | None = None
    """Members of fge, sse, average, star, split and auto are the mean of the weights over this last
    part of each descent of the learning rate. 0 keeps the last weights, with the schedules of the
    papers. By default 0.3 in the cycles of fge and 0.2 elsewhere."""
    final_factor: float = FINAL_FACTOR
    """Descents of the learning rate end at this part of --lr, and not near 0, because the weights
    are averaged."""

    hold: float = HOLD
    """average, and auto once it trains one network to the end of the budget: this part of a descent
    stays at --lr, then the learning rate falls linearly."""
    distill_epochs: int = field(default=0, metadata={**EPOCHS_OR_NONE, **MAY_BE_ADDED})
    """After training, distil an ensemble into one network in so many epochs, which are added to its
    cost. The best single network on the validation images is folded.safetensors. 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average is not None and not 0 <= self.average <= 1:
            raise UserError(f"average must be in [0, 1], got {self.average}")
        if not 0 <= self.final_factor <= 1:
            raise UserError(f"final_factor must be in [0, 1], got {self.final_factor}")
        if not 0 <= self.hold < 1:
            raise UserError(f"hold must be in [0, 1), got {self.hold}")
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
        """Epochs per cycle: ``cycle_epochs``, or the even number nearest a part of the budget.

        That is a tenth, or a fifth if members are averages, which need longer descents.
        """
        part = 10 if self.average_part > 0 else 20
        return self.cycle_epochs or 2 * max(1, round(self.epochs / part))

    @property
    def average_part(self) -> float:
        """The last part of each descent that is averaged: ``average``, or the default."""
        return AVERAGE if self.average is None else self.average

    @property
    def cycle_average(self) -> float:
        """The last part of each falling half of a cycle that is averaged."""
        return CYCLE_AVERAGE if self.average is None else self.average

    @property
    def cycle_lrs(self) -> Rates:
        """The learning rates of the run, each as given, or what suits the model.

        Cycles whose members are averages rise higher and fall less far than the papers'.
        """
        usual = self.usual_rates
        if self.average_part > 0 or self.optimizer != "sgd":
            low = self.final_factor * self.base_lr
            usual = Rates(self.base_lr, max(low, _HIGH * self.base_lr), low)
        high = usual.max_lr if self.max_lr is None else self.max_lr
        low = min(usual.min_lr, high) if self.min_lr is None else self.min_lr
        return Rates(self.base_lr, high, low)

    @property
    def first_cycle_epoch(self) -> int:
        """The epoch (0-based) at which the cycles begin."""
        if self.start_epoch is not None:
            return self.start_epoch
        cycle, half = self.cycle_length, self.cycle_length // 2
        begin = AVERAGED_START if self.average_part > 0 else START_FRACTION
        cycles = round((self.epochs * (1 - begin) - half) / cycle)
        fitting = max(0, (self.epochs - half) // cycle)
        return max(0, self.epochs - half - min(max(cycles, 1), fitting) * cycle)

    @property
    def last_cycle_epoch(self) -> int:
        """The epoch at which cycling stops: the last minimum within the budget."""
        half = self.cycle_length // 2
        cycles = (self.epochs - self.first_cycle_epoch - half) // self.cycle_length
        return self.first_cycle_epoch + half + cycles * self.cycle_length


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(StartOptions, CycleConfig):
    """Cycles that may begin from given weights."""

    group: ClassVar[str] = "model"

    def __post_init__(self) -> None:
        if self.pretrained is not None and self.start_epoch not in (None, 0):
            raise UserError(
                f"--pretrained starts cycling at epoch 0, got start_epoch {self.start_epoch}"
            )
        super().__post_init__()

    @property
    def first_cycle_epoch(self) -> int:
        """The epoch (0-based) at which the cycles begin."""
        return 0 if self.pretrained is not None else super().first_cycle_epoch


@dataclass(frozen=True, kw_only=True)
class FGEConfig(PretrainedConfig):
    """Train one network with a cyclic learning rate and ensemble its snapshots (FGE)."""

    group: ClassVar[str] = "ensemble"
    preset: Literal["garipov2018"] | None = field(default=None, metadata=THIS_INVOCATION)
    """Take the options of a publication: garipov2018 is --average 0 --val-fraction 0, and cycles
    and weight decay of the paper's models. Options on the command line override it."""
    plan: Literal["cycles", "auto"] = "cycles"
    """How the budget is spent: cycles, along one path; or auto, which decides while it runs whether
    one network continues or others start (as train --method auto)."""
    single: bool = False
    """Also train single networks with the same budget: a conventional one, which with --average 0
    shares the first part of the run, and without it an averaged one too."""
    refit: Literal["bezier", "polychain"] | None = field(default=None, metadata=MAY_BE_ADDED)
    """Connect consecutive snapshots by curves of low loss, and ensemble points on them too."""
    refit_points: int = field(default=1, metadata=whole(1, 1000, **MAY_BE_ADDED))
    """Members to take from each curve between its ends, evenly spaced in t."""
    refit_epochs: int | None = field(default=None, metadata={**EPOCHS, **MAY_BE_ADDED})
    """Epochs of each fit. By default half a cycle."""
    baseline: Literal["auto"] | Path | None = field(default=None, metadata=HOW_TO_RUN)
    """What to compare with: the folder of a finished curve-ensemble run on the same data and model;
    or auto, which trains one with the same budget, from the same given weights if there are any,
    in the folder baseline of this run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refit is None and (self.refit_epochs is not None or self.refit_points != 1):
            raise UserError("--refit-points and --refit-epochs need --refit bezier or polychain")
        if self.plan == "auto":
            self._check_plan()
        if self.refit is not None:
            self._check_refit()
        if self.pretrained is not None and self.single:
            raise UserError("--single trains from initial weights, --pretrained from given ones")
        if self.baseline == "auto":
            self._check_own_baseline()

    def _check_plan(self) -> None:
        if self.val_fraction == 0:
            raise UserError(
                "--plan auto decides by validation data, got val_fraction 0; set --val-fraction "
                "above 0"
            )
        if self.refit is not None or self.single:
            option = f"--refit {self.refit}" if self.refit else "--single"
            raise UserError(f"{option} belongs to --plan cycles; leave it out with --plan auto")

    def _check_refit(self) -> None:
        first_minimum = self.first_cycle_epoch + self.cycle_length // 2
        if self.last_cycle_epoch == first_minimum:
            raise UserError(
                "--refit connects consecutive snapshots, but this run saves only one; use "
                f"epochs >= {first_minimum + self.cycle_length}, shorter cycles or an earlier "
                "start_epoch"
            )

    def _check_own_baseline(self) -> None:
        if self.epochs < BASELINE_PARTS:
            raise UserError(
                f"--baseline auto needs epochs >= {BASELINE_PARTS}, one for each of two networks "
                f"and one for the fit, got {self.epochs}"
            )


@dataclass(frozen=True, kw_only=True)
class MethodConfig(CycleConfig):
    """Options of all methods together."""

    group: ClassVar[str] = "method"
    star_trunk: float = 0.6
    """star: the part of the budget before the branches, at a constant rate."""
    star_branches: int = field(default=4, metadata=EPOCHS)
    """star: branches from the trunk, which share what is left of the budget."""
    split: int = field(default=2, metadata=EPOCHS)
    """split, and deep-ensemble in compare: networks that share one budget."""
    sse_cycles: int = field(default=5, metadata=EPOCHS)
    """sse: cosine cycles in the budget (arXiv 1704.00109: 5 in 200 epochs)."""
    csgld_cycles: int = field(default=4, metadata=EPOCHS)
    """csgld: cycles in the budget (arXiv 1902.03932: 4 in 200 epochs)."""
    csgld_samples: int = field(default=3, metadata=EPOCHS)
    """csgld: snapshots per cycle, one at the end of each of its last epochs
    (arXiv 1902.03932)."""
    csgld_lr: float | None = None
    """csgld: initial learning rate, without momentum. By default 0.5 (arXiv 1902.03932), and 0.03
    for a regression."""
    csgld_temperature: float | None = None
    """csgld: temperature. By default 1 / training images (reference code of
    arXiv 1902.03932)."""
    csgld_noise_scale: float = 1.0
    """csgld: factor on the standard deviation of the noise."""
    ema_decay: float = 0.999
    """ema: decay of the averaged weights per step (PyTorch's default)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.star_trunk < 1:
            raise UserError(f"star_trunk must be in [0, 1), got {self.star_trunk}")
        check_positive(csgld_lr=self.csgld_lr)
        check_not_negative(csgld_noise_scale=self.csgld_noise_scale)
        if self.csgld_temperature is not None:
            check_not_negative(csgld_temperature=self.csgld_temperature)
        if not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay must be in (0, 1), got {self.ema_decay}")

    @property
    def csgld_base_lr(self) -> float:
        """The initial learning rate of csgld: ``csgld_lr``, or the default for the task.

        Without momentum a rate above 2 / c diverges where the loss has the curvature c, unless its
        gradient is bounded, as that of the cross-entropy is. The squared error of standardised
        targets has c = 55 to 63 at the start of the default MLP.
        """
        usual = 0.03 if self.task == "regression" else 0.5
        return usual if self.csgld_lr is None else self.csgld_lr

    @property
    def trunk_epochs(self) -> int:
        """Epochs of a star before its branches."""
        return round(self.star_trunk * self.epochs)

    @property
    def branch_epochs(self) -> int:
        """Epochs of each branch of a star."""
        return (self.epochs - self.trunk_epochs) // self.star_branches

    def check_method(self, method: str) -> None:
        """Check that a method exists and that the budget is enough for its cycles.

        Raises:
            UserError: the method does not exist, or the budget is too small; the message names the
                smallest budget.
        """
        if method not in METHOD_NAMES and not is_factory(method):
            raise unknown("method", method, METHOD_NAMES)
        if method == "csgld" and self.optimizer != "sgd":
            raise UserError(
                f"csgld has an optimizer of its own, SGD with noise, got optimizer "
                f"{self.optimizer}; leave out --optimizer"
            )
        needed, what = 1, ""
        if method == "sse":
            needed, what = self.sse_cycles, f"{self.sse_cycles} cycles of 1 epoch"
        if method == "csgld":
            needed = self.csgld_cycles * self.csgld_samples
            what = f"{self.csgld_cycles} cycles of {self.csgld_samples} samples, one an epoch"
        if method == "split":
            needed, what = self.split, f"{self.split} networks of 1 epoch"
        if method == "star" and self.branch_epochs < 1:
            raise UserError(
                f"star leaves {self.epochs - self.trunk_epochs} of {self.epochs} epochs to "
                f"{self.star_branches} branches; use more --epochs, a smaller --star-trunk or "
                "fewer --star-branches"
            )
        if method == "auto" and self.val_fraction == 0:
            raise UserError(
                "auto decides by validation data, got val_fraction 0; set --val-fraction above 0"
            )
        if self.epochs < needed:
            raise UserError(
                f"{method} needs epochs >= {needed} ({what}), got {self.epochs}; "
                f"or use fewer {'networks' if method == 'split' else 'cycles'} with "
                f"--{method}{'' if method == 'split' else '-cycles'}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(PretrainedConfig, MethodConfig):
    """Train by one method: a single network, averages, cycles, branches, or your own."""

    group: ClassVar[str] = "method"
    method: str = "single"
    """single, average, fge, fge-paper, sse, swa, csgld, ema, star, split, auto, or your own
    fge.Method as package.module:method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_method(self.method)

    @property
    def average_part(self) -> float:
        """The last part of each descent that is averaged; 0 for methods as published."""
        return 0.0 if self.method in ("fge-paper", "swa") else super().average_part
