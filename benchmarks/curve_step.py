"""The time and memory of a step of a curve fit compared with a plain training step.

    python benchmarks/curve_step.py [--models convnet vgg16] [--rounds 9] [--steps 4] [--device cpu]

A curve of 3 points; batches of random images of CIFAR's shape (3 x 32 x 32, 10 classes), 128 each.
The contenders are the plain step and a curve step of each objective: the same model, SGD with
momentum and weight decay, plain speed. They take turns, a round of ``--steps`` steps each; the
order rotates from round to round, the first round is dropped. A ratio is the median over rounds of
curve / plain within a round; quartiles and the medians are shown too. Target: 1.05 x.
Peak memory is that of a whole fit between two networks in files, compared with a plain training of
as many steps, each in a fresh process: the maximum that PyTorch's allocator has handed out (on the
CPU from the profiler's record of allocations; the peak resident memory, VmHWM, is also shown, but
is too coarse for small models). Target: the plain training's plus 5 copies of the weights (and 64
KiB). Hardware and versions are in the results, ``benchmarks/results/curve_step.json``.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fge.curves import Bezier, fit_curve, straight_points
from fge.curves.fit import CurveLearner
from fge.curves.objectives import OBJECTIVES, make_objective
from fge.files import write_bytes, write_json
from fge.networks import build_model, canonical_state, encode_weights, flatten
from fge.report import environment_facts
from fge.train import Learner

RESULTS = Path(__file__).parent / "results" / "curve_step.json"
BATCH = 128
MEMORY_STEPS = 3
TIME_TARGET = 1.05
MEMORY_TARGET = 5.0
SCALARS_MIB = 1 / 16
"""An allowance for memory that does not grow with the weights (coefficients, draws, profiler)."""
Work = Callable[[], None]


def new_model(name: str, device: torch.device, seed: int = 0) -> nn.Module:
    """Return a model for random images of CIFAR's shape."""
    torch.manual_seed(seed)
    return build_model(name, in_channels=3, num_classes=10, image_size=(32, 32)).to(device)


def new_batch(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random images (128, 3, 32, 32) and labels."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=rng)
    return images.to(device), torch.randint(0, 10, (BATCH,), generator=rng).to(device)


def plain_learner(name: str, device: torch.device) -> Learner:
    """Return the learner of ordinary training."""
    model = new_model(name, device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )
    return Learner(model, optimizer)


def curve_learner(name: str, objective: str, device: torch.device) -> CurveLearner:
    """Return the learner of a curve between two initialisations."""
    model = new_model(name, device)
    ends = [flatten(new_model(name, device, seed), model) for seed in (1, 2)]
    points = straight_points(ends[0], ends[1], 3)
    return CurveLearner(model, Bezier(3), points, objective=make_objective(objective), lr=1e-3)


def contenders(name: str, device: torch.device, steps: int) -> dict[str, Work]:
    """Return a function per contender that takes a round of steps."""
    learners: dict[str, Learner] = {"plain": plain_learner(name, device)}
    for objective in OBJECTIVES:
        learners[objective] = curve_learner(name, objective, device)
    batch = new_batch(device)

    def work(learner: Learner) -> None:
        learner.model.train()
        for _ in range(steps):
            learner.step(*batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {key: lambda learner=learner: work(learner) for key, learner in learners.items()}  # type: ignore[misc]


def interleaved(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round after the first."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            works[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_times(name: str, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Return and print seconds per step and ratios to the plain step."""
    seconds = interleaved(contenders(name, device, steps), rounds)
    results: dict[str, Any] = {}
    for key, values in seconds.items():
        ratios = [v / p for v, p in zip(values, seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        results[key] = {
            "seconds_per_step": [value / steps for value in values],
            "ratio": middle,
            "ratio_quartiles": [low, high],
        }
        met = "" if key == "plain" else "met" if middle <= TIME_TARGET else "NOT met"
        median = 1e3 * statistics.median(values) / steps
        print(f"  {key:10} {median:9.2f} ms   {middle:.3f} x ({low:.3f} to {high:.3f})   {met}")
    return results


def train_or_fit(name: str, contender: str, device: torch.device, ends: Path) -> None:
    """Take a few steps of ordinary training, or fit a curve with as many."""
    batches = [new_batch(device)] * MEMORY_STEPS
    if contender == "plain":
        learner = plain_learner(name, device)
        learner.model.train()
        for batch in batches:
            learner.step(*batch)
    else:
        start, end = (ends / f"{number}.safetensors" for number in (1, 2))
        fit_curve(new_model(name, device), start, end, batches, objective=contender, epochs=1)


def resident_mib() -> float:
    """Return the peak resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def memory_of(name: str, contender: str, device: torch.device, ends: Path, queue: Any) -> None:
    """Put peak allocated and peak resident MiB of this fresh process on ``queue``."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        train_or_fit(name, contender, device, ends)
        queue.put((torch.cuda.max_memory_allocated() / 2**20, resident_mib()))
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        train_or_fit(name, contender, device, ends)
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    queue.put((max(itertools.accumulate(changes)) / 2**20, resident_mib()))


def measure_memory(name: str, device: torch.device) -> dict[str, Any]:
    """Return and print the peak memory of each contender, in MiB and in copies of the weights."""
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        for seed in (1, 2):
            model = new_model(name, torch.device("cpu"), seed)
            size = 4 * sum(parameter.numel() for parameter in model.parameters())
            data = encode_weights(canonical_state(model))
            write_bytes(Path(folder) / f"{seed}.safetensors", data)
        for key in ("plain", *OBJECTIVES):
            queue = context.Queue()
            process = context.Process(
                target=memory_of, args=(name, key, device, Path(folder), queue)
            )
            process.start()
            allocated, resident = queue.get()
            results[key] = {"peak_mib": allocated, "resident_mib": resident}
            process.join()
            extra = (results[key]["peak_mib"] - results["plain"]["peak_mib"]) * 2**20 / size
            results[key]["copies_more"] = extra
            allowed = MEMORY_TARGET + SCALARS_MIB * 2**20 / size
            met = "" if key == "plain" else "met" if extra <= allowed else "NOT met"
            print(
                f"  {key:10} {allocated:9.2f} MiB allocated ({resident:.0f} resident)   "
                f"{extra:+.2f} copies   {met}"
            )
    return {"weights_mib": size / 2**20, **results}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["convnet", "vgg16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    facts = environment_facts(device, torch.get_num_threads())
    results: dict[str, Any] = {"environment": facts, "batch_size": BATCH, "models": {}}
    for name in arguments.models:
        print(f"\n{name}")
        times = measure_times(name, device, arguments.rounds, arguments.steps)
        memory = measure_memory(name, device)
        results["models"][name] = {"time": times, "memory": memory}
        write_json(arguments.results, results)


if __name__ == "__main__":
    main()
