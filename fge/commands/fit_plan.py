"""What a curve study works with: how to fit and to measure, and the batches for it."""

from __future__ import annotations

from dataclasses import dataclass

from fge.config import REFRESH_IMAGES, CurveConfig
from fge.data import EvalBatches, TrainBatches


@dataclass(frozen=True)
class FitPlan:
    """How a curve is fitted and measured.

    ``epochs``, ``lr``, ``batch_size``, ``momentum`` and ``weight_decay`` are those of the fit;
    ``eval_images``: training images to measure each point with, 0 for all.
    """

    epochs: int
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    family: str
    num_points: int = 3
    objective: str = "uniform"
    eval_points: int = 61
    eval_images: int = REFRESH_IMAGES

    @classmethod
    def of(cls, config: CurveConfig) -> FitPlan:
        """Return the plan of settled options."""
        return cls(
            config.fit_epochs,
            config.curve_base_lr,
            config.batch_size,
            config.momentum,
            config.l2_penalty,
            config.family,
            config.num_points,
            config.objective,
            config.eval_points,
            config.eval_images,
        )


@dataclass(frozen=True)
class StudyData:
    """Batches of a study.

    ``train``: shuffled and augmented, for the fit; ``measured``: training images without
    augmentation, for the training loss; ``refresh``: the same images, augmented, for batch-norm
    statistics; ``test``: the test set; ``example``: what they hold, image or row.
    """

    train: TrainBatches
    measured: EvalBatches
    refresh: EvalBatches | TrainBatches
    test: EvalBatches
    example: str = "image"
