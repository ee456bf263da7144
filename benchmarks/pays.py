"""What pays: methods at equal budgets on seven tasks, ten fresh seeds each.

    python benchmarks/pays.py run U S L F A C [--seeds 10] [--cifar FOLDER] [--work runs/pays]
    python benchmarks/pays.py run R
    python benchmarks/pays.py table

Tasks:

- U: the default network on 10,000 images of Fashion-MNIST with crops and flips, 100 epochs.
- S: the same without augmentation, where training saturates early.
- L: U with 300 epochs.
- F: fine-tuning: 1,000 images of five classes, 40 epochs, from weights trained on 25,000 images of
  the five other classes.
- A: F with AdamW; its setting was searched by ``benchmarks/fine_tuning.py``.
- C: 5,000 images of CIFAR-10 (JPEG q75), 60 epochs.
- R: scikit-learn's digits (1,797 rows of 64 numbers) with an MLP, in a loop of its own.

Tests are all 10,000 test images (F and A: the 5,000 of their classes), a tenth of the training
images validates. Settings were searched on other training images with other seeds
(``benchmarks/search_pays.py``) and frozen before; test images chose nothing. Each task is a
``compare`` in its folder of ``--work``: an interrupted task continues, one run per core, or
``--jobs`` of them on the GPU of ``--device cuda``. Finished
cells are kept in ``benchmarks/results/pays/TASK/cells``, also those of an interrupted task; a rerun
measures what is missing. ``compare.json`` beside them compares all that are there. ``table`` prints
the tables for the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pays_data import make_data

from fge.commands.compare import compare
from fge.commands.train import train
from fge.compare import Cell, Comparison, as_json, compare_cells, comparison_verdict, load_cells
from fge.config import CompareConfig, TrainConfig
from fge.files import write_json
from fge.metrics import paired_difference_over_seeds

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "pays"
FIRST_SEED = 1000
"""Seeds 100 and on were used in the search, seeds 0 to 6 in older results."""
SPEED: dict[str, Any] = {"channels_last": "on", "compile": "off", "amp": "bf16"}
FLOAT32: dict[str, Any] = {"amp": "off"}
"""What was measured on cores without fast bf16."""
METHODS = (
    *("single", "average", "ema", "swa", "fge-paper", "fge", "sse", "csgld"),
    *("star", "split", "auto", "curve-ensemble"),
)
LARGEST = 5
"""Networks of the largest ensembles of whole networks that are kept and shown."""
FEW = ("single", "average", "auto")
FINE_TUNED = (
    *("single", "average", "swa", "fge-paper", "fge"),
    *("star", "split", "auto", "curve-ensemble"),
)


@dataclass(frozen=True)
class Task:
    """A task: its data, its methods in the order of their worth, and its options."""

    data: str
    description: str
    methods: tuple[str, ...] = METHODS
    options: dict[str, Any] = field(default_factory=dict)


PLAIN = {"crop_padding": 0, "flip": False}
TASKS = {
    "U": Task("fashion", "Fashion-MNIST, 10,000 images, augmented, 100 epochs"),
    "S": Task("fashion", "the same without augmentation", options=PLAIN | {"split": 4}),
    "L": Task("fashion", "Fashion-MNIST, augmented, 300 epochs", FEW, {"epochs": 300, "split": 3}),
    "F": Task(
        "fine",
        "fine-tuning on 1,000 images of other classes, 40 epochs",
        FINE_TUNED,
        FLOAT32 | {"epochs": 40, "split": 4, "lr": 0.05},
    ),
    "A": Task(
        "fine",
        "F with AdamW at 0.003 (warm-up of one epoch), 20 epochs in batches of 50",
        FINE_TUNED,
        FLOAT32
        | {
            "epochs": 20,
            "batch_size": 50,
            "split": 4,
            "optimizer": "adamw",
            "lr": 0.003,
            "warmup_epochs": 1.0,
        },
    ),
    "C": Task(
        "cifar",
        "CIFAR-10 (JPEG q75), 5,000 images, augmented, 60 epochs",
        FEW,
        FLOAT32 | {"train_size": 5000, "epochs": 60},
    ),
}
RELATED_EPOCHS = 20


def options_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a task's comparison, after making its data and given weights."""
    task, work = TASKS[name], arguments.work
    data = make_data(task.data, work / "data", arguments.cifar)
    options: dict[str, Any] = {"data": str(data), "threads": arguments.jobs, **SPEED}
    options |= {"device": arguments.device, **task.options}
    options["cuda_graphs"] = "off" if arguments.device == "cpu" else "on"
    if name in ("F", "A"):
        options["pretrained"] = related_weights(work)
    return options


def related_weights(work: Path) -> Path:
    """Train the network on the other classes, once; return its weights."""
    out = work / "related"
    weights = out / "snapshots" / "0001.safetensors"
    if not (out / "report.json").is_file():
        data = make_data("related", work / "data")
        config = TrainConfig(
            data=str(data),
            out=out,
            method="average",
            epochs=RELATED_EPOCHS,
            seed=FIRST_SEED,
            resume=(out / "config.json").is_file(),
            device="cpu",
            **SPEED | FLOAT32,
        )
        train(config)
    return weights


def run_task(name: str, arguments: argparse.Namespace) -> None:
    """Run what is missing of a task; copy its results."""
    task, folder = TASKS[name], arguments.work / name
    options = options_of(name, arguments)
    results = RESULTS / name
    if (results / "cells").is_dir() and not (folder / "cells").is_dir():
        shutil.copytree(results / "cells", folder / "cells")
        copy_config(results, folder, {key: options[key] for key in _PATHS if key in options})
    config = CompareConfig(
        out=folder,
        methods=tuple(arguments.methods or task.methods),
        seeds=arguments.seeds,
        seed=FIRST_SEED,
        jobs=arguments.jobs,
        ood=(),
        **options,
    )
    try:
        compare(config)
    finally:
        keep(folder, results, arguments.seeds)
        names = {key: Path(str(options[key])).name for key in _PATHS if key in options}
        copy_config(folder, results, names)


def keep(folder: Path, results: Path, seeds: int) -> None:
    """Keep the measured cells, and the comparison of them, whatever part of the task they are."""
    larger = (f"*-b{size}-*" for size in range(LARGEST + 1, seeds + 1))
    ignored = shutil.ignore_patterns(*larger)
    shutil.copytree(folder / "cells", results / "cells", dirs_exist_ok=True, ignore=ignored)
    options = json.loads((folder / "config.json").read_text(encoding="utf-8"))["options"]
    cells = load_cells(folder / "cells")
    if cells:
        write_comparison(results, compare_cells(cells, budget_epochs=options["epochs"]))


def write_comparison(results: Path, comparison: Comparison) -> None:
    """Write ``compare.json`` of a task, with its verdict, and ``auto`` against fixed plans."""
    content = {**as_json(comparison), "verdict": "\n\n".join(comparison_verdict(comparison))}
    content["auto_against_fixed"] = against_fixed(comparison)
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "compare.json", content)


def against_fixed(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return the differences of ``auto`` from the best other method at one budget, by metric.

    The best is the one with the lowest mean on test data: a bar that no plan can know of.
    """
    auto = {cell.seed: cell for cell in comparison.cells_of("auto", 1)}
    found: dict[str, dict[str, Any]] = {}
    for metric in ("error", "calibrated_nll"):
        fixed = [row for row in comparison.at(1) if row.method != "auto"]
        best = min(fixed, key=lambda row: row.mean[metric]).method
        pairs = [(auto[c.seed], c) for c in comparison.cells_of(best, 1) if c.seed in auto]
        values = (
            np.stack([values_of(cell, metric) for cell in side])
            for side in zip(*pairs, strict=True)
        )
        interval = paired_difference_over_seeds(*values)
        found[metric] = {"method": best, "seeds": len(pairs), "interval": interval._asdict()}
    return found


def values_of(cell: Cell, metric: str) -> np.ndarray:
    """Return the values (N,) whose mean a metric is."""
    return 100.0 * cell.wrong if metric == "error" else np.asarray(cell.calibrated_nll)


def copy_config(source: Path, target: Path, paths: dict[str, Any]) -> None:
    """Copy ``config.json`` with other paths: results are kept without those of one machine."""
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key, path in paths.items():
        content["options"][key] = os.path.abspath(path) if "/" in str(path) else path
    write_json(target / "config.json", content)


_PATHS = ("data", "pretrained")


def print_table(file: Path) -> None:
    """Print a task's methods at one budget as Markdown, with the differences from ``single``."""
    content = json.loads(file.read_text(encoding="utf-8"))
    changes = {
        (d["method"], d["metric"]): d["interval"]
        for d in content["differences"]
        if (d["baseline"], d["budget"]) == ("single", 1)
    }
    print(
        "| method | seeds | epochs | passes | error % | cal. NLL | DEE | error - single |", end=""
    )
    print(" cal. NLL - single |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for row in content["methods"]:
        pool = row["name"].startswith("deep-ensemble") and row["budget"] > 1
        if row["budget"] > LARGEST:
            continue
        name = f"{row['budget']} networks, {row['name']}" if pool else row["name"]
        cells = [name, str(len(row["seeds"])), f"{row['train_epochs']:.0f}"]
        cells += [f"{row['forward_passes']:.1f}".removesuffix(".0")]
        for key, form in (("error", ".2f"), ("calibrated_nll", ".4f")):
            spread = row["deviation"].get(key)
            more = "" if spread is None else f" ± {spread:{form}}"
            cells.append(f"{row[key]:{form}}{more}")
        bound = "≥ " if row.get("equivalent_is_bound") else ""
        cells.append(f"{bound}{row['equivalent']:.1f}" if row.get("equivalent") else "")
        for key, form in (("error", "+.2f"), ("calibrated_nll", "+.4f")):
            found = None if pool else changes.get((row["name"], key))
            cells.append(_change(found, form) if found else "")
        print(f"| {' | '.join(cells)} |")


def print_against_fixed() -> None:
    """Print ``auto`` against the best fixed plan of each task as Markdown."""
    print("\n| task | best fixed plan, error | auto - it | best fixed plan, cal. NLL | auto - it |")
    print("| :-- | :-- | --: | :-- | --: |")
    for name in (*TASKS, "R"):
        file = RESULTS / name / "compare.json"
        content = json.loads(file.read_text(encoding="utf-8"))["auto_against_fixed"]
        cells = [name]
        for key, form in (("error", "+.2f"), ("calibrated_nll", "+.4f")):
            cells += [content[key]["method"], _change(content[key]["interval"], form)]
        print(f"| {' | '.join(cells)} |")


def _change(found: dict[str, float], form: str) -> str:
    return f"{found['difference']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs/pays"))
    parser.add_argument("--cifar", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run tasks, or print the tables."""
    arguments = read_arguments()
    for name in arguments.tasks:
        if name == "R":
            from pays_rows import compare_rows

            seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
            write_comparison(RESULTS / "R", compare_rows(seeds))
        else:
            run_task(name, arguments)
    if arguments.what == "table":
        for name, task in {**TASKS, "R": Task("", "digits, MLP, 100 epochs")}.items():
            file = RESULTS / name / "compare.json"
            if file.is_file():
                print(f"\n## {name}: {task.description}\n")
                print_table(file)
        print_against_fixed()


if __name__ == "__main__":
    main()
