"""The command line: ``python cli.py COMMAND [OPTIONS]``."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from fge.config import FGEConfig, PredictConfig, RunConfig
from fge.configfile import read_config
from fge.errors import DivergenceError, UserError, unknown

COMMANDS: dict[str, type] = {"fge": FGEConfig, "predict": PredictConfig}
OK, USER_ERROR, DIVERGED, INTERRUPTED = 0, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        return _fail(str(error), USER_ERROR)
    except DivergenceError as error:
        return _fail(str(error), DIVERGED)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", USER_ERROR)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return OK if arguments else USER_ERROR
    command, *rest = arguments
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if command == "fge":
        config = _with_config_file(command, COMMANDS[command], rest)
        from fge import run

        run.fge(config)
    else:
        config = _parse(command, COMMANDS[command], rest)
        from fge import run

        run.predict(config)
    return OK


def _overview() -> str:
    lines = ["usage: python cli.py COMMAND [OPTIONS]", ""]
    lines += [f"  {name:10}{(kind.__doc__ or '').strip()}" for name, kind in COMMANDS.items()]
    return "\n".join([*lines, "", "python cli.py COMMAND --help lists the options of a command."])


def _with_config_file(command: str, kind: type[RunConfig], arguments: list[str]) -> RunConfig:
    """Parse options over those of ``--config``, or of the run that ``--resume`` goes on with."""
    config = _parse(command, kind, arguments)
    source = config.config
    if config.resume and config.out is not None and (config.out / "config.json").is_file():
        source = config.out / "config.json"
    if source is None:
        return config
    base, _ = read_config(source, command, kind)
    config = _parse(command, kind, arguments, default=base)
    _check_import(config, source, arguments)
    return config


def _check_import(config: RunConfig, source: Path, arguments: list[str]) -> None:
    """Refuse to import a model factory that only a file names."""
    custom = ":" in config.model and not config.model.startswith("torchvision:")
    if custom and not any(re.match(r"--model(=|$)", argument) for argument in arguments):
        raise UserError(
            f"{source} names the model factory {config.model!r}, which is code to import; if you "
            f"trust it, add --model {config.model}"
        )


def _parse(command: str, kind: type, arguments: list[str], default: Any = None) -> Any:
    """Parse options with tyro; its boxed messages become one line."""
    _check_names(kind, arguments)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            extra = {} if default is None else {"default": default}
            return tyro.cli(kind, prog=f"python cli.py {command}", args=arguments, **extra)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise UserError(_one_line(errors.getvalue())) from None


def _check_names(kind: type, arguments: list[str]) -> None:
    """Name the nearest option for one that does not exist."""
    options = ["--help"]
    for name, annotation in kind.__dataclass_fields__.items():  # type: ignore[attr-defined]
        flag = f"--{name.replace('_', '-')}"
        options.append(flag)
        if annotation.type == "bool":
            options.append(f"--no-{flag[2:]}")
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name.startswith("--") and name not in options:
            raise unknown("option", argument.split("=")[0], options)


def _one_line(message: str) -> str:
    """Return the sentence at the head of a boxed message."""
    lines = [line.strip("│ ").strip() for line in message.splitlines() if line.startswith("│")]
    head = []
    for line in lines:
        if set(line) == {"─"}:
            break
        head.append(line)
    return " ".join(head) or " ".join(message.split())


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
