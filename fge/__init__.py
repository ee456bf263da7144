"""Cyclic-learning-rate ensembling: many models out of one training run.

The public names are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fge.cycle import FGE
    from fge.ensemble import Ensemble
    from fge.schedule import EndpointLR, TriangularLR
    from fge.snapshots import SnapshotStore

_HOMES = {
    "FGE": "fge.cycle",
    "Ensemble": "fge.ensemble",
    "EndpointLR": "fge.schedule",
    "TriangularLR": "fge.schedule",
    "SnapshotStore": "fge.snapshots",
}

__version__ = "0.1.0"
__all__ = ["FGE", "EndpointLR", "Ensemble", "SnapshotStore", "TriangularLR", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
