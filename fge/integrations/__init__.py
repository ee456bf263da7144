"""FGE inside the training loops of other libraries.

`fge.integrations.lightning` and `fge.integrations.transformers` each have an `FGECallback`. They
need the library that they are for; importing `fge` does not.
"""

import importlib
from types import ModuleType

from fge.integrations.callback import CycleCallback, Progress

__all__ = ["CycleCallback", "Progress"]

_LIBRARIES = ("lightning", "transformers")


def __getattr__(name: str) -> ModuleType:
    if name in _LIBRARIES:
        return importlib.import_module(f"fge.integrations.{name}")
    raise AttributeError(f"module 'fge.integrations' has no attribute {name!r}")
