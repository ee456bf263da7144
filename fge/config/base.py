"""What the options of all commands share: their marks, defaults and checks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fge.errors import UserError, check_at_least, check_not_negative

Switch = Literal["auto", "on", "off"]
Precision = Literal["auto", "off", "bf16", "fp16"]
DATA_NAMES = ("fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100")
"""Data sets known by name, read by ``fge.data.splits``."""
OOD_NAMES = ("noise", "digits")
"""Images out of the distribution of any data, made by ``fge.data.ood``."""
_NAMES_OR_PATHS = ("data", "ood")
HOW_TO_RUN = {"affects_result": False}
"""Marks an option that says how to run, not what comes out."""
MAY_BE_ADDED = {"may_be_added": True}
"""Marks an option for work that a finished run can be resumed with, when it was left out before."""
MAY_BE_DROPPED = {"may_be_dropped": True}
"""Marks an option for work that an interrupted run can be resumed without, by the value 0."""
_THIS_INVOCATION = {"affects_result": False, "saved": False}
"""Marks an option of one invocation, which no config file holds."""


@dataclass(frozen=True)
class Rates:
    """Learning rates that suit a model: conventional, and the two ends of a cycle."""

    lr: float
    max_lr: float
    min_lr: float


_RATES = {
    "convnet": Rates(0.2, 0.05, 0.001),  # benchmarks/search_default_job.py
    # This and the next two: the reference implementation of arXiv 1802.10026.
    "vgg16": Rates(0.05, 0.01, 0.01),
    "preresnet": Rates(0.1, 0.05, 0.01),
    "wrn28-10": Rates(0.1, 0.05, 0.01),
}
_USUAL_RATES = Rates(0.05, 0.05, 0.0005)


def rates_of(model: str) -> Rates:
    """Return the learning rates used for a model unless told otherwise."""
    if _is_built_in(model):
        for name, rates in _RATES.items():
            if model.startswith(name):
                return rates
    return _USUAL_RATES


def curve_rate_of(model: str) -> float:
    """Return the learning rate with which curves are fitted unless told otherwise.

    0.1 for ``convnet``, which reached a lower training loss on the default data than 0.03;
    0.015 for VGG-16, and 0.03, which the reference implementation of arXiv 1802.10026 has for
    residual networks, for all others.
    """
    rates = {"convnet": 0.1, "vgg16": 0.015} if _is_built_in(model) else {}
    return next((rate for name, rate in rates.items() if model.startswith(name)), 0.03)


def _is_built_in(model: str) -> bool:
    return ":" not in model  # as torchvision's and the user's own have


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
    data_dir: Path | None = field(default=None, metadata=HOW_TO_RUN)
    """Folder of the named data set's files; ./data by default."""
    train_size: int | None = None
    """Use so many training images (validation part included), balanced over classes."""
    test_size: int | None = None
    """Use so many test images, balanced over classes."""
    val_fraction: float = 0.1
    """Part of the training images held out for validation."""
    crop_padding: int | None = None
    """Random crops from training images padded by so many pixels;
    by default 2, or an eighth of the side from 32 pixels on (the papers' 4);
    at most the side."""
    flip: bool = True
    """Mirror training images at random."""

    model: str = "convnet"
    """convnet, vgg16, vgg16-bn, preresnet20, -56, -110, -164, wrn28-10,
    torchvision:NAME (a classifier that returns logits, in training too),
    or your own as package.module:factory."""

    epochs: int = 100
    """The whole training budget, in epochs."""
    batch_size: int = 128
    """Images per training step."""
    lr: float | None = None
    """Learning rate of the conventional schedule (arXiv 1802.10026):
    constant to 50 % of the budget, then linear down to 1 % at 90 %.
    By default what suits the model: 0.2 for convnet, the papers' for theirs
    (0.05 for VGG-16, 0.1 for PreResNet and WRN), else 0.05."""
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
    eval_batch_size: int | None = None
    """Images per evaluation batch; 250 on a CPU and 2000 on a GPU by default."""
    channels_last: Switch = "auto"
    """Memory format of images and convolutions; auto measures."""
    compile: Switch = "auto"
    """torch.compile; auto measures, and weighs compile time against the work that remains."""
    amp: Precision = "auto"
    """Automatic mixed precision; auto measures."""
    cuda_graphs: Switch = "auto"
    """Replay training steps as a CUDA graph; auto measures on a GPU.
    It is off for your own network unless you say on: every step must do the same work."""

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
class TrainingConfig(RunConfig):
    """Options of the commands that train networks and test what comes out."""

    ood: tuple[str, ...] = field(default=(), metadata=MAY_BE_ADDED)
    """Tell images foreign to the data by the predictions' uncertainty: noise, digits,
    or the name, folder or file of other data; their test images are predicted too."""
    tensorboard: bool = field(default=False, metadata=HOW_TO_RUN)
    """Also write TensorBoard scalars, into the run folder (needs the extra tensorboard)."""


def as_stored(name: str, value: Any) -> Any:
    """Return an option's value as a config file holds it: a JSON value, paths being absolute.

    A path means the same in any folder then; ``data`` and ``ood`` are paths unless known by name.
    """
    if isinstance(value, tuple):
        return [as_stored(name, part) for part in value]
    named = name in _NAMES_OR_PATHS and isinstance(value, str) and _is_path(value)
    return os.path.abspath(value) if named or isinstance(value, Path) else value


def _is_path(value: str) -> bool:
    if value in (*DATA_NAMES, *OOD_NAMES):
        return False
    return "/" in value or value.endswith(".npz") or os.path.exists(value)


def saved_fields(config: type[RunConfig] | RunConfig) -> list[str]:
    """Return the names of the options that a config file holds."""
    return [f.name for f in fields(config) if f.metadata.get("saved", True)]


def affects_result(config: RunConfig, name: str) -> bool:
    """Say whether the option may change what a run produces."""
    return any(f.name == name and f.metadata.get("affects_result", True) for f in fields(config))


def may_be_added(config: RunConfig, name: str) -> bool:
    """Say whether the option was left out of a run that can still be given it."""
    option = next(f for f in fields(config) if f.name == name)
    left_out = getattr(config, name) == option.default
    return bool(option.metadata.get("may_be_added", False)) and left_out


def may_be_dropped(config: RunConfig, name: str, value: object) -> bool:
    """Say whether the value is the 0 that leaves out work which a run can be resumed without."""
    option = next(f for f in fields(config) if f.name == name)
    return bool(option.metadata.get("may_be_dropped", False)) and value == 0
