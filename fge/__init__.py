"""Cyclic-learning-rate ensembling: many models out of one training run.

The public names are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fge.average import ExponentialAverage, average_weights
    from fge.batchnorm import refresh_batch_norm
    from fge.bootstrap import paired_difference
    from fge.connect import fit_curve
    from fge.curve import Bezier, Chain, Curve, PolyChain
    from fge.curve_evaluation import evaluate_curve, summarise_curve
    from fge.cycle import FGE
    from fge.ensemble import Ensemble
    from fge.folding import Fold, fold
    from fge.hessian import HessianOperator
    from fge.landscape import Plane, PlaneGrid, evaluate_line, evaluate_plane
    from fge.origin_path import OriginPath
    from fge.schedule import EndpointLR, TriangularLR
    from fge.sharpness import top_eigenvalues, trace
    from fge.snapshots import SnapshotStore
    from fge.spectrum import spectral_density

_HOMES = {
    "Bezier": "fge.curve",
    "Chain": "fge.curve",
    "Curve": "fge.curve",
    "EndpointLR": "fge.schedule",
    "Ensemble": "fge.ensemble",
    "ExponentialAverage": "fge.average",
    "FGE": "fge.cycle",
    "Fold": "fge.folding",
    "HessianOperator": "fge.hessian",
    "OriginPath": "fge.origin_path",
    "Plane": "fge.landscape",
    "PlaneGrid": "fge.landscape",
    "PolyChain": "fge.curve",
    "SnapshotStore": "fge.snapshots",
    "TriangularLR": "fge.schedule",
    "average_weights": "fge.average",
    "evaluate_curve": "fge.curve_evaluation",
    "evaluate_line": "fge.landscape",
    "evaluate_plane": "fge.landscape",
    "fit_curve": "fge.connect",
    "fold": "fge.folding",
    "paired_difference": "fge.bootstrap",
    "refresh_batch_norm": "fge.batchnorm",
    "spectral_density": "fge.spectrum",
    "summarise_curve": "fge.curve_evaluation",
    "top_eigenvalues": "fge.sharpness",
    "trace": "fge.sharpness",
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
