"""The texts of ``--help``: the commands, and the options of a command in groups."""

from __future__ import annotations

import inspect
import shlex
import shutil
import textwrap
from collections.abc import Mapping

from fge.config import OptionHelp, Options, help_of, program

_WIDTH = 80
_INDENT, _COLUMN = 2, 26
"""The columns of the options and of their descriptions."""


def overview(commands: Mapping[str, type[Options]]) -> str:
    """Return the commands with the sentence that describes each."""
    called = shlex.join(program())
    lines = [f"usage: {called} COMMAND [OPTIONS]", ""]
    for name, kind in commands.items():
        lines += _entry(name, inspect.getdoc(kind) or "", column=18)
    return "\n".join([*lines, "", f"{called} COMMAND --help lists the options of a command."])


def help_text(command: str, kind: type[Options]) -> str:
    """Return the usage, the description and the options of a command, by group."""
    groups = help_of(kind)
    every = [option for options in groups.values() for option in options]
    needed = " ".join(option.flags for option in every if option.required)
    usage = f"usage: {shlex.join([*program(), command])} {needed}".rstrip()
    lines = [f"{usage} [OPTIONS]", ""]
    for paragraph in (inspect.getdoc(kind) or "").split("\n\n"):
        lines += [*textwrap.wrap(paragraph, _width()), ""]
    lines += ["Values in [brackets] are the defaults.", ""]
    for group, options in groups.items():
        lines.append(f"{group}:")
        for option in options:
            lines += _entry(option.flags, _with_default(option), column=_COLUMN)
        lines.append("")
    lines += _entry("-h, --help", "Show this help.", column=_COLUMN)
    return "\n".join(lines)


def _with_default(option: OptionHelp) -> str:
    return f"{option.text} [{option.default}]" if option.default else option.text


def _entry(name: str, text: str, *, column: int) -> list[str]:
    """Return a name and, from a column on, the first paragraph of a text."""
    head = " " * _INDENT + name
    width = max(_width() - column, 20)
    wrapper = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False)
    room = wrapper.wrap(text.split("\n\n")[0])
    lines = [" " * column + line for line in room]
    if len(head) + 2 > column or not lines:
        return [head, *lines]
    return [head.ljust(column) + room[0], *lines[1:]]


def _width() -> int:
    """Return the width of the text in columns: that of the terminal, at most 80."""
    return max(min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH), 40)
