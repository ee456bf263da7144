"""The two errors a user meets, how commands end for them, and "unknown name" messages."""

from __future__ import annotations

import difflib
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
