"""Options of the commands that fit curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from fge.config.base import EPOCHS, POINTS, REFRESH_IMAGES, curve_rate_of, whole
from fge.config.learning import (
    ExampleOptions,
    OptimizerOptions,
    StartOptions,
    TrainingConfig,
)
from fge.config.options import FitConfig, Options
from fge.errors import UserError, check_positive

G_DECAY = 5e-4
"""Weight decay of recipe G; that of recipe D must be below it."""

Family = Literal["bezier", "polychain"]
RecipeName = Literal["G", "A", "B", "C", "D", "E", "F", "endpoint", "average"]


@dataclass(frozen=True, kw_only=True)
class PointOptions(Options):
    """Images for measuring networks on a curve, plane or line."""

    group: ClassVar[str] = "measurement"
    eval_images: int = field(default=REFRESH_IMAGES, metadata=whole(0, 10**9))
    """Training images for the training loss, not augmented, and the batch-norm statistics, at
    each point. 0 takes all."""


@dataclass(frozen=True, kw_only=True)
class AlongOptions(PointOptions):
    """Where curves and segments are measured."""

    eval_points: int = field(default=61, metadata=POINTS)
    """Number of points to measure on each curve and segment."""


@dataclass(frozen=True, kw_only=True)
class CurveConfig(AlongOptions, FitConfig):
    """Options of a fit and of the evaluation along the curve."""

    group: ClassVar[str] = "curve"
    epochs: int = field(default=40, metadata=EPOCHS)
    """Epochs of each network of curve-ensemble, or of each fit of connect."""
    family: Family = "bezier"
    """bezier: a Bezier curve; polychain: a polygonal chain."""
    num_points: int = field(default=3, metadata=whole(None, 1000))
    """Number of points that define the curve, with its two ends."""
    objective: Literal["uniform", "arclength", "minmax"] = "uniform"
    """What the fit minimises: the mean loss over t (uniform), the mean loss over the length of
    the curve (arclength), or the maximum (minmax)."""
    curve_lr: float | None = None
    """Learning rate of the fit, with the conventional schedule. By default the one that suits
    the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_points < 3:
            raise UserError(
                f"num_points must be >= 3, got {self.num_points}: with only the two ends there is "
                "nothing to fit"
            )
        check_positive(curve_lr=self.curve_lr)

    @property
    def curve_base_lr(self) -> float:
        """The learning rate of the fit: ``curve_lr``, or the default for the model."""
        known = curve_rate_of(self.model, self.task)
        return known if self.curve_lr is None else self.curve_lr

    @property
    def fit_epochs(self) -> int:
        """Epochs of each fit."""
        return self.epochs


@dataclass(frozen=True, kw_only=True)
class PairOptions(Options):
    """Which two networks are connected."""

    group: ClassVar[str] = "networks"
    first: RecipeName = "average"
    """Recipe of the first network: average, the mean of the weights over the last 20 % of a linear
    descent; endpoint, conventional training; G or A to F (arXiv 1806.06977). G with --strategies
    all."""
    second: RecipeName = "average"
    """Recipe of the second network, which has another seed."""
    first_weights: Path | None = None
    """Weights file (.safetensors, or a .pt state dict) to take as the first network."""
    second_weights: Path | None = None
    """Weights file to take as the second network."""
    strategies: Literal["none", "all"] = "none"
    """all: connect a network of recipe G with a second one and with one of each of A to F."""
    large_batch_lr: float | None = None
    """Learning rate of recipe A. By default 0.05, as for G."""
    adam_lr: float | None = None
    """Learning rate of recipe B. By default 0.001."""
    small_weight_decay: float | None = None
    """Weight decay of recipe D. By default 5e-6."""
    init_variance: float | None = None
    """Factor on the variance of the initial weights in recipe E. By default 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
    def recipes(self) -> tuple[RecipeName, RecipeName]:
        """The recipes of the two networks, or of the first two of all strategies."""
        return ("G", "G") if self.strategies == "all" else (self.first, self.second)


@dataclass(frozen=True, kw_only=True)
class CurveEnsembleConfig(CurveConfig, PairOptions, StartOptions, TrainingConfig):
    """Train two networks, connect them by a curve of low loss and ensemble along it.

    Batch size, momentum and weight decay are those of the fit and of the recipes average and
    endpoint. The recipes G and A to F have their own.
    """

    group: ClassVar[str] = "curve"
    lr: float | None = None
    """Learning rate of the recipes average and endpoint. By default the one that suits the
    model."""
    curve_epochs: int | None = field(default=None, metadata=EPOCHS)
    """Epochs of the fit. By default half of --epochs."""
    ensemble_points: int = field(default=5, metadata=whole(2, 1000))
    """Number of members along the curve, evenly spaced in t, with both ends."""

    @property
    def fit_epochs(self) -> int:
        """Epochs of each fit."""
        return max(1, self.epochs // 2) if self.curve_epochs is None else self.curve_epochs


@dataclass(frozen=True, kw_only=True)
class ConnectConfig(CurveConfig):
    """Fit and evaluate curves between existing networks."""

    group: ClassVar[str] = "networks"
    instead: ClassVar[Mapping[str, str]] = {"lr": "--curve-lr is the rate of the fit"}
    weights: tuple[Path, ...] = ()
    """Two or more weights files (.safetensors, or .pt state dicts), connected in this order."""
    momentum: float = 0.9
    """Momentum of SGD, which fits the curves."""
    weight_decay: float | None = None
    """L2 penalty of the fit. By default 5e-4."""
    closed: bool = False
    """Also connect the last network with the first."""

    def __post_init__(self) -> None:
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


_OWN_TRAINING = ("average", "endpoint")
"""Recipes that train as the options say; the others have their own training."""
_DEFAULTS = ("average", "G")
"""Recipes that are no wish where they cannot be used: the default of today, and the first one."""


def check_used(config: CurveEnsembleConfig) -> None:
    """Refuse options that no training of the command would use.

    Raises:
        UserError: naming the option, and the recipe that it belongs to.
    """
    # A config file holds the learning rate that was chosen if the option was not given.
    given_lr = config.lr if not config.resume and config.config is None else None
    given = {"first": config.first, "second": config.second}
    weights = {"first": config.first_weights, "second": config.second_weights}
    for side, name in given.items():
        if name in _DEFAULTS:
            continue
        if config.strategies == "all":
            raise UserError(f"--strategies all sets the recipes itself; leave out --{side} {name}")
        if weights[side] is not None:
            raise UserError(f"--{side} {name} is not used: --{side}-weights gives that network")
    used: set[str] = {
        n for n, side in zip(config.recipes, weights, strict=True) if weights[side] is None
    }
    if config.strategies == "all":
        used = {"G", *_RECIPE_OF.values()}
    _check_start(config, used)
    if given_lr is not None and used.isdisjoint(_OWN_TRAINING):
        raise UserError(
            f"--lr {given_lr:g} sets the rate of the recipes average and endpoint, which are not "
            "used; G and A to F have their own rates, and --curve-lr sets that of the fit"
        )
    if used.isdisjoint(_OWN_TRAINING):
        for own in (*fields(OptimizerOptions), *fields(ExampleOptions)):
            if (value := getattr(config, own.name)) != own.default:
                raise UserError(
                    f"--{own.name.replace('_', '-')} {value} is for the recipes average and "
                    "endpoint, which are not used; G and A to F have their own training"
                )
    for option, recipe in _RECIPE_OF.items():
        if getattr(config, option) is not None and recipe not in used:
            raise UserError(
                f"--{option.replace('_', '-')} is an option of recipe {recipe}, which is not used; "
                "leave it out"
            )


def _check_start(config: CurveEnsembleConfig, used: Set[str]) -> None:
    """Refuse given or frozen weights that the recipes in use, ``used``, do not take.

    The fit between two networks from files leaves frozen parameters too.
    """
    if config.pretrained is not None and not used:
        raise UserError(
            f"--pretrained {config.pretrained} is not used: --first-weights and --second-weights "
            "give both networks"
        )
    for option in ("pretrained", "freeze"):
        value, others = getattr(config, option), sorted(used - {*_OWN_TRAINING})
        if value is not None and others:
            raise UserError(
                f"--{option} {value} is for the recipes average and endpoint, got {others[0]}; "
                "the others start from initial weights and train all of them"
            )


def pairs_of(items: Sequence[Path], *, closed: bool) -> list[tuple[int, int]]:
    """Return the positions of neighbours in an open chain or a closed loop."""
    pairs = [(i, i + 1) for i in range(len(items) - 1)]
    return [*pairs, (len(items) - 1, 0)] if closed else pairs
