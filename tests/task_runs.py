"""Small tables with targets of every task: what the test files of tasks share."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 120
NAMES = {
    "regression": ["y", "z"],
    "multilabel": ["up", "wide"],
    "binary": ["kind"],
    "classification": ["size"],
}
"""The columns of targets."""


def rows() -> dict[str, list[Any]]:
    """Columns of a table: three of features, one of which has gaps, and targets of each task."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, COUNT))
    colour = draw.choice(["red", "blue"], COUNT)
    return {
        "a": a.tolist(),
        "b": ["" if k % 9 == 0 else x for k, x in enumerate(b)],
        "colour": colour.tolist(),
        "y": (100 + 20 * a + draw.normal(size=COUNT)).tolist(),
        "z": (a - b).tolist(),
        "up": (a > 0).astype(int).tolist(),
        "wide": (b > 0.3).astype(int).tolist(),
        "kind": np.where(a > 0.2, "new", "old").tolist(),
        "size": np.array(["s", "m", "l"])[np.digitize(a, [-0.5, 0.5])].tolist(),
    }


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


def write_tables(folder: Path) -> Path:
    """Write a table for each task, TASK.csv, into a folder; return it."""
    columns = rows()
    for task, names in NAMES.items():
        kept = {key: columns[key] for key in ("a", "b", "colour", *names)}
        write(folder / f"{task}.csv", kept)
    return folder
