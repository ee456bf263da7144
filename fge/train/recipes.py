"""Training recipes and stages, as data: a reference strategy, and others that differ in one thing.

Strategies G and A-F of Gotmare et al. 2018 (arXiv 1806.06977) train networks that differ as much
as networks can, to ask whether curves of low loss connect them nevertheless.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from fge.config import RunConfig
from fge.errors import UserError, check_at_least, check_positive, unknown
from fge.networks import unwrap
from fge.train.schedules import ClosedFormLR, EndpointLR, LinearDecayLR, StepsLR
from fge.train.sgld import SGLD

MakeSchedule = Callable[[Optimizer, int], ClosedFormLR]
_SCHEDULES: dict[str, Callable[..., ClosedFormLR]] = {
    "step": StepsLR,
    "linear": LinearDecayLR,
    "endpoint": EndpointLR,
}
_OPTIMIZERS = ("sgd", "adam", "sgld")
ADAM_LR = 1e-3
"""B's learning rate, which the source leaves open: Adam's own (arXiv 1412.6980, section 2)."""
LARGE_BATCH_LR = 0.05
"""A's learning rate, which the source leaves open: G's, so that only the batch differs (ours).
The linear rule of arXiv 1706.02677 would make it 40 times that."""
SMALLER_WEIGHT_DECAY = 5e-6
"""D's weight decay, which the source leaves open: a hundredth of G's (ours); 0 is allowed."""
INIT_VARIANCE = 2.0
"""E's factor on the variance, which the source leaves open (ours). The logits of a new VGG16
without batch norm are a hundred times larger with it; with 3 they would be 2,600 times."""
OPTION_OF = {"large_batch_lr": "A", "adam_lr": "B", "weight_decay": "D", "init_variance": "E"}
"""The options of :func:`recipe`, each with the one recipe that it belongs to."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training: epochs [first_epoch, last_epoch) under one schedule.

    ``schedule(optimizer, steps_per_epoch)`` is at its first step when ``first_epoch`` begins. The
    stage goes on from the weights and the optimizer's state at the end of the stage ``after``;
    without one, from those that training has come to, at first the initial ones. Every stage
    counts among the epochs of those behind it, also where they do not go on from it. Snapshots
    go to the folder ``store``: where the schedule is ``at_minimum``, or at the end of the stage.
    """

    name: str
    first_epoch: int
    last_epoch: int
    schedule: MakeSchedule
    after: str | None = None
    store: str | None = None
    keep: Literal["minima", "end"] = "minima"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Raises:
        UserError: a value out of its range, named.
    """

    name: str
    optimizer: Literal["sgd", "adam", "sgld"]
    lr: float
    """The rate that the schedule begins with."""
    batch_size: int
    """Images per step; :func:`batch_size` caps it by the data."""
    momentum: float
    """Of SGD, not dampened; for Adam its beta 1."""
    weight_decay: float
    """L2 penalty: decay times the weights is added to the gradient, in Adam too (not AdamW)."""
    schedule: Literal["step", "linear", "endpoint"]
    """:class:`StepsLR`, :class:`LinearDecayLR` or :class:`EndpointLR`."""
    init_scale: float = 1.0
    """Factor on the standard deviation (the square root of that on the variance) of the initial
    weights of linear and convolution layers."""
    augment: bool = True
    """Whether training images are augmented; how is the run's own choice."""
    description: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.optimizer not in _OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, _OPTIMIZERS)
        if self.schedule not in _SCHEDULES:
            raise unknown("schedule", self.schedule, _SCHEDULES)
        check_positive(lr=self.lr, init_scale=self.init_scale)
        check_at_least(1, batch_size=self.batch_size)
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")


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
    "B": _variant("B", "G with Adam, at a rate that suits it", optimizer="adam", lr=ADAM_LR),
    "C": _variant("C", "G with a learning rate that falls linearly", schedule="linear"),
    "D": _variant("D", "G with a smaller weight decay", weight_decay=SMALLER_WEIGHT_DECAY),
    "E": _variant(
        "E", "G from initial weights of larger variance", init_scale=math.sqrt(INIT_VARIANCE)
    ),
    "F": _variant("F", "G without augmentation", augment=False),
}
"""The strategies of arXiv 1806.06977: G for 200 epochs there, and what differs from it."""


def recipe(
    name: str,
    *,
    adam_lr: float | None = None,
    large_batch_lr: float | None = None,
    weight_decay: float | None = None,
    init_variance: float | None = None,
) -> Recipe:
    """Return a recipe of ``RECIPES``, with another value for what the source leaves open.

    Args:
        name: G, A, B, C, D, E or F.
        adam_lr: B's learning rate; by default ``ADAM_LR``.
        large_batch_lr: A's learning rate; by default ``LARGE_BATCH_LR``.
        weight_decay: D's weight decay, below G's, 0 included; by default
            ``SMALLER_WEIGHT_DECAY``.
        init_variance: E's factor on the variance of the initial weights, above 1; by default
            ``INIT_VARIANCE``. The weights are multiplied by its square root.

    Raises:
        UserError: there is no such recipe, an option of another recipe is given, or a value is
            out of its range.
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
                f"{option} is an option of recipe {OPTION_OF[option]}, got it for {name}; "
                "leave it out"
            )
        result = replace(result, **_change(option, value))
    return result


def _change(option: str, value: float) -> dict[str, Any]:
    """Return the field of a recipe that the option sets, with its value."""
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

    SGD at the rate that suits the model, under the endpoint schedule (arXiv 1802.10026); images
    are augmented unless the options switch both mirroring and crops off.
    """
    return Recipe(
        "endpoint",
        "sgd",
        config.base_lr,
        config.batch_size,
        config.momentum,
        config.weight_decay,
        "endpoint",
        augment=config.flip or config.crop_padding != 0,
        description="this package's conventional training",
    )


def make_optimizer(
    recipe: Recipe, parameters: Iterable[nn.Parameter], *, examples: int = 1
) -> Optimizer:
    """Return the recipe's optimizer; the noise of SGLD depends on the number of ``examples``."""
    if recipe.optimizer == "sgld":
        return SGLD(
            parameters,
            recipe.lr,
            examples=examples,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
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
    """Return the recipe's schedule over a budget of ``epochs``, at its first step.

    Raises:
        UserError: ``epochs`` or ``steps_per_epoch`` is below 1.
    """
    check_at_least(1, epochs=epochs, steps_per_epoch=steps_per_epoch)
    make = _SCHEDULES[recipe.schedule]
    return make(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)


@torch.no_grad()
def scale_initialisation(model: nn.Module, recipe: Recipe) -> None:
    """Multiply the weights of linear and convolution layers by ``init_scale``, in place.

    Transposed convolutions count; biases, norm layers, embeddings and the parameters of other
    modules stay. A weight shared by several layers is scaled once.

    Raises:
        UserError: there is something to scale, and the model has no such layer, or one whose
            weights are not there yet (a lazy layer) or computed from others (weight norm).
    """
    if recipe.init_scale == 1:
        return
    weights: dict[int, nn.Parameter] = {}
    for name, module in unwrap(model).named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            weight = module._parameters.get("weight")
            if weight is None or nn.parameter.is_lazy(weight):
                raise UserError(
                    f"the weights of layer {name!r} ({type(module).__name__}) cannot be scaled: "
                    "they are not plain parameters (yet); run one batch through a lazy model, "
                    "add weight norm later"
                )
            weights[id(weight)] = weight
    if not weights:
        raise UserError(
            f"recipe {recipe.name} scales the weights of linear and convolution layers, and the "
            "model has none; use another recipe"
        )
    for weight in weights.values():
        weight.mul_(recipe.init_scale)


def batch_size(recipe: Recipe, train_size: int) -> int:
    """Return the recipe's batch size, or ``train_size`` images where there are no more.

    Raises:
        UserError: ``train_size`` is below 1.
    """
    check_at_least(1, train_size=train_size)
    return min(recipe.batch_size, train_size)


def recipe_stages(recipe: Recipe, epochs: int, *, store: str = "network") -> list[Stage]:
    """Return the training as its one stage, which keeps the network at its end in ``store``.

    Raises:
        UserError: ``epochs`` is below 1.
    """
    check_at_least(1, epochs=epochs)
    schedule = partial(_schedule, recipe, epochs)
    return [Stage("network", 0, epochs, schedule, store=store, keep="end")]


def _schedule(
    recipe: Recipe, epochs: int, optimizer: Optimizer, steps_per_epoch: int
) -> ClosedFormLR:
    return make_schedule(recipe, optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
