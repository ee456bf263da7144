"""How the program was started: the command line, for messages that repeat it, and by whom."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fge.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIM = _PACKAGE.parent / "cli.py"
PARENT_PIPE = "FGE_PARENT_PIPE"
"""In the environment of a process that another one started: the end to read of a pipe that only
that one can write to."""
_GRACE_SECONDS = 10
_LOADER = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
LIBRARIES = ("torchvision:", "timm:")
"""What begins the names of models that are another library's, not the user's own."""


def program(launcher: Sequence[str] = ("python",), *, seen_from: Path | None = None) -> list[str]:
    """Return the words that start this program, as the user gave them.

    They are ``python cli.py``, ``fge`` or ``python -m fge``. If the program runs inside another
    one, such as a test, they are those of the checkout, or ``fge`` without a checkout.

    Args:
        launcher: the command that starts Python, such as ``torchrun`` with its options.
        seen_from: the folder to which the path to ``cli.py`` is relative; by default the path is as
            the user gave it.
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
    """Return whether the package is in a checkout, next to ``cli.py``, and not installed."""
    return _SHIM.is_file() and (_SHIM.parent / "pyproject.toml").is_file()


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that ends.

    Then ``PARENT_PIPE`` is at its end. What is left over is as after Ctrl-C, or after a kill if the
    process takes longer. Nothing happens where no pipe is named.
    """
    named = os.environ.pop(PARENT_PIPE, "")
    try:
        pipe = int(named)
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return
    except (ValueError, OSError):  # none is named, or it was inherited by another process
        return

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def is_factory(model: str) -> bool:
    """Return whether the name is a user's own ``package.module:factory``."""
    return ":" in model and not model.startswith(LIBRARIES)


def is_loader(data: str) -> bool:
    """Return whether the name of data is a user's own ``package.module:load``.

    >>> is_loader("my_data:load"), is_loader("photos"), is_loader("D:/photos")
    (True, False, False)
    """
    return re.fullmatch(_LOADER, data) is not None and not os.path.exists(data)


def check_import(name: str, given: str | None, source: object, *, option: str = "model") -> None:
    """Refuse to import a factory that only a file names, since importing runs code.

    Args:
        name: of a model or method in the file.
        given: the name on the command line, if any.
        source: the file.
        option: the option that gives the name: data, model, method or methods.

    Raises:
        UserError: ``name`` is the user's own code and differs from ``given``.
    """
    own = is_loader(name) if option == "data" else is_factory(name)
    if own and given != name:
        what = {"data": "data set", "model": "model factory"}.get(option, "method")
        raise UserError(
            f"{source} names the {what} {name!r}, which is code to import; if you trust "
            f"it, add --{option} {name}"
        )


def own_code(options: Mapping[str, Any]) -> list[str]:
    """Return arguments that repeat those of the options that name the user's own code.

    >>> own_code({"model": "convnet", "methods": ["fge", "my_methods:mine"]})
    ['--methods', 'fge', 'my_methods:mine']
    """
    data = str(options.get("data") or "")
    words = ["--data", data] if is_loader(data) else []
    for name in ("model", "method", "methods"):
        value = options.get(name) or ()
        given = [value] if isinstance(value, str) else [str(part) for part in value]
        if any(is_factory(part) for part in given):
            words += [f"--{name}", *given]
    return words
