"""Options that several commands share: one class per idea; commands combine the classes.

``--help`` shows the options that a class adds under its ``group``. Config files are flat: they do
not contain the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fge.config.base import (
    BATCH,
    EPOCHS,
    HOW_TO_RUN,
    IMAGES,
    MAY_BE_ADDED,
    SEED,
    THIS_INVOCATION,
    CacheUse,
    Precision,
    Switch,
    TaskName,
    check_bounds,
    is_table,
    whole,
)
from fge.errors import UserError, check_not_negative

Augmentation = Literal["none", "crop-flip", "randaugment", "trivial"]
L2_PENALTY = 5e-4
"""The usual weight decay of SGD."""
GROUPS = (
    *(
        "run",
        "page",
        "comparison",
        "networks",
        "plane",
        "data",
        "model",
        "method",
        "schedule",
        "curve",
    ),
    *("ensemble", "measurement", "speed", "output"),
)
"""The groups in the order in which ``--help`` shows them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The root of all options; each class checks its own options after those of its bases."""

    group: ClassVar[str] = "options"
    positional: ClassVar[bool] = False
    """Whether options without a default are given without a flag."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Options that the command accepts, ignores and does not list, with the reason."""
    instead: ClassVar[Mapping[str, str]] = {}
    """Options of other commands that this one refuses, with the option that does their work."""
    also_called: ClassVar[Mapping[str, str]] = {}
    """Other names of options, with the names that they have here."""

    def __post_init__(self) -> None:
        """Check the values, and their combinations.

        Raises:
            UserError: naming the option, its value and the allowed values.
        """
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class FigureOptions(Options):
    """How figures are written."""

    group: ClassVar[str] = "output"
    figure_format: Literal["png", "svg", "pdf"] = field(default="png", metadata=HOW_TO_RUN)
    """Also write figures in this format, in addition to PNG: svg or pdf for papers."""


@dataclass(frozen=True, kw_only=True)
class FolderOptions(FigureOptions):
    """Where results go."""

    group: ClassVar[str] = "output"
    out: Path | None = field(default=None, metadata=THIS_INVOCATION)
    """Run folder. By default the next free runs/COMMAND-NNN."""
    overwrite: bool = field(default=False, metadata=THIS_INVOCATION)
    """Replace the run in --out."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions(FolderOptions):
    """The run folder, and the source of the options."""

    group: ClassVar[str] = "output"
    resume: bool = field(default=False, metadata=THIS_INVOCATION)
    """Continue the interrupted run in --out."""
    config: Path | None = field(default=None, metadata=THIS_INVOCATION)
    """Take the options from the config.json of a run. Options on the command line override it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise UserError("give --resume or --overwrite, not both")


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options):
    """What is predicted."""

    group: ClassVar[str] = "data"
    task: TaskName = "classification"
    """What is predicted: one of several classes; binary: one of two, by one logit; multilabel: any
    of several labels; regression: numbers."""
    target: tuple[str, ...] = ()
    """Columns of a table that are predicted: one, or for multilabel and regression several."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(TaskOptions):
    """Which images, or which table."""

    group: ClassVar[str] = "data"
    data: str = "fashion-mnist-mini"
    """Name of a data set (fashion-mnist-mini, fashion-mnist, cifar10, cifar100), an .npz file,
    or a folder with images in train/CLASS/ and perhaps val/CLASS/ and test/CLASS/, in CLASS/
    alone, or with a table of --labels; a .csv or .parquet table with --target; WebDataset's tar
    shards, a folder or a name as train-{000..009}.tar (needs the extra webdataset); your own data
    sets as package.module:load."""
    data_dir: Path | None = field(default=None, metadata=HOW_TO_RUN)
    """Folder that holds the files of named data sets. By default ./data."""
    train_size: int | None = field(default=None, metadata=IMAGES)
    """Number of training images to use, validation images included, balanced over classes.
    By default all."""
    test_size: int | None = field(default=None, metadata=IMAGES)
    """Number of test images to use, balanced over classes. By default all."""
    val_fraction: float = 0.1
    """Fraction of the training images that is held out for validation, if the data have no
    validation images of their own (val/, val_images). 0 for no validation."""
    image_size: int | None = field(default=None, metadata=whole(1, 4096))
    """Resize images so that their shorter side has this many pixels, and crop the centre. Training
    images are random resized crops, unless padded ones are asked for. By default images are used
    as they are, and must have one size."""
    normalize: Literal["data", "imagenet", "model"] = "data"
    """Whose mean and standard deviation the channels get: those of the training images; ImageNet's,
    which most pretrained networks expect; or those that the pretrained weights of a timm: or
    torchvision: model were trained on. Grey images get the means of the three channels'."""
    stream: Switch = "auto"
    """Read images from their files when they are needed, instead of keeping them in memory. auto
    does so if they do not fit."""
    workers: int | None = field(default=None, metadata=whole(0, 1024, **HOW_TO_RUN))
    """Processes that read and decode images. By default one a core, at most 16; 0 for none."""
    skip_unreadable: bool = False
    """Read all image files first, and leave out those that cannot be read."""
    labels: Path | None = None
    """CSV file with the columns file, label and perhaps split (train, val or test): the images of
    a folder that are used, by their names in the folder. By default its labels.csv, if the folder
    has one and no train/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction must be in [0, 1), got {self.val_fraction}")
        if self.target and not is_table(self.data):
            raise UserError(
                f"--target names columns of a .csv or .parquet table, and data {self.data!r} are "
                "none; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions(Options):
    """How training images are varied."""

    group: ClassVar[str] = "data"
    augment: Augmentation = "crop-flip"
    """none; crop-flip: random crops and flips, as --crop-padding and --flip say; randaugment
    (arXiv 1909.13719) or trivial (arXiv 2103.10158): these and random operations of torchvision
    after them, per image, for about a millisecond of CPU time each."""
    crop_padding: int | None = field(default=None, metadata=whole(0, 10**6))
    """Pad training images by this many pixels and crop them at random. By default 2, and for
    images of 32 pixels or more an eighth of the side (the papers' 4); at most the side. With
    --image-size random resized crops are taken by default instead."""
    flip: bool = True
    """Mirror training images at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment == "none" and self.crop_padding:
            raise UserError(
                f"--augment none leaves images as they are, got crop_padding {self.crop_padding}; "
                "leave out one of the two"
            )

    @property
    def varies(self) -> bool:
        """Whether images are cropped or mirrored at random."""
        return self.augment != "none" and (self.flip or self.crop_padding != 0)


@dataclass(frozen=True, kw_only=True)
class ViewOptions(AugmentationOptions):
    """How often each test image is predicted."""

    group: ClassVar[str] = "measurement"
    tta: int | None = field(default=None, metadata=whole(None, 1000, **MAY_BE_ADDED))
    """Test-time augmentation: also predict this many views of each test image, the image itself
    and random crops and flips as in training, and average them. At least 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tta is None:
            return
        if self.tta < 2:
            raise UserError(f"tta must be >= 2 views, got {self.tta}; leave it out for one view")
        if self.augment == "none":
            raise UserError(
                f"tta {self.tta} needs the augmentation of training, got augment none; leave out "
                "--tta, or use --augment crop-flip"
            )
        if not self.varies:
            raise UserError(
                f"tta {self.tta} needs the augmentation of training, but crop_padding is 0 and "
                "flip is off; leave out --tta, or use --crop-padding 1 or more, or --flip"
            )


@dataclass(frozen=True, kw_only=True)
class OODOptions(Options):
    """Out-of-distribution images."""

    group: ClassVar[str] = "data"
    ood: tuple[str, ...] = field(default=(), metadata=MAY_BE_ADDED)
    """Out-of-distribution (OOD) images to predict too, and to tell from the test images by the
    uncertainty of the predictions: noise, digits, or the name, file or folder of other data."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which network, and from which seed."""

    group: ClassVar[str] = "model"
    model: str = "convnet"
    """convnet (mlp for a table), mlp, vgg16, vgg16-bn, preresnet20, -56, -110, -164, wrn28-10,
    torchvision:NAME or timm:NAME (a classifier that returns logits, in training too; timm needs the
    extra timm), or your own as package.module:factory."""
    seed: int = field(default=0, metadata=SEED)
    """Seed of initialisation, shuffling and augmentation."""


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options):
    """The length of the training, and the options of its optimizer."""

    group: ClassVar[str] = "schedule"
    epochs: int = field(default=100, metadata=EPOCHS)
    """Training budget in epochs."""
    batch_size: int = field(default=128, metadata=BATCH)
    """Images per training step."""
    momentum: float = 0.9
    """Momentum of SGD, and beta 1 of Adam and AdamW."""
    weight_decay: float | None = None
    """L2 penalty of SGD and Adam, 5e-4 by default. Of AdamW, what the weights lose in each step,
    times the learning rate: 0.05 by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(weight_decay=self.decay, momentum=self.momentum)
        if self.momentum >= 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")

    @property
    def decay(self) -> float:
        """The weight decay of the training: ``weight_decay``, or the default."""
        return L2_PENALTY if self.weight_decay is None else self.weight_decay

    @property
    def l2_penalty(self) -> float:
        """The L2 penalty of what is fitted to the trained networks by SGD."""
        return self.decay


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """The device and the number of threads."""

    group: ClassVar[str] = "speed"
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU if there is one."""
    threads: int | None = field(default=None, metadata=whole(1, 1024))
    """CPU threads. By default PyTorch's choice."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(DeviceOptions):
    """How to predict images."""

    group: ClassVar[str] = "speed"
    eval_batch_size: int | None = field(default=None, metadata=BATCH)
    """Images per evaluation batch. By default 250 on a CPU and 2000 on a GPU."""


@dataclass(frozen=True, kw_only=True)
class FormatOptions(Options):
    """The memory format and precision of a network."""

    group: ClassVar[str] = "speed"
    channels_last: Switch = "auto"
    """Store images and convolutions with the channels last. auto measures what is faster."""
    amp: Precision = "auto"
    """Automatic mixed precision. auto measures what is faster."""
    speed_cache: CacheUse = field(default="on", metadata=THIS_INVOCATION)
    """What auto chooses is kept in the user's cache folder (FGE_CACHE names another one), so that
    the same run chooses the same again. refresh measures again; off neither reads nor keeps."""


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(FormatOptions):
    """How to run training steps."""

    group: ClassVar[str] = "speed"
    compile: Switch = "auto"
    """Use torch.compile. auto measures, and weighs the time to compile against the remaining
    training."""
    cuda_graphs: Switch = "auto"
    """Replay training steps as a CUDA graph. auto measures on a GPU, but is off for your own
    network (every step must do the same work) and with several processes (their steps cannot be
    replayed)."""


@dataclass(frozen=True, kw_only=True)
class CommandConfig(OutputOptions, EvaluationOptions, ModelOptions, DataOptions):
    """Options of every command that has a run folder."""


@dataclass(frozen=True, kw_only=True)
class VariedConfig(AugmentationOptions, CommandConfig):
    """Options of every command for which it matters how training images are varied."""

    @property
    def resized(self) -> bool:
        """Whether training images are random resized crops, not padded ones."""
        return self.image_size is not None and self.crop_padding is None


@dataclass(frozen=True, kw_only=True)
class FitConfig(SpeedOptions, ScheduleOptions, VariedConfig):
    """Options of every command that trains networks or curves."""
