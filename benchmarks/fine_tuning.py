"""Fine-tuning: which optimizer and rates suit it, and how long ``auto`` holds the rate.

    python benchmarks/fine_tuning.py search [--seeds 2]
    python benchmarks/fine_tuning.py hold [--seeds 6] [--task F A]
    python benchmarks/fine_tuning.py table

1,000 images of five classes of Fashion-MNIST, 20 epochs, from weights trained on 25,000 images of
the five other classes (task F of ``benchmarks/pays.py``, whose data and weights these are); the
head is new. ``search`` trains ``average`` with each setting of ``SETTINGS`` and judges it on 25,000
other training images, seeds from 100 on. Task A of ``benchmarks/pays.py`` then compares methods
with the best setting of AdamW.

``hold`` trains F and A by ``average``, and as ``auto`` does if it stays with one network: a descent
of a quarter of the budget, and one of the rest, of which a part is held. A tenth of the images
validates, and decides nothing.

One thread, float32; 10 to 35 s for each training. Results: ``benchmarks/results/fine_tuning.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pays import TASKS
from pays_data import make_data
from safetensors.torch import load_file, save_file

from fge import metrics
from fge.commands.train import train
from fge.config import TrainConfig
from fge.files import write_json
from fge.train import planner

RESULTS = Path(__file__).parent / "results" / "fine_tuning.json"
PLAIN: dict[str, Any] = {"threads": 1, "channels_last": "on", "compile": "off", "amp": "off"}
RELATED_EPOCHS, EPOCHS, BATCH = 20, 20, 50
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd 0.2": {"lr": 0.2},
    "sgd 0.05": {"lr": 0.05},
    "sgd 0.1": {"lr": 0.1},
    "sgd 0.05, backbone 0.01": {"lr": 0.05, "backbone_lr": 0.01},
    "adamw 1e-2": {"optimizer": "adamw", "lr": 1e-2},
    "adamw 3e-3": {"optimizer": "adamw", "lr": 3e-3},
    "adamw 1e-3": {"optimizer": "adamw", "lr": 1e-3},
    "adamw 3e-4": {"optimizer": "adamw", "lr": 3e-4},
    "adamw 3e-3, backbone 3e-4": {"optimizer": "adamw", "lr": 3e-3, "backbone_lr": 3e-4},
    "adamw 1e-3, backbone 3e-4": {"optimizer": "adamw", "lr": 1e-3, "backbone_lr": 3e-4},
    "adamw 1e-3, frozen": {"optimizer": "adamw", "lr": 1e-3, "freeze": r"^[0-9]\."},
}
"""Each with a warm-up of one epoch."""
FINE_TUNED = ("F", "A")
HOLDS = (0.0, 0.25, 0.5, 0.75)


def related_weights(work: Path) -> Path:
    """Return weights trained on the other classes, without their head, after training them once."""
    out, bare = work / "related", work / "related.safetensors"
    if not bare.is_file():
        data = make_data("related", work / "data")
        if not (out / "report.json").is_file():
            options = {**PLAIN, "epochs": RELATED_EPOCHS, "seed": 1000, "amp": "bf16"}
            train(TrainConfig(data=str(data), out=out, method="average", **options))
        state = load_file(out / "snapshots" / "0001.safetensors")
        head = [name for name in state if state[name].ndim <= 2 and state[name].shape[:1] == (5,)]
        save_file({name: tensor for name, tensor in state.items() if name not in head}, bare)
    return bare


def measured(work: Path, seed: int, setting: str) -> dict[str, float]:
    """Fine-tune once; return error, NLL and calibrated NLL on the other training images."""
    out = work / "runs" / f"{setting.replace(' ', '-').replace(',', '')}-{seed}"
    config = TrainConfig(
        data=str(make_data("fine-search", work / "data")),
        out=out,
        method="average",
        seed=seed,
        val_fraction=0.0,
        epochs=EPOCHS,
        batch_size=BATCH,
        pretrained=related_weights(work),
        warmup_epochs=1.0,
        resume=(out / "config.json").is_file(),
        **{**PLAIN, **SETTINGS[setting]},
    )
    if not (out / "report.json").is_file():
        train(config)
    return figures_of(out)


def figures_of(out: Path) -> dict[str, float]:
    """Return error, NLL and calibrated NLL of the last member of a run."""
    with np.load(out / "predictions" / "test.npz") as file:
        probs, targets = file["probabilities"][-1], file["targets"]
    return {
        "error": metrics.error(probs, targets),
        "nll": metrics.nll(probs, targets),
        "calibrated_nll": float(np.mean(metrics.calibrated_nll_per_example(probs, targets))),
    }


def held(work: Path, seed: int, task: str, hold: float | None) -> dict[str, float]:
    """Train by ``average``, or as ``auto`` with one network and this part held; return figures."""
    name = "average" if hold is None else f"auto-{hold}"
    out = work / "hold" / f"{task}-{name}-{seed}"
    config = TrainConfig(
        data=str(make_data("fine-search", work / "data")),
        out=out,
        method="average" if hold is None else "auto",
        seed=seed,
        pretrained=related_weights(work),
        resume=(out / "config.json").is_file(),
        **{**PLAIN, **TASKS[task].options, **({} if hold is None else {"hold": hold})},
    )
    if not (out / "report.json").is_file():
        # Validation never speaks for other networks, and holds nothing by itself.
        planner.FEWEST_WRONG, planner.HELD = 10**9, 0.0
        train(config)
    return figures_of(out)


def holds(work: Path, tasks: Sequence[str], seeds: int) -> None:
    """Train with each part held; keep the figures per seed."""
    for task in tasks:
        for hold in (None, *HOLDS):
            name = f"{task} average" if hold is None else f"{task} auto, held {hold:g}"
            _keep("hold", name, [held(work, 100 + k, task, hold) for k in range(seeds)])


def search(work: Path, seeds: int) -> None:
    """Train with each setting; keep its figures per seed."""
    for setting in SETTINGS:
        _keep("search", setting, [measured(work, 100 + k, setting) for k in range(seeds)])


def _keep(part: str, name: str, figures: list[dict[str, float]]) -> None:
    content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    content.setdefault(part, {})[name] = figures
    content["environment"] = {"torch": torch.__version__, "threads": 1}
    write_json(RESULTS, content)


def table() -> None:
    """Print the figures: means over seeds, and standard deviations."""
    print("error %, calibrated NLL")
    content = json.loads(RESULTS.read_text())
    for name, found in [*content["search"].items(), *content["hold"].items()]:
        errors, nlls = ([seed[key] for seed in found] for key in ("error", "calibrated_nll"))
        print(
            f"  {name:28} {len(found)} seeds  {np.mean(errors):6.2f} ± {np.std(errors):.2f}"
            f"  {np.mean(nlls):.4f} ± {np.std(nlls):.4f}"
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("search", "hold", "table"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--task", nargs="+", choices=FINE_TUNED, default=FINE_TUNED)
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    arguments = parser.parse_args()
    if arguments.part == "search":
        search(arguments.work, arguments.seeds)
    elif arguments.part == "hold":
        holds(arguments.work, arguments.task, arguments.seeds)
    else:
        table()


if __name__ == "__main__":
    main()
