"""How much of an ensemble's gain one distilled network keeps, on the task S of ``pays.py``.

    python benchmarks/distilled_share.py [--work runs/pays] [--epochs 25]

Copies the finished ``auto`` runs of S, distils the ensemble of each into one network for so many
further epochs (``train --resume --distill-epochs``), and compares single network, ensemble and
distilled network on all test images. The share is (single - distilled) / (single - ensemble), of
means over seeds. Finished copies are not trained again. The raw figures are in
``benchmarks/results/distilled_share.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fge import metrics
from fge.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "distilled_share.json"
CELLS = HERE / "results" / "pays" / "S" / "cells"
FIGURES = ("error", "nll", "calibrated_nll")


def distil(run: Path, copy: Path, epochs: int) -> dict[str, float]:
    """Distil a copy of a run, unless that is done; return the figures of the network."""
    if not copy.exists():
        shutil.copytree(run, copy)
    options = ["--resume", "--distill-epochs", str(epochs)]
    subprocess.run([sys.executable, "-m", "fge", "train", "--out", str(copy), *options], check=True)
    with np.load(copy / "predictions" / "test.npz") as stored:
        names = stored["members"].tolist()
        (position,) = (k for k, name in enumerate(names) if name.startswith("distilled"))
        probs, labels = stored["probabilities"][position].astype(float), stored["targets"]
    calibrated = -metrics.calibrated_log_likelihood(probs, labels)
    values = (metrics.error(probs, labels), metrics.nll(probs, labels), calibrated)
    return dict(zip(FIGURES, values, strict=True))


def of_cell(method: str, seed: int) -> dict[str, float]:
    """Return the figures of a method of S."""
    cell = json.loads((CELLS / f"{method}-b1-s{seed}.json").read_text(encoding="utf-8"))
    return {name: cell["figures"][name] for name in FIGURES}


def main() -> None:
    """Distil the runs that are there, and print means and shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pays"))
    parser.add_argument("--epochs", type=int, default=25)
    arguments = parser.parse_args()
    seeds: list[dict[str, Any]] = []
    for run in sorted((arguments.work / "S" / "runs").glob("auto-*")):
        seed = int(run.name.rpartition("-s")[2])
        found = distil(run, arguments.work / "distilled" / run.name, arguments.epochs)
        methods = {name: of_cell(name, seed) for name in ("single", "auto")}
        seeds.append({"seed": seed, **methods, "distilled": found})
    write_json(RESULTS, {"distill_epochs": arguments.epochs, "seeds": seeds})
    for figure in FIGURES:
        single, auto, distilled = (
            np.array([entry[name][figure] for entry in seeds])
            for name in ("single", "auto", "distilled")
        )
        share = (single - distilled).mean() / (single - auto).mean()
        three = (single, auto, distilled)
        means = ", ".join(f"{v.mean():.4f} ± {v.std(ddof=1):.4f}" for v in three)
        print(f"{figure}: single, auto, distilled {means}; share {share:.2f}")


if __name__ == "__main__":
    main()
