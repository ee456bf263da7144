"""The cost of evaluating a curve compared with full passes, and the error of the shortcut.

    python benchmarks/curve_evaluation.py [--points 13] [--data fashion-mnist]

All of Fashion-MNIST (60,000 + 10,000 images), two ``convnet``s trained for a few epochs and the
Bezier curve between them. Each point of the curve is measured twice, one after the other:

``ours``: ``evaluate_curve`` as the commands use it: batch-norm statistics and training loss from
5,120 images, one pass over the test set;
``full``: statistics estimated from all training images, then a full pass over the training set
for its loss and a full pass over the test set, with the same network, batches and precision.

The first point is dropped as warm-up. Targets: at least 5 x faster by the median, test errors at
most 0.1 points apart at every point. Raw results: ``benchmarks/results/curve_evaluation.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fge import metrics
from fge.commands.build import Setup, settle_machine, settle_options
from fge.commands.loading import load_data
from fge.config import CurveEnsembleConfig
from fge.curves import Curve, evaluate_curve, fit_curve
from fge.data import Dataset, EvalBatches, Split
from fge.files import write_json
from fge.networks import predict_logits, refresh_batch_norm, write_parameters
from fge.report import environment_facts
from fge.train import Learner, endpoint_recipe, make_optimizer, train
from fge.train.recipes import make_schedule

RESULTS = Path(__file__).parent / "results" / "curve_evaluation.json"
IMAGES = 5120
SPEED_TARGET, ERROR_TARGET = 5.0, 0.1


def trained(config: CurveEnsembleConfig, dataset: Dataset, seed: int, epochs: int) -> nn.Module:
    """Train a network for a few epochs."""
    setup = Setup.of(config, dataset)
    model = setup.new_model(seed)
    recipe = endpoint_recipe(config)
    optimizer = make_optimizer(recipe, model.parameters())
    batches = setup.train_batches(recipe, seed)
    schedule = make_schedule(recipe, optimizer, epochs=epochs, steps_per_epoch=len(batches))
    learner = Learner(model, optimizer)
    train(learner, schedule, batches, first_epoch=0, last_epoch=epochs, seed=seed)
    return model


def full_pass(
    model: nn.Module, curve: Curve, t: float, train_set: EvalBatches, test: EvalBatches
) -> tuple[float, float]:
    """Return training loss and test error (percent) at t from full passes over everything."""
    write_parameters(model, curve.at(t))
    refresh_batch_norm(model, train_set, num_images=None)
    total = 0.0
    for batch, logits in predict_logits(model, train_set):
        total += float(F.cross_entropy(logits, batch[1], reduction="sum"))
    parts = [logits.softmax(dim=1) for _, logits in predict_logits(model, test)]
    error = metrics.error(torch.cat(parts).cpu(), test.split.labels.cpu())
    return total / len(train_set.split), error


def compare(model: nn.Module, curve: Curve, setup: Setup, points: int) -> list[dict[str, Any]]:
    """Return both results and times at each point."""
    dataset = setup.dataset
    whole = setup.eval_batches(dataset.train)
    part = Split(dataset.train.images[:IMAGES], dataset.train.labels[:IMAGES])
    measured, test = (
        setup.eval_batches(part),
        setup.eval_batches(dataset.test),
    )
    rows = []
    for k in range(points):
        t = k / (points - 1)
        started = time.perf_counter()
        (ours,) = evaluate_curve(model, curve, {"train": measured, "test": test}, ts=[t])
        middle = time.perf_counter()
        loss, error = full_pass(model, curve, t, whole, test)
        ended = time.perf_counter()
        rows.append(
            {
                "t": t,
                "ours": {"train_loss": ours["train_loss"], "test_error": ours["test_error"]},
                "full": {"train_loss": loss, "test_error": error},
                "seconds": {"ours": middle - started, "full": ended - middle},
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the points and whether the targets are met."""
    print("| t | test error ours | full | train loss ours | full | s ours | full |")
    print("| --: | --: | --: | --: | --: | --: | --: |")
    for row in rows:
        ours, full, seconds = row["ours"], row["full"], row["seconds"]
        print(
            f"| {row['t']:.3f} | {ours['test_error']:.2f} | {full['test_error']:.2f} "
            f"| {ours['train_loss']:.4f} | {full['train_loss']:.4f} "
            f"| {seconds['ours']:.2f} | {seconds['full']:.2f} |"
        )
    warm = rows[1:]
    ratio = statistics.median(r["seconds"]["full"] / r["seconds"]["ours"] for r in warm)
    gap = max(abs(r["ours"]["test_error"] - r["full"]["test_error"]) for r in rows)
    for what, value, met in (
        ("times faster", ratio, ratio >= SPEED_TARGET),
        ("points of test error apart at most", gap, gap <= ERROR_TARGET),
    ):
        print(f"{value:.2f} {what}: {'met' if met else 'NOT met'}")


def main() -> None:
    """Train, fit, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=13)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config = CurveEnsembleConfig(
        data=arguments.data, val_fraction=0.0, batch_size=128, device="cpu"
    )
    config = settle_machine(config)
    dataset = load_data(config)
    config = settle_options(config, dataset)
    setup = Setup.of(config, dataset)
    first, second = (trained(config, dataset, seed, arguments.epochs) for seed in (0, 1))
    batches = setup.train_batches(endpoint_recipe(config))
    curve = fit_curve(
        first, first, second, batches, epochs=arguments.epochs, lr=config.curve_base_lr
    )
    rows = compare(first, curve, setup, arguments.points)
    facts = environment_facts(torch.device("cpu"), torch.get_num_threads())
    content = {"environment": facts, "images": IMAGES, "epochs": arguments.epochs, "points": rows}
    write_json(arguments.results, content)
    print_rows(rows)


if __name__ == "__main__":
    main()
