"""Planes and lines through weight space, and the Hessian."""

from fge.landscape.agreement import Agreement
from fge.landscape.grid import PlaneGrid, evaluate_line, evaluate_plane
from fge.landscape.hessian import CHUNK, HessianOperator, measuring
from fge.landscape.line import Line
from fge.landscape.plane import Bounds, Plane
from fge.landscape.probe import PROBE_IMAGES, SharpnessProbe
from fge.landscape.sharpness import spectral_density, stability_threshold, top_eigenvalues, trace

__all__ = [
    "CHUNK",
    "PROBE_IMAGES",
    "Agreement",
    "Bounds",
    "HessianOperator",
    "Line",
    "Plane",
    "PlaneGrid",
    "SharpnessProbe",
    "evaluate_line",
    "evaluate_plane",
    "measuring",
    "spectral_density",
    "stability_threshold",
    "top_eigenvalues",
    "trace",
]
