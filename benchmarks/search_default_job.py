"""The search on validation data that chose the defaults of ``python cli.py fge``.

    python benchmarks/search_default_job.py [--processes 2] [--phases single-40 cycles-40 ...]

First the conventional network is tuned on its own (augmentation, learning rate), so that the
baseline is as good as the method. Then the cycles are varied. Both are done with a budget of 40
epochs, where no cycle reached the single network, and of 100.
Everything is judged on the 1,000 validation images of ``fashion-mnist-mini``; test data are not
used. Precision is bf16, as ``auto`` chose on the machine of these results. They are in
``benchmarks/results/search_default_job.json``; a rerun only fills gaps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fge.commands.train import fge
from fge.config import FGEConfig
from fge.files import read_records, write_json

RESULTS = Path(__file__).parent / "results" / "search_default_job.json"
SEEDS = (100, 101)  # not those of the default job's benchmark
FEWER_SEEDS = {"cycles-100": (100,)}
"""A first round, of which none reached the single network of that seed, was not repeated."""

Options = dict[str, Any]


def conventional(padding: int, flip: bool, lr: float) -> Options:
    """Return a candidate for the single network."""
    return {"crop_padding": padding, "flip": flip, "lr": lr}


def cycles(start: int, length: int, max_lr: float, min_lr: float = 0.001) -> Options:
    """Return a candidate for the cycles."""
    return {"start_epoch": start, "cycle_epochs": length, "max_lr": max_lr, "min_lr": min_lr}


PHASES: dict[str, list[Options]] = {
    "single-40": [
        conventional(0, False, 0.05),
        conventional(0, True, 0.05),
        conventional(2, True, 0.05),
        conventional(3, True, 0.05),
        conventional(2, True, 0.1),
        conventional(2, True, 0.2),
        conventional(3, True, 0.2),
        conventional(3, True, 0.4),
    ],
    "cycles-40": [
        cycles(18, 4, 0.2),
        cycles(10, 4, 0.2),
        cycles(26, 4, 0.2),
        cycles(18, 4, 0.1),
        cycles(18, 4, 0.4),
        cycles(17, 2, 0.2),
        cycles(19, 6, 0.2),
        cycles(13, 6, 0.2),
        cycles(18, 4, 0.2, 0.01),
    ],
    "single-100": [conventional(2, True, 0.1), conventional(2, True, 0.2)],
    "cycles-100": [
        cycles(55, 10, 0.1),
        cycles(55, 10, 0.2),
        cycles(55, 10, 0.05),
        cycles(35, 10, 0.1),
        cycles(30, 20, 0.1),
        cycles(58, 4, 0.1),
    ],
    "late-100": [
        cycles(78, 4, 0.05),
        cycles(82, 4, 0.1),
        cycles(75, 10, 0.05),
        cycles(67, 6, 0.05),
        cycles(86, 4, 0.05),
    ],
}
"""The number is the budget in epochs. Single networks cycle in their last two epochs only."""

BEST_SINGLE = conventional(2, True, 0.2)
"""What the conventional phases found; the cycles build on it."""


def run_one(job: tuple[str, Options, int, Path]) -> Options:
    """Train one configuration; return its validation figures."""
    phase, options, seed, out = job
    single, epochs = phase.startswith("single"), int(phase.split("-")[1])
    late = {"start_epoch": epochs - 2, "cycle_epochs": 4}
    name = "-".join(f"{k}={v}" for k, v in sorted(options.items()))
    config = FGEConfig(
        out=out / f"{phase}-{name}-seed={seed}",
        epochs=epochs,
        seed=seed,
        threads=1,
        compile="off",
        amp="bf16",
        channels_last="on",
        single=single,
        average=0.0,
        overwrite=True,
        **{**(late if single else BEST_SINGLE), **options},
    )
    folder = fge(config)
    snapshots = [r for r in read_records(folder / "log.jsonl") if r["event"] == "snapshot"]
    last = snapshots[-1]
    kind = "val" if single else "ensemble_val"
    return {
        "phase": phase,
        "options": options,
        "seed": seed,
        "epochs": epochs,
        "error": last[f"{kind}_error"],
        "nll": last[f"{kind}_nll"],
        "last_error": last["val_error"],
        "last_nll": last["val_nll"],
        "members": 1 if single else len(snapshots),
    }


def search(phase: str, candidates: list[Options], processes: int, out: Path) -> list[Options]:
    """Run what is missing of a phase; return all its results."""
    results: list[Options] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = [(r["phase"], r["options"], r["seed"]) for r in results]
    jobs = [
        (phase, options, seed, out)
        for seed in FEWER_SEEDS.get(phase, SEEDS)
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
    """Search the phases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    arguments = parser.parse_args()
    for phase in arguments.phases:
        print(phase)
        print_table(search(phase, PHASES[phase], arguments.processes, arguments.out))


if __name__ == "__main__":
    main()
