"""Configurations as ``config.json`` and back."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fge.config.base import (
    RunConfig,
    affects_result,
    as_stored,
    may_be_added,
    may_be_dropped,
    saved_fields,
)
from fge.errors import UserError, unknown
from fge.files import write_json

SCHEMA_VERSION = 1
C = TypeVar("C", bound=RunConfig)


def to_options(config: RunConfig) -> dict[str, Any]:
    """Return the options that a config file holds, as JSON values; paths are absolute."""
    return {name: as_stored(name, getattr(config, name)) for name in saved_fields(config)}


def from_options(kind: type[C], options: Mapping[str, Any], source: object) -> C:
    """Return the configuration that JSON options describe; ``source`` names them in errors.

    Raises:
        UserError: an unknown option, or a value of the wrong type or range.
    """
    hints = get_type_hints(kind)
    values = {}
    for name, value in options.items():
        if name not in saved_fields(kind):
            raise UserError(f"{source}: {unknown('option', name, saved_fields(kind))}")
        values[name] = _typed(hints[name], value, f"{source}: {name}")
    return kind(**values)


def write_config(path: Path, command: str, config: RunConfig, **facts: Any) -> None:
    """Write ``config.json``: the options, and facts about the run such as choices made."""
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "options": to_options(config),
            **facts,
        },
    )


def read_config(path: Path, command: str, kind: type[C]) -> tuple[C, dict[str, Any]]:
    """Return the configuration in a ``config.json``, and the whole file.

    Raises:
        UserError: no such file, not JSON, of another command or a later schema, or bad options.
    """
    if not path.is_file():
        raise UserError(f"no config file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        options = dict(content["options"])
        version = int(content.get("schema_version", SCHEMA_VERSION))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config file: {type(error).__name__} {error}") from None
    if version > SCHEMA_VERSION:
        raise UserError(f"{path} has schema_version {version}; this program reads up to 1")
    if content.get("command", command) != command:
        raise UserError(f"{path} is of the command {content['command']!r}, not {command!r}")
    return from_options(kind, options, path), content


def check_unchanged(saved: C, asked: C) -> None:
    """Check that options asked for at ``--resume`` are those that the run was begun with.

    ``auto`` and None, an option left open, agree with whatever it was settled to; so does another
    device of the same type; work that was left out may be added, and some dropped.

    Raises:
        UserError: naming the first option that differs and affects the result.
    """
    for name in saved_fields(saved):
        before, now = (as_stored(name, getattr(config, name)) for config in (saved, asked))
        if name == "device":
            before, now = (device.partition(":")[0] for device in (before, now))
        fixed = affects_result(saved, name) and not may_be_added(saved, name)
        fixed = fixed and not may_be_dropped(saved, name, now)
        if fixed and now not in (before, "auto", None):
            raise UserError(
                f"cannot resume with {name} {now}: the run was begun with {before}; "
                "drop the option, or give another --out"
            )


def keep_settled(saved: C, asked: C) -> C:
    """Return the saved configuration with this invocation's own options, and the work it adds.

    The device is this invocation's too, where one is named.
    """
    own = {
        name: getattr(asked, name)
        for name in vars(asked)
        if not affects_result(asked, name)
        or may_be_added(saved, name)
        or may_be_dropped(saved, name, getattr(asked, name))
    }
    if asked.device != "auto":
        own["device"] = asked.device
    return replace(saved, **own)


def _typed(hint: Any, value: Any, source: str) -> Any:
    """Return ``value`` as the annotated type, or say what it should have been."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _typed(next(a for a in get_args(hint) if a is not type(None)), value, source)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"{source} must be one of {', '.join(get_args(hint))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source} must be a list, got {value!r}")
        return tuple(_typed(get_args(hint)[0], part, source) for part in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{source} must be a {hint.__name__}, got {value!r}")
    return value
