"""Errors that the user can fix, the exit codes of commands, and checks of options."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Integral

OK, USER_ERROR, DIVERGED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes of a command."""
BROKEN_PIPE = 141
"""Exit code when the reader of the output is gone, as of a program ended by SIGPIPE."""
_HEAD, _TAIL = 1400, 500
"""The longest beginning and end of a message that are shown."""
_LONGEST_NAME = 200
"""Characters of an unknown name that are compared with the known ones."""
_CLOSE = 0.75
"""How alike a name must be to be proposed, from 0 to 1 (``difflib``): one letter wrong in four."""
_MOST_KNOWN = 30
"""So many known names are listed; of more, the nearest ones."""
_ALIKE, _FEW = 0.5, 5


class UserError(ValueError):
    r"""An error that the user can fix; its message is one line with the value and the remedy.

    Values from files may be of any length and hold line ends: see :func:`one_line`.

    >>> str(UserError("no model 'a\nb'"))
    "no model 'a\\nb'"
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class DivergenceError(RuntimeError):
    """The training loss is not finite any more."""


def one_line(text: str) -> str:
    r"""Return a text as one line of at most 2,000 characters.

    What cannot be printed is escaped. What is longer keeps its beginning and its end.

    >>> print(one_line("a\nb.png"), len(one_line("x" * 10**7)) < 2000)
    a\nb.png True
    """
    shown = _printable(text if len(text) <= _HEAD + _TAIL else _cut(text))
    return shown if len(shown) <= _HEAD + _TAIL else _cut(shown)


def first_line(error: Exception) -> str:
    r"""Return the first line of another program's error, or the name of its kind.

    >>> first_line(KeyError()), first_line(ValueError("no rows\nhere"))
    ('KeyError', 'no rows')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST_NAME]


def _cut(text: str) -> str:
    return f"{text[:_HEAD]} [...] {text[-_TAIL:]}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def outcome(error: UserError | DivergenceError | OSError | MemoryError) -> tuple[int, str]:
    """Return a command's exit code and last line for an error."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return USER_ERROR, one_line(f"{error.strerror or error}{where}")
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return USER_ERROR, one_line(f"the memory of this computer is full{said}; use fewer images")
    return DIVERGED if isinstance(error, DivergenceError) else USER_ERROR, one_line(str(error))


def nearest(value: str, known: Iterable[str]) -> str | None:
    """Return the one of the known names that a misspelt one probably means, or None.

    Capitals, hyphens and underscores make no difference. A word of a name and its letters in
    another order are close too.

    >>> nearest("ResNet_18", ["resnet18", "resnet152"]), nearest("resnet18", ["preresnet164"])
    ('resnet18', None)
    >>> nearest("feg", ["train", "fge"]), nearest("loss", ["error", "train_loss"])
    ('fge', 'train_loss')
    """
    plain = _plain(value)
    names = {_plain(name): name for name in reversed(list(known))}
    near = difflib.get_close_matches(plain, names, n=1, cutoff=_CLOSE)
    if near or not plain:
        return names[near[0]] if near else None
    for key, name in reversed(names.items()):
        words = re.split("[-_]+", name.casefold())
        if sorted(key) == sorted(plain) or (len(plain) > 2 and value.casefold() in words):
            return name
    return None


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


def unknown(kind: str, value: str, known: Iterable[str], *, others: str = "") -> UserError:
    """Return the error for an unknown name; ``kind`` is what it should name, such as "model".

    ``others`` says what could be given besides the known names.
    """
    names = list(known)
    near = nearest(value[:_LONGEST_NAME], names)
    hint = f"known: {', '.join(names[:_MOST_KNOWN])}"
    if len(names) > _MOST_KNOWN:
        alike = difflib.get_close_matches(value[:_LONGEST_NAME], names, cutoff=_ALIKE)
        few = f"known: {', '.join(names[:_FEW])}, ..."
        hint = f"nearest of {len(names)}: {', '.join(alike)}" if alike else few
    hint += f", or {others}" if others else ""
    return UserError(f"unknown {kind} {value!r}; {f'did you mean {near!r}?' if near else hint}")


def missing_package(what: str, package: str, error: ImportError, *, extra: str = "") -> UserError:
    """Return the error for an optional package that cannot be imported, with what installs it.

    Args:
        what: needs it.
        package: its name for pip and for ``import``.
        error: of its import.
        extra: of this project that has it.
    """
    why = "which is not installed"
    itself = (error.name or package).split(".")[0] == package
    if not (isinstance(error, ModuleNotFoundError) and itself):  # or one that it needs is missing
        reason = str(error).strip().splitlines()
        why = f"which cannot be imported ({reason[0] if reason else 'ImportError'})"
    of_project = f", or in the checkout: pip install -e '.[{extra}]'" if extra else ""
    return UserError(
        f"{what} needs the package {package}, {why}: pip install {package}{of_project}"
    )


def no_run(path: object) -> UserError:
    """Return the error for a folder without a run to resume."""
    return UserError(f"no run to resume in {path}; start it without --resume")


def check_at_least(bound: int, **values: int | None) -> None:
    """Raise a UserError if an option is given and no whole number, or below ``bound``."""
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Integral):  # 3.0 neither, which no range takes
            raise UserError(f"{name} must be a whole number, got {value!r}")
        if value < bound:
            raise UserError(f"{name} must be >= {bound}, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise a UserError unless the options are finite and not negative."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and >= 0, got {value}{_finite(value)}")


def check_positive(**values: float | None) -> None:
    """Raise a UserError if an option is given and not finite and above 0."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be finite and above 0, got {value}{_finite(value)}")


def _finite(value: float) -> str:
    return "" if math.isfinite(value) else "; give a finite number"


def check_learning_rates(max_lr: float, min_lr: float) -> None:
    """Raise a UserError unless the learning rates are finite and 0 <= min_lr <= max_lr > 0."""
    check_not_negative(max_lr=max_lr, min_lr=min_lr)
    if max_lr == 0:
        raise UserError("max_lr must be above 0, got 0")
    if min_lr > max_lr:
        raise UserError(f"min_lr must not exceed max_lr, got min_lr {min_lr} > max_lr {max_lr}")
