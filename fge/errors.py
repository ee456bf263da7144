"""Errors that the user can fix, the exit codes of commands, and checks of options."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

OK, USER_ERROR, DIVERGED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes of a command."""
BROKEN_PIPE = 141
"""Exit code when the reader of the output is gone, as of a program ended by SIGPIPE."""


class UserError(ValueError):
    """An error that the user can fix; its message is one line with the value and the remedy."""


class DivergenceError(RuntimeError):
    """The training loss is not finite any more."""


def outcome(error: UserError | DivergenceError | OSError | MemoryError) -> tuple[int, str]:
    """Return a command's exit code and last line for an error."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return USER_ERROR, one_line(f"{error.strerror or error}{where}")
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return USER_ERROR, one_line(f"the memory of this computer is full{said}; use fewer images")
    return DIVERGED if isinstance(error, DivergenceError) else USER_ERROR, one_line(str(error))


def one_line(text: str) -> str:
    r"""Return a text with escapes for what cannot be printed; the name of a file may hold it.

    >>> print(one_line("a\nb.png"))
    a\nb.png
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name; ``kind`` is what it should name, such as "model"."""
    names = list(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {value!r}; {hint}")


def no_run(path: object) -> UserError:
    """Return the error for a folder without a run to resume."""
    return UserError(f"no run to resume in {path}; start it without --resume")


def check_at_least(bound: int, **values: int | None) -> None:
    """Raise a UserError if an option is given and below ``bound``."""
    for name, value in values.items():
        if value is not None and value < bound:
            raise UserError(f"{name} must be >= {bound}, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise a UserError unless the options are finite and not negative."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and >= 0, got {value}")


def check_positive(**values: float | None) -> None:
    """Raise a UserError if an option is given and not finite and above 0."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be finite and above 0, got {value}")


def check_learning_rates(max_lr: float, min_lr: float) -> None:
    """Raise a UserError unless the learning rates are finite and 0 <= min_lr <= max_lr > 0."""
    check_not_negative(max_lr=max_lr, min_lr=min_lr)
    if max_lr == 0:
        raise UserError("max_lr must be above 0, got 0")
    if min_lr > max_lr:
        raise UserError(f"min_lr must not exceed max_lr, got min_lr {min_lr} > max_lr {max_lr}")
