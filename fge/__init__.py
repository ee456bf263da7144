"""Cyclic-learning-rate ensembling: many models out of one training run.

The public names are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fge.curves.curve import Chain, Curve
    from fge.curves.evaluate import evaluate_curve, summarise_curve
    from fge.curves.families import Bezier, PolyChain
    from fge.curves.fit import fit_curve
    from fge.curves.origin import OriginPath
    from fge.ensemble.cycle import FGE
    from fge.ensemble.ensemble import Ensemble
    from fge.ensemble.folding import Fold, fold
    from fge.ensemble.snapshots import SnapshotStore
    from fge.landscape.grid import PlaneGrid, evaluate_line, evaluate_plane
    from fge.landscape.hessian import HessianOperator
    from fge.landscape.plane import Plane
    from fge.landscape.sharpness import spectral_density, top_eigenvalues, trace
    from fge.metrics.intervals import paired_difference
    from fge.networks.average import ExponentialAverage, average_weights
    from fge.networks.batchnorm import refresh_batch_norm
    from fge.train.schedules import EndpointLR, TriangularLR

_HOMES = {
    "Bezier": "fge.curves.families",
    "Chain": "fge.curves.curve",
    "Curve": "fge.curves.curve",
    "EndpointLR": "fge.train.schedules",
    "Ensemble": "fge.ensemble.ensemble",
    "ExponentialAverage": "fge.networks.average",
    "FGE": "fge.ensemble.cycle",
    "Fold": "fge.ensemble.folding",
    "HessianOperator": "fge.landscape.hessian",
    "OriginPath": "fge.curves.origin",
    "Plane": "fge.landscape.plane",
    "PlaneGrid": "fge.landscape.grid",
    "PolyChain": "fge.curves.families",
    "SnapshotStore": "fge.ensemble.snapshots",
    "TriangularLR": "fge.train.schedules",
    "average_weights": "fge.networks.average",
    "evaluate_curve": "fge.curves.evaluate",
    "evaluate_line": "fge.landscape.grid",
    "evaluate_plane": "fge.landscape.grid",
    "fit_curve": "fge.curves.fit",
    "fold": "fge.ensemble.folding",
    "paired_difference": "fge.metrics.intervals",
    "refresh_batch_norm": "fge.networks.batchnorm",
    "spectral_density": "fge.landscape.sharpness",
    "summarise_curve": "fge.curves.evaluate",
    "top_eigenvalues": "fge.landscape.sharpness",
    "trace": "fge.landscape.sharpness",
}

__version__ = "0.1.0"
__all__ = [
    "FGE",
    "Bezier",
    "Chain",
    "Curve",
    "EndpointLR",
    "Ensemble",
    "ExponentialAverage",
    "Fold",
    "HessianOperator",
    "OriginPath",
    "Plane",
    "PlaneGrid",
    "PolyChain",
    "SnapshotStore",
    "TriangularLR",
    "__version__",
    "average_weights",
    "evaluate_curve",
    "evaluate_line",
    "evaluate_plane",
    "fit_curve",
    "fold",
    "paired_difference",
    "refresh_batch_norm",
    "spectral_density",
    "summarise_curve",
    "top_eigenvalues",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
