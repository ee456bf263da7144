"""What the manifest costs: time per epoch and per run with it and without.

    python benchmarks/manifest_cost.py [--rounds 7] [--epochs 6] [--threads 1]

Short runs of the default job alternate between a folder whose files are recorded in a manifest and
compared when read, and the same without, in one process; the first round of each is dropped.
``epoch`` is the ratio of the medians of an epoch's seconds, ``run`` that of the whole command after
the import of PyTorch: start, training, predictions and pages. Raw seconds are in
``benchmarks/results/manifest_cost.json``. The aim is a ratio of at most 1.02.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fge import manifest
from fge.commands.train import fge
from fge.config import FGEConfig
from fge.files import read_records, write_json
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "manifest_cost.json"


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Let no write be recorded, and no read be compared."""
    with (
        mock.patch.object(manifest, "begin", return_value=None),
        mock.patch.object(manifest, "reader_of", return_value=None),
    ):
        yield


def time_run(out: Path, epochs: int, threads: int, *, recorded: bool) -> dict[str, Any]:
    """Run a job; return its seconds, and those of each epoch after the first."""
    config = FGEConfig(
        out=out,
        epochs=epochs,
        threads=threads,
        train_size=3000,
        test_size=1000,
        channels_last="on",
        compile="off",
        amp="bf16",
        device="cpu",
    )
    started = time.perf_counter()
    with contextlib.nullcontext() if recorded else unrecorded():
        fge(config)
    seconds = time.perf_counter() - started
    records = read_records(out / "timing.jsonl")
    epoch = [r["seconds"] for r in records if r["event"] == "epoch"][1:]
    return {"run": seconds, "epoch": epoch}


def measure(rounds: int, epochs: int, threads: int) -> dict[str, Any]:
    """Time the rounds; return ratios, medians and raw seconds."""
    found: dict[str, dict[str, list[float]]] = {
        kind: {"run": [], "epoch": []} for kind in ("recorded", "plain")
    }
    for position in range(rounds + 1):
        for kind in ("recorded", "plain") if position % 2 else ("plain", "recorded"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                times = time_run(out, epochs, threads, recorded=kind == "recorded")
            if position:
                found[kind]["run"].append(times["run"])
                found[kind]["epoch"] += times["epoch"]
    medians = {
        kind: {what: statistics.median(values) for what, values in times.items()}
        for kind, times in found.items()
    }
    ratios = {what: medians["recorded"][what] / medians["plain"][what] for what in ("run", "epoch")}
    return {"ratios": ratios, "medians": medians, "seconds": found}


def main() -> None:
    """Measure, print the ratios and write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.epochs, arguments.threads)
    print({what: round(ratio, 3) for what, ratio in result["ratios"].items()})
    facts = {
        **vars(arguments),
        "environment": environment_facts(torch.device("cpu"), arguments.threads),
    }
    write_json(RESULTS, {**facts, **result})


if __name__ == "__main__":
    main()
