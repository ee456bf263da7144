"""Fine-tuning: which optimizer and rates suit it, and what methods gain at equal budgets.

    python benchmarks/fine_tuning.py search [--seeds 2]
    python benchmarks/fine_tuning.py run [--seeds 5]
    python benchmarks/fine_tuning.py table

1,000 images of five classes of Fashion-MNIST, 20 epochs, from weights trained on 25,000 images of
the five other classes (task F of ``benchmarks/pays.py``, whose data and weights these are); the
head is new. ``search`` trains ``average`` with each setting of ``SETTINGS`` and judges it on 25,000
other training images, seeds from 100 on. ``run`` compares methods on the 5,000 test images with the
best setting of AdamW, seeds from 1000 on; a deep ensemble pools as many whole fine-tunings. One
thread, float32; about 10 s for each training. Results: ``benchmarks/results/fine_tuning.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pays_data import make_data
from safetensors.torch import load_file, save_file

from fge import metrics
from fge.commands.train import train
from fge.config import TrainConfig
from fge.files import write_json

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
METHODS: dict[str, dict[str, Any]] = {
    "single": {},
    "average": {},
    "fge": {},
    "star": {"star_branches": 3},
    "split": {"split": 2},
    "auto": {},
}
LARGEST = 3
"""Whole fine-tunings in the largest deep ensemble."""


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


def measured(work: Path, name: str, data: str, **options: Any) -> dict[str, Any]:
    """Train once, and return error, NLLs and the probabilities of the method's last line."""
    out = work / "runs" / name.replace(" ", "-").replace(",", "")
    images = make_data(data, work / "data")
    config = TrainConfig(
        data=str(images),
        out=out,
        epochs=EPOCHS,
        batch_size=BATCH,
        pretrained=related_weights(work),
        warmup_epochs=1.0,
        resume=(out / "config.json").is_file(),
        **{**PLAIN, **options},
    )
    if not (out / "report.json").is_file():
        train(config)
    lines = json.loads((out / "report.json").read_text())["methods"]
    line = [line for line in lines if line["name"] == config.method][-1]
    with np.load(out / "predictions" / "test.npz") as file:
        names, probs = [str(n) for n in file["members"]], file["probabilities"]
        targets = file["targets"]
    mean = np.mean([probs[names.index(n)] for n in line["member_names"]], axis=0, dtype=np.float64)
    return {**figures(mean, targets), "members": line["members"], "probs": mean, "targets": targets}


def figures(probs: Any, targets: Any) -> dict[str, float]:
    """Return error, NLL and calibrated NLL of probabilities."""
    tempered = metrics.calibrated_nll_per_example(probs, targets)
    return {
        "error": metrics.error(probs, targets),
        "nll": metrics.nll(probs, targets),
        "calibrated_nll": float(np.mean(tempered)),
    }


def search(work: Path, seeds: int) -> None:
    """Train with each setting; keep its figures per seed."""
    for setting, options in SETTINGS.items():
        found = []
        for seed in range(100, 100 + seeds):
            name = f"search-{setting}-{seed}"
            line = measured(
                work, name, "fine-search", method="average", seed=seed, val_fraction=0.0, **options
            )
            found.append({key: line[key] for key in ("error", "nll", "calibrated_nll")})
        _keep("search", setting, found)


def best_setting() -> str:
    """Return the setting of AdamW with the lowest mean calibrated NLL in the search."""
    found = json.loads(RESULTS.read_text())["search"]
    adamw = [name for name in found if name.startswith("adamw")]
    means = {name: np.mean([seed["calibrated_nll"] for seed in found[name]]) for name in adamw}
    return str(min(adamw, key=means.__getitem__))


def run(work: Path, seeds: int) -> None:
    """Compare the methods with the best setting."""
    options = SETTINGS[best_setting()]
    _keep("run", "setting", best_setting())
    pool: dict[int, dict[str, Any]] = {}
    for method, own in METHODS.items():
        found = []
        for seed in range(1000, 1000 + seeds):
            line = measured(
                work, f"run-{method}-{seed}", "fine", method=method, seed=seed, **own, **options
            )
            found.append({k: v for k, v in line.items() if k not in ("probs", "targets")})
            if method == "average":
                pool[seed] = line
        _keep("run", method, found)
    for size in range(2, LARGEST + 1):
        found = []
        for first in range(seeds):
            parts = [pool[1000 + (first + k) % seeds] for k in range(size)]
            mean = np.mean([part["probs"] for part in parts], axis=0)
            found.append({**figures(mean, parts[0]["targets"]), "members": size})
        _keep("run", f"{size} whole fine-tunings", found)


def _keep(part: str, name: str, value: Any) -> None:
    content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    content.setdefault(part, {})[name] = value
    content["environment"] = {"torch": torch.__version__, "threads": 1}
    write_json(RESULTS, content)


def table() -> None:
    """Print the figures: means over seeds, and standard deviations."""
    content = json.loads(RESULTS.read_text())
    for part in ("search", "run"):
        print(f"\n{part}: error %, calibrated NLL")
        for name, found in content.get(part, {}).items():
            if isinstance(found, str):
                print(f"  setting: {found}")
                continue
            errors, nlls = ([seed[key] for seed in found] for key in ("error", "calibrated_nll"))
            print(
                f"  {name:28} {len(found)} seeds  {np.mean(errors):6.2f} ± {np.std(errors):.2f}"
                f"  {np.mean(nlls):.4f} ± {np.std(nlls):.4f}"
            )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("search", "run", "table"))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    arguments = parser.parse_args()
    if arguments.part == "search":
        search(arguments.work, arguments.seeds or 2)
    elif arguments.part == "run":
        run(arguments.work, arguments.seeds or 5)
    else:
        table()


if __name__ == "__main__":
    main()
