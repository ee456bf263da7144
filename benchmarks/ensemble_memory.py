"""What it gains to keep the members of an ensemble in memory: time per forward pass.

    python benchmarks/ensemble_memory.py [--members 5] [--rounds 9] [--threads 1]

A ResNet-18 for 32 x 32 images predicts batches of 32 with initial weights: alone, as an ensemble
whose members are in memory, and as one that reads its snapshots from disk at each pass. The three
take turns; the first round is dropped. The ratios are medians over rounds of the ratio within a
round: ``disk`` of the time from disk to that in memory, ``members`` of the time in memory to one
network's time per member. Raw seconds are in ``benchmarks/results/ensemble_memory.json``. The aim
is ``members`` below 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fge import Ensemble, SnapshotStore
from fge.files import write_json
from fge.networks import build_model
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "ensemble_memory.json"


def make_model(seed: int) -> nn.Module:
    """Return the network with initial weights, in evaluation mode."""
    torch.manual_seed(seed)
    name = "torchvision:resnet18"
    return build_model(name, in_channels=3, num_classes=10, image_size=(32, 32)).eval()


def seconds_of(call: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    """Return the seconds of one forward pass."""
    started = time.perf_counter()
    with torch.no_grad():
        call(inputs)
    return time.perf_counter() - started


def measure(members: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Time the three; return the ratios and the seconds of every round."""
    store = SnapshotStore(folder)
    for seed in range(members):
        store.append(make_model(seed))
    model = make_model(0)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "one": model,
        "memory": Ensemble(model, store, in_memory=True),
        "disk": Ensemble(model, store, in_memory=False),
    }
    inputs = torch.randn(32, 3, 32, 32)
    seconds: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(rounds + 1):
        for kind, call in calls.items():
            seconds[kind].append(seconds_of(call, inputs))
    return {"members": members, **ratios(seconds, members), "seconds": seconds}


def ratios(seconds: dict[str, list[float]], members: int) -> dict[str, float]:
    """Return the medians of the ratios within a round, without the first."""
    rounds = list(zip(seconds["one"], seconds["memory"], seconds["disk"], strict=True))[1:]
    return {
        "disk_ratio": statistics.median(disk / memory for _, memory, disk in rounds),
        "members_ratio": statistics.median(memory / (members * one) for one, memory, _ in rounds),
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.members, arguments.rounds, Path(folder))
    print(
        f"a forward pass of {found['members']} members takes {found['disk_ratio']:.2f} x the time "
        f"from disk, and in memory {found['members_ratio']:.2f} x one network's per member"
    )
    environment = environment_facts(torch.device("cpu"), arguments.threads)
    write_json(RESULTS, {"environment": environment, **found})


if __name__ == "__main__":
    main()
