"""The two errors a user meets, and the wording of "unknown name" messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message names the value and the remedy, in one line."""


class DivergenceError(RuntimeError):
    """The training loss stopped being finite."""


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
