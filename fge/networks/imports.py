"""Importing the user's own models and methods, named as ``package.module:name``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from fge.errors import UserError


def import_named(name: str, what: str) -> Any:
    """Return what ``package.module:name`` names; modules of the working directory are found too.

    Args:
        name: of the module and of what is in it.
        what: it should be, for the error.

    Raises:
        UserError: the module cannot be imported, or holds nothing of that name.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs whatever the user wrote
        raise UserError(f"{what} {name!r} cannot be imported: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, behind its type."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
