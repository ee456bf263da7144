"""This package's methods compared with TorchEnsemble's and PyTorch's own, at equal budget.

    python benchmarks/peers.py [--seeds 0 1 2 3 4] [--epochs 100] [--methods fge torchensemble-fge]

Three pairs: ``fge`` and TorchEnsemble's ``FastGeometricClassifier``; ``sse`` (cosine cycles) and
its ``SnapshotEnsembleClassifier``; ``swa`` (the average of fge's snapshots) and PyTorch's
``torch.optim.swa_utils``. Same data (``fashion-mnist-mini``), model (``convnet``), initial
weights, batches, augmentation, SGD options, precision and budget; ``peer_methods.py`` sets up
each. The tables show test error and NLL, training time, passes over validation and test images
(counted at the network's input), and peak memory. All run in one process, one after the other, seed
by seed, each seed starting with the next method; a first step and prediction are not measured, so
no run pays for PyTorch's set-up. The peak memory is that of each run: on Linux, writing 5 to
``/proc/self/clear_refs`` resets the peak, which is ``VmHWM`` in ``/proc/self/status``; on CUDA it
is PyTorch's, after ``reset_peak_memory_stats``; elsewhere it is unknown. If TorchEnsemble is
installed (the extra ``benchmarks``), its known faults are checked as well (``peer_faults.py``).
Finished runs are not run again, and each records its process; raw results are in
``benchmarks/results/peers.json``, the tables in ``peers.md`` in the same folder.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peer_faults import look_for_faults
from peer_methods import CONTENDERS, PassCounter, Task
from peer_tables import page

from fge import metrics
from fge.commands.build import Setup, settle_machine, settle_options
from fge.commands.loading import load_data
from fge.config import MethodConfig
from fge.data import Dataset
from fge.errors import UserError, unknown
from fge.files import write_json, write_text
from fge.report import environment_facts
from fge.train import endpoint_recipe, make_optimizer

RESULTS = Path(__file__).parent / "results" / "peers.json"
SETTINGS = ("data", "model", "epochs", "batch_size", "train_size", "test_size", "sse_cycles")
CLEAR_REFS = Path("/proc/self/clear_refs")
"""Writing 5 resets the peak of resident memory (proc_pid_clear_refs(5))."""
TORCHENSEMBLE = ("torchensemble-fge", "torchensemble-sse")


def config_of(options: argparse.Namespace) -> MethodConfig:
    """Return the options of every run but its seed, in one precision and memory format.

    Raises:
        UserError: a value that is out of its range.
    """
    return MethodConfig(
        data=options.data,
        data_dir=options.data_dir,
        model=options.model,
        epochs=options.epochs,
        batch_size=options.batch_size,
        train_size=options.train_size,
        test_size=options.test_size,
        sse_cycles=options.sse_cycles,
        average=0.0,  # members as published, which the others keep too
        device=options.device,
        threads=options.threads,
        channels_last="on",
        compile="off",
        amp="off",
    )


def turns(methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield every method and seed, seed by seed, each seed starting with the next method."""
    for number, seed in enumerate(seeds):
        first = number % len(methods)
        for method in (*methods[first:], *methods[:first]):
            yield method, seed


def forget_peak(device: torch.device) -> None:
    """Free the memory of earlier runs as far as possible, and reset the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed pages otherwise
        if trim is not None:
            trim(0)
        CLEAR_REFS.write_text("5")


def memory_mib(device: torch.device, *, peak: bool) -> float | None:
    """Return current memory, or its peak since :func:`forget_peak`; None if unknown.

    It is the memory allocated by PyTorch on CUDA, and resident memory on the CPU.
    """
    if device.type == "cuda":
        now, most = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
        return round((most if peak else now)(device) / 2**20, 1)
    if not CLEAR_REFS.exists():
        return None
    field = "VmHWM" if peak else "VmRSS"
    rows = Path("/proc/self/status").read_text().splitlines()
    line = next(row for row in rows if row.startswith(field))
    return round(int(line.split()[1]) / 1024, 1)


def clock(device: torch.device) -> float:
    """Return the seconds of a clock after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def new_task(config: MethodConfig, folder: Path) -> tuple[Task, PassCounter]:
    """Return the task of a contender, and a counter of the images that go through its model.

    Raises:
        UserError: a device, the data or a model does not exist.
    """
    config = settle_machine(config)
    dataset = load_data(config)
    config = settle_options(config, dataset)
    dataset = dataset.to(torch.device(config.device))
    model, counter = Setup.of(config, dataset).new_model().to(config.device), PassCounter()
    model.to(memory_format=torch.channels_last)
    counter.watch(model)
    return Task(config, dataset, model, folder), counter


def warm_up(config: MethodConfig) -> None:
    """Take a step and predict a batch."""
    with tempfile.TemporaryDirectory() as folder:
        task, _ = new_task(config, Path(folder))
        optimizer = make_optimizer(endpoint_recipe(task.config), task.model.parameters())
        inputs, targets = next(iter(task.loader))
        F.cross_entropy(task.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            task.model.eval()(inputs)


def measure(method: str, config: MethodConfig) -> dict[str, Any]:
    """Train a method with the seed in ``config`` and test it; return the run's record."""
    with tempfile.TemporaryDirectory() as folder:
        task, counter = new_task(config, Path(folder))
        device, test = torch.device(task.config.device), task.dataset.test
        forget_peak(device)
        before, started = memory_mib(device, peak=False), clock(device)
        trained = CONTENDERS[method](task)
        ready = clock(device)
        counter.phase = "test"
        probs = trained.predict(task.setup.eval_batches(test))
        finished, peak = clock(device), memory_mib(device, peak=True)
    return {
        "method": method,
        "seed": config.seed,
        "members": trained.members,
        "error": metrics.error(probs, test.labels.cpu()),
        "nll": metrics.nll(probs, test.labels.cpu()),
        "train_seconds": round(ready - started, 3),
        "test_seconds": round(finished - ready, 3),
        **passes(counter, task.dataset),
        "peak_mib": peak,
        "more_mib": None if peak is None or before is None else round(peak - before, 1),
        "environment": environment(device),
    }


def passes(counter: PassCounter, dataset: Dataset) -> dict[str, float]:
    """Return the cost in epochs, passes over whole splits, and refresh images."""
    images = counter.images
    return {
        "train_epochs": round(images["train"] / len(dataset.train), 2),
        "validation_passes": images["validation"] / max(len(dataset.val), 1),
        "test_passes": images["test"] / len(dataset.test),
        "refresh_images": images["refresh"],
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return hardware and versions, TorchEnsemble's included."""
    try:
        torchensemble = version("torchensemble")
    except PackageNotFoundError:
        torchensemble = "not installed"
    facts = environment_facts(device, torch.get_num_threads())
    return {**facts, "torchensemble": torchensemble}


def open_results(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results of earlier calls, if any.

    Raises:
        UserError: they have other settings, or each was measured in its own process.
    """
    if not path.exists():
        return {"settings": settings, "faults": None, "runs": []}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if results["settings"].get(name) != value:
            raise UserError(
                f"{path} has runs with {name} {results['settings'].get(name)}, not {value}; "
                "give another --results"
            )
    if any("process" not in run for run in results["runs"]):
        raise UserError(
            f"{path} has runs that each had their own process, so their peak memory is not that "
            "of runs in one; give another --results"
        )
    return results


def check_methods(methods: Sequence[str]) -> None:
    """Check that the methods exist and that their packages are installed.

    Raises:
        UserError: naming the first method that does not exist or whose package is missing.
    """
    for method in methods:
        if method not in CONTENDERS:
            raise unknown("method", method, CONTENDERS)
        if method in TORCHENSEMBLE and not has_torchensemble():
            raise UserError(f"{method} needs torchensemble: pip install -e '.[benchmarks]'")


def has_torchensemble() -> bool:
    """Return whether TorchEnsemble can be imported; it needs joblib, an undeclared dependency."""
    return all(find_spec(name) is not None for name in ("torchensemble", "joblib"))


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--sse-cycles", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--data", default="fashion-mnist-mini")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the missing runs, writing after each; return all results.

    Raises:
        UserError: an option is invalid, or the results have other settings.
    """
    check_methods(options.methods)
    config = config_of(options)
    results = open_results(options.results, {name: getattr(config, name) for name in SETTINGS})
    if results["faults"] is None and has_torchensemble():
        results["faults"] = look_for_faults()
    known = {(run["method"], run["seed"]) for run in results["runs"]}
    missing = [turn for turn in turns(options.methods, options.seeds) if turn not in known]
    process = 1 + max((run["process"] for run in results["runs"]), default=0)
    if missing:
        warm_up(config)
    for method, seed in missing:
        found = measure(method, replace(config, seed=seed))
        results["runs"].append({**found, "process": process})
        write_json(options.results, results)
        write_text(options.results.with_suffix(".md"), page(results))
    return results


def main() -> None:
    """Run the missing runs; print the page."""
    try:
        print(page(run(parse())))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
