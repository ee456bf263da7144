"""What a forward pass of an ensemble costs, beside as many passes of one network.

    python benchmarks/ensemble_forward.py [--rounds 5] [--threads 1] [--members 1 2 5 10 20]
        [--networks convnet torchvision:resnet18] [--batches 1 256]

The default network (28 x 28 images) and a ResNet-18 (32 x 32) predict one image and batches of 256,
with initial weights: one network as often as there are members, as many different networks, an
ensemble whose members are in memory, and one that reads its snapshots from disk at each pass. They
take turns, batches of one image 20 times as often; the first round is dropped. Ratios are medians
over rounds of the ratio within a round: of the ensemble's time in memory to that of as many passes
of one network (``passes``) and of as many networks (``networks``, whose weights have to be fetched
as the members' have), and of its time from disk to that in memory (``disk``). Raw seconds are in
``benchmarks/results/ensemble_forward.json``, each row with its environment; rows that are not
measured again are kept. The aim is ``passes`` of at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fge import Ensemble, SnapshotStore
from fge.files import write_json
from fge.networks import build_model
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "ensemble_forward.json"
MODELS = {"convnet": (1, 28), "torchvision:resnet18": (3, 32)}
"""Channels and side of the images."""
BATCHES = (1, 256)


def make_model(name: str, seed: int) -> nn.Module:
    """Return a network with initial weights, in evaluation mode."""
    channels, side = MODELS[name]
    torch.manual_seed(seed)
    return build_model(name, in_channels=channels, num_classes=10, image_size=(side, side)).eval()


def seconds_of(call: Callable[[Tensor], object], inputs: Tensor) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    with torch.no_grad():
        call(inputs)
    return time.perf_counter() - started


def measure(name: str, size: int, members: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Time a network and two ensembles of it; return the ratios and the seconds of every round."""
    store = SnapshotStore(folder / f"{name}-{members}")
    for seed in range(members - len(store)):
        store.append(make_model(name, seed))
    networks = [make_model(name, seed) for seed in range(members)]
    model = networks[0]

    def each(inputs: Tensor) -> None:
        for network in networks:
            network(inputs)

    def passes(inputs: Tensor) -> None:
        for _ in range(members):
            model(inputs)

    calls: dict[str, Callable[[Tensor], object]] = {
        "passes": passes,
        "networks": each,
        "memory": Ensemble(model, store, in_memory=True),
        "disk": Ensemble(model, store, in_memory=False),
    }
    channels, side = MODELS[name]
    inputs = torch.randn(size, channels, side, side)
    seconds: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(rounds * (20 if size == 1 else 1) + 1):
        for kind, call in calls.items():
            seconds[kind].append(seconds_of(call, inputs))
    facts = {"model": name, "batch": size, "members": members}
    return {**facts, **ratios(seconds), "seconds": seconds}


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians of the ratios within a round, without the first."""

    def ratio(one: str, other: str) -> float:
        pairs = zip(seconds[one][1:], seconds[other][1:], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    return {
        "passes_ratio": ratio("memory", "passes"),
        "networks_ratio": ratio("memory", "networks"),
        "disk_ratio": ratio("disk", "memory"),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the ratios as Markdown."""
    lines = [
        "| network | batch | members | passes | networks | disk |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {one['model'].removeprefix('torchvision:')} | {one['batch']} | {one['members']} | "
        f"{one['passes_ratio']:.2f} | {one['networks_ratio']:.2f} | {one['disk_ratio']:.2f} |"
        for one in found
    ]
    return "\n".join(lines)


def merged(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with those that were measured before and not now."""

    def key(row: dict[str, Any]) -> tuple[int, int, int]:
        return [*MODELS].index(row["model"]), row["batch"], row["members"]

    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else '{"ensembles": []}'
    before = json.loads(text)["ensembles"]
    return [row for _, row in sorted({key(row): row for row in [*before, *found]}.items())]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            measure(name, size, members, arguments.rounds, Path(folder))
            for name in arguments.networks
            for size in arguments.batches
            for members in arguments.members
        ]
    print(table(found))
    environment = environment_facts(torch.device("cpu"), arguments.threads)
    rows = merged([{**row, "environment": environment} for row in found])
    write_json(RESULTS, {"ensembles": rows})


if __name__ == "__main__":
    main()
