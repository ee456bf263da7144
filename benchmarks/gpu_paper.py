"""The step of ``benchmarks/gpu.py`` that trains at the settings of the papers, on CIFAR-10."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fge.commands import main
from fge.errors import UserError

Report = Callable[[str, Any], None]
Plan = dict[str, Any]
SETTINGS: dict[str, dict[str, Any]] = {
    # arXiv 1802.10026 and its reference implementation: cycles of 2 epochs from epoch 160 of 200.
    "vgg16": {"epochs": 200, "lr": 0.05, "weight_decay": 5e-4, "max_lr": 0.01, "min_lr": 0.01},
    # arXiv 1803.05407 for budget and rates; the cycles are those of PreResNet-164 in 1802.10026.
    "preresnet110": {
        "epochs": 150,
        "lr": 0.1,
        "weight_decay": 3e-4,
        "max_lr": 0.05,
        "min_lr": 0.01,
    },
}
START, CYCLE = 0.8, 2
TRAINED = 1.2
"""Budgets that a run trains: its own, and the single network's from the start of the cycles."""
SHORTER = (1.0, 0.5, 0.25, 0.1)
"""Parts of the paper's budget that are tried, the largest for which there is time."""
OVERHEAD_SECONDS = 25.0
"""Loading, measuring, snapshots, testing and the page, in addition to the training itself."""


def paper(plan: Plan, report: Report) -> None:
    """Train ``single``, ``fge`` and the average of its snapshots in one run, and report them."""
    model, smoke = plan["model"], plan["smoke"]
    if smoke and "paper vgg16" in plan["before"]:
        report("skipped", "the same as the first")
        return
    archive = smoke_archive(Path(plan["work"])) if smoke else Path(plan["cifar"])
    if not archive.is_file():
        report("skipped", f"no archive {archive.name}")
        return
    runs = earlier_runs(plan)
    report("runs", runs)
    epochs = 5 if smoke else affordable_epochs(plan)
    if epochs is None:
        report("skipped", "no time left for a tenth of the paper's budget")
        return
    data = Path(plan["work"]) / "cifar10.npz"
    if not data.exists():
        np.savez(data, **read_archive(archive))  # type: ignore[arg-type]
    seed = len([run for run in runs if run["epochs"] == epochs])
    folder = Path(plan["work"]) / f"{model}-{epochs}-{seed}"
    began = time.monotonic()
    train(command(model, epochs, seed, data, folder, plan))
    facts = outcome(folder, epochs, seed, time.monotonic() - began)
    report("runs", [*runs, facts])


def earlier_runs(plan: Plan) -> list[dict[str, Any]]:
    """Return the runs of the model in the existing results."""
    if plan["smoke"]:
        return []
    found: list[dict[str, Any]] = []
    for name, step in plan["before"].items():
        if name.startswith(f"paper {plan['model']}"):
            runs = step.get("results", {}).get("runs", [])
            found += [run for run in runs if run not in found]
    return found


def affordable_epochs(plan: Plan) -> int | None:
    """Return the largest part of the paper's budget that fits the time at the measured speed."""
    budget = int(SETTINGS[plan["model"]]["epochs"])
    fast = plan["before"].get(f"fast {plan['model']}", {}).get("results", {})
    rate = fast.get("train", {}).get("ours", {}).get("median")
    if rate is None:
        return budget
    for part in SHORTER:
        epochs = round(part * budget / 10) * 10
        if OVERHEAD_SECONDS + TRAINED * epochs * 50_000 / rate < plan["seconds"]:
            return epochs
    return None


def command(model: str, epochs: int, seed: int, data: Path, folder: Path, plan: Plan) -> list[str]:
    """Return the arguments of the run: the paper's, with the options of speed fixed."""
    settings = {**SETTINGS[model], "epochs": epochs}
    words = ["fge", "--data", str(data), "--single", "--val-fraction", "0", "--seed", str(seed)]
    words += ["--average", "0"]  # members as published
    words += ["--model", "convnet" if plan["smoke"] else model, "--out", str(folder)]
    words += ["--start-epoch", str(round(START * epochs)), "--cycle-epochs", str(CYCLE)]
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if plan["smoke"]:
        words[words.index("--start-epoch") + 1] = "1"
        words += ["--device", "cpu", "--channels-last", "off", "--amp", "off", "--compile", "off"]
        return [*words, "--batch-size", "16"]
    words += ["--device", "cuda", "--channels-last", "on", "--amp", "bf16", "--compile", "off"]
    return words


def train(words: list[str]) -> None:
    """Run the command line in this process; its error is raised."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(words)
    if code != 0:
        raise UserError(f"the run ended with {code}: {errors.getvalue().strip()}")


def outcome(folder: Path, epochs: int, seed: int, seconds: float) -> dict[str, Any]:
    """Return the figures of a finished run, and the training time of its FGE part."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    lines = (folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    spent = [r["seconds"] for r in records if r.get("event") == "epoch" and r["stage"] != "single"]
    keys = ("name", "members", "train_epochs", "forward_passes", "error", "nll")
    options = report["config"]
    return {
        "epochs": epochs,
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
        "command_seconds": round(seconds, 1),
        "fge_training_seconds": round(sum(spent), 1),
        "speed": {k: options.get(k) for k in ("channels_last", "amp", "compile", "cuda_graphs")},
        "methods": [{key: method.get(key) for key in keys} for method in report["methods"]],
    }


def read_archive(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a data set in a ``.tar.xz`` of ``PART/CLASS/*.jpg`` files."""
    images: dict[str, list[tuple[str, np.ndarray[Any, Any]]]] = {"train": [], "test": []}
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                part, label = Path(member.name).parts[-3:-1]
                content = archive.extractfile(member)
                assert content is not None
                pixels = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
                images[part].append((label, pixels))
    classes = sorted({label for label, _ in images["train"]})
    arrays: dict[str, np.ndarray[Any, Any]] = {"classes": np.array(classes)}
    for part, found in images.items():
        arrays[f"{part}_images"] = np.stack([pixels for _, pixels in found])
        arrays[f"{part}_labels"] = np.array([classes.index(label) for label, _ in found])
    return arrays


def smoke_archive(folder: Path) -> Path:
    """Write a small archive of the form of CIFAR-10's; return its path."""
    path = folder / "smoke.tar.xz"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:xz") as archive:
        for part, count in (("train", 64), ("test", 16)):
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3)).astype(np.uint8)
                pixels[:, 16 * (number % 2) : 16 * (number % 2) + 16] += 100
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "JPEG", quality=75)
                name = f"{part}/class{number % 2}/{number:04d}.jpg"
                member = tarfile.TarInfo(name)
                member.size = content.tell()
                content.seek(os.SEEK_SET)
                archive.addfile(member, content)
    return path
