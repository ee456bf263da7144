"""Tasks: the methods on tasks other than images of classes, at equal budgets.

    python benchmarks/tasks.py run WORK [--only diabetes] [--seeds 5]
    python benchmarks/tasks.py table

Data that packages ship: scikit-learn's digits (classification), breast cancer (binary) and diabetes
(regression) as tables with an MLP, 40 epochs; five attributes of 2,000 images of Fashion-MNIST
(multilabel: footwear, upper body, long sleeves, covers legs, bag, by their classes) with the
convnet, 10 epochs; the angle by which 1,000 of these images were rotated (regression, up to 60
degrees each way) with the convnet, 20 epochs. ``run`` is ``fge compare`` with single, average, fge,
the two-network curve ensemble, auto, and split, which is a deep ensemble within one budget; pools
of the single networks and of the averages are the scale of the deep-ensemble equivalent. It can be
interrupted and continued: finished cells stay in WORK. One thread, float32, seeds from 1000 on;
three to sixty seconds of CPU time for most of the 30 trainings a task. Results:
``benchmarks/results/tasks/``, which ``table`` prints.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import rotate

from fge.commands.compare import compare
from fge.config import CompareConfig

RESULTS = Path(__file__).parent / "results" / "tasks"
FILES = ("compare.json", "compare.csv", "compare.md")
METHODS = ("single", "average", "fge", "split", "auto", "curve-ensemble")
PLAIN: dict[str, Any] = {"threads": 1, "channels_last": "off", "compile": "off", "amp": "off"}
TABLE: dict[str, Any] = {"target": ("target",), "epochs": 40, "batch_size": 32}
ATTRIBUTES = {
    "footwear": (5, 7, 9),
    "upper body": (0, 2, 3, 4, 6),
    "long sleeves": (2, 4, 6),
    "covers legs": (1, 3),
    "bag": (8,),
}
"""Classes of Fashion-MNIST that have an attribute."""
MOST_DEGREES = 60
"""Images are rotated by up to so many degrees, either way."""


def write_table(path: Path, frame: Any, names: Any = None) -> None:
    """Write a scikit-learn frame as CSV, its targets by their names."""
    rows = frame.to_numpy().tolist()
    if names is not None:
        rows = [[*row[:-1], names[int(row[-1])]] for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(frame.columns), *rows])


def write_digits(path: Path) -> None:
    """Write the digits: 1,797 rows of 64 pixels."""
    from sklearn.datasets import load_digits

    write_table(path, load_digits(as_frame=True).frame)


def write_cancer(path: Path) -> None:
    """Write the breast cancer data: 569 rows of 30 numbers."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer(as_frame=True)
    write_table(path, found.frame, found.target_names)


def write_diabetes(path: Path) -> None:
    """Write the diabetes data: 442 rows of 10 numbers."""
    from sklearn.datasets import load_diabetes

    write_table(path, load_diabetes(as_frame=True, scaled=False).frame)


def write_attributes(path: Path) -> None:
    """Write the bundled images of Fashion-MNIST with attributes instead of classes."""
    file = resources.files("fge.data") / "bundled" / "fashion-mnist-mini.npz"
    arrays: dict[str, Any] = {"target_names": np.array(list(ATTRIBUTES))}
    with resources.as_file(file) as bundled, np.load(bundled) as found:
        for part in ("train", "test"):
            labels = found[f"{part}_labels"]
            columns = [np.isin(labels, classes) for classes in ATTRIBUTES.values()]
            arrays[f"{part}_images"] = found[f"{part}_images"]
            arrays[f"{part}_labels"] = np.stack(columns, axis=1).astype(np.int64)
    np.savez(path, **arrays)


def write_angles(path: Path) -> None:
    """Write bundled images of Fashion-MNIST, each rotated, with their angles in degrees."""
    generator = np.random.default_rng(0)
    file = resources.files("fge.data") / "bundled" / "fashion-mnist-mini.npz"
    arrays: dict[str, Any] = {"target_names": np.array(["angle"])}
    with resources.as_file(file) as bundled, np.load(bundled) as found:
        for part, count in (("train", 1000), ("test", 2000)):
            angles = generator.uniform(-MOST_DEGREES, MOST_DEGREES, size=count)
            images = [
                rotate(image, angle, reshape=False, order=1)
                for image, angle in zip(found[f"{part}_images"], angles, strict=False)
            ]
            arrays |= {f"{part}_images": np.stack(images), f"{part}_targets": angles[:, None]}
    np.savez(path, **arrays)


TASKS: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "digits": ("digits.csv", write_digits, {"task": "classification", **TABLE}),
    "cancer": ("cancer.csv", write_cancer, {"task": "binary", **TABLE}),
    "diabetes": ("diabetes.csv", write_diabetes, {"task": "regression", **TABLE}),
    "attributes": (
        "attributes.npz",
        write_attributes,
        {"task": "multilabel", "train_size": 2000, "epochs": 10, "batch_size": 64},
    ),
    "angles": (
        "angles.npz",
        write_angles,
        {"task": "regression", "epochs": 20, "batch_size": 64, "augment": "none"},
    ),
}
"""By name: the file, what writes it, and the options."""


def run(work: Path, names: list[str], seeds: int) -> None:
    """Compare the methods on each task, and keep what was found."""
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        file, write, options = TASKS[name]
        if not (work / file).is_file():
            write(work / file)
        out = work / name
        config = CompareConfig(
            data=str(work / file),
            methods=METHODS,
            seeds=seeds,
            seed=1000,
            ood=(),
            out=out,
            **PLAIN,
            **options,
        )
        compare(config)
        (RESULTS / name).mkdir(parents=True, exist_ok=True)
        for found in FILES:
            shutil.copy(out / found, RESULTS / name / found)


def table() -> None:
    """Print what was found."""
    for name in TASKS:
        print((RESULTS / name / "compare.md").read_text(encoding="utf-8"))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.command == "table":
        table()
    elif options.work is None:
        parser.error("run needs a work folder")
    else:
        run(options.work, options.only, options.seeds)


if __name__ == "__main__":
    main()
