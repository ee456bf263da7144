"""Training recipes and stages as data: a reference strategy, and others that differ in one thing.

Strategies G and A-F of Gotmare et al. 2018 (arXiv 1806.06977) train networks that differ as much
as possible, to ask whether curves of low loss still connect them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from fge.config import AVERAGE, FINAL_FACTOR, HOLD, OptimizerName, RunConfig
from fge.data import POLICIES
from fge.errors import UserError, check_at_least, check_not_negative, check_positive, unknown
from fge.networks import unwrap
from fge.train.descents import LinearDecayLR
from fge.train.schedules import ClosedFormLR, EndpointLR, StepsLR
from fge.train.sgld import SGLD

MakeSchedule = Callable[[Optimizer, int], ClosedFormLR]
_SCHEDULES: dict[str, Callable[..., ClosedFormLR]] = {
    "step": StepsLR,
    "linear": LinearDecayLR,
    "endpoint": EndpointLR,
    "tail": partial(LinearDecayLR, final_factor=FINAL_FACTOR, hold=HOLD),
}
_OPTIMIZERS = (*get_args(OptimizerName), "sgld")
ADAM_LR = 1e-3
"""B's learning rate, not given in the source: Adam's default (arXiv 1412.6980, section 2)."""
LARGE_BATCH_LR = 0.05
"""A's learning rate, which the source does not give: G's, so that only the batch size differs (our
choice). The linear rule of arXiv 1706.02677 would give 40 times this rate."""
SMALLER_WEIGHT_DECAY = 5e-6
"""D's weight decay, which the source does not give: G's / 100 (our choice); 0 is allowed."""
INIT_VARIANCE = 2.0
"""E's factor on the variance, which the source does not give (our choice). It makes the logits of
a new VGG16 without batch norm a hundred times larger; 3 would make them 2,600 times larger."""
OPTION_OF = {"large_batch_lr": "A", "adam_lr": "B", "weight_decay": "D", "init_variance": "E"}
"""The options of :func:`recipe`, each with its recipe."""


@dataclass(frozen=True)
class Stage:
    """A part of a training: epochs [first_epoch, last_epoch) with one schedule.

    ``schedule(optimizer, steps_per_epoch)`` is at its first step when ``first_epoch`` begins. The
    stage starts from the weights and the optimizer's state at the end of the stage ``after``; if
    that is None, from the current ones, at first the initial ones. The epochs of a stage count for
    every later stage, also for one that does not start from it. Snapshots go to the folder
    ``store``, whenever the schedule is ``at_minimum`` or at the end of the stage (``keep``); they
    are called after ``members``, by default the stage, and stages of one kind share a folder. They
    hold the mean of the weights over the last part ``average`` of each descent of the schedule.

    ``fresh`` starts from initial weights instead: 0 for those of the run, k > 0 for the k-th draw
    of others; a run of given weights starts from these again.
    """

    name: str
    first_epoch: int
    last_epoch: int
    schedule: MakeSchedule
    after: str | None = None
    store: str | None = None
    keep: Literal["minima", "end"] = "minima"
    average: float = 0.0
    members: str | None = None
    fresh: int | None = None

    @property
    def kind(self) -> str:
        """What its snapshots are called."""
        return self.members or self.name


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Raises:
        UserError: a value is out of range; the message names it.
    """

    name: str
    optimizer: Literal[OptimizerName, "sgld"]
    lr: float
    """The first learning rate of the schedule."""
    batch_size: int
    """Images per pass; :func:`batch_size` limits those of a step to the size of the data."""
    momentum: float
    """SGD's momentum, without dampening; for Adam and AdamW, beta 1."""
    weight_decay: float
    """L2 penalty: decay times the weights is added to the gradient, for Adam too. AdamW takes decay
    times the learning rate off the weights instead."""
    schedule: Literal["step", "linear", "endpoint", "tail"]
    """:class:`StepsLR`, :class:`LinearDecayLR` or :class:`EndpointLR`; ``tail`` falls linearly to a
    tenth of the rate."""
    init_scale: float = 1.0
    """Factor on the standard deviation (so its square is the factor on the variance) of the initial
    weights of linear and convolution layers."""
    augment: bool = True
    """Whether training images are augmented; the run's options choose how."""
    average: float = 0.0
    """The network is the mean of the weights over this last part of the training, in [0, 1], with
    batch-norm statistics of its own; 0: the last weights."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises to that of the schedule, wherever a network starts;
    see :class:`fge.train.WarmUpLR`."""
    accumulate: int = 1
    """Passes per step, whose gradients are added up."""
    clip_norm: float | None = None
    """The largest norm of a gradient, over all parameters; larger ones are scaled down to it."""
    backbone_factor: float = 1.0
    """Multiplies the rate of all parameters but the head's; see
    :func:`fge.networks.find_head`."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every class counts the same in the loss."""
    label_smoothing: float = 0.0
    """The part of each target that is spread over all classes, in [0, 1)."""
    mixup: float = 0.0
    """The parameter of the Beta distribution of :class:`fge.data.Mixup`; 0 mixes nothing."""
    description: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.optimizer not in _OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, _OPTIMIZERS)
        if self.schedule not in _SCHEDULES:
            raise unknown("schedule", self.schedule, _SCHEDULES)
        check_positive(lr=self.lr, init_scale=self.init_scale)
        check_at_least(1, batch_size=self.batch_size, accumulate=self.accumulate)
        check_positive(clip_norm=self.clip_norm, backbone_factor=self.backbone_factor)
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.average <= 1:
            raise UserError(f"average must be in [0, 1], got {self.average}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        check_not_negative(weight_decay=self.weight_decay, warmup_epochs=self.warmup_epochs)
        check_not_negative(mixup=self.mixup)


_G = Recipe(
    "G",
    "sgd",
    0.05,
    100,
    0.9,
    5e-4,
    "step",
    description="SGD, learning rate 0.05 divided by 5 after 30, 60 and 80 % of the epochs, "
    "batches of 100, momentum 0.9, weight decay 5e-4",
)


def _variant(name: str, description: str, **change: Any) -> Recipe:
    return replace(_G, name=name, description=description, **change)


RECIPES: dict[str, Recipe] = {
    "G": _G,
    "A": _variant("A", "G with batches of 4000", batch_size=4000, lr=LARGE_BATCH_LR),
    "B": _variant("B", "G with Adam and a suitable rate", optimizer="adam", lr=ADAM_LR),
    "C": _variant("C", "G with a learning rate that falls linearly", schedule="linear"),
    "D": _variant("D", "G with a smaller weight decay", weight_decay=SMALLER_WEIGHT_DECAY),
    "E": _variant(
        "E", "G from initial weights of larger variance", init_scale=math.sqrt(INIT_VARIANCE)
    ),
    "F": _variant("F", "G without augmentation", augment=False),
}
"""The strategies of arXiv 1806.06977: G (200 epochs there), and its variants."""


def recipe(
    name: str,
    *,
    adam_lr: float | None = None,
    large_batch_lr: float | None = None,
    weight_decay: float | None = None,
    init_variance: float | None = None,
) -> Recipe:
    """Return a recipe of ``RECIPES``, with another value for what the source does not give.

    Args:
        name: G, A, B, C, D, E or F.
        adam_lr: B's learning rate; by default ``ADAM_LR``.
        large_batch_lr: A's learning rate; by default ``LARGE_BATCH_LR``.
        weight_decay: D's weight decay, >= 0 and below G's; by default ``SMALLER_WEIGHT_DECAY``.
        init_variance: E's factor on the variance of the initial weights, above 1; by default
            ``INIT_VARIANCE``. The weights are multiplied by its square root.

    Raises:
        UserError: the recipe is unknown, an option belongs to another recipe, or a value is out of
            range.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    given = {
        "large_batch_lr": large_batch_lr,
        "adam_lr": adam_lr,
        "weight_decay": weight_decay,
        "init_variance": init_variance,
    }
    result = RECIPES[name]
    for option, value in given.items():
        if value is None:
            continue
        if OPTION_OF[option] != name:
            raise UserError(
                f"{option} is an option of recipe {OPTION_OF[option]}, not of {name}; leave it out"
            )
        result = replace(result, **_change(option, value))
    return result


def _change(option: str, value: float) -> dict[str, Any]:
    """Return the recipe's field that the option sets, with its value."""
    if option == "weight_decay":
        if not 0 <= value < _G.weight_decay:
            raise UserError(f"weight_decay of D must be in [0, {_G.weight_decay}), got {value}")
        return {"weight_decay": value}
    if option == "init_variance":
        if not (math.isfinite(value) and value > 1):
            raise UserError(f"init_variance must be finite and above 1, got {value}")
        return {"init_scale": math.sqrt(value)}
    check_positive(**{option: value})
    return {"lr": value}


def endpoint_recipe(config: RunConfig) -> Recipe:
    """Return this package's conventional training with the values of a run's options.

    The optimizer of the options, by default SGD at the model's default rate, with the endpoint
    schedule (arXiv 1802.10026); images are augmented unless the options turn off both flips and
    crops.
    """
    return Recipe(
        "endpoint",
        config.optimizer,
        config.base_lr,
        config.batch_size,
        config.momentum,
        config.decay,
        "endpoint",
        warmup_epochs=config.warmup_epochs,
        accumulate=config.accumulate,
        clip_norm=config.clip_norm,
        class_weights=config.class_weights,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        backbone_factor=1.0 if config.backbone_lr is None else config.backbone_lr / config.base_lr,
        augment=config.varies or config.augment in POLICIES,
        description="this package's conventional training",
    )


def average_recipe(config: RunConfig) -> Recipe:
    """Return the training whose network is the mean of a tail, with the values of a run's options.

    It is :func:`endpoint_recipe` with a quarter of the training at the base rate, and then a linear
    descent to a twentieth; the network is the mean of the weights over the last 20 %
    (``fge.LinearTailLR`` and ``fge.TailAverage``), as of ``train --method average``.
    """
    return replace(
        endpoint_recipe(config),
        name="average",
        schedule="tail",
        average=AVERAGE,
        description="a linear descent, the mean of the weights over its last 20 %",
    )


def make_optimizer(
    recipe: Recipe,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    examples: int = 1,
) -> Optimizer:
    """Return the recipe's optimizer; the noise of SGLD depends on the number of ``examples``.

    Args:
        recipe: of the training.
        parameters: of the model, perhaps in groups; see :func:`fge.train.parameter_groups`.
        examples: training images.
    """
    if recipe.optimizer == "sgld":
        return SGLD(
            parameters,
            recipe.lr,
            examples=examples,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    if recipe.optimizer in ("adam", "adamw"):
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(
            parameters,
            lr=recipe.lr,
            betas=(recipe.momentum, 0.999),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def make_schedule(
    recipe: Recipe, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int
) -> ClosedFormLR:
    """Return the recipe's schedule for a budget of ``epochs``, at its first step."""
    check_at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
    make = _SCHEDULES[recipe.schedule]
    return make(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)


@torch.no_grad()
def scale_initialisation(model: nn.Module, recipe: Recipe) -> None:
    """Multiply the weights of linear and convolution layers by ``init_scale``, in place.

    This includes transposed convolutions; biases, norm layers, embeddings and the parameters of
    other modules stay unchanged. A weight shared by several layers is scaled once.

    Raises:
        UserError: the scale is not 1, and the model has no such layer, or one whose weights do not
            exist yet (a lazy layer) or are computed from others (weight norm).
    """
    if recipe.init_scale == 1:
        return
    weights: dict[int, nn.Parameter] = {}
    for name, module in unwrap(model).named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            weight = module._parameters.get("weight")
            if weight is None or nn.parameter.is_lazy(weight):
                raise UserError(
                    f"the weights of layer {name!r} ({type(module).__name__}) cannot be scaled, "
                    "they are not plain parameters (yet); call a lazy model on one batch first, "
                    "add weight norm later"
                )
            weights[id(weight)] = weight
    if not weights:
        raise UserError(
            f"recipe {recipe.name} scales the weights of linear and convolution layers, but the "
            "model has none; use another recipe"
        )
    for weight in weights.values():
        weight.mul_(recipe.init_scale)


def batch_size(recipe: Recipe, train_size: int) -> int:
    """Return the images of a step of the recipe, at most ``train_size``.

    Raises:
        UserError: ``train_size`` is below 1.
    """
    check_at_least(1, train_size=train_size)
    return min(recipe.batch_size * recipe.accumulate, train_size)


def recipe_stages(recipe: Recipe, epochs: int, *, store: str = "network") -> list[Stage]:
    """Return a recipe's single stage; its snapshot in ``store`` is the final network.

    Raises:
        UserError: ``epochs`` is below 1.
    """
    check_at_least(1, epochs=epochs)
    schedule = partial(_schedule, recipe, epochs)
    part = recipe.average
    return [Stage("network", 0, epochs, schedule, store=store, keep="end", average=part)]


def _schedule(
    recipe: Recipe, epochs: int, optimizer: Optimizer, steps_per_epoch: int
) -> ClosedFormLR:
    return make_schedule(recipe, optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
