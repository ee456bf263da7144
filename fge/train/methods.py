"""The methods as data: training stages, a recipe, and what is averaged.

To add your own, write a :class:`Method`: ``python cli.py train --method package.module:name`` runs
it, and ``compare`` compares it with the others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch.optim import Optimizer

from fge.config import METHOD_NAMES, CycleConfig, FGEConfig, MethodConfig, is_factory
from fge.errors import UserError, unknown
from fge.networks import import_named
from fge.train.recipes import MakeSchedule, Recipe, Stage, endpoint_recipe
from fge.train.schedules import (
    ClosedFormLR,
    CosineRestartsLR,
    CyclicalSGLDLR,
    EndpointLR,
    TriangularLR,
)

SAMPLING = 0.1
"""The fraction of a cycle in which csgld adds noise: the last 5 of 50 epochs (reference
implementation of arXiv 1902.03932)."""


@dataclass(frozen=True)
class Method:
    """A way to get a prediction from one training run.

    ``stages(config)``: schedules and snapshot rules; the last stage's snapshots are the members.
    ``combine``: average their probabilities, or their weights (batch norm refreshed).
    ``recipe(config)``: optimizer, batch size and augmentation. ``ema_decay(config)``: if given,
    snapshots hold the exponential average of the weights with this decay per step.
    """

    name: str
    description: str
    stages: Callable[[MethodConfig], list[Stage]]
    combine: Literal["probabilities", "weights"] = "probabilities"
    recipe: Callable[[MethodConfig], Recipe] = endpoint_recipe
    ema_decay: Callable[[MethodConfig], float] | None = None


def fge_stages(config: CycleConfig) -> list[Stage]:
    """Return the stages of an FGE run (arXiv 1802.10026, section 4).

    A conventional start, then cycles of the learning rate until the last minimum within the
    budget. With ``single``, the conventional schedule also continues from the same start.
    """
    start = config.first_cycle_epoch
    stages = [
        Stage("start", 0, start, partial(_endpoint, epochs=config.epochs, first_epoch=0)),
        Stage(
            "fge",
            start,
            config.last_cycle_epoch,
            partial(_triangular, config),
            after="start",
            store="snapshots",
        ),
    ]
    if isinstance(config, FGEConfig) and config.single:
        schedule = partial(_endpoint, epochs=config.epochs, first_epoch=start)
        stages.append(
            Stage(
                "single",
                start,
                config.epochs,
                schedule,
                after="start",
                store="single",
                keep="end",
            )
        )
    return stages


def single_stages(config: MethodConfig) -> list[Stage]:
    """Return the single stage of conventional training; its snapshot is the final network."""
    return [_whole("single", config)]


def ema_stages(config: MethodConfig) -> list[Stage]:
    """Return the single stage of conventional training; its snapshot is the EMA of the weights."""
    return [_whole("ema", config)]


def sse_stages(config: MethodConfig) -> list[Stage]:
    """Return the cosine cycles of a snapshot ensemble (Huang et al. 2017, arXiv 1704.00109)."""
    length = config.epochs // config.sse_cycles
    return [_cycles("sse", length * config.sse_cycles, partial(_cosine, length))]


def csgld_stages(config: MethodConfig) -> list[Stage]:
    """Return the cycles of cyclical SGLD (Zhang et al. 2020, arXiv 1902.03932)."""
    length = config.epochs // config.csgld_cycles
    return [_cycles("csgld", length * config.csgld_cycles, partial(_sgld, config, length))]


def csgld_recipe(config: MethodConfig) -> Recipe:
    """Return the recipe of cyclical SGLD: no momentum, and its own learning rate."""
    usual = endpoint_recipe(config)
    description = "stochastic gradient Langevin dynamics"
    return replace(
        usual,
        name="csgld",
        optimizer="sgld",
        lr=config.csgld_lr,
        momentum=0.0,
        description=description,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("single", "one network, conventional schedule", single_stages),
        Method("fge", "snapshots of a cyclic learning rate", fge_stages),
        Method("sse", "snapshots of cosine cycles from the start", sse_stages),
        Method(
            "swa",
            "the weights of FGE's snapshots, averaged",
            fge_stages,
            combine="weights",
        ),
        Method("csgld", "samples of cyclical Langevin dynamics", csgld_stages, recipe=csgld_recipe),
        Method(
            "ema",
            "the exponential average of the weights",
            ema_stages,
            ema_decay=operator.attrgetter("ema_decay"),
        ),
    )
}
assert tuple(METHODS) == METHOD_NAMES

_OTHER_ROWS = ("last-snapshot", "best-snapshot", "fold", "ensemble")
"""Other rows of a run's report; ``swa`` is one too, unless the method averages weights."""


def find_method(name: str) -> Method:
    """Return a method by its name, or the user's own as ``package.module:method``.

    Raises:
        UserError: the name is unknown, it cannot be imported, is not a ``Method``, or has the name
            of another row of its report.
    """
    if not is_factory(name):
        if name not in METHODS:
            raise unknown("method", name, METHODS)
        return METHODS[name]
    method = import_named(name, "method")
    if not isinstance(method, Method):
        raise UserError(f"{name} must be an fge.methods.Method, got a {type(method).__name__}")
    taken = _OTHER_ROWS if method.combine == "weights" else (*_OTHER_ROWS, "swa")
    if method.name in taken:
        raise UserError(
            f"{name} has the name {method.name!r}, which is another row of its report; rename it"
        )
    return method


def _whole(name: str, config: MethodConfig) -> Stage:
    schedule = partial(_endpoint, epochs=config.epochs, first_epoch=0)
    return Stage(name, 0, config.epochs, schedule, store="snapshots", keep="end")


def _cycles(name: str, epochs: int, schedule: MakeSchedule) -> Stage:
    return Stage(name, 0, epochs, schedule, store="snapshots")


def _endpoint(
    optimizer: Optimizer, steps_per_epoch: int, *, epochs: int, first_epoch: int
) -> ClosedFormLR:
    schedule = EndpointLR(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
    schedule.load_state_dict({"last_epoch": first_epoch * steps_per_epoch})
    return schedule


def _triangular(config: CycleConfig, optimizer: Optimizer, steps_per_epoch: int) -> ClosedFormLR:
    return TriangularLR(
        optimizer,
        max_lr=config.cycle_lrs.max_lr,
        min_lr=config.cycle_lrs.min_lr,
        cycle_steps=config.cycle_length * steps_per_epoch,
    )


def _cosine(length: int, optimizer: Optimizer, steps_per_epoch: int) -> ClosedFormLR:
    return CosineRestartsLR(optimizer, cycle_steps=length * steps_per_epoch)


def _sgld(
    config: MethodConfig, length: int, optimizer: Optimizer, steps_per_epoch: int
) -> ClosedFormLR:
    """Return the schedule; the temperature grows with the square of the noise scale."""
    examples = optimizer.defaults["examples"]
    usual = 1 / examples if config.csgld_temperature is None else config.csgld_temperature
    return CyclicalSGLDLR(
        optimizer,
        cycle_steps=length * steps_per_epoch,
        sample_steps=steps_per_epoch,
        samples=config.csgld_samples,
        sampling=SAMPLING,
        temperature=usual * config.csgld_noise_scale**2,
    )
