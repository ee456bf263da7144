"""Does the top Hessian eigenvalue, measured early, predict flat or sharp minima?

    python benchmarks/sharpness_prediction.py [--epochs 16] [--seeds 0 1] [--processes 2]

``convnet`` on 3,000 training images of ``fashion-mnist-mini``, trained in 19 ways: learning rates
0.02, 0.05, 0.1 and 0.2 with batches of 32, 128 and 512 (the conventional schedule), and recipes G
and A to F (arXiv 1806.06977; A with batches of 500, since 4,000 are more than the data). Each
network's top eigenvalue is measured after 10, 20 and 50 % of the epochs and at the end, over 1,024
training images without augmentation, batch norm in evaluation mode; at the end also training loss
and error (3,000 images without augmentation) and test loss and error (5,000 images).

The results are Spearman's rank correlations over runs of the early eigenvalues with the last one,
with the test error, and with the generalisation gap (test minus training, of loss and of error);
also for the last eigenvalue, which predicts nothing but shows what an early one could predict.
Intervals are percentiles (95 %) over 4,000 resamples of the ways to train, each with all its seeds:
runs that differ only in the seed do not count as independent. They are given for all runs, and for
only the grid of learning rates and batches, which has one recipe. Test data choose nothing here.

Each finished run is a line of ``benchmarks/results/sharpness_prediction.jsonl``; a rerun, or one
with more seeds, only fills gaps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rank_correlations import correlation, interval

from fge import metrics
from fge.commands.build import Setup, settle_options
from fge.commands.loading import load_data
from fge.config import RunConfig
from fge.data import EvalBatches
from fge.errors import DivergenceError
from fge.files import append_record, read_records
from fge.landscape import CHUNK, PROBE_IMAGES, SharpnessProbe
from fge.report import environment_facts
from fge.train import (
    EpochEnd,
    Learner,
    Recipe,
    Speed,
    endpoint_recipe,
    make_optimizer,
    recipe,
    scale_initialisation,
    train,
)
from fge.train.recipes import make_schedule

RESULTS = Path(__file__).parent / "results" / "sharpness_prediction.jsonl"
RATES, BATCH_SIZES = (0.02, 0.05, 0.1, 0.2), (32, 128, 512)
RECIPES = ("G", "A", "B", "C", "D", "E", "F")
A_BATCH = 500
VARIANTS = [f"lr={lr:g} batch={size}" for lr in RATES for size in BATCH_SIZES] + list(RECIPES)
EARLY, END = ("10 %", "20 %", "50 %"), "100 %"
PARTS = {"10 %": 0.1, "20 %": 0.2, "50 %": 0.5, END: 1.0}
TARGETS = {
    "last": "the last eigenvalue",
    "test_error": "test error",
    "gap_loss": "gap of the loss",
    "gap_error": "gap of the error",
}

Run = dict[str, Any]


def measuring_epochs(epochs: int) -> dict[str, int]:
    """Return after how many epochs each part of the training is over, at least one.

    >>> measuring_epochs(16)
    {'10 %': 2, '20 %': 3, '50 %': 8, '100 %': 16}
    """
    return {name: max(1, round(part * epochs)) for name, part in PARTS.items()}


def recipe_of(variant: str, config: RunConfig) -> Recipe:
    """Return the recipe that a variant's name describes."""
    if variant in RECIPES:
        found = recipe(variant)
        return replace(found, batch_size=A_BATCH) if variant == "A" else found
    lr, size = (part.partition("=")[2] for part in variant.split())
    return replace(endpoint_recipe(config), lr=float(lr), batch_size=int(size))


def run_one(variant: str, seed: int, epochs: int, train_size: int) -> Run:
    """Train one network; return its eigenvalues and figures, or that it diverged."""
    torch.set_num_threads(1)
    key = key_of(variant, seed, epochs, train_size)
    config = RunConfig(
        train_size=train_size, val_fraction=0.0, epochs=epochs, seed=seed, channels_last="on"
    )
    dataset = load_data(config)
    config = settle_options(config, dataset)
    how = recipe_of(variant, config)
    setup = Setup.of(config, dataset)
    model = setup.new_model()
    scale_initialisation(model, how)
    batches = setup.train_batches(how)
    optimizer = make_optimizer(how, model.parameters())
    learner = Learner(model, optimizer, Speed(channels_last=True))
    schedule = make_schedule(how, optimizer, epochs=epochs, steps_per_epoch=len(batches))
    probe = probe_of(setup)
    places = measuring_epochs(epochs)
    found: dict[int, float] = {}

    def look(end: EpochEnd) -> None:
        if end.epoch + 1 in places.values():
            lr = float(schedule.get_last_lr()[0])
            (record,) = probe.measure(learner, variant, end.epoch + 1, lr, snapshot=False)
            found[end.epoch + 1] = record["eigenvalue"]

    try:
        train(
            learner, schedule, batches, first_epoch=0, last_epoch=epochs, seed=seed, on_epoch=look
        )
    except DivergenceError as error:
        return {**key, "diverged": str(error)}
    return {
        **key,
        "eigenvalues": {name: found[epoch] for name, epoch in places.items()},
        **final_figures(learner, setup),
        "environment": environment_facts(torch.device("cpu"), 1),
    }


def probe_of(setup: Setup) -> SharpnessProbe:
    """Return what measures the top eigenvalue, as ``python cli.py fge`` does."""
    images = setup.dataset.train.first(PROBE_IMAGES)
    return SharpnessProbe(EvalBatches(images, setup.normaliser, CHUNK), 1)


def final_figures(learner: Learner, setup: Setup) -> dict[str, float]:
    """Return loss (nats) and error (percent) on training images as they are, and on test images."""
    figures = {}
    for name, split in (("train", setup.dataset.train), ("test", setup.dataset.test)):
        probs = learner.predict(EvalBatches(split, setup.normaliser, 250))
        figures[f"{name}_loss"] = metrics.nll(probs, split.labels)
        figures[f"{name}_error"] = metrics.error(probs, split.labels)
    return figures


def key_of(variant: str, seed: int, epochs: int, train_size: int) -> Run:
    """Return the key that identifies a run."""
    return {"variant": variant, "seed": seed, "epochs": epochs, "train_size": train_size}


def _key(run: Run) -> tuple[str, int, int, int]:
    return run["variant"], run["seed"], run["epochs"], run["train_size"]


def columns(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Return the eigenvalues by part of the training, and what they may foretell, over runs."""
    found = {name: [run["eigenvalues"][name] for run in runs] for name in PARTS}
    found["last"] = found[END]
    found["test_error"] = [run["test_error"] for run in runs]
    for key in ("loss", "error"):
        found[f"gap_{key}"] = [run[f"test_{key}"] - run[f"train_{key}"] for run in runs]
    return found


def correlations(runs: Sequence[Run]) -> list[Run]:
    """Return a row for each part of the training and each thing that it may foretell."""
    data, variants = columns(runs), [run["variant"] for run in runs]
    rows = []
    for part in PARTS:
        for target in TARGETS:
            if (part, target) != (END, "last"):
                low, high = interval(data[part], data[target], variants)
                rho = correlation(data[part], data[target])
                rows.append({"part": part, "target": target, "rho": rho, "low": low, "high": high})
    return rows


def verdict(rows: Sequence[Run]) -> str:
    """Say in words what the early eigenvalues foretell, from :func:`correlations`."""
    sentences = []
    for target, name in TARGETS.items():
        early = [row for row in rows if row["target"] == target and row["part"] in EARLY]
        sure = [row for row in early if row["low"] > 0 or row["high"] < 0]
        if not sure:
            sentences.append(f"It does not foretell {name}: every interval holds 0.")
            continue
        parts = [
            f"{row['part']} ({row['rho']:+.2f}, {row['low']:+.2f} to {row['high']:+.2f})"
            for row in sure
        ]
        signs = {row["rho"] > 0 for row in sure}
        way = "sharper early, larger" if signs == {True} else "sharper early, smaller"
        way = way if len(signs) == 1 else "the sign differs"
        sentences.append(f"It says something of {name} from {', '.join(parts)}: {way}.")
    return " ".join(sentences)


def print_group(label: str, runs: Sequence[Run]) -> None:
    """Print the table and the verdict of a group of runs."""
    variants = len({run["variant"] for run in runs})
    if variants < 4:
        print(f"\n{label}: {variants} ways to train are too few for correlations")
        return
    rows = correlations(runs)
    cells = {(row["part"], row["target"]): row for row in rows}
    print(f"\n{label}, {len(runs)} runs in {variants} ways:")
    print("rank correlation of the top eigenvalue with ...\n")
    print(f"| measured at | {' | '.join(TARGETS.values())} |")
    print(f"| :-- |{' --: |' * len(TARGETS)}")
    for part in PARTS:
        found = [cells.get((part, target)) for target in TARGETS]
        texts = [
            f"{r['rho']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" if r else "1" for r in found
        ]
        print(f"| {part} | {' | '.join(texts)} |")
    print(f"\n{verdict(rows)}")


def fill(jobs: Sequence[tuple[str, int, int, int]], processes: int, results: Path) -> None:
    """Run the missing runs; save each as soon as it is finished."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(run_one, *job) for job in jobs]):
            append_record(results, future.result())


def main() -> None:
    """Fill gaps, correlate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train-size", type=int, default=3000)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = [
        (variant, seed, options.epochs, options.train_size)
        for seed in options.seeds
        for variant in options.variants
    ]
    known = [_key(run) for run in read_records(options.results)]
    fill([job for job in wanted if job not in known], options.processes, options.results)
    found = [run for run in read_records(options.results) if _key(run) in wanted]
    runs = [run for run in found if "diverged" not in run]
    if len(runs) < len(found):
        print(f"{len(found) - len(runs)} of {len(found)} runs diverged and are left out")
    print_group("All ways to train", runs)
    print_group(
        "Learning rates and batches alone", [r for r in runs if r["variant"] not in RECIPES]
    )


if __name__ == "__main__":
    main()
