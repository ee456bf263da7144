"""Names for writing your own methods; the code is in ``fge.train``."""

from fge.train import (
    METHODS,
    Method,
    csgld_recipe,
    csgld_stages,
    ema_stages,
    fge_stages,
    find_method,
    single_stages,
    sse_stages,
)

__all__ = [
    "METHODS",
    "Method",
    "csgld_recipe",
    "csgld_stages",
    "ema_stages",
    "fge_stages",
    "find_method",
    "single_stages",
    "sse_stages",
]
