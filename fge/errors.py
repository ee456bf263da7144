"""What a user can mend: the errors, how commands end for them, and checks of options."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

OK, USER_ERROR, DIVERGED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes of a command."""
BROKEN_PIPE = 141
"""Exit code where nobody reads the output any more: that of a program which SIGPIPE ends."""


class UserError(ValueError):
    """Something the user can mend: the message names the value and the remedy, in one line."""


class DivergenceError(RuntimeError):
    """The training loss stopped being finite."""


def outcome(error: UserError | DivergenceError | OSError) -> tuple[int, str]:
    """Return the exit code and the line with which a command ends for an error."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return USER_ERROR, f"{error.strerror or error}{where}"
    return DIVERGED if isinstance(error, DivergenceError) else USER_ERROR, str(error)


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not registered, with the nearest one that is.

    Args:
        kind: what the name should have named, e.g. ``"model"``.
        value: the name as given.
        known: the names that exist.
    """
    names = list(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {value!r}; {hint}")


def check_at_least(bound: int, **values: int | None) -> None:
    """Check that options, where given, are no less than ``bound``.

    Raises:
        UserError: naming the option and its value.
    """
    for name, value in values.items():
        if value is not None and value < bound:
            raise UserError(f"{name} must be >= {bound}, got {value}")


def check_not_negative(**values: float) -> None:
    """Check that options are finite and not below 0.

    Raises:
        UserError: naming the option and its value.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and >= 0, got {value}")


def check_positive(**values: float | None) -> None:
    """Check that options, where given, are finite and above 0.

    Raises:
        UserError: naming the option and its value.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be finite and above 0, got {value}")


def check_learning_rates(max_lr: float, min_lr: float) -> None:
    """Check the two ends of a cycle.

    Raises:
        UserError: one is negative or not finite, or they are in the wrong order.
    """
    check_not_negative(max_lr=max_lr, min_lr=min_lr)
    if max_lr == 0:
        raise UserError("max_lr must be above 0, got 0")
    if min_lr > max_lr:
        raise UserError(f"min_lr must not exceed max_lr, got min_lr {min_lr} > max_lr {max_lr}")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "snapshot"), counted(1200, "parameter")
    ('1 snapshot', '1,200 parameters')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
