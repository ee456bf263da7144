"""Coverage of conformal sets and rejection: what is stated, and what test images measure.

    python benchmarks/uncertainty.py run [--seeds 5] [--epochs 100] [--work runs/uncertainty]
    python benchmarks/uncertainty.py table

The default job (Fashion-MNIST, 9,000 training images, crops and flips) by the methods of
``METHODS`` at one budget. Thresholds for a stated coverage of 90 % are from the 1,000 validation
images, by each score of ``SCORES``; coverage, mean size of the sets and AURC are measured on all
5,000 test images. Predictions come from finished runs in ``--work`` (folders ``METHOD-SEED`` of
``train``), whoever trained them with these options; what is missing is trained, and an interrupted
training goes on. One thread, float32; about three minutes for each training of 100 epochs. Results:
``benchmarks/results/uncertainty.json``; other budgets than 100 epochs need ``--results``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from fge import metrics
from fge.commands.train import train
from fge.config import TrainConfig
from fge.ensemble import PredictionFile
from fge.files import write_json
from fge.report import PREDICTIONS, VALIDATION, environment_facts

RESULTS = Path(__file__).parent / "results" / "uncertainty.json"
EPOCHS = 100
PLAIN: dict[str, Any] = {"threads": 1, "channels_last": "on", "compile": "off", "amp": "off"}
METHODS = ("single", "average", "fge", "split")
SCORES = get_args(metrics.Score)
COVERAGE = 0.9
COMMAND = "python benchmarks/uncertainty.py run"


def finished(work: Path, method: str, seed: int, epochs: int) -> Path:
    """Return the folder of a finished run, after training what is missing."""
    out = work / f"{method}-{seed}"
    options: dict[str, Any] = {**PLAIN, "method": method, "seed": seed, "epochs": epochs}
    if not (out / "report.json").is_file():
        train(TrainConfig(out=out, resume=(out / "config.json").is_file(), **options))
    kept = json.loads((out / "config.json").read_text())["options"]
    if other := {k: kept[k] for k in ("method", "seed", "epochs") if kept[k] != options[k]}:
        raise SystemExit(f"{out} is a run with {other}; give another --work")
    return out


def measured(out: Path, method: str, seed: int) -> dict[str, Any]:
    """Return the figures of the last line of a run, from its kept predictions."""
    report = json.loads((out / "report.json").read_text())
    line = [line for line in report["methods"] if line["name"] == method][-1]
    test, val = (PredictionFile.stored(out / name) for name in (PREDICTIONS, VALIDATION))
    members = line["member_names"]
    probs, calibration = test.mean(members).numpy(), val.mean(members).numpy()
    found: dict[str, Any] = {
        "seed": seed,
        "members": line["members"],
        "error": line["error"],
        "aurc": metrics.aurc(probs, test.targets),
        "val": len(val.targets),
        "test": len(test.targets),
    }
    for score in SCORES:
        fit = metrics.fit_conformal(
            calibration, val.targets, coverage=COVERAGE, score=score, seed=seed
        )
        sets = metrics.conformal_sets(probs, fit, seed=seed)
        found[score] = metrics.set_coverage(sets, test.targets)._asdict()
    return found


def run(arguments: argparse.Namespace) -> None:
    """Measure every method and seed; the results are written after each."""
    if arguments.epochs != EPOCHS and arguments.results == RESULTS:
        raise SystemExit(f"{RESULTS} is for {EPOCHS} epochs; give --results FILE for others")
    content: dict[str, Any] = {
        "command": COMMAND,
        "epochs": arguments.epochs,
        "coverage": COVERAGE,
        "environment": environment_facts(torch.device("cpu"), PLAIN["threads"]),
        "methods": {method: [] for method in METHODS},
    }
    began = time.perf_counter()
    for seed in range(arguments.seeds):
        for method in METHODS:
            out = finished(arguments.work, method, seed, arguments.epochs)
            content["methods"][method].append(measured(out, method, seed))
            content["seconds"] = round(time.perf_counter() - began)
            write_json(arguments.results, content)
    table(arguments)


def table(arguments: argparse.Namespace) -> None:
    """Print the table for the docs: means and standard deviations over seeds."""
    content = json.loads(arguments.results.read_text())
    lines = {method: found for method, found in content["methods"].items() if found}
    stated = f"{100 * content['coverage']:g} %"
    heads = [f"{score}: coverage %, size" for score in SCORES]
    print(f"Stated {stated}; {content['epochs']} epochs")
    print(f"| method | seeds | passes | error % | AURC | {' | '.join(heads)} |")
    print(f"| :-- | {' | '.join(['--:'] * (4 + len(heads)))} |")
    for method, found in lines.items():
        cells = [f"`{method}`", str(len(found)), f"{found[-1]['members']}"]
        cells.append(spread([seed["error"] for seed in found], 2))
        cells.append(spread([seed["aurc"] for seed in found], 4))
        for score in SCORES:
            covered = spread([100 * seed[score]["coverage"] for seed in found], 2)
            cells.append(f"{covered}, {np.mean([seed[score]['size'] for seed in found]):.3f}")
        print(f"| {' | '.join(cells)} |")
    first = next(iter(lines.values()))[0]
    low, high = metrics.coverage_range(content["coverage"], first["val"], first["test"])
    print(f"One run in 20 is outside {100 * low:.1f} to {100 * high:.1f} % by chance alone.")


def spread(values: list[float], digits: int) -> str:
    """Return mean and standard deviation as text."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--work", type=Path, default=Path("runs/uncertainty"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    run(arguments) if arguments.part == "run" else table(arguments)


if __name__ == "__main__":
    main()
