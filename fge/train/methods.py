"""What the methods are, as data: stages of training, a recipe, and what is averaged.

A method of your own is one :class:`Method` more; ``python cli.py train --method
package.module:name`` runs it, and ``compare`` sets it beside the others.
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
"""The part of a cycle in which csgld adds noise: the last 5 of 50 epochs (the reference
implementation of arXiv 1902.03932)."""


@dataclass(frozen=True)
class Method:
    """A way to make a prediction out of one training run.

    ``stages(config)``: schedules and snapshot rules; the last stage's snapshots are the members.
    ``combine``: average their probabilities, or their weights (batch norm refreshed).
    ``recipe(config)``: optimizer, batch size and augmentation. ``ema_decay(config)``: where it is
    given, snapshots keep the exponential average of the weights with this decay per step.
    """

    name: str
    description: str
    stages: Callable[[MethodConfig], list[Stage]]
    combine: Literal["probabilities", "weights"] = "probabilities"
    recipe: Callable[[MethodConfig], Recipe] = endpoint_recipe
    ema_decay: Callable[[MethodConfig], float] | None = None


def fge_stages(config: CycleConfig) -> list[Stage]:
    """Return the stages of an FGE run (arXiv 1802.10026, section 4).

    A conventional start, then cycles of the learning rate up to the last minimum within the
    budget; with ``single``, the conventional schedule goes on from the same start to its end.
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
    """Return the one stage of conventional training, which keeps the network at its end."""
    return [_whole("single", config)]


def ema_stages(config: MethodConfig) -> list[Stage]:
    """Return the one stage of conventional training, of whose weights the average is kept."""
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
    """Return the recipe of cyclical SGLD: no momentum, and a learning rate of its own."""
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

_OTHER_LINES = ("last-snapshot", "best-snapshot", "fold", "ensemble")
"""Lines of a run's report beside its method's own; and ``swa``, unless that averages weights."""


def find_method(name: str) -> Method:
    """Return a method by its name, or the user's own as ``package.module:method``.

    Raises:
        UserError: there is none of that name, it cannot be imported, is no method, or bears the
            name of another line of its report.
    """
    if not is_factory(name):
        if name not in METHODS:
            raise unknown("method", name, METHODS)
        return METHODS[name]
    found = import_named(name, "method")
    if not isinstance(found, Method):
        raise UserError(f"{name} must be an fge.methods.Method, got a {type(found).__name__}")
    taken = _OTHER_LINES if found.combine == "weights" else (*_OTHER_LINES, "swa")
    if found.name in taken:
        raise UserError(
            f"{name} bears the name {found.name!r} of another line of its report; rename it"
        )
    return found


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
    """Return the schedule; the noise scale enters the temperature by its square."""
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
