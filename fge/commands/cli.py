"""The command line: ``fge COMMAND [OPTIONS]``."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from fge.commands.help import help_text, overview
from fge.config import (
    CommandConfig,
    CompareConfig,
    ConnectConfig,
    CurveEnsembleConfig,
    DoctorConfig,
    ExportConfig,
    FGEConfig,
    Options,
    PlaneConfig,
    PredictConfig,
    ReportConfig,
    SharpnessConfig,
    StudyConfig,
    TrainConfig,
    VerifyConfig,
    check_import,
    check_of_method,
    end_with_parent,
    options_of_run,
    preset_options,
    program,
    read_config,
)
from fge.errors import (
    BROKEN_PIPE,
    INTERRUPTED,
    OK,
    USER_ERROR,
    DivergenceError,
    UserError,
    nearest,
    outcome,
    unknown,
)
from fge.manifest import Manifest, damaged, name_program
from fge.observer import LastingOutput, listed, open_standard_streams, visible

T = TypeVar("T", bound=Options)
C = TypeVar("C", bound=CommandConfig)

COMMANDS: dict[str, tuple[type[Options], str, str]] = {
    "fge": (FGEConfig, "fge.commands.train", "fge"),
    "compare": (CompareConfig, "fge.commands.compare", "compare"),
    "train": (TrainConfig, "fge.commands.train", "train"),
    "curve-ensemble": (CurveEnsembleConfig, "fge.commands.curves", "curve_ensemble"),
    "connect": (ConnectConfig, "fge.commands.curves", "connect"),
    "plane": (PlaneConfig, "fge.commands.planes", "plane"),
    "sharpness": (SharpnessConfig, "fge.commands.sharpness", "sharpness"),
    "predict": (PredictConfig, "fge.commands.predict", "predict"),
    "export": (ExportConfig, "fge.commands.export", "export"),
    "report": (ReportConfig, "fge.commands.report", "report"),
    "verify": (VerifyConfig, "fge.commands.verify", "verify"),
    "doctor": (DoctorConfig, "fge.commands.doctor", "doctor"),
}
"""Options, module and function of each command."""
_BOUNDS = r"(?:>=|<=|in |from |finite|above|even|at most)"
_PYTHON_NAME = r"""(?<![\w\-./"'=:{(])[a-z]+(?:_[a-z]+)+(?![\w./"'=:(\[])"""
"""A name of several words that is no part of a path, a quotation or an expression."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code.

    If the output cannot be written any more, a run continues without it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name_program(program())
    open_standard_streams()
    end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may not be printable there
        sys.stdout.reconfigure(errors="backslashreplace")
    out, err = LastingOutput(sys.stdout), LastingOutput(sys.stderr)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(cast(TextIO, out)))
        stack.enter_context(contextlib.redirect_stderr(cast(TextIO, err)))
        try:
            code = _main(arguments, out)
        finally:
            out.flush()  # here, and not at the exit of the interpreter
        if out.failed and code != USER_ERROR:
            _say(f"note: standard output cannot be written: {out.failed}")
        err.flush()
    return code


def _main(arguments: list[str], out: LastingOutput) -> int:
    try:
        return _run(arguments, out)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (UserError, DivergenceError, OSError, MemoryError) as error:
        code, message = outcome(error)
        if isinstance(error, UserError):
            message = _as_typed(message, arguments[0])
        # In a data-parallel run only the first process prints; in compare each has its own error.
        if os.environ.get("RANK", "0") == "0" or arguments[:1] == ["compare"]:
            _say(f"error: {visible(message, one_line=True)}")
        return code


def _as_typed(message: str, command: str) -> str:
    """Return a message with the command's options as they are typed, not as Python names.

    One word alone may mean anything else, unless the message begins with its bounds. What a file
    holds is named as it is there.
    """
    if command not in COMMANDS or ".json" in message:
        return message
    kind = COMMANDS[command][0]
    names = {f.name for f in fields(kind) if not (kind.positional and f.default is MISSING)}

    def typed(found: re.Match[str]) -> str:
        return f"--{found[0].replace('_', '-')}" if found[0] in names else found[0]

    message = re.sub(rf"^[a-z]+(?= must be {_BOUNDS})", typed, message)
    return re.sub(_PYTHON_NAME, typed, message)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _show(text: str, out: LastingOutput) -> int:
    """Print a text that is all that was asked for; return the exit code.

    Raises:
        UserError: it cannot be written.
    """
    print(text, flush=True)
    if out.failed:
        raise UserError(f"standard output cannot be written: {out.failed}")
    return BROKEN_PIPE if out.error else OK


def _run(arguments: list[str], out: LastingOutput) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        code = _show(overview({name: kind for name, (kind, *_) in COMMANDS.items()}), out)
        return code if arguments else code or USER_ERROR
    command, *rest = arguments
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if {"-h", "--help"} & set(rest):
        return _show(help_text(command, COMMANDS[command][0]), out)
    call(command, rest)
    return OK


def call(command: str, rest: list[str]) -> None:
    """Run a command with its arguments; its errors are raised."""
    kind, module, function = COMMANDS[command]
    config: Any
    given = _without_unused(command, kind, _with_own_names(kind, rest))
    if issubclass(kind, CommandConfig):
        config = _with_config_file(command, kind, given)
    else:
        config = _parse(command, kind, given)
    if isinstance(config, FGEConfig | TrainConfig):
        check_of_method(config, _options_given(given))
    # This imports PyTorch, so it comes after all checks of the options.
    getattr(importlib.import_module(module), function)(config)


def _with_own_names(kind: type[Options], arguments: list[str]) -> list[str]:
    """Return the arguments with the names that options have in this command."""
    renamed = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = kind.also_called.get(flag.removeprefix("--")) if flag.startswith("--") else None
        renamed.append(argument if name is None else f"--{name}{equals}{value}")
    return renamed


def _without_unused(command: str, kind: type[Options], arguments: list[str]) -> list[str]:
    """Return the arguments without those options of other commands that this one ignores.

    Raises:
        UserError: a given option has another name in this command.
    """
    kept, unused = [], dict[str, str]()
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        known = flag.startswith("--") and (kind.unused.get(name) or kind.instead.get(name))
        if not known:
            kept.append(argument)
            continue
        if not equals:
            value = next(rest, "")
        if name in kind.instead:
            raise UserError(f"{flag} {value} is not used: {known}")
        unused[flag] = known
    for flag, reason in unused.items():
        print(f"note: {command} does not use {flag}: {reason}")
    return kept


def _with_config_file(command: str, kind: type[C], arguments: list[str]) -> C:
    """Parse options over those of ``--config``, of the run to ``--resume``, or of ``--run``."""
    source = _last_value(arguments, "--config")
    preset = _last_value(arguments, "--preset") if kind is FGEConfig else None
    if source is not None and preset is not None:
        raise UserError("give --preset or --config, not both")
    out = _last_value(arguments, "--out")
    studied = _last_value(arguments, "--run") if issubclass(kind, StudyConfig) else None
    if source is not None and studied is not None:
        raise UserError("give --run or --config, not both")
    resumes = "--resume" in arguments or (kind is CompareConfig and "--overwrite" not in arguments)
    if resumes and out is not None and (saved := Path(out) / "config.json").exists():
        if source is not None and Path(source).resolve() != saved.resolve():
            raise UserError(
                f"the run in {out} continues with its own options; leave out --config {source}"
            )
        source = str(saved)
    elif resumes and out is not None:
        _check_config(Path(out))
    if source is None and studied is None:
        base = None if preset is None else _with_preset(kind(), preset, arguments)
        return _parse(command, kind, arguments, default=base)
    if source is not None:
        base, _ = read_config(Path(source), command, kind)
    else:
        base, source = _of_run(kind, Path(str(studied)))
    if preset is not None:
        base = _with_preset(base, preset, arguments)
    merged = _parse(command, kind, arguments, default=base)
    _check_imports(merged, arguments, source)
    return merged


def _options_given(arguments: list[str]) -> list[str]:
    """Return the names of the options that stand on a command line, as those of fields."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    return [flag.removeprefix("--").replace("-", "_") for flag in flags]


def _check_config(out: Path) -> None:
    """Check that a run to resume, which has no config file, never had one.

    Raises:
        UserError: the manifest names it.
    """
    manifest = Manifest.read(out) if out.is_dir() else None
    if manifest is not None and "config.json" in manifest.files:
        fault = manifest.fault("config.json")
        if fault is not None:
            raise damaged(fault, manifest.root)


def _with_preset(base: C, preset: str, arguments: list[str]) -> C:
    """Return the options with those of a preset for the model that is asked for."""
    model = _last_value(arguments, "--model") or base.model
    options: dict[str, Any] = preset_options(preset, model)
    return replace(base, **options)


def _check_imports(config: CommandConfig, arguments: list[str], source: object) -> None:
    """Refuse the user's own code if only a file names it."""
    check_import(config.data, _last_value(arguments, "--data"), source, option="data")
    check_import(config.model, _last_value(arguments, "--model"), source)
    if isinstance(config, TrainConfig):
        check_import(config.method, _last_value(arguments, "--method"), source, option="method")
    for name in config.methods if isinstance(config, CompareConfig) else ():
        check_import(name, name if name in arguments else None, source, option="methods")


def _of_run(kind: type[C], folder: Path) -> tuple[C, str]:
    """Return options for studying a run, and the file that they come from."""
    assert issubclass(kind, StudyConfig)
    return options_of_run(kind, folder), str(folder / "config.json")


def _last_value(arguments: list[str], option: str) -> str | None:
    """Return the last value given to an option as ``--name VALUE`` or ``--name=VALUE``, or None."""
    value = None
    for position, argument in enumerate(arguments):
        if argument == option:
            value = arguments[position + 1] if position + 1 < len(arguments) else None
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value


def _parse(command: str, kind: type[T], arguments: list[str], default: T | None = None) -> T:
    """Parse options with tyro; its boxed messages become one line."""
    import tyro

    _check_names(kind, arguments)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), _unwrapped(arguments):
            extra: dict[str, Any] = {} if default is None else {"default": default}
            extra |= {"config": (tyro.conf.PositionalRequiredArgs,)} if kind.positional else {}
            return cast(T, tyro.cli(kind, prog=command, args=arguments, **extra))
    except SystemExit:
        raise UserError(_one_line(errors.getvalue())) from None


@contextlib.contextmanager
def _unwrapped(arguments: list[str]) -> Iterator[None]:
    """Have tyro write its errors into lines of any length: others break paths. Help is wrapped."""
    before = os.environ.get("COLUMNS")
    if not {"--help", "-h"} & set(arguments):
        os.environ["COLUMNS"] = "1000000"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _check_names(kind: type[Options], arguments: list[str]) -> None:
    """Name the nearest option for one that does not exist."""
    options, bare = ["--help"], dict[str, str]()
    for option in fields(kind):
        flag = f"--{option.name.replace('_', '-')}"
        if kind.positional and option.default is MISSING:
            bare[flag] = option.name.upper()
            continue
        options.append(flag)
        if option.type == "bool":
            options.append(f"--no-{flag[2:]}")
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name in bare:
            raise UserError(f"{bare[name]} is given without a flag; leave out {name}")
        if name.startswith("--") and name not in options:
            raise unknown("option", argument.split("=")[0], options)


def _one_line(message: str) -> str:
    """Return the first sentence in a box of tyro's, drawn with lines or in ASCII."""
    lines = [line.strip("│|+╭╮╰╯ ") for line in message.splitlines()]
    untitled = itertools.dropwhile(_is_rule, lines[1:])
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), untitled))
    text = re.sub(r"^Error parsing \w*Config: ", "", text)
    for pattern, words in _PLAIN_WORDS:
        text = re.sub(pattern, words, text)
    missing = re.match(r"Missing from (\S+): (.*)", text)
    if missing:
        names = re.findall(r"(?:^|\(required\) )(--[\w-]+|[A-Z]+)", missing[2])
        return f"{missing[1]} needs {listed(names)}"
    return _with_nearest(text)


_PLAIN_WORDS = [
    (
        r"^Error parsing (\S+): .*\bint\(\) with base 10: ('.*')$",
        r"\1 needs a whole number, got \2",
    ),
    (r"^Error parsing (\S+): .*\bINT could be .* \[(.*)\]\.$", r"\1 needs a whole number, got \2"),
    (r"^Error parsing (\S+): .* string to float: ('.*')$", r"\1 needs a number, got \2"),
    (r"^Error parsing (\S+): .*\bFLOAT could be .* \[(.*)\]\.$", r"\1 needs a number, got \2"),
    (r"^Error parsing (\S+): .*valid parse .*\[(.*)\]$", r"\1 needs whole numbers, got \2"),
    (r"^Missing value for argument '(.*)'\. Expected .*", r"\1 needs a value"),
    (r"^Unrecognized options: (.*)$", r"'\1' belongs to no option; leave it out"),
]
"""Messages of tyro, and what is said instead."""


def _with_nearest(text: str) -> str:
    """Add the nearest choice to a message about an invalid choice."""
    match = re.match(r"invalid choice '(.*)' for .* Expected one of \((.*)\)\.$", text)
    near = match and nearest(match[1], re.findall(r"'(.*?)'", match[2]))
    return f"{text} Did you mean {near!r}?" if near else text


def _is_rule(line: str) -> bool:
    return re.fullmatch(r"[─-]*", line) is not None
