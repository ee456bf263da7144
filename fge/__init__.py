"""Cyclic-learning-rate ensembling: many models from one training run.

Public names are loaded when they are first used, so importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fge import export, integrations, methods, metrics
    from fge.checks import check
    from fge.curves import (
        Bezier,
        Chain,
        Curve,
        OriginPath,
        PolyChain,
        evaluate_curve,
        fit_curve,
        summarise_curve,
    )
    from fge.ensemble import FGE, Deployed, Ensemble, Fold, Normalise, SnapshotStore, fold
    from fge.landscape import (
        HessianOperator,
        Plane,
        PlaneGrid,
        evaluate_line,
        evaluate_plane,
        spectral_density,
        top_eigenvalues,
        trace,
    )
    from fge.metrics import paired_difference
    from fge.networks import (
        ExponentialAverage,
        TailAverage,
        average_weights,
        refresh_batch_norm,
    )
    from fge.train import EndpointLR, LinearTailLR, Method, TriangularLR

__version__ = "0.1.0"
__all__ = [
    "FGE",
    "Bezier",
    "Chain",
    "Curve",
    "Deployed",
    "EndpointLR",
    "Ensemble",
    "ExponentialAverage",
    "Fold",
    "HessianOperator",
    "LinearTailLR",
    "Method",
    "Normalise",
    "OriginPath",
    "Plane",
    "PlaneGrid",
    "PolyChain",
    "SnapshotStore",
    "TailAverage",
    "TriangularLR",
    "__version__",
    "average_weights",
    "check",
    "evaluate_curve",
    "evaluate_line",
    "evaluate_plane",
    "export",
    "fit_curve",
    "fold",
    "integrations",
    "methods",
    "metrics",
    "paired_difference",
    "refresh_batch_norm",
    "spectral_density",
    "summarise_curve",
    "top_eigenvalues",
    "trace",
]

_MODULES = ("export", "integrations", "methods", "metrics")
_FACES = ("metrics", "networks", "train", "ensemble", "curves", "landscape", "checks")
"""The packages that these names come from, in the order of their imports."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fge.{name}")
    if name in __all__:
        for package in _FACES:
            face = importlib.import_module(f"fge.{package}")
            if name in face.__all__:
                return getattr(face, name)
    raise AttributeError(f"module 'fge' has no attribute {name!r}")


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__")}
    return sorted({*own, *__all__})
