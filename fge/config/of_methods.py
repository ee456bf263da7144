"""Which options belong to some methods alone, so that none is ignored without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from fge.config.training import METHOD_NAMES, FGEConfig, TrainConfig
from fge.errors import UserError
from fge.observer import listed

_CYCLES = ("fge", "fge-paper", "swa")
_AVERAGED = ("average", "fge", "sse", "star", "split", "auto")
OF_METHODS: dict[str, tuple[str, ...]] = {
    "start_epoch": _CYCLES,
    "cycle_epochs": _CYCLES,
    "max_lr": _CYCLES,
    "min_lr": _CYCLES,
    "average": _AVERAGED,
    "final_factor": (*_AVERAGED, "fge-paper", "swa"),
    "hold": ("average", "auto"),
    "star_trunk": ("star",),
    "star_branches": ("star",),
    "split": ("split",),
    "sse_cycles": ("sse",),
    "csgld_cycles": ("csgld",),
    "csgld_samples": ("csgld",),
    "csgld_lr": ("csgld",),
    "csgld_temperature": ("csgld",),
    "csgld_noise_scale": ("csgld",),
    "ema_decay": ("ema",),
}
"""The options that some methods alone use, each with them."""
_INSTEAD = {
    ("sse", "cycle_epochs"): "--sse-cycles sets how many it has",
    ("csgld", "cycle_epochs"): "--csgld-cycles sets how many it has",
    ("csgld", "max_lr"): "--csgld-lr is its rate",
    ("auto", "cycle_epochs"): "it decides by itself how long a descent is",
    ("star", "start_epoch"): "--star-trunk sets where its branches begin",
}


def check_of_method(config: FGEConfig | TrainConfig, given: Iterable[str]) -> None:
    """Check that a method uses the options that were given for it, by their names as fields.

    Raises:
        UserError: it ignores one.
    """
    if isinstance(config, FGEConfig):
        chosen, method = "--plan auto", "auto"
        if config.plan != "auto":
            return
    else:
        chosen, method = f"--method {config.method}", config.method
        if method not in METHOD_NAMES:  # the user's own may use any
            return
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in given:
        if name not in OF_METHODS:
            continue
        methods = OF_METHODS[name]
        as_published = name == "average" and not values[name] and method in _CYCLES
        nothing = values[name] is None or (name == "hold" and not values[name])
        if method in methods or as_published or nothing:
            continue
        flag = f"--{name.replace('_', '-')} {values[name]}"
        whose = f"it is for --method {listed(methods, 'or')}; leave it out"
        raise UserError(f"{flag} is not used by {chosen}: {_INSTEAD.get((method, name), whose)}")
