"""What the mean of a tail costs: time per training step with it and without.

    python benchmarks/tail_average.py [--rounds 15] [--threads 1]

Steps of the default network (batches of 128) and of VGG-16 with batch norm (batches of 32) are
timed in short rounds that alternate between a plain learner and one that includes every step in its
mean; the first round of each is dropped. ``tail`` is the ratio of the medians: what a step of the
tail costs. ``descent`` is that of a whole descent, of which the last 20 % are averaged. Raw seconds
are in ``benchmarks/results/tail_average.json``. The aim is a ratio below 1.02 for a descent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from fge.config import AVERAGE
from fge.files import write_json
from fge.networks import build_model
from fge.report import environment_facts
from fge.train import Learner, Speed, TailLearner

RESULTS = Path(__file__).parent / "results" / "tail_average.json"
MODELS = {"convnet": (128, 12, (1, 28)), "vgg16-bn": (32, 2, (3, 32))}
"""Batch size, steps per round, channels and side of the images."""


def make_learner(name: str, *, averages: bool) -> Learner:
    """Return a learner of a model with initial weights."""
    _, _, (channels, side) = MODELS[name]
    torch.manual_seed(0)
    model = build_model(name, in_channels=channels, num_classes=10, image_size=(side, side))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    speed = Speed(channels_last=True, amp="bf16")
    return (
        TailLearner(model, optimizer, speed, refresh=[])
        if averages
        else Learner(model, optimizer, speed)
    )


def time_round(learner: Learner, inputs: torch.Tensor, targets: torch.Tensor, steps: int) -> float:
    """Return the seconds per step of a round."""
    learner.model.train()
    started = time.perf_counter()
    for _ in range(steps):
        learner.step(inputs, targets)
        learner.include(first=False)
    return (time.perf_counter() - started) / steps


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Time a model; return the ratios and the seconds of every round."""
    size, steps, (channels, side) = MODELS[name]
    inputs = torch.randn(size, channels, side, side).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (size,))
    learners = {
        kind: make_learner(name, averages=kind == "averaged") for kind in ("plain", "averaged")
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in learners}
    for _ in range(rounds + 1):
        for kind, learner in learners.items():
            seconds[kind].append(time_round(learner, inputs, targets, steps))
    medians = {kind: statistics.median(values[1:]) for kind, values in seconds.items()}
    tail = medians["averaged"] / medians["plain"]
    return {"tail": tail, "descent": 1 + AVERAGE * (tail - 1), "seconds": seconds}


def main() -> None:
    """Measure both models, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {name: measure(name, arguments.rounds) for name in MODELS}
    for name, found in results.items():
        print(f"{name}: a step of the tail {found['tail']:.3f} x,", end=" ")
        print(f"a whole descent {found['descent']:.3f} x")
    environment = environment_facts(torch.device("cpu"), arguments.threads)
    write_json(RESULTS, {"environment": environment, "models": results})


if __name__ == "__main__":
    main()
