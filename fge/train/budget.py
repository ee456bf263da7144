"""How many epochs of a budget a method uses, and which options would make it use all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fge.config import CycleConfig, FGEConfig
from fge.errors import UserError
from fge.observer import counted, listed
from fge.train.methods import METHODS, Method

_OF_CYCLES = ("epochs", "start_epoch", "cycle_epochs")
_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("fge", "fge-paper", "swa"), _OF_CYCLES),
    "sse": ("epochs", "sse_cycles"),
    "csgld": ("epochs", "csgld_cycles"),
    "star": ("epochs", "star_branches"),
    "split": ("epochs", "split"),
}
"""The options on which it depends how much of the budget a method uses."""
_WHY: dict[str, Callable[[Any], str]] = {
    "sse": lambda c: _equal(c.sse_cycles, "cycle", c.epochs),
    "csgld": lambda c: _equal(c.csgld_cycles, "cycle", c.epochs),
    "split": lambda c: _equal(c.split, "network", c.epochs),
    "star": lambda c: (
        f"a trunk of {c.trunk_epochs} and "
        f"{_equal(c.star_branches, 'branch', c.epochs - c.trunk_epochs, 'branches')}"
    ),
}
_LEAST = {"epochs": 1, "start_epoch": 0}
"""The lowest value to propose; cycles, branches and networks are at least 2, to be an ensemble."""
_FARTHEST = 1000
"""How far from the present value others are tried."""


@dataclass(frozen=True)
class Unused:
    """A budget of which a method uses a part.

    ``asked`` and ``used`` are epochs; ``why`` says what they are spent on; ``remedies`` has values
    of options, each of which alone would make it use all.
    """

    method: str
    asked: int
    used: int
    why: str
    remedies: dict[str, list[int]] = field(default_factory=dict)

    def sentence(self) -> str:
        """Say what is used, and which options would use all."""
        text = f"{self.method} uses {self.used} of {counted(self.asked, 'epoch')}: {self.why}."
        ways = [f"{_flag(name)} {listed(v, 'or')}" for name, v in self.remedies.items()]
        return f"{text} Each of these would use all: {'; '.join(ways)}." if ways else text

    def facts(self) -> dict[str, Any]:
        """Return what ``report.json`` says."""
        remedies = {name: list(values) for name, values in self.remedies.items()}
        return {
            "method": self.method,
            "asked": self.asked,
            "used": self.used,
            "to_use_all": remedies,
        }


def unused_epochs(config: CycleConfig, method: Method, *, name: str | None = None) -> Unused | None:
    """Return what a method leaves of its budget, or None if it uses all.

    Args:
        config: the options of the command.
        method: one of ``METHODS``, or the user's own, for which there are no remedies.
        name: of the line whose runs are the method's, by default the method's.
    """
    used = _used(config, method)
    if used is None or used == config.epochs:
        return None
    own = METHODS.get(method.name) is not method
    why = _WHY.get(
        method.name, lambda _: f"the last minimum of the learning rate ends epoch {used}"
    )
    return Unused(
        name or method.name,
        config.epochs,
        used,
        "its stages end there" if own else why(config),
        {} if own else _remedies(config, method),
    )


def _used(config: CycleConfig, method: Method) -> int | None:
    """Return the epochs of a method's stages; None if a planner decides them."""
    if isinstance(config, FGEConfig):  # what it trains beside the method
        config = replace(config, single=False)
    stages = method.stages(config)  # type: ignore[arg-type]
    if not isinstance(stages, list):
        return None
    return sum(stage.last_epoch - stage.first_epoch for stage in stages)


def _remedies(config: CycleConfig, method: Method) -> dict[str, list[int]]:
    """Return for each option the nearest values, below and above, that use the whole budget."""

    def fits(option: str, value: int) -> bool:
        try:
            changed = replace(config, **{option: value})  # type: ignore[arg-type]
            return _used(changed, method) == changed.epochs
        except UserError:  # out of range
            return False

    found = {}
    for option in _OPTIONS[method.name]:
        sides = (
            next(filter(lambda v: fits(option, v), side), None) for side in _near(config, option)
        )
        values = [value for value in sides if value is not None]
        if values:
            found[option] = values
    return found


def _near(config: CycleConfig, option: str) -> tuple[Iterator[int], Iterator[int]]:
    """Return the values to try, from the present one down and up."""
    given = {"start_epoch": config.first_cycle_epoch, "cycle_epochs": config.cycle_length}
    value = given[option] if option in given else int(getattr(config, option))
    reach = {"epochs": value // 2, "start_epoch": config.cycle_length}.get(option, value)
    reach = min(reach, _FARTHEST)
    lowest = max(_LEAST.get(option, 2), value - reach)
    return iter(range(value - 1, lowest - 1, -1)), iter(range(value + 1, value + reach + 1))


def _equal(parts: int, noun: str, epochs: int, plural: str = "") -> str:
    return f"{counted(parts, noun, plural)} of {counted(epochs // parts, 'epoch')}"


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
