"""Options of the commands that fit curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fge.config.base import RunConfig, TrainingConfig, curve_rate_of
from fge.errors import UserError, check_at_least, check_positive

G_DECAY = 5e-4
"""Weight decay of recipe G, below which that of D lies."""

Family = Literal["bezier", "polychain"]
RecipeName = Literal["G", "A", "B", "C", "D", "E", "F", "endpoint"]


@dataclass(frozen=True, kw_only=True)
class CurveConfig(RunConfig):
    """Options of a fit and of the evaluation along the curve."""

    epochs: int = 40
    """Epochs of each network of curve-ensemble; of each fit of connect."""
    family: Family = "bezier"
    """Bezier curve, or polygonal chain."""
    num_points: int = 3
    """Points that define the curve, its two ends counted."""
    objective: Literal["uniform", "arclength", "minmax"] = "uniform"
    """What the fit minimises: the mean loss over t, over the curve's length, or the maximum."""
    curve_lr: float | None = None
    """Learning rate of the fit (conventional schedule); by default what suits the model."""
    eval_points: int = 61
    """Points at which curve and segment are evaluated."""
    eval_images: int = 5120
    """Training images, not augmented, for batch-norm statistics and training loss at each point;
    0 takes all."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        if self.num_points < 3:
            raise UserError(
                f"num_points must be >= 3, got {self.num_points}: with both ends alone there is "
                "nothing to fit"
            )
        check_at_least(2, eval_points=self.eval_points)
        check_at_least(0, eval_images=self.eval_images)
        check_positive(curve_lr=self.curve_lr)

    @property
    def curve_base_lr(self) -> float:
        """The learning rate of the fit: ``curve_lr``, or what suits the model."""
        return curve_rate_of(self.model) if self.curve_lr is None else self.curve_lr

    @property
    def fit_epochs(self) -> int:
        """Epochs of each fit."""
        return self.epochs


@dataclass(frozen=True, kw_only=True)
class CurveEnsembleConfig(CurveConfig, TrainingConfig):
    """Train two networks, connect them by a curve of low loss and ensemble along it.

    Batch size, momentum and weight decay are those of the fit and of the recipe endpoint; the
    recipes G and A to F have their own.
    """

    lr: float | None = None
    """Learning rate of the recipe endpoint alone; by default what suits the model."""
    first: RecipeName = "G"
    """Recipe of the first network: G or A to F (arXiv 1806.06977), or endpoint,
    the conventional training of the fge command."""
    second: RecipeName = "G"
    """Recipe of the second network, which has another seed."""
    first_weights: Path | None = None
    """Weights to take as the first network (.safetensors, or a .pt state dict)."""
    second_weights: Path | None = None
    """Weights to take as the second network."""
    strategies: Literal["none", "all"] = "none"
    """all: connect G with a second G and with each of A to F."""
    curve_epochs: int | None = None
    """Epochs of the fit; half of --epochs by default."""
    ensemble_points: int = 5
    """Members of the ensemble along the curve, evenly spaced in t, ends counted."""
    large_batch_lr: float | None = None
    """Learning rate of recipe A; 0.05 by default, as G's."""
    adam_lr: float | None = None
    """Learning rate of recipe B; 0.001 by default."""
    small_weight_decay: float | None = None
    """Weight decay of recipe D; 5e-6 by default."""
    init_variance: float | None = None
    """Factor of recipe E on the variance of the initial weights; 2 by default."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        check_at_least(1, curve_epochs=self.curve_epochs)
        check_at_least(2, ensemble_points=self.ensemble_points)
        check_positive(large_batch_lr=self.large_batch_lr, adam_lr=self.adam_lr)
        if self.small_weight_decay is not None and not 0 <= self.small_weight_decay < G_DECAY:
            raise UserError(
                f"small_weight_decay must be in [0, {G_DECAY}), got {self.small_weight_decay}"
            )
        if self.init_variance is not None and not 1 < self.init_variance < math.inf:
            raise UserError(f"init_variance must be finite and above 1, got {self.init_variance}")
        given = [self.first_weights, self.second_weights]
        if self.strategies == "all" and any(given):
            raise UserError("--strategies all trains its networks; leave out the weights files")

    @property
    def fit_epochs(self) -> int:
        """Epochs of each fit."""
        return max(1, self.epochs // 2) if self.curve_epochs is None else self.curve_epochs


@dataclass(frozen=True, kw_only=True)
class ConnectConfig(CurveConfig):
    """Fit and evaluate curves between networks that exist already."""

    lr: float | None = None
    """Not used here: --curve-lr is the learning rate of the fit."""
    weights: tuple[Path, ...] = ()
    """Two or more files (.safetensors, or .pt state dicts), connected in this order."""
    closed: bool = False
    """Connect the last network with the first as well."""

    def __post_init__(self) -> None:
        """Check the files.

        Raises:
            UserError: there are fewer than two, or three to close.
        """
        super().__post_init__()
        if len(self.weights) < 2:
            raise UserError(f"--weights needs two files or more, got {len(self.weights)}")
        if self.closed and len(self.weights) < 3:
            raise UserError("--closed needs three files or more, got 2")


_RECIPE_OF = {
    "large_batch_lr": "A",
    "adam_lr": "B",
    "small_weight_decay": "D",
    "init_variance": "E",
}


def check_used(config: CurveConfig) -> None:
    """Refuse options that no training of the command would look at.

    Raises:
        UserError: naming the option, and what it belongs to.
    """
    # A file holds the learning rate that the options left open came to.
    given_lr = config.lr if not config.resume and config.config is None else None
    if isinstance(config, CurveEnsembleConfig):
        _check_recipes(config, given_lr)
    elif given_lr is not None:
        raise UserError(f"--lr {given_lr:g} is not used: --curve-lr is the rate of the fit")


def _check_recipes(config: CurveEnsembleConfig, given_lr: float | None) -> None:
    sides: dict[str, tuple[str, Path | None]] = {
        "first": (config.first, config.first_weights),
        "second": (config.second, config.second_weights),
    }
    for side, (name, weights) in sides.items():
        if name != "G" and config.strategies == "all":
            raise UserError(f"--strategies all has recipes of its own; leave out --{side} {name}")
        if name != "G" and weights is not None:
            raise UserError(f"--{side} {name} is not used: --{side}-weights gives that network")
    used = {name for name, weights in sides.values() if weights is None}
    if config.strategies == "all":
        used = {"G", *_RECIPE_OF.values()}
    if given_lr is not None and "endpoint" not in used:
        raise UserError(
            f"--lr {given_lr:g} is that of the recipe endpoint, which is not used; "
            "G and A to F have their own, and --curve-lr is the rate of the fit"
        )
    for option, name in _RECIPE_OF.items():
        if getattr(config, option) is not None and name not in used:
            raise UserError(
                f"--{option.replace('_', '-')} is an option of recipe {name}, which is not used; "
                "leave it out"
            )


def pairs_of(items: Sequence[Path], *, closed: bool) -> list[tuple[int, int]]:
    """Return the positions of neighbours in an open chain or a closed loop."""
    pairs = [(i, i + 1) for i in range(len(items) - 1)]
    return [*pairs, (len(items) - 1, 0)] if closed else pairs
