"""Every option, declared once: the command line, config files and saved configs come from here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from fge.checks import check_at_least, check_learning_rates, check_not_negative
from fge.errors import UserError
from fge.rates import Rates, rates_of

Switch = Literal["auto", "on", "off"]
Precision = Literal["auto", "off", "bf16", "fp16"]


_HOW_TO_RUN = {"affects_result": False}
"""Marks an option that says how to run, not what comes out."""
_THIS_INVOCATION = {"affects_result": False, "saved": False}
"""Marks an option of one invocation, which no config file holds."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options that every training command shares."""

    out: Path | None = field(default=None, metadata=_THIS_INVOCATION)
    """Run folder; the next free runs/COMMAND-NNN by default."""
    config: Path | None = field(default=None, metadata=_THIS_INVOCATION)
    """Take options from the config.json of a run; flags override it."""
    resume: bool = field(default=False, metadata=_THIS_INVOCATION)
    """Continue the run in --out where it was interrupted."""
    overwrite: bool = field(default=False, metadata=_THIS_INVOCATION)
    """Replace the run in --out."""

    data: str = "fashion-mnist-mini"
    """fashion-mnist-mini, fashion-mnist, cifar10, cifar100, an .npz file,
    or a folder of images in train/CLASS/ and test/CLASS/."""
    data_dir: Path | None = field(default=None, metadata=_HOW_TO_RUN)
    """Folder of the named data set's files; ./data by default."""
    train_size: int | None = None
    """Use so many training images (validation part included), balanced over classes."""
    test_size: int | None = None
    """Use so many test images, balanced over classes."""
    val_fraction: float = 0.1
    """Part of the training images held out for validation."""
    crop_padding: int | None = None
    """Random crops from training images padded by so many pixels;
    by default 2, or an eighth of the side from 32 pixels on (the papers' 4)."""
    flip: bool = True
    """Mirror training images at random."""

    model: str = "convnet"
    """convnet, vgg16, vgg16-bn, preresnet20, -56, -110, -164, wrn28-10,
    torchvision:NAME, or your own as package.module:factory."""

    epochs: int = 100
    """The whole training budget, in epochs."""
    batch_size: int = 128
    """Images per training step."""
    lr: float | None = None
    """Learning rate of the conventional schedule (arXiv 1802.10026):
    constant to 50 % of the budget, then linear down to 1 % at 90 %.
    By default what suits the model: the papers' for theirs, else 0.05."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD."""
    seed: int = 0
    """Seed of initialisation, shuffling and augmentation."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N; auto takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    eval_batch_size: int = 250
    """Images per evaluation batch."""
    channels_last: Switch = "auto"
    """Memory format of images and convolutions; auto measures."""
    compile: Switch = "auto"
    """torch.compile; auto measures, and weighs compile time against the work that remains."""
    amp: Precision = "auto"
    """Automatic mixed precision; auto measures."""

    def __post_init__(self) -> None:
        """Check each value on its own and those that hang together.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        check_at_least(1, epochs=self.epochs, batch_size=self.batch_size, threads=self.threads)
        check_at_least(1, train_size=self.train_size, test_size=self.test_size)
        check_at_least(1, eval_batch_size=self.eval_batch_size)
        check_at_least(0, crop_padding=self.crop_padding, seed=self.seed)
        check_not_negative(lr=self.base_lr, weight_decay=self.weight_decay, momentum=self.momentum)
        if self.base_lr == 0:
            raise UserError("lr must be above 0, got 0")
        if self.momentum >= 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction must be in [0, 1), got {self.val_fraction}")
        if self.resume and self.overwrite:
            raise UserError("give --resume or --overwrite, not both")

    @property
    def base_lr(self) -> float:
        """The learning rate of the conventional schedule: ``lr``, or what suits the model."""
        return rates_of(self.model).lr if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class FGEConfig(RunConfig):
    """Train one network with a cyclic learning rate and ensemble its snapshots (FGE)."""

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
    pretrained: Path | None = None
    """Start cycling from these weights (.safetensors, or a .pt state dict) at once."""
    single: bool = False
    """Also train the single network of the same budget, from the shared first part of the run."""
    refit: Literal["bezier", "polychain"] | None = None
    """Connect consecutive snapshots by curves of low loss, and ensemble points on them too."""
    refit_points: int = 1
    """Members taken from each curve between its ends, evenly spaced in t."""
    refit_epochs: int | None = None
    """Epochs of each fit; half a cycle by default."""
    baseline: Path | None = field(default=None, metadata=_HOW_TO_RUN)
    """A finished curve-ensemble run on the same data and model to set the result beside."""

    def __post_init__(self) -> None:
        """Check the cycles as well.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        check_at_least(1, refit_points=self.refit_points, refit_epochs=self.refit_epochs)
        if self.refit is None and (self.refit_epochs is not None or self.refit_points != 1):
            raise UserError("--refit-points and --refit-epochs need --refit bezier or polychain")
        check_learning_rates(self.cycle_lrs.max_lr, self.cycle_lrs.min_lr)
        cycle = self.cycle_epochs
        if cycle is not None and (cycle < 2 or cycle % 2):
            raise UserError(f"cycle_epochs must be even and >= 2, got {cycle}")
        if self.pretrained is not None and self.start_epoch not in (None, 0):
            raise UserError(
                f"--pretrained starts cycling at epoch 0, got start_epoch {self.start_epoch}"
            )
        if self.pretrained is not None and self.single:
            raise UserError("--single shares the start of the run, which --pretrained leaves out")
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
        if self.pretrained is not None:
            return 0
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


START_FRACTION = 0.75
"""Where the cycles begin unless told otherwise, as a part of the budget, if two snapshots fit."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Apply the saved ensemble of an fge run to new images."""

    run: Path
    """Run folder of an fge command."""
    images: Path
    """An image, a folder of images (searched through), or an .npz with an array 'images'."""
    out: Path | None = None
    """Where predictions.csv and predictions.npz go; RUN/predict-IMAGES by default."""
    model: str | None = None
    """The run's package.module:factory, given again to allow its import."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    batch_size: int = 250
    """Images per batch."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        check_at_least(1, batch_size=self.batch_size, threads=self.threads)


def is_factory(model: str) -> bool:
    """Say whether the name is that of a user's own ``package.module:factory``."""
    return ":" in model and not model.startswith("torchvision:")


def check_import(model: str, given: str | None, source: object) -> None:
    """Refuse to import a factory that only a file names, since importing runs code.

    Args:
        model: the name in the file.
        given: the name on the command line, if any.
        source: the file.

    Raises:
        UserError: ``model`` is a factory, and not the one given.
    """
    if is_factory(model) and given != model:
        raise UserError(
            f"{source} names the model factory {model!r}, which is code to import; if you trust "
            f"it, add --model {model}"
        )


def saved_fields(config: type[RunConfig] | RunConfig) -> list[str]:
    """Return the names of the options that a config file holds."""
    return [f.name for f in fields(config) if f.metadata.get("saved", True)]


def affects_result(config: RunConfig, name: str) -> bool:
    """Say whether the option may change what a run produces."""
    return any(f.name == name and f.metadata.get("affects_result", True) for f in fields(config))
