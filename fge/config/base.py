"""Common parts of the options of all commands: marks, defaults and checks."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from fge.errors import UserError, check_at_least

Switch = Literal["auto", "on", "off"]
Precision = Literal["auto", "off", "bf16", "fp16"]
CacheUse = Literal["on", "off", "refresh"]
TaskName = Literal["classification", "binary", "multilabel", "regression"]
CLASSIFICATION: Final = "classification"
OF_CLASSES = (CLASSIFICATION, "binary")
"""Tasks whose targets are exclusive classes."""
TABLES = (".csv", ".parquet")
"""What ends the names of tables."""
DATA_NAMES = ("fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100")
"""Data sets known by name, read by ``fge.data.splits``."""
OOD_NAMES = ("noise", "digits")
"""Images out of the distribution of any data, made by ``fge.data.ood``."""
REFRESH_IMAGES = 5120
"""Training images for batch-norm statistics: enough for a network's error to 0.1 points."""
_NAMES_OR_PATHS = ("data", "ood")
HOW_TO_RUN = {"affects_result": False}
"""Marks an option that changes how a run works, but not its results."""
MAY_BE_ADDED = {"may_be_added": True}
"""Marks an option for additional work, which can be given when a finished run is resumed."""
MAY_BE_DROPPED = {"may_be_dropped": True}
"""Marks an option whose value 0 skips some work when an interrupted run is resumed."""
BOUNDS = "bounds"
"""The mark of an option that is a whole number: its smallest and its largest value."""
VIEWS_SUFFIX = "+tta"
"""Ends the names of lines with test-time augmentation in reports."""
THIS_INVOCATION = {"affects_result": False, "saved": False}
"""Marks an option of one invocation, which is not saved in config files."""


def whole(low: int | None, high: int, **marks: Any) -> dict[str, Any]:
    """Return the marks of an option that is a whole number from ``low`` to ``high``, or several.

    Without ``low`` the option's own class says what is too small.

    The largest value is far above any use. Beyond it a typing error would fill the memory, or keep
    the machine busy for years, before anything was said.
    """
    return {BOUNDS: (low, high), **marks}


IMAGES, BATCH = whole(1, 10**9), whole(1, 10**7)
EPOCHS, EPOCHS_OR_NONE = whole(1, 10**6), whole(0, 10**6)
EPOCH = whole(None, 10**6)
POINTS = whole(2, 10**5)
SEED = whole(0, 2**128)


def check_bounds(options: Any) -> None:
    """Raise a UserError if an option that is a whole number is out of its bounds.

    Options that are not given are not checked; of several numbers each is.
    """
    for option in fields(options):
        if BOUNDS not in option.metadata:
            continue
        low, high = option.metadata[BOUNDS]
        value = getattr(options, option.name)
        for number in value if isinstance(value, tuple) else (value,):
            if low is not None:
                check_at_least(low, **{option.name: number})
            if number is not None and number > high:
                raise UserError(
                    f"{option.name} must be <= {high}, got {number}; give a smaller number"
                )


@dataclass(frozen=True)
class Rates:
    """Learning rates that suit a model: conventional, and the two ends of a cycle."""

    lr: float
    max_lr: float
    min_lr: float


_RATES = {
    "convnet": Rates(0.2, 0.05, 0.001),  # benchmarks/search_default_job.py
    # This and the next two: the reference implementation of arXiv 1802.10026.
    "vgg16": Rates(0.05, 0.01, 0.01),
    "preresnet": Rates(0.1, 0.05, 0.01),
    "wrn28-10": Rates(0.1, 0.05, 0.01),
}
_OF_REGRESSION = 0.25
_USUAL_RATES = Rates(0.05, 0.05, 0.0005)
_ADAPTIVE_RATES = Rates(1e-3, 5e-4, 5e-5)
"""Of AdamW and Adam, whose steps hardly depend on the size of the gradient: their usual rate
(arXiv 1412.6980), and cycles between a half and a twentieth of it."""


def rates_of(model: str, optimizer: str = "sgd", task: TaskName = CLASSIFICATION) -> Rates:
    """Return the learning rates used for a model, an optimizer and a task by default.

    Those of a regression are a quarter: the gradient of a squared error grows with the residual.
    """
    if optimizer != "sgd":
        return _ADAPTIVE_RATES
    known = _RATES.items() if _is_built_in(model) else ()
    rates = next((rates for name, rates in known if model.startswith(name)), _USUAL_RATES)
    if task != "regression":
        return rates
    return Rates(*(_OF_REGRESSION * rate for rate in (rates.lr, rates.max_lr, rates.min_lr)))


def curve_rate_of(model: str, task: TaskName = CLASSIFICATION) -> float:
    """Return the default learning rate of a curve fit; that of a regression is a quarter.

    0.1 for ``convnet``: it reached a lower training loss on the default data than 0.03. For VGG-16
    0.015, and for all other models 0.03: the reference implementation of arXiv 1802.10026 has these
    rates for VGG-16 and for residual networks.
    """
    rates = {"convnet": 0.1, "vgg16": 0.015} if _is_built_in(model) else {}
    rate = next((rate for name, rate in rates.items() if model.startswith(name)), 0.03)
    return _OF_REGRESSION * rate if task == "regression" else rate


def _is_built_in(model: str) -> bool:
    return ":" not in model  # models of other libraries and the user's own have a colon


def as_stored(name: str, value: Any) -> Any:
    """Return an option's value as a JSON value for a config file; paths become absolute.

    So a path has the same meaning in any folder. ``data`` and ``ood`` are paths unless they are the
    name of known data.
    """
    if isinstance(value, tuple):
        return [as_stored(name, part) for part in value]
    named = name in _NAMES_OR_PATHS and isinstance(value, str) and _is_path(value)
    return os.path.abspath(value) if named or isinstance(value, Path) else value


def _is_path(value: str) -> bool:
    if value in (*DATA_NAMES, *OOD_NAMES):
        return False
    return (
        "/" in value or value.lower().endswith((".npz", ".tar", *TABLES)) or os.path.exists(value)
    )


def is_table(data: str) -> bool:
    """Return whether data are a table by their name, in capitals or not.

    >>> is_table("houses.csv"), is_table("HOUSES.CSV"), is_table("fashion-mnist")
    (True, True, False)
    """
    return data.lower().endswith(TABLES)


def without_views(method: str) -> str:
    """Return the name of a method without the suffix of test-time augmentation.

    >>> without_views("average+tta"), without_views("fge")
    ('average', 'fge')
    """
    return method.removesuffix(VIEWS_SUFFIX)


def saved_fields(config: Any) -> list[str]:
    """Return the names of the saved options of a dataclass or an instance."""
    return [f.name for f in fields(config) if f.metadata.get("saved", True)]


def affects_result(config: Any, name: str) -> bool:
    """Return whether the option may change the results of a run."""
    return any(f.name == name and f.metadata.get("affects_result", True) for f in fields(config))


def may_be_added(config: Any, name: str) -> bool:
    """Return whether the option was left out of a run, but can still be added."""
    option = next(f for f in fields(config) if f.name == name)
    left_out = getattr(config, name) == option.default
    return bool(option.metadata.get("may_be_added", False)) and left_out


def may_be_dropped(config: Any, name: str, value: object) -> bool:
    """Return whether the value is a 0 that skips work which a resumed run need not do."""
    option = next(f for f in fields(config) if f.name == name)
    return bool(option.metadata.get("may_be_dropped", False)) and value == 0
