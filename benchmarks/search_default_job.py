"""The search on validation data that chose the defaults of ``python cli.py fge``.

    python benchmarks/search_default_job.py [--processes 2] [--phases single cycles]

First the conventional network is tuned on its own (augmentation, learning rate): the baseline is
to be as good as the method. Then the cycles are varied one option at a time around a centre.
Everything is judged on the 1,000 validation images of ``fashion-mnist-mini``; test data is not
looked at. Precision is bf16, as ``auto`` chose on the machine that this ran on. Results are in
``benchmarks/results/search_default_job.json``; a rerun fills gaps only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fge.config import FGEConfig
from fge.files import read_records, write_json
from fge.run import fge

RESULTS = Path(__file__).parent / "results" / "search_default_job.json"
SEEDS = (100, 101)  # not those of the default job's benchmark
EPOCHS = 40

Options = dict[str, Any]

SINGLE: list[Options] = [
    {"crop_padding": padding, "flip": flip, "lr": lr}
    for padding, flip, lr in (
        (0, False, 0.05),
        (0, True, 0.05),
        (2, True, 0.05),
        (3, True, 0.05),
        (2, True, 0.1),
        (2, True, 0.2),
        (3, True, 0.2),
        (3, True, 0.4),
    )
]
"""Judged by the single network; cycling is kept to the last two epochs."""

BEST_SINGLE: Options = {"crop_padding": 2, "flip": True, "lr": 0.2}
"""What the first phase found; the second builds on it."""

CENTRE: Options = {"start_epoch": 18, "cycle_epochs": 4, "max_lr": 0.2, "min_lr": 0.001}
CYCLES: list[Options] = [
    CENTRE,
    {**CENTRE, "start_epoch": 10},
    {**CENTRE, "start_epoch": 26},
    {**CENTRE, "max_lr": 0.1},
    {**CENTRE, "max_lr": 0.4},
    {**CENTRE, "cycle_epochs": 2, "start_epoch": 17},
    {**CENTRE, "cycle_epochs": 6, "start_epoch": 19},
    {**CENTRE, "cycle_epochs": 6, "start_epoch": 13},
    {**CENTRE, "min_lr": 0.01},
]


def run_one(job: tuple[str, Options, int, Path]) -> Options:
    """Train one configuration; return its validation figures."""
    phase, options, seed, out = job
    late = {"start_epoch": EPOCHS - 2, "cycle_epochs": 4}
    name = "-".join(f"{k}={v}" for k, v in sorted(options.items()))
    config = FGEConfig(
        out=out / f"{phase}-{name}-seed={seed}",
        epochs=EPOCHS,
        seed=seed,
        threads=1,
        compile="off",
        amp="bf16",
        channels_last="on",
        single=phase == "single",
        overwrite=True,
        **{**(late if phase == "single" else BEST_SINGLE), **options},
    )
    folder = fge(config)
    snapshots = [r for r in read_records(folder / "log.jsonl") if r["event"] == "snapshot"]
    last = snapshots[-1]
    kind = "val" if phase == "single" else "ensemble_val"
    return {
        "phase": phase,
        "options": options,
        "seed": seed,
        "epochs": EPOCHS,
        "error": last[f"{kind}_error"],
        "nll": last[f"{kind}_nll"],
        "last_error": last["val_error"],
        "last_nll": last["val_nll"],
        "members": 1 if phase == "single" else len(snapshots),
    }


def search(phase: str, candidates: list[Options], processes: int, out: Path) -> list[Options]:
    """Run what is missing of a phase; return all its results."""
    results: list[Options] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = [(r["phase"], r["options"], r["seed"]) for r in results]
    jobs = [
        (phase, options, seed, out)
        for seed in SEEDS
        for options in candidates
        if (phase, options, seed) not in known
    ]
    with ProcessPoolExecutor(processes) as pool:
        for result in pool.map(run_one, jobs):
            results.append(result)
            write_json(RESULTS, results)
    return [r for r in results if r["phase"] == phase]


def print_table(results: list[Options]) -> None:
    """Print the mean over seeds of each candidate, the lowest NLL first."""
    groups: dict[str, list[Options]] = {}
    for result in results:
        groups.setdefault(json.dumps(result["options"]), []).append(result)
    for options, rows in sorted(
        groups.items(), key=lambda item: statistics.mean(r["nll"] for r in item[1])
    ):
        figures = [
            f"{key} {statistics.mean(r[key] for r in rows):.4f}"
            for key in ("nll", "error", "last_nll", "last_error")
        ]
        print(f"{'  '.join(figures)}  members {rows[0]['members']}  seeds {len(rows)}  {options}")


def main() -> None:
    """Search both phases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--phases", nargs="+", default=["single", "cycles"])
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    arguments = parser.parse_args()
    candidates = {"single": SINGLE, "cycles": CYCLES}
    for phase in arguments.phases:
        print_table(search(phase, candidates[phase], arguments.processes, arguments.out))


if __name__ == "__main__":
    main()
