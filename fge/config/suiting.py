"""Options that suit a task and its data: others are refused, and defaults of images replaced."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from fge.config.base import CLASSIFICATION, OF_CLASSES, is_table
from fge.config.options import DataOptions
from fge.errors import UserError

_OF_IMAGES: dict[str, tuple[Any, ...]] = {
    "image_size": (None,),
    "tta": (None,),
    "labels": (None,),
    "skip_unreadable": (False,),
    "normalize": ("data",),
    "stream": ("auto", "off"),
    "crop_padding": (None, 0),
    "augment": ("crop-flip", "none"),
    "channels_last": ("auto", "off"),
}
"""Options of images, with the values that a table leaves alone."""
_OF_TABLES: dict[str, Any] = {
    "augment": "none",
    "crop_padding": 0,
    "stream": "off",
    "channels_last": "off",
}
"""What they are for a table."""
_ALWAYS_OFF = {"amp": "off", "compile": "off", "cuda_graphs": "off"}
"""Of small networks nothing is measured: the time to compile would not come back."""
_IMAGE_MODEL, _TABLE_MODEL = "convnet", "mlp"
C = TypeVar("C", bound=DataOptions)


def suited(config: C) -> C:
    """Return the options with the defaults that the task and the data need.

    Raises:
        UserError: a given option has no meaning for the task or for a table; the message names it
            and what to do.
    """
    if is_table(config.data):
        config = _suited_to_table(config)
    if config.task != CLASSIFICATION:
        config = _suited_to_task(config)
    return config


def _suited_to_table(config: C) -> C:
    if not config.target:
        raise UserError(f"the table {config.data} needs --target COLUMN, what is predicted")
    for name, plain in _OF_IMAGES.items():
        value = getattr(config, name, plain[0])
        if value not in plain:
            raise UserError(
                f"--{name.replace('_', '-')} is for images, and {config.data} is a table; leave it "
                "out"
            )
    config = _without_ood(config)
    names = {f.name for f in fields(config)}
    changes = {name: value for name, value in _OF_TABLES.items() if name in names}
    auto = [name for name in _ALWAYS_OFF if getattr(config, name, None) == "auto"]
    changes |= {name: _ALWAYS_OFF[name] for name in auto}
    if getattr(config, "model", None) == _IMAGE_MODEL:
        changes["model"] = _TABLE_MODEL
    return replace(config, **changes)


def _suited_to_task(config: C) -> C:
    task = config.task
    if vars(config).get("mixup"):
        raise _without("mixup", "it is for --task classification", task)
    if task in OF_CLASSES:
        return config
    for name, plain, why in (
        ("label_smoothing", 0.0, "it is for --task classification and binary"),
        ("class_weights", "none", "it is for --task classification and binary"),
    ):
        if vars(config).get(name, plain) != plain:
            raise _without(name, why, task)
    return config


def _without(name: str, why: str, task: str) -> UserError:
    option = name.replace("_", "-")
    return UserError(f"--{option} has no meaning for --task {task}: {why}; leave it out")


def _without_ood(config: C) -> C:
    """Return the options without OOD images that are there by default."""
    default = {f.name: f.default for f in fields(config)}.get("ood", ())
    given = getattr(config, "ood", ())
    if given not in ((), default):
        raise UserError(f"--ood is for images, and {config.data} is a table; leave it out")
    return replace(config, ood=()) if given else config  # type: ignore[call-arg]
