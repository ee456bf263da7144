"""Steps of ``benchmarks/gpu.py``: the tests on the GPU, speed, curves and the Hessian."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import curve_step
import pytest
import torch
import torch.nn.functional as F
from curve_evaluation import compare
from eager_loops import (
    BATCH,
    Contender,
    dataloader_eval,
    dataloader_train,
    in_memory_eval,
    in_memory_train,
    new_model,
)
from hessian import one_model
from throughput import LONG_JOB_STEPS, interleaved, our_eval, our_learner, our_train
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fge.commands.build import Setup
from fge.config import FGEConfig
from fge.curves import Bezier, Curve
from fge.data import EVAL_BATCH_SIZES, Dataset, Split
from fge.networks import flatten
from fge.train import Speed, choose_speed

ROOT = Path(__file__).resolve().parent.parent
Report = Callable[[str, Any], None]
Plan = dict[str, Any]
DENSE_BF16_PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of the data sheets, without sparsity; the first name that the card's contains counts."""
COMPILED = ("convnet",)
"""Networks for which ``auto`` may consider compilation here: for others it takes too long."""
LARGER = (256, 512, 1024, 2048)


def right(plan: Plan, report: Report) -> None:
    """Run the tests with the marker ``cuda``."""
    os.chdir(ROOT)
    outcomes = _Outcomes()
    accelerator = "cpu" if plan["smoke"] else "cuda"
    options = ["tests/cuda", "--accelerator", accelerator, "-p", "no:cacheprovider", "--tb=no"]
    options += ["-o", "addopts=--import-mode=importlib -q"]  # in this process, which reports
    began = time.monotonic()
    code = pytest.main(options, plugins=[outcomes])
    report("seconds", round(time.monotonic() - began, 1))
    report("counts", outcomes.counts)
    report("failures", outcomes.failures)
    if code != 0:
        raise AssertionError(f"pytest ended with {int(code)}: {', '.join(outcomes.failures)[:400]}")


class _Outcomes:
    """Counts the outcomes of tests, and keeps the last line of each failure."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the outcome of a test's body, and failures of its set-up and tear-down."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            self.failures[report.nodeid] = str(report.longrepr).strip().splitlines()[-1][:300]


def random_images(count: int, device: torch.device, seed: int = 0) -> Dataset:
    """Return random images of CIFAR's shape, half of them for training, half for evaluation."""
    rng = torch.Generator().manual_seed(seed)
    splits = []
    for _ in range(2):
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
        splits.append(Split(images, torch.randint(0, 10, (count,), generator=rng)))
    empty = Split(splits[0].images[:0], splits[0].labels[:0])
    classes = tuple("0123456789")
    mean, std = (128.0,) * 3, (74.0,) * 3
    return Dataset("random", classes, splits[0], splits[1], empty, mean, std, "").to(device)


def fast(plan: Plan, report: Report) -> None:
    """Measure training and evaluation of a model against the hand-written loops."""
    name, smoke, device = plan["model"], plan["smoke"], torch.device(plan["device"])
    if smoke and name != "convnet":
        report("skipped", "too large for the CPU")
        return
    torch.backends.cudnn.benchmark = True
    dataset = random_images(256 if smoke else 10_000, device)
    model = new_model(name, dataset).to(device)
    flops = flops_per_image(model, dataset)
    report("gflop_per_image", flops / 1e9)
    config = FGEConfig(
        model=name,
        device=str(device),
        compile="auto" if name in COMPILED and not smoke else "off",
        amp="off" if smoke else "auto",
        channels_last="on" if smoke else "auto",
    )
    inputs = torch.randn(BATCH, 3, 32, 32, device=device)
    steps = 1 if smoke else LONG_JOB_STEPS
    choice = choose_speed(config, model, inputs, dataset.val.labels[:BATCH], steps=steps)
    report("speed", vars(choice.speed))
    report("reasons", choice.reasons)
    learner = our_learner(model, choice.speed)
    steps, rounds = (2, 1) if smoke else (60, 5)
    work = our_train(learner, dataset, steps)
    trained = {"ours": work, "in-memory": theirs_in_memory(name, dataset, steps)}
    rates = interleaved(trained, rounds)
    report("train", summary(rates))
    evaluated = {"ours": our_eval(learner, dataset)}
    for size in {250, EVAL_BATCH_SIZES[device.type]}:
        other = new_model(name, dataset).to(device)
        evaluated[f"in-memory {size}"] = in_memory_eval(other, dataset, size)
    report("eval", summary(interleaved(evaluated, rounds)))
    peak = peak_of(plan["environment"]["hardware"])
    rate = statistics.median(rates["ours"])
    report("share_of_peak", rate * flops / peak if peak else None)
    report("gpu_waits", waiting_share(work, device))
    report("host_waits", host_waits(work, device))
    report("larger", larger_batches(name, dataset, choice.speed, smoke))
    report("dataloader", against_loaders(name, dataset, smoke))


def theirs_in_memory(name: str, dataset: Dataset, steps: int) -> Contender:
    """The hand-written loop over tensors in the device's memory."""
    model = new_model(name, dataset).to(dataset.train.labels.device)
    return in_memory_train(model, dataset, steps)


def larger_batches(name: str, dataset: Dataset, speed: Any, smoke: bool) -> dict[str, float]:
    """Return images/s of this loop's training at larger batches."""
    found = {}
    for size in (192,) if smoke else LARGER:
        model = new_model(name, dataset).to(dataset.train.labels.device)
        learner = our_learner(model, replace(speed, compile=False), size)
        try:
            work = our_train(learner, dataset, 1 if smoke else 16)
            found[str(size)] = statistics.median(
                interleaved({"ours": work}, 1 if smoke else 3)["ours"]
            )
        except torch.OutOfMemoryError:
            break
    return found


def against_loaders(name: str, dataset: Dataset, smoke: bool) -> dict[str, Any]:
    """Return images/s of the loops over a ``DataLoader`` of PIL images, the faster of two counts.

    Its workers continue loading between the rounds, which is to its advantage.
    """
    part = replace(dataset, train=_part(dataset.train, smoke), val=_part(dataset.val, smoke))
    device = dataset.train.labels.device
    train, evaluation = {}, {}
    for workers in (0, 2 if smoke else 8):
        models = [new_model(name, dataset).to(device) for _ in range(2)]
        train[f"workers {workers}"] = dataloader_train(models[0], part, workers, 1 if smoke else 15)
        evaluation[f"workers {workers}"] = dataloader_eval(models[1], part, workers)
    rounds = 1 if smoke else 2
    return {
        "train": summary(interleaved(train, rounds)),
        "eval": summary(interleaved(evaluation, rounds)),
    }


def _part(split: Split, smoke: bool) -> Split:
    """Return some images, on the CPU, as files on disk would be."""
    return split.first(BATCH if smoke else 2560).to(torch.device("cpu"))


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median, least and largest images/s of each contender, and ours over the best."""
    found: dict[str, Any] = {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in rates.items()
    }
    others = [facts["median"] for name, facts in found.items() if name != "ours"]
    if "ours" in found and others:
        found["ratio"] = found["ours"]["median"] / max(others)
    return found


def flops_per_image(model: nn.Module, dataset: Dataset) -> float:
    """Return the FLOPs of a forward and backward pass per image, a multiply-add being two."""
    inputs = torch.randn(2, 3, 32, 32, device=dataset.train.labels.device)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model.train()(inputs), dataset.train.labels[:2]).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return float(counter.get_total_flops()) / 2


def peak_of(hardware: str) -> float | None:
    """Return the card's dense bf16 peak in FLOP/s, or None if it is unknown."""
    return next((peak for name, peak in DENSE_BF16_PEAK.items() if name in hardware), None)


def waiting_share(work: Contender, device: torch.device) -> float:
    """Return the share of the time in which no kernel runs, from the profiler.

    The profiler slows the host, so this is an upper bound if launching kernels is the limit.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as record:
        work()
    assert record.profiler is not None
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [e for e in record.profiler.kineto_results.events() if e.device_type() == kind]
    return 1 - busy_share([(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events])


def busy_share(intervals: Iterable[tuple[int, int]]) -> float:
    """Return the share of the time from the first start to the last end that intervals cover.

    >>> busy_share([(0, 4), (2, 5), (8, 10)])
    0.7
    """
    ordered = sorted(intervals)
    busy, reached = 0, ordered[0][0]
    for start, end in ordered:
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - ordered[0][0])


def host_waits(work: Contender, device: torch.device) -> int | None:
    """Return how often the host waited for the GPU in a round of steps, except at its end."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def curves(plan: Plan, report: Report) -> None:
    """Measure the step of a curve fit over a plain step, and points of a curve."""
    device, smoke = torch.device(plan["device"]), plan["smoke"]
    name = "convnet" if smoke else "vgg16"
    rounds, steps = (2, 1) if smoke else (9, 20)
    report("step", {"model": name, **curve_step.measure_times(name, device, rounds, steps)})
    count, network = (300, "convnet") if smoke else (50_000, "preresnet20")
    dataset = random_images(count, device)
    dataset = replace(dataset, test=dataset.val.first(count // 5))
    size = EVAL_BATCH_SIZES[device.type]
    setup = Setup(dataset, network, seed=0, speed=Speed(), eval_batch_size=size)
    networks = [curve_step.new_model(network, device, seed) for seed in range(3)]
    points = torch.stack([flatten(model, networks[0]) for model in networks])
    rows = compare(networks[0], Curve(Bezier(3), points), setup, 2 if smoke else 6)
    ratios = [row["seconds"]["full"] / row["seconds"]["ours"] for row in rows[1:]]
    seconds = [row["seconds"]["ours"] for row in rows[1:]]
    report(
        "points",
        {
            "model": network,
            "per_second": 1 / statistics.median(seconds),
            "times_faster_than_full_passes": statistics.median(ratios),
        },
    )


def hessian(plan: Plan, report: Report) -> None:
    """Measure the time to the top Hessian eigenvalue against PyHessian."""
    if importlib.util.find_spec("pyhessian") is None:
        report("skipped", "pyhessian is not installed")
        return
    device, smoke = torch.device(plan["device"]), plan["smoke"]
    for name, steps in [("convnet", 5)] if smoke else [("convnet", 300), ("vgg16", 300)]:
        images, rounds = (16, 1) if smoke else (256, 3)
        report(f"{name} after {steps} steps", one_model(name, images, steps, rounds, device))
