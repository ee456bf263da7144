"""The command line as it was called: what to print where a command is to be given again."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fge.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIM = _PACKAGE.parent / "cli.py"


def program(launcher: Sequence[str] = ("python",), *, seen_from: Path | None = None) -> list[str]:
    """Return the words that start this program, as they were given.

    They are ``python cli.py``, ``fge`` or ``python -m fge``. Where the program runs inside another
    one, such as a test, they are those of the checkout, and without a checkout ``fge``.

    Args:
        launcher: what starts Python, such as ``torchrun`` with its options.
        seen_from: the folder from which the path to ``cli.py`` is told; as it was given by default.
    """
    called = Path(sys.argv[0] if sys.argv and sys.argv[0] else "-c")
    module = called.name == "__main__.py" and called.resolve().parent == _PACKAGE
    if not module and called.stem != "fge" and _in_checkout():
        shown = str(called) if called.name == _SHIM.name else _SHIM.name
        if seen_from is not None:
            shown = os.path.relpath(_SHIM, seen_from.resolve())
        return [*launcher, shown]
    return [*launcher, "-m", "fge"] if module or tuple(launcher) != ("python",) else ["fge"]


def _in_checkout() -> bool:
    """Say whether the package lies beside its ``cli.py``, and not among installed packages."""
    return _SHIM.is_file() and (_SHIM.parent / "pyproject.toml").is_file()


def is_factory(model: str) -> bool:
    """Say whether the name is that of a user's own ``package.module:factory``."""
    return ":" in model and not model.startswith("torchvision:")


def check_import(name: str, given: str | None, source: object, *, option: str = "model") -> None:
    """Refuse to import a factory that only a file names, since importing runs code.

    Args:
        name: of a model or method in the file.
        given: the name on the command line, if any.
        source: the file.
        option: that gives it again: model, method or methods.

    Raises:
        UserError: ``name`` is the user's own code, and not what is given.
    """
    if is_factory(name) and given != name:
        what = "model factory" if option == "model" else "method"
        raise UserError(
            f"{source} names the {what} {name!r}, which is code to import; if you trust "
            f"it, add --{option} {name}"
        )


def own_code(options: Mapping[str, Any]) -> list[str]:
    """Return the arguments that give again the user's own model and methods among options.

    >>> own_code({"model": "convnet", "methods": ["fge", "my_methods:mine"]})
    ['--methods', 'fge', 'my_methods:mine']
    """
    words = []
    for name in ("model", "method", "methods"):
        value = options.get(name) or ()
        given = [value] if isinstance(value, str) else [str(part) for part in value]
        if any(is_factory(part) for part in given):
            words += [f"--{name}", *given]
    return words
