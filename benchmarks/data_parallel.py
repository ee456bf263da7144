"""What a training step of two processes costs with PyTorch's wrapper against one flat message.

    python benchmarks/data_parallel.py [--model vgg16] [--rounds 9] [--steps 2] [--processes 2]

Two gloo processes of one thread each train on a joint batch of 128 random images of CIFAR's shape
(3 x 32 x 32, 10 classes), half each: SGD with momentum and weight decay, plain speed. The
contenders are the step of ``fge.train.Learner`` with several processes, which takes PyTorch's
``DistributedDataParallel``, and the step that it replaced: after the backward pass all gradients,
the running statistics and the loss travel in one flat message. They take turns, a round of
``--steps`` steps each; the order turns from round to round, the first round is dropped. Times are
those of the first process, which begins and ends a round together with the others. A ratio is the
median over rounds of DDP / flat within the round, shown with quartiles and the medians themselves.
Target: 1.02 x. Hardware and versions are in the results, ``benchmarks/results/data_parallel.json``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fge.files import write_json
from fge.networks import build_model, count_examples
from fge.parallel import Ranks, join, leave, running_statistics
from fge.report import environment_facts
from fge.train import Learner

RESULTS = Path(__file__).parent / "results" / "data_parallel.json"
BATCH = 128
TARGET = 1.02


class FlatLearner(Learner):
    """Exchanges gradients, running statistics and the loss in one message after the backward pass.

    This was the step of several processes before.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        super().__init__(model, optimizer)
        self.ranks = ranks
        ranks.broadcast([*model.parameters(), *model.buffers()])

    def step(self, *batch: Any) -> Tensor:
        """Take one optimizer step; return the joint mean loss."""
        loss = self._backward(batch)
        mean = self._exchange(loss, count_examples(batch))
        self._update()
        return mean

    @torch.no_grad()
    def _exchange(self, loss: Tensor, count: int) -> Tensor:
        parameters = list(self.model.parameters())
        facts = torch.tensor([count, *(p.grad is not None for p in parameters)])
        self.ranks.sum(facts)
        images, *users = facts.tolist()
        used = [p for p, number in zip(parameters, users, strict=True) if number]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        mean = loss.clone()
        gradients = [p.grad for p in used if p.grad is not None]
        statistics = running_statistics(self.model.modules())
        self.ranks.average([*gradients, *statistics, mean], count, images)
        return mean


def new_learner(contender: str, name: str, ranks: Ranks) -> Learner:
    """Return a learner with the same initial weights for each contender."""
    torch.manual_seed(0)
    model = build_model(name, in_channels=3, num_classes=10, image_size=(32, 32))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )
    if contender == "flat":
        return FlatLearner(model, optimizer, ranks)
    return Learner(model, optimizer, ranks=ranks)


def measure(name: str, rounds: int, steps: int, ranks: Ranks) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round after the first."""
    learners = {contender: new_learner(contender, name, ranks) for contender in ("flat", "ddp")}
    rng = torch.Generator().manual_seed(0)
    mine = ranks.share(BATCH)
    images = torch.randn(BATCH, 3, 32, 32, generator=rng)[mine]
    labels = torch.randint(0, 10, (BATCH,), generator=rng)[mine]
    seconds: dict[str, list[float]] = {contender: [] for contender in learners}
    for number in range(rounds + 1):
        order = list(learners.items())
        for contender, learner in order[:: -1 if number % 2 else 1]:
            learner.model.train()
            ranks.gather(None)
            started = time.perf_counter()
            for _ in range(steps):
                learner.step(images, labels)
            ranks.gather(None)
            if number:
                seconds[contender].append((time.perf_counter() - started) / steps)
    _check_equal(*(learner.model for learner in learners.values()))
    return seconds


def _check_equal(one: nn.Module, other: nn.Module) -> None:
    """Check that both contenders trained to the same weights, up to rounding."""
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def process(rank: int, port: int, arguments: argparse.Namespace) -> None:
    """Take part in the measurement; the first process prints and writes the results."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(arguments.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks = join("fge")
    seconds = measure(arguments.model, arguments.rounds, arguments.steps, ranks)
    if ranks.leads:
        show(seconds, arguments)
    leave()


def show(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """Print and write seconds per step, and their ratio in each round."""
    ratios = [d / f for d, f in zip(seconds["ddp"], seconds["flat"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    for contender, values in seconds.items():
        first, median, third = (1e3 * s for s in statistics.quantiles(values, n=4))
        print(f"  {contender:5} {median:9.1f} ms a step ({first:.1f} to {third:.1f})")
    met = "met" if middle <= TARGET else "NOT met"
    print(f"  ddp / flat {middle:.3f} x ({low:.3f} to {high:.3f}), target {TARGET}: {met}")
    facts = environment_facts(torch.device("cpu"), torch.get_num_threads())
    write_json(
        arguments.results,
        {
            "environment": {**facts, "processes": arguments.processes},
            "model": arguments.model,
            "batch_size": BATCH,
            "steps_per_round": arguments.steps,
            "seconds_per_step": seconds,
            "ratios": ratios,
            "ratio": middle,
            "ratio_quartiles": [low, high],
        },
    )


def main() -> None:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=process, args=(rank, port, arguments))
        for rank in range(arguments.processes)
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    if any(each.exitcode for each in processes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
