"""Made-up cells whose means, intervals and rankings can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fge.compare import Cell, Comparison, Cost, compare_cells

IMAGES = 50
BINS = (np.zeros(15, np.int64), np.full(15, np.nan), np.full(15, np.nan))


def cell(
    method: str,
    seed: int,
    wrong: int,
    calibrated: float = 0.5,
    *,
    budget: int = 1,
    members: int = 1,
    epochs: float | None = None,
    **changes: Any,
) -> Cell:
    """A cell that is wrong on the first images, with one calibrated NLL for every image."""
    error = 100 * wrong / IMAGES
    figures = {"error": error, "nll": 2 * calibrated, "calibrated_nll": calibrated}
    used = 10.0 * budget if epochs is None else epochs
    made = Cell(
        method,
        budget,
        seed,
        Cost(used, 100, members, members, 4 * members),
        figures | {"calibrated_log_likelihood": -calibrated, "brier": 0.1, "ece": 0.01},
        [figures] * members,
        np.arange(IMAGES) < wrong,
        np.full(IMAGES, 2 * calibrated, np.float32),
        np.full(IMAGES, calibrated, np.float32),
        *BINS,
    )
    return replace(made, **changes)


def several(
    method: str, wrong: Sequence[int], calibrated: Sequence[float], **options: Any
) -> list[Cell]:
    return [
        cell(method, seed, w, c, **options)
        for seed, (w, c) in enumerate(zip(wrong, calibrated, strict=True))
    ]


def compared(*groups: list[Cell], **options: Any) -> Comparison:
    cells = [one for group in groups for one in group]
    return compare_cells(cells, **({"budget_epochs": 10} | options))


SINGLES = several("single", [10, 12, 11], [0.50, 0.52, 0.51])
FGES = several("fge", [8, 9, 9], [0.40, 0.43, 0.41], members=3)
CURVES = several("curve-ensemble", [9, 10, 8], [0.42, 0.41, 0.43], members=5, epochs=9)
