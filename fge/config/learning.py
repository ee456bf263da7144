"""How a network learns: where it starts, the optimizer, its rates, and how steps are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fge.config.base import HOW_TO_RUN, Rates, rates_of, whole
from fge.config.invocation import LIBRARIES
from fge.config.options import L2_PENALTY, FitConfig, ModelOptions, OODOptions, Options, TaskOptions
from fge.errors import UserError, check_not_negative, check_positive

OptimizerName = Literal["sgd", "adamw", "adam"]
DECOUPLED_DECAY = 0.05
"""The usual weight decay of AdamW. Times its usual rate, 1e-3, a step takes as much off the weights
as one of SGD at a rate of 0.1 with an L2 penalty of 5e-4."""


@dataclass(frozen=True, kw_only=True)
class StartOptions(ModelOptions):
    """From which weights training starts, and which of them stay."""

    group: ClassVar[str] = "model"
    also_called: ClassVar[Mapping[str, str]] = {"weights": "pretrained"}
    pretrained: Literal["library"] | Path | None = None
    """Weights to start from, also called --weights: a file (.safetensors, or a .pt state dict), or
    library for those that come with a timm: or torchvision: model. A head for other classes is left
    out. The cycles of fge begin at once; what would start from new initial weights starts from
    these again, as both networks of curve-ensemble do."""
    freeze: str | None = None
    """Do not train the parameters whose names match this regular expression. Batch norm of modules
    that are frozen whole keeps its statistics."""

    def __post_init__(self) -> None:
        if self.pretrained == "library" and not self.model.startswith(LIBRARIES):
            raise UserError(
                f"--pretrained library needs --model timm:NAME or torchvision:NAME, got "
                f"{self.model}; give a weights file"
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """The optimizer, and how its steps are taken."""

    group: ClassVar[str] = "schedule"
    optimizer: OptimizerName = "sgd"
    """sgd, with momentum; adamw, with decoupled weight decay; or adam, with an L2 penalty."""
    warmup_epochs: float = 0.0
    """Raise the learning rate linearly in so many epochs, parts of one too, wherever a network
    starts. The schedule, cycles too, goes on meanwhile."""
    accumulate: int = field(default=1, metadata=whole(1, 10**4))
    """Add up the gradients of this many batches for each step: a step of --batch-size times so many
    images, in the memory of one batch."""
    clip_norm: float | None = None
    """Scale gradients of a larger norm, over all parameters, down to this norm."""
    backbone_lr: float | None = None
    """Learning rate of all but the classifier's head, which has --lr; all schedules keep the ratio.
    By default --lr too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(warmup_epochs=self.warmup_epochs)
        check_positive(clip_norm=self.clip_norm, backbone_lr=self.backbone_lr)


@dataclass(frozen=True, kw_only=True)
class ExampleOptions(Options):
    """How training images and their labels count."""

    group: ClassVar[str] = "data"
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: classes of few images count as much in the training loss as those of many."""
    label_smoothing: float = 0.0
    """The part of each target that is spread over all classes (arXiv 1512.00567), in [0, 1)."""
    mixup: float = 0.0
    """Mix each training image and its target with another one of the batch, in parts drawn from
    Beta(X, X) for this X (arXiv 1710.09412). 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        check_not_negative(mixup=self.mixup)


@dataclass(frozen=True, kw_only=True)
class RateOptions(OptimizerOptions, ModelOptions, TaskOptions):
    """The learning rate of conventional training."""

    group: ClassVar[str] = "schedule"
    lr: float | None = None
    """Learning rate of the conventional schedule (arXiv 1802.10026): constant for 50 % of the
    budget, then linear down to 1 % at 90 %. By default 0.2 for convnet, the papers' for their
    models (0.05 for VGG-16, 0.1 for PreResNet and WRN), and 0.05 for others; 1e-3 for AdamW and
    Adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(lr=self.base_lr)
        if self.base_lr == 0:
            raise UserError("lr must be above 0, got 0")

    @property
    def base_lr(self) -> float:
        """The learning rate of the conventional schedule: ``lr``, or the default for the model."""
        return self.usual_rates.lr if self.lr is None else self.lr

    @property
    def usual_rates(self) -> Rates:
        """The learning rates that suit the model, the optimizer and the task."""
        return rates_of(self.model, self.optimizer, self.task)


@dataclass(frozen=True, kw_only=True)
class RunConfig(ExampleOptions, RateOptions, FitConfig):
    """Options of every command that trains networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"warmup_epochs must be at most epochs, {self.epochs}, got {self.warmup_epochs:g}"
            )
        if self.accumulate > 1 and self.cuda_graphs == "on":
            raise UserError(
                f"--cuda-graphs on replays a step as one pass, got accumulate {self.accumulate}; "
                "leave out one of the two"
            )

    @property
    def decay(self) -> float:
        """The weight decay of the optimizer: ``weight_decay``, or its default."""
        if self.weight_decay is None and self.optimizer == "adamw":
            return DECOUPLED_DECAY
        return super().decay

    @property
    def l2_penalty(self) -> float:
        """The L2 penalty of what SGD fits to the networks; the decay of AdamW is none."""
        return L2_PENALTY if self.optimizer == "adamw" else self.decay


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(OODOptions, RunConfig):
    """Options of the commands that train networks and test the result."""

    group: ClassVar[str] = "output"
    tensorboard: bool = field(default=False, metadata=HOW_TO_RUN)
    """Also write TensorBoard scalars into the run folder (needs the extra tensorboard)."""
