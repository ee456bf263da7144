"""Training and evaluation images/s of this project's loop and of two hand-written eager loops.

    python benchmarks/throughput.py [--models convnet preresnet20] [--rounds 7]

(a) ``dataloader``: a ``DataLoader`` over PIL images with per-image torchvision transforms, with 0
and with 2 workers (the faster one counts); (b) ``in-memory``: uint8 tensors in memory, augmented
with torch on whole batches. Same model, data (``fashion-mnist-mini``), batch size, augmentation
and optimizer; the contenders take turns, a round each, the first round is dropped, medians are
compared. This project's loop uses the choices of ``auto`` for a long job; ``--amp off`` gives it
the precision of the others. Compile time, its break-even and the memory of the process tree with
and without compilation are measured in fresh processes. Raw results:
``benchmarks/results/throughput.json``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from eager_loops import (
    BATCH,
    PADDING,
    TRAIN_STEPS,
    Contender,
    dataloader_eval,
    dataloader_train,
    in_memory_eval,
    in_memory_train,
    new_model,
    synchronise,
)
from torch import nn

from fge.config import FGEConfig
from fge.data import (
    EVAL_BATCH_SIZES,
    Dataset,
    EvalBatches,
    Normaliser,
    TrainBatches,
    load_dataset,
)
from fge.files import write_json
from fge.report import environment_facts
from fge.train import Learner, Speed, choose_speed

RESULTS = Path(__file__).parent / "results" / "throughput.json"
LONG_JOB_STEPS = 100_000
TARGETS = {("train", "dataloader"): 1.5, ("train", "in-memory"): 1.2}
TARGETS |= {("eval", "dataloader"): 1.8, ("eval", "in-memory"): 1.5}


def our_learner(model: nn.Module, speed: Speed, batch_size: int = BATCH) -> Learner:
    """Return this project's learner, as the command line makes it."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )
    return Learner(model, optimizer, speed, batch_size=batch_size)


def our_normaliser(learner: Learner, dataset: Dataset) -> Normaliser:
    """This project's normalisation, in the learner's memory format."""
    return Normaliser(
        dataset.mean, dataset.std, learner.device, channels_last=learner.speed.channels_last
    )


def our_train(learner: Learner, dataset: Dataset, steps: int = TRAIN_STEPS) -> Contender:
    """This project's training batches and step."""
    size = learner.batch_size or BATCH
    batches = TrainBatches(
        dataset.train,
        our_normaliser(learner, dataset),
        size,
        seed=0,
        crop_padding=PADDING,
        flip=True,
    )

    def endless_epochs() -> Iterator[Any]:
        epoch = 0
        while True:
            batches.set_epoch(epoch)
            yield from (batch for batch in batches if len(batch[1]) == size)
            epoch += 1

    stream = endless_epochs()

    def work() -> int:
        learner.model.train()
        for _ in range(steps):
            learner.step(*next(stream))
        synchronise(learner.device)
        return steps * size

    return work


def our_eval(learner: Learner, dataset: Dataset) -> Contender:
    """This project's evaluation of a split."""
    size = EVAL_BATCH_SIZES[learner.device.type]
    batches = EvalBatches(dataset.val, our_normaliser(learner, dataset), size)
    return lambda: len(learner.predict(batches))


def interleaved(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Return images/s of each contender in each round after the first."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            images = work()
            if number:
                rates[name].append(images / (time.perf_counter() - started))
    return rates


def measure(name: str, dataset: Dataset, speed: Speed, rounds: int) -> dict[str, Any]:
    """Return the rates of all contenders in training and in evaluation."""
    learner = our_learner(new_model(name, dataset), speed)
    train = {"ours": our_train(learner, dataset)}
    train["in-memory"] = in_memory_train(new_model(name, dataset), dataset)
    evaluation = {"ours": our_eval(learner, dataset)}
    evaluation["in-memory"] = in_memory_eval(new_model(name, dataset), dataset)
    for workers in (0, 2):
        key = f"dataloader-{workers}"
        train[key] = dataloader_train(new_model(name, dataset), dataset, workers)
        evaluation[key] = dataloader_eval(new_model(name, dataset), dataset, workers)
    return {"train": interleaved(train, rounds), "eval": interleaved(evaluation, rounds)}


def ratios(rates: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return ours / theirs of the medians; the faster DataLoader counts."""
    result = {}
    for kind, by_name in rates.items():
        median = {name: statistics.median(values) for name, values in by_name.items()}
        loader = max(median["dataloader-0"], median["dataloader-2"])
        result[f"{kind} / dataloader"] = median["ours"] / loader
        result[f"{kind} / in-memory"] = median["ours"] / median["in-memory"]
    return result


def tree_memory_mib() -> float:
    """Return the resident memory of this process and its descendants."""
    total, pending = 0, [os.getpid()]
    while pending:
        pid = pending.pop()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        line = next((row for row in status.splitlines() if row.startswith("VmRSS")), "VmRSS: 0")
        total += int(line.split()[1])
        pending += [int(child) for child in children]
    return total / 1024


def compile_cost(name: str, speed: Speed, queue: Any) -> None:
    """Put first-step seconds, images/s and peak memory of a fresh process on ``queue``."""
    dataset = load_dataset("fashion-mnist-mini")
    learner = our_learner(new_model(name, dataset), speed)
    work = our_train(learner, dataset)
    started = time.perf_counter()
    work()
    first = time.perf_counter() - started
    memory = tree_memory_mib()
    rates = interleaved({"ours": work}, 5)["ours"]
    queue.put({"first": first, "rate": statistics.median(rates), "memory_mib": memory})


def in_fresh_process(name: str, speed: Speed) -> dict[str, float]:
    """Run :func:`compile_cost` with an empty compile cache."""
    import tempfile

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        process = context.Process(target=compile_cost, args=(name, speed, queue))
        process.start()
        answer: dict[str, float] = queue.get()
        process.join()
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    return answer


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["convnet", "preresnet20"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--amp", choices=["auto", "off", "bf16"], default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    dataset = load_dataset("fashion-mnist-mini")
    config = FGEConfig(amp=arguments.amp)
    facts = environment_facts(torch.device("cpu"), torch.get_num_threads())
    results: dict[str, Any] = {"environment": facts, "models": {}}
    for name in arguments.models:
        results["models"][name] = one_model(name, dataset, config, arguments.rounds)
        write_json(arguments.results, results)


def one_model(name: str, dataset: Dataset, config: FGEConfig, rounds: int) -> dict[str, Any]:
    """Measure one model and print what was found."""
    inputs = torch.randn(BATCH, dataset.in_channels, *dataset.image_size)
    choice = choose_speed(
        config, new_model(name, dataset), inputs, dataset.train.labels[:BATCH], steps=LONG_JOB_STEPS
    )
    print(f"\n{name}: {choice.speed}")
    for reason in choice.reasons:
        print(f"  {reason}")
    rates = measure(name, dataset, choice.speed, rounds)
    for kind, by_name in rates.items():
        for contender, values in by_name.items():
            spread = f"{min(values):.0f} to {max(values):.0f}"
            print(f"  {kind:5} {contender:13} {statistics.median(values):8.0f} images/s ({spread})")
    compared = ratios(rates)
    for key, ratio in compared.items():
        kind, other = key.split(" / ")
        target = TARGETS[kind, other]
        met = "met" if ratio >= target else "NOT met"
        print(f"  {key}: {ratio:.2f} x (target {target} x, {met})")
    plain = Speed(choice.speed.channels_last, False, choice.speed.amp)
    compiled = Speed(choice.speed.channels_last, True, choice.speed.amp)
    costs = {"eager": in_fresh_process(name, plain), "compiled": in_fresh_process(name, compiled)}
    print(f"  {compile_sentence(costs['eager'], costs['compiled'])}")
    return {
        "speed": vars(choice.speed),
        "reasons": choice.reasons,
        "rates": rates,
        "ratios": compared,
        "compile": costs,
    }


def compile_sentence(eager: dict[str, float], compiled: dict[str, float]) -> str:
    """Say what compiling costs, and after how many images it has paid for itself."""
    extra = compiled["first"] - eager["first"]
    saved = 1 / eager["rate"] - 1 / compiled["rate"]
    even = f"pays after {extra / saved:,.0f} images" if saved > 0 else "never pays: not faster"
    return (
        f"compile: {extra:.0f} s, {compiled['rate']:.0f} against {eager['rate']:.0f} images/s, "
        f"{even}; memory of the process tree {compiled['memory_mib']:.0f} against "
        f"{eager['memory_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
