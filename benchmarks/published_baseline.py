"""Ship the five-seed results of the two-network baseline with the package.

    python benchmarks/published_baseline.py [--results benchmarks/results/published_baseline]
        [--environment REPORT]

Reads the cells of ``curve-ensemble`` at a budget of 1 from a comparison's folder, and writes mean,
standard deviation, seeds, cost and settings to ``fge/report/published_baseline.json``. Reports of
``fge`` on the same job show them as published. Run it again when there are newer cells.

Hardware and versions are those of ``--environment``, a ``report.json`` of one of the runs behind
the cells, or else ``environment`` in the folder's ``config.json``. Where neither has them, they are
left out, and reports say so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fge.compare import Cell, load_cells
from fge.config import CompareConfig, read_config, to_options
from fge.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "published_baseline"
OUT = ROOT / "fge" / "report" / "published_baseline.json"
METHOD = "curve-ensemble"
FIGURES = ("error", "nll", "calibrated_nll", "brier", "ece")
OPTIONS = (
    *("data", "model", "train_size", "test_size", "val_fraction", "crop_padding", "flip"),
    *("epochs", "batch_size", "lr", "momentum", "weight_decay"),
)
"""What a run must have in common with the comparison."""
ENVIRONMENT = ("hardware", "device", "threads", "cpu_count", "platform", "python", "torch")


def figures(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation (of a sample) over the seeds of each figure."""
    found = {name: np.array([cell.figures[name] for cell in cells]) for name in FIGURES}
    return {
        name: {"mean": float(values.mean()), "deviation": float(values.std(ddof=1))}
        for name, values in found.items()
    }


def published(folder: Path, report: Path | None = None) -> dict[str, Any]:
    """Return what the package ships of a comparison's folder.

    Raises:
        ValueError: the folder has fewer than two seeds of the method, or they differ in cost.
    """
    every = load_cells(folder / "cells")
    cells = [cell for cell in every if (cell.method, cell.budget) == (METHOD, 1)]
    costs = [asdict(cell.cost) for cell in cells]
    if len(cells) < 2 or any(cost != costs[0] for cost in costs):
        raise ValueError(f"{folder} must have cells of 2 or more seeds of {METHOD} at one cost")
    config, content = read_config(folder / "config.json", "compare", CompareConfig)
    options = to_options(config)
    known = content.get("environment", {})
    if report is not None:
        known = json.loads(report.read_text(encoding="utf-8"))["environment"]
    shared = ("train_epochs", "members", "forward_passes", "weight_bytes")
    return {
        "method": METHOD,
        "recipe": "average" if config.average_part > 0 else "endpoint",
        "seeds": [cell.seed for cell in cells],
        "figures": figures(cells),
        "cost": {name: costs[0][name] for name in shared},
        "options": {name: options[name] for name in OPTIONS},
        "images_sha256": content["dataset"]["sha256"],
        "precision": options["amp"],
        "environment": {
            "device": options["device"],
            **{name: known[name] for name in ENVIRONMENT if name in known},
        },
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--environment", type=Path)
    given = parser.parse_args()
    write_json(OUT, published(given.results, given.environment))
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
