"""The gain of the default job: mean and spread over seeds, on the test set.

    python benchmarks/default_job.py [--seeds 0 1 2] [--average 0] [--out RUNS_FOLDER]

Runs ``python cli.py fge --single`` once per seed, one after the other, and compares the ensemble
with its last snapshot and with the single networks of the same budget, conventional and averaged:
means, standard deviations, and the mean paired difference with its 95 % interval (Student's t over
seeds). The claim to check: the ensemble's mean test error and NLL are both below those of the
others. Wall times are those of the whole command without ``--single``'s extra networks, start-up
included. Finished runs are not run again; raw results are in
``benchmarks/results/default_job.json``. With ``--average 0`` the members are last
weights, as published: ``benchmarks/results/default_job_paper.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scipy import stats

from fge.files import write_json

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"
METRICS = ("error", "nll", "brier", "ece")


def run_seed(seed: int, out: Path, options: list[str]) -> dict[str, Any]:
    """Run the job of a seed unless its report exists; return its methods and wall time."""
    folder = out / f"seed-{seed}"
    seconds = None
    if not (folder / "report.json").exists():
        arguments = ["fge", "--single", "--seed", str(seed), "--out", str(folder), *options]
        if folder.exists():
            arguments.append("--resume")
        started = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], check=True)
        resumed = "--resume" in arguments  # its time is that of a part
        seconds = None if resumed else time.perf_counter() - started
    report = json.loads((folder / "report.json").read_text())
    return {
        "seed": seed,
        "methods": report["methods"],
        "config": report["config"],
        "environment": report["environment"],
        "seconds": None if seconds is None else round(seconds - single_seconds(folder), 1),
    }


def single_seconds(folder: Path) -> float:
    """Return the training time of the single networks."""
    records = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    stages = ("single", "average")
    return sum(float(r["seconds"]) for r in records if r.get("stage") in stages)


def figures(results: list[dict[str, Any]], key: tuple[str, int], metric: str) -> list[float]:
    """Return a metric of a method over the seeds."""
    return [
        next(m[metric] for m in r["methods"] if (m["name"], m["members"]) == key) for r in results
    ]


def deviation(values: list[float]) -> float:
    """Return the standard deviation, NaN of one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the mean paired difference and the half-width of its 95 % interval."""
    if len(differences) < 2:
        return statistics.mean(differences), math.nan
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), float(stats.t.ppf(0.975, len(differences) - 1)) * spread


def print_results(results: list[dict[str, Any]]) -> None:
    """Print the table as Markdown, and whether the claim holds."""
    keys = list(dict.fromkeys((m["name"], m["members"]) for m in results[0]["methods"]))
    print("| method | members | epochs | error % | NLL | Brier | ECE |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    for key in keys:
        epochs = figures(results, key, "train_epochs")[0]
        cells = []
        for metric in METRICS:
            values = figures(results, key, metric)
            digits = 2 if metric == "error" else 4
            mean, spread = statistics.mean(values), deviation(values)
            cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
        print(f"| {key[0]} | {key[1]} | {epochs} | {' | '.join(cells)} |")
    ensemble = [key for key in keys if key[0] == "fge"][-1]
    others = [("last-snapshot", 1), ("single", 1), ("average", 1)]
    for other in (key for key in others if key in keys):
        for metric in ("error", "nll"):
            ours, theirs = (figures(results, key, metric) for key in (ensemble, other))
            mean, half = interval([a - b for a, b in zip(ours, theirs, strict=True)])
            verdict = "holds" if mean < 0 else "does NOT hold"
            wins = sum(a < b for a, b in zip(ours, theirs, strict=True))
            print(
                f"{ensemble[0]} ({ensemble[1]}) - {other[0]}: {metric} {mean:+.4f} ± {half:.4f} "
                f"(95 %), lower in {wins} of {len(ours)} seeds: the claim {verdict}"
            )
    times = [r["seconds"] for r in results if r["seconds"] is not None]
    if times:
        print(f"wall time of the default job: {min(times):.0f} to {max(times):.0f} s")


def main() -> None:
    """Run the seeds, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--average", type=int, choices=(0,))
    parser.add_argument("--out", type=Path, default=Path("runs/default-job"))
    arguments = parser.parse_args()
    name = "default_job" if arguments.average is None else "default_job_paper"
    results = FOLDER / f"{name}.json"
    options = [] if arguments.average is None else ["--average", "0"]
    known = {r["seed"]: r for r in json.loads(results.read_text())} if results.exists() else {}
    for seed in arguments.seeds:
        if seed not in known:
            known[seed] = run_seed(seed, arguments.out / name, options)
            write_json(results, [known[s] for s in sorted(known)])
    print_results([known[s] for s in sorted(known)])


if __name__ == "__main__":
    main()
