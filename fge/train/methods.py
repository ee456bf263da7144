"""The methods as data: training stages, a recipe, and what is averaged.

To add your own, write a :class:`Method`: ``python cli.py train --method package.module:name`` runs
it, and ``compare`` compares it with the others.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch.optim import Optimizer

from fge.config import (
    METHOD_NAMES,
    CycleConfig,
    FGEConfig,
    MethodConfig,
    is_factory,
    without_views,
)
from fge.errors import UserError, unknown
from fge.networks import import_named
from fge.tasks import make_task
from fge.train.descents import LinearRestartsLR, linear_tail
from fge.train.groups import FACTOR
from fge.train.planner import AutoPlanner, Planner
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

    ``stages(config)``: schedules and snapshot rules; the last stage's snapshots are the members,
    with those of all stages of its kind. A planner decides the stages while it runs.
    ``combine``: average their probabilities, or their weights (batch norm refreshed).
    ``one_path``: whether the members lie on one path, so that their mean may be a network.
    ``recipe(config)``: optimizer, batch size and augmentation. ``ema_decay(config)``: if given,
    snapshots hold the exponential average of the weights with this decay per step.
    """

    name: str
    description: str
    stages: Callable[[MethodConfig], list[Stage] | Planner]
    combine: Literal["probabilities", "weights"] = "probabilities"
    one_path: bool = True
    recipe: Callable[[MethodConfig], Recipe] = endpoint_recipe
    ema_decay: Callable[[MethodConfig], float] | None = None


def fge_stages(config: CycleConfig) -> list[Stage]:
    """Return the stages of an FGE run whose members are averages (arXiv 2202.06658).

    The rate falls linearly from the base rate to the highest rate of the cycles, which follow until
    the last minimum within the budget. A member is the mean of the weights over the last part of
    each descent. Where that part is 0, the stages are those of :func:`fge_paper_stages`.

    With ``single``, a conventional network and one with an averaged tail are trained as well.
    """
    if config.average_part == 0:
        return fge_paper_stages(config)
    start = config.first_cycle_epoch
    high = min(1.0, config.cycle_lrs.max_lr / config.base_lr)
    stages = _cycles_after(
        partial(linear_tail, max(start, 1), high), config, average=config.cycle_average
    )
    if isinstance(config, FGEConfig) and config.single:
        stages += [
            replace(_whole("single", config), store="single", fresh=0),
            replace(
                _tail("average", 0, config.epochs, config, hold=config.hold),
                store="average",
                fresh=0,
            ),
        ]
    return stages


def fge_paper_stages(config: CycleConfig) -> list[Stage]:
    """Return the stages of an FGE run as published (arXiv 1802.10026, section 4).

    A conventional start, then cycles of the learning rate until the last minimum within the
    budget; members are the weights there. With ``single``, the conventional schedule also continues
    from the same start.
    """
    config = replace(config, average=0.0)
    start = config.first_cycle_epoch
    stages = _cycles_after(partial(_endpoint, epochs=config.epochs, first_epoch=0), config)
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


def _cycles_after(
    schedule: MakeSchedule, config: CycleConfig, *, average: float = 0.0
) -> list[Stage]:
    """Return the stages of a start with this schedule and of the cycles that follow."""
    start = config.first_cycle_epoch
    cycles = Stage(
        "fge",
        start,
        config.last_cycle_epoch,
        partial(_triangular, config),
        after="start",
        store="snapshots",
        average=average,
    )
    return [Stage("start", 0, start, schedule), cycles]


def single_stages(config: MethodConfig) -> list[Stage]:
    """Return the single stage of conventional training; its snapshot is the final network."""
    return [_whole("single", config)]


def ema_stages(config: MethodConfig) -> list[Stage]:
    """Return the single stage of conventional training; its snapshot is the EMA of the weights."""
    return [_whole("ema", config)]


def average_stages(config: MethodConfig) -> list[Stage]:
    """Return the single stage of a descent; its snapshot is the mean of the tail."""
    return [_tail("average", 0, config.epochs, config, hold=config.hold)]


def split_stages(config: MethodConfig) -> list[Stage]:
    """Return a descent for each of several networks that share the budget, from weights of its own.

    The first has the run's initial weights.
    """
    length = config.epochs // config.split
    return [
        replace(
            _tail(f"network-{k + 1}", k * length, (k + 1) * length, config),
            fresh=k,
            members="split",
        )
        for k in range(config.split)
    ]


def star_stages(config: MethodConfig) -> list[Stage]:
    """Return a trunk at a constant rate and descents that branch from its end.

    Each branch sees the images in an order of its own (restarts from one checkpoint:
    arXiv 2303.03374).
    """
    trunk, length = config.trunk_epochs, config.branch_epochs
    branches = [
        replace(
            _tail(f"branch-{k + 1}", trunk + k * length, trunk + (k + 1) * length, config),
            after="trunk",
            members="star",
        )
        for k in range(config.star_branches)
    ]
    return [Stage("trunk", 0, trunk, partial(linear_tail, max(trunk, 1), 1.0)), *branches]


def sse_stages(config: MethodConfig) -> list[Stage]:
    """Return the cycles of a snapshot ensemble (Huang et al. 2017, arXiv 1704.00109).

    They are linear descents whose members are averages; cosines, as published, where the averaged
    part is 0.
    """
    length = config.epochs // config.sse_cycles
    schedule: MakeSchedule = partial(_restarts, length, config.final_factor)
    if config.average_part == 0:
        schedule = partial(_cosine, length)
    stage = _cycles("sse", length * config.sse_cycles, schedule)
    return [replace(stage, average=config.average_part)]


def auto_plan(config: CycleConfig) -> AutoPlanner:
    """Return what decides, while it runs, how the budget is spent."""
    return AutoPlanner(
        config.epochs,
        final=config.final_factor,
        average=config.average_part,
        hold=config.hold,
        given_weights=getattr(config, "pretrained", None) is not None,
        loss=make_task(config.task, ()).plan,
    )


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
        lr=config.csgld_base_lr,
        momentum=0.0,
        description=description,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("single", "one network, conventional schedule", single_stages),
        Method("average", "one network, the mean of its tail", average_stages),
        Method("fge", "averages from a cyclic learning rate", fge_stages),
        Method("fge-paper", "snapshots of a cyclic learning rate, as published", fge_paper_stages),
        Method("sse", "averages or snapshots of descents from the start", sse_stages),
        Method(
            "swa",
            "the weights of FGE's snapshots, averaged, as published",
            fge_paper_stages,
            combine="weights",
        ),
        Method("csgld", "samples of cyclical Langevin dynamics", csgld_stages, recipe=csgld_recipe),
        Method(
            "ema",
            "the exponential average of the weights",
            ema_stages,
            ema_decay=operator.attrgetter("ema_decay"),
        ),
        Method("star", "branches from one trunk", star_stages),
        Method("split", "several networks in one budget", split_stages, one_path=False),
        Method("auto", "decides while it runs", auto_plan, one_path=False),
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
    if not re.fullmatch(r"\w[\w.+ -]*", method.name):
        raise UserError(
            f"{name} has the name {method.name!r}; use letters, digits, spaces and . _ + - alone, "
            "since it names rows and folders"
        )
    taken = _OTHER_ROWS if method.combine == "weights" else (*_OTHER_ROWS, "swa")
    if method.name in taken or method.name != without_views(method.name):
        raise UserError(
            f"{name} has the name {method.name!r}, which is another row of its report; rename it"
        )
    return method


def _whole(name: str, config: CycleConfig) -> Stage:
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
    factors = [group.get(FACTOR, 1.0) for group in optimizer.param_groups]
    return TriangularLR(
        optimizer,
        max_lr=[config.cycle_lrs.max_lr * factor for factor in factors],
        min_lr=[config.cycle_lrs.min_lr * factor for factor in factors],
        cycle_steps=config.cycle_length * steps_per_epoch,
    )


def _tail(name: str, first: int, last: int, config: CycleConfig, hold: float = 0.0) -> Stage:
    """Return a descent whose snapshot is the mean of its tail."""
    schedule = partial(linear_tail, last - first, config.final_factor, hold=hold)
    part = config.average_part
    return Stage(name, first, last, schedule, store="snapshots", keep="end", average=part)


def _restarts(
    length: int, final: float, optimizer: Optimizer, steps_per_epoch: int
) -> ClosedFormLR:
    return LinearRestartsLR(optimizer, cycle_steps=length * steps_per_epoch, final=final)


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
