"""The description of every option in ``--help`` and the reference, read from the dataclasses."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import types
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fge.config.options import GROUPS, Options

_METAVARS = {int: "INT", float: "FLOAT", str: "NAME", Path: "PATH"}


@dataclass(frozen=True)
class OptionHelp:
    """The description of an option.

    ``flags``: the option as it is typed, with a placeholder for its value; ``text``: one paragraph;
    ``default``: the default as it is typed, empty if there is none or the text gives it;
    ``required``: whether the option has no default.
    """

    name: str
    flags: str
    text: str
    default: str = ""
    required: bool = False


def help_of(kind: type[Options]) -> dict[str, list[OptionHelp]]:
    """Return the options of a command by group, the groups in the order of ``GROUPS``.

    Those that the command accepts and does not use are left out.
    """
    hints = get_type_hints(kind)
    found: dict[str, list[OptionHelp]] = {group: [] for group in GROUPS}
    for option in fields(kind):
        if option.name in kind.unused:
            continue
        found[_group(kind, option)].append(_described(kind, option, hints[option.name]))
    return {group: options for group, options in found.items() if options}


def _group(kind: type, option: Field[Any]) -> str:
    """Return the group of the class that first has the option."""
    owners = [c for c in kind.__mro__ if option.name in inspect.get_annotations(c)]
    return str(option.metadata.get("group") or getattr(owners[-1], "group", ""))


def _described(kind: type[Options], option: Field[Any], hint: Any) -> OptionHelp:
    required = option.default is MISSING
    text = next(t for c in kind.__mro__ if (t := _texts(c).get(option.name)))
    flags = _flags(option.name, hint, positional=required and kind.positional)
    if hint is bool and option.default is True:
        flags = f"{flags}, --no-{flags[2:]}"
    return OptionHelp(option.name, flags, text, _default(option.default), required)


def _flags(name: str, hint: Any, *, positional: bool) -> str:
    """Return an option as it is typed: ``--weights PATH ...``, or ``RUNS ...`` for a positional."""
    if positional:
        return f"{name.upper()} ..." if get_origin(hint) is tuple else name.upper()
    return " ".join(word for word in (f"--{name.replace('_', '-')}", _metavar(hint)) if word)


def _metavar(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        *words, last = (part for part in get_args(hint) if part is not type(None))
        return "|".join([word for part in words for word in get_args(part)] + [_metavar(last)])
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    if get_origin(hint) is tuple:
        return f"{_metavar(get_args(hint)[0])} ..."
    return _METAVARS.get(hint, "")


def _default(value: Any) -> str:
    if value is MISSING or value is None or value is False or value == ():
        return ""
    if value is True:
        return "on"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@functools.cache
def _texts(kind: type) -> dict[str, str]:
    """Return the texts below a class's own options, each as one line."""
    statements = _classes(kind.__module__).get(kind.__name__, [])
    texts = {}
    for option, text in itertools.pairwise(statements):
        if (
            isinstance(option, ast.AnnAssign)
            and isinstance(option.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[option.target.id] = " ".join(str(text.value.value).split())
    return texts


@functools.cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """Return the statements of each class of a module."""
    if not module.startswith("fge."):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
