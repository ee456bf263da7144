"""Grid points per second of a plane compared with full passes, and the error of the shortcut.

    python benchmarks/plane.py [--resolution 6] [--data fashion-mnist]

The default data without validation images (10,000 + 5,000 images), three ``convnet``s trained for
a few epochs from different seeds and the plane through them. Each point of a grid is measured
twice, one after the other:

``ours``: ``evaluate_plane`` with its defaults, on the images that ``python cli.py plane`` uses:
batch-norm statistics and training loss from 5,120 training images, one pass over the test set;
``full``: statistics estimated from all training images, then a full pass over the training set
for its loss and error and a full pass over the test set, with the same network, batches and
precision.

The first point is dropped as warm-up. The differences in training loss (nats) and test error
(points) are shown over all points, and separately over the points with a full training error below
50 %: far from the networks, where the loss is high, differences matter least. The larger the data,
the more images the shortcut saves: with ``--data fashion-mnist`` (60,000 + 10,000) it gains more.
There is no target. Raw results: ``benchmarks/results/plane.json``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curve_evaluation import IMAGES, trained
from torch import nn

from fge.commands.build import Setup, settle_machine, settle_options
from fge.commands.loading import load_data
from fge.config import CurveEnsembleConfig
from fge.curves import WeightsEvaluator
from fge.data import Dataset, EvalBatches, Split
from fge.files import write_json
from fge.landscape import Plane, evaluate_plane
from fge.networks import Layout, flatten
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "plane.json"
SEEDS = (0, 1, 2)
GOOD = 50.0
"""Points below this training error (percent) are near a network and matter most."""

Row = dict[str, Any]


class Turns:
    """Times the points between its calls, and measures each point in full in between."""

    def __init__(
        self, model: nn.Module, plane: Plane, batches: dict[str, EvalBatches], lines: Sequence[Any]
    ) -> None:
        # A separate network, because that of the plane is in use.
        self.full = WeightsEvaluator(copy.deepcopy(model), batches, num_images=None)
        self.plane = plane
        self.xs, self.ys = lines
        self.rows: list[Row] = []
        self._began = time.perf_counter()

    def __call__(self, done: int, _: int) -> None:
        """Called after each point; measures it in full."""
        ours = time.perf_counter() - self._began
        row, column = divmod(done - 1, len(self.xs))
        x, y = float(self.xs[column]), float(self.ys[row])
        started = time.perf_counter()
        record = self.full(self.plane.point(x, y))[0]
        seconds = {"ours": ours, "full": time.perf_counter() - started}
        self.rows.append({"x": x, "y": y, "full": record, "seconds": seconds})
        self._began = time.perf_counter()


def compare(
    model: nn.Module, plane: Plane, dataset: Dataset, config: CurveEnsembleConfig, resolution: int
) -> list[Row]:
    """Return both results and times at each point of a grid."""
    setup, train = Setup.of(config, dataset), dataset.train
    part = Split(train.images[:IMAGES], train.labels[:IMAGES])
    ours, full = (
        {
            "train": setup.eval_batches(split),
            "test": setup.eval_batches(dataset.test),
        }
        for split in (part, train)
    )
    left, right, bottom, top = plane.bounds(0.2)
    lines = np.linspace(left, right, resolution), np.linspace(bottom, top, resolution)
    turns = Turns(model, plane, full, lines)
    grid = evaluate_plane(model, plane, ours, resolution=resolution, on_point=turns)
    for position, row in enumerate(turns.rows):
        place = divmod(position, resolution)
        row["ours"] = {key: float(values[place]) for key, values in grid.values.items()}
    return turns.rows


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Return rates, and the errors made as medians and maxima, over the points but the first."""
    warm = rows[1:]
    found = {
        f"points_per_second_{name}": 1 / statistics.median(r["seconds"][name] for r in warm)
        for name in ("ours", "full")
    }
    ratios = [r["seconds"]["full"] / r["seconds"]["ours"] for r in warm]
    found |= {"times_faster": statistics.median(ratios)}
    found |= {"times_faster_low": min(ratios), "times_faster_high": max(ratios)}
    near = [r for r in rows if r["full"]["train_error"] < GOOD]
    for where, points in (("all", rows), ("near", near)):
        found[f"points_{where}"] = len(points)
        for key in ("train_loss", "test_error", "test_nll"):
            apart = [abs(r["ours"][key] - r["full"][key]) for r in points]
            if apart:
                found[f"{key}_apart_{where}_median"] = statistics.median(apart)
                found[f"{key}_apart_{where}_most"] = max(apart)
    return found


def print_summary(found: dict[str, float]) -> None:
    """Print rates and errors made."""
    print(
        f"{found['points_per_second_ours']:.2f} points a second against "
        f"{found['points_per_second_full']:.2f} with full passes: {found['times_faster']:.2f} "
        f"times faster by the median ({found['times_faster_low']:.2f} to "
        f"{found['times_faster_high']:.2f})"
    )
    print("| points | how many | apart by | median | most |")
    print("| :-- | --: | :-- | --: | --: |")
    names = {"train_loss": "train loss, nats", "test_error": "test error, points"}
    for where, label in (("all", "all"), ("near", f"of a training error below {GOOD:.0f} %")):
        for key, name in names.items():
            if f"{key}_apart_{where}_most" in found:
                print(
                    f"| {label} | {found[f'points_{where}']} | {name} "
                    f"| {found[f'{key}_apart_{where}_median']:.4f} "
                    f"| {found[f'{key}_apart_{where}_most']:.4f} |"
                )


def main() -> None:
    """Train, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=6)
    parser.add_argument("--data", default="fashion-mnist-mini")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config = CurveEnsembleConfig(
        data=arguments.data,
        train_size=arguments.train_size,
        val_fraction=0.0,
        batch_size=128,
        device="cpu",
    )
    config = settle_machine(config)
    dataset = load_data(config)
    config = settle_options(config, dataset)
    models = [trained(config, dataset, seed, arguments.epochs) for seed in SEEDS]
    plane = Plane.through(*(flatten(model.state_dict(), model) for model in models))
    rows = compare(models[0], plane, dataset, config, arguments.resolution)
    found = summary(rows)
    facts = environment_facts(torch.device("cpu"), torch.get_num_threads())
    content = {
        "environment": facts,
        "data": arguments.data,
        "images": {"ours": min(IMAGES, len(dataset.train)), "full": len(dataset.train)},
        "test_images": len(dataset.test),
        "parameters": Layout.of(models[0]).numel,
        "epochs": arguments.epochs,
        "resolution": arguments.resolution,
        "summary": found,
        "points": rows,
    }
    write_json(arguments.results, content)
    print_summary(found)


if __name__ == "__main__":
    main()
