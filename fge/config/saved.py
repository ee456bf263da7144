"""The JSON files of a run: writing and reading ``config.json``, reading ``report.json``."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fge.config.base import affects_result, as_stored, may_be_added, may_be_dropped, saved_fields
from fge.config.curves import ConnectConfig, CurveEnsembleConfig
from fge.config.options import CommandConfig
from fge.config.studies import StudyConfig
from fge.config.training import FGEConfig, TrainConfig
from fge.errors import UserError, unknown
from fge.files import RESTORE, checked, read_json, write_json

RUN_KINDS: dict[str, type[CommandConfig]] = {
    "fge": FGEConfig,
    "train": TrainConfig,
    "curve-ensemble": CurveEnsembleConfig,
    "connect": ConnectConfig,
}
"""Commands whose runs other commands can study, with their options."""
_OWN = {"device", "threads", "compile", "amp", "cuda_graphs"}
"""Options that depend on the machine, so they are not taken from a studied run."""
_STUDIED = {"weights"}
"""What is studied: the files that a connect run connects are not those of a command with --run."""
_OF_DATA = (
    *("data", "train_size", "test_size", "val_fraction"),
    *("image_size", "stream", "skip_unreadable", "labels", "task", "target"),
)
RUN_COMMANDS = (*RUN_KINDS, "compare", "plane", "sharpness")
"""Commands whose runs can be resumed."""
KEEP_SNAPSHOTS = ("fge", "train")
"""Commands whose runs keep snapshots; the other runs keep networks and curves."""
CONFIG_VERSION = 3
"""``schema_version`` of config files."""
REPORT_VERSION = 1
"""``schema_version`` of reports."""
_IN_VERSION: dict[int, dict[str, Any]] = {
    1: {"average": 0.0, "first": "G", "second": "G"},
    2: {"hold": 0.0},
}
"""What runs did by default, up to a version of their files, when there was no option for it yet, or
its default was another."""
C = TypeVar("C", bound=CommandConfig)
S = TypeVar("S", bound=StudyConfig)
T = TypeVar("T")
_WRITTEN_AGAIN = "restore it from a copy, or resume the run with --resume, which writes it again"


def to_options(config: CommandConfig) -> dict[str, Any]:
    """Return the options that a config file holds, as JSON values; paths are absolute."""
    return {name: as_stored(name, getattr(config, name)) for name in saved_fields(config)}


def from_options(kind: type[C], options: Mapping[str, Any], source: object) -> C:
    """Return the configuration that JSON options describe; ``source`` names them in errors.

    Options that the command accepts but does not use are skipped.

    Raises:
        UserError: an unknown option, or a value of the wrong type or range.
    """
    hints = get_type_hints(kind)
    values = {}
    for name, value in options.items():
        if name not in saved_fields(kind):
            if name in {*kind.unused, *kind.instead}:
                continue
            raise UserError(f"{source}: {unknown('option', name, saved_fields(kind))}")
        values[name] = _typed(hints[name], value, f"{source}: {name}")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def write_config(path: Path, command: str, config: CommandConfig, **facts: Any) -> None:
    """Write ``config.json``: the options, and facts about the run such as choices made."""
    write_json(
        path,
        {
            "schema_version": CONFIG_VERSION,
            "command": command,
            "options": to_options(config),
            **facts,
        },
    )


def read_config(path: Path, command: str, kind: type[C]) -> tuple[C, dict[str, Any]]:
    """Return the configuration in a ``config.json``, and the whole file.

    Raises:
        UserError: there is no such file, it is not JSON, it is of another command or a later
            schema, or its options are invalid.
    """
    content = _read_content(path)
    if content.get("command", command) != command:
        raise UserError(
            f"{path} belongs to the command {content['command']!r}, not {command!r}; give a file "
            "of that command"
        )
    options = _options(content, path, kind)
    return from_options(kind, options, path), content


def check_unchanged(saved: C, asked: C) -> None:
    """Check that the options given with ``--resume`` are those that the run was started with.

    ``auto`` and None agree with every saved value, and so does another device of the same type.
    Additional work may be added, and some work may be dropped.

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
                f"cannot resume with {name} {now}: the run was started with {before}; "
                "drop the option, or give another --out"
            )


def keep_settled(saved: C, asked: C) -> C:
    """Return the saved configuration with the options of this invocation, and the work it adds.

    The device is that of this invocation too, if it names one.
    """
    changed = {
        name: getattr(asked, name)
        for name in vars(asked)
        if not affects_result(asked, name)
        or may_be_added(saved, name)
        or may_be_dropped(saved, name, getattr(asked, name))
    }
    if asked.device != "auto":
        changed["device"] = asked.device
    return replace(saved, **changed)


def command_of(path: Path) -> str | None:
    """Return the command of a ``config.json`` that :func:`write_config` wrote, else None."""
    if not path.is_file():
        return None
    try:
        content = _read_content(path)
    except (UserError, OSError):
        return None
    command = content.get("command")
    ours = isinstance(command, str) and isinstance(content.get("options"), dict)
    return command if ours else None


def read_run(folder: Path) -> tuple[str, CommandConfig, dict[str, Any]]:
    """Return the command of a run, its options and its whole ``config.json``.

    Raises:
        UserError: the folder is not a run of a command that keeps networks.
    """
    file = folder / "config.json"
    if not file.exists():
        raise UserError(
            f"{folder} is not a run folder (no config.json); "
            "give the folder of an fge, train, curve-ensemble or connect run"
        )
    content = _read_content(file)
    if "command" not in content:
        raise UserError(f"{file} is not a config file: it names no command; {RESTORE}")
    command: str = content["command"]
    if command not in RUN_KINDS:
        raise UserError(
            f"{folder} is a run of {command!r}; give one of fge, train, curve-ensemble or connect"
        )
    kind = RUN_KINDS[command]
    return command, from_options(kind, _options(content, file, kind), file), content


def options_of_run(kind: type[S], folder: Path) -> S:
    """Return options for studying a run: data, model and all other common options are the run's.

    Raises:
        UserError: as :func:`read_run`.
    """
    _, options, _ = read_run(folder)
    given = saved_fields(options)
    shared = [n for n in saved_fields(kind) if n in given and n not in _OWN | _STUDIED]
    found = {name: getattr(options, name) for name in shared}
    if "weight_decay" in found:
        found["weight_decay"] = getattr(options, "l2_penalty", found["weight_decay"])
    return kind(run=folder, **found)


def check_same_images(config: StudyConfig, fingerprint: str) -> None:
    """Check that the images are those of the run, unless options ask for others.

    Args:
        config: with a run or without one.
        fingerprint: of the images.

    Raises:
        UserError: the options are those of the run, but the images are not.
    """
    if config.run is None:
        return
    _, options, content = read_run(config.run)
    known = (content.get("dataset") or {}).get("sha256")
    asked = all(
        as_stored(name, getattr(config, name)) == as_stored(name, getattr(options, name))
        for name in _OF_DATA
    )
    if asked and known not in (None, fingerprint):
        raise UserError(f"the data of {config.data} are not those of the run {config.run}")


def read_report(path: Path, kind: type[T], *, damaged: str = "is damaged") -> T:
    """Return the content of a ``report.json`` or a ``page.json``.

    Args:
        path: of the file.
        kind: a ``TypedDict`` of the keys that are used.
        damaged: the words for a damaged file in the error.

    Raises:
        UserError: the file is damaged, or has another schema.
    """
    content = read_json(path, dict[str, Any], damaged=damaged, remedy=_WRITTEN_AGAIN)
    version = content.get("schema_version", REPORT_VERSION)
    if version != REPORT_VERSION:
        raise UserError(
            f"{path} has schema_version {version!r}; this program reads {REPORT_VERSION}"
        )
    return checked(content, kind, f"{path} {damaged}", _WRITTEN_AGAIN)


def _read_content(path: Path) -> dict[str, Any]:
    """Return the content of a ``config.json``; its options are unchecked."""
    from fge.config.contents import ConfigFile

    return dict(read_json(path, ConfigFile, what="config file", damaged="is not a config file"))


def _options(content: dict[str, Any], path: Path, kind: type[CommandConfig]) -> dict[str, Any]:
    """Return the options among the content of a ``config.json``, if this program can read it.

    Options that an older file lacks are what runs did then.
    """
    if "options" not in content:
        raise UserError(f"{path} is not a config file: it has no options; {RESTORE}")
    options, version = dict(content["options"]), content.get("schema_version", CONFIG_VERSION)
    if version > CONFIG_VERSION:
        raise UserError(
            f"{path} has schema_version {version}; this program reads up to {CONFIG_VERSION}"
        )
    known = saved_fields(kind)
    for last, defaults in _IN_VERSION.items():
        if version <= last:
            options = {**{n: v for n, v in defaults.items() if n in known}, **options}
    if options.get("compile", "auto") != "auto":
        options.setdefault("cuda_graphs", "off")  # the run is older than the option
    if options.get("device", "auto") != "auto" and "stream" in saved_fields(kind):
        options.setdefault("stream", "off")  # the run is older than the option
    return options


def _typed(hint: Any, value: Any, source: str) -> Any:
    """Return ``value`` as the annotated type, or raise a UserError that names the type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        kinds = [a for a in get_args(hint) if a is not type(None)]
        words = [word for kind in kinds[:-1] for word in get_args(kind)]
        return value if value in words else _typed(kinds[-1], value, source)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"{source} must be one of {', '.join(get_args(hint))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source} must be a list, got {value!r}")
        return tuple(_typed(get_args(hint)[0], part, source) for part in value)
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{source} must not hold a null character, got {value!r}")
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{source} must be a {hint.__name__}, got {value!r}")
    return value
