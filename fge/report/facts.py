"""Facts about every run for ``report.json``: data, options and hardware, but no times."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from fge.config import CLASSIFICATION
from fge.data import Dataset
from fge.devices import hardware_name
from fge.observer import counted
from fge.report.escaping import plain_name
from fge.report.page import COSTS
from fge.tasks import Task

_NAMED = 20
"""Files or classes that a page names."""


def splits_note(facts: dict[str, Any]) -> str:
    """Return how many images test, train and validate, and where from, by :func:`dataset_facts`."""
    origins, example = facts.get("origins", {}), "row" if "table" in facts else "image"
    counts = [
        f"{facts[part]} {name} {example}s {origins.get(part, '') if facts[part] else ''}".rstrip()
        for part, name in (("test", "test"), ("train", "training"), ("val", "validation"))
    ]
    missing, left_out = (facts.get(key, ()) for key in ("classes_without_test", "unreadable"))
    more = [f"Classes without test images: {_names(missing)}."] if missing else []
    if left_out:
        files = counted(len(left_out), "file")
        more.append(f"Left out because unreadable: {files}, {_names(left_out)}.")
    return " ".join([f"{', '.join(counts)}.", *more])


def _names(names: Collection[str]) -> str:
    shown = [plain_name(name) for name in itertools.islice(names, _NAMED)]
    rest = len(names) - len(shown)
    return ", ".join([*shown, *([f"and {rest:,} more (see config.json)"] if rest else [])])


def units_note(task: Task, dataset: Dataset) -> str:
    """Return the units of the figures of a task, and where the noise of a regression is from."""
    notes = [task.units.format(example=dataset.example), COSTS]
    if task.uses_noise:
        held_out = f"is estimated on the validation {dataset.example}s"
        fitted = (
            f"is estimated on training {dataset.example}s, as there are none for validation: it is "
            "too small"
        )
        notes.append(f"The noise variance {held_out if len(dataset.val) else fitted}.")
    return " ".join(notes)


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """Return the facts about a data set that predicting needs, and its fingerprints."""
    ood = {n: {"images": len(o.split), "sha256": o.fingerprint} for n, o in dataset.ood.items()}
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "channels": dataset.in_channels,
        "image_size": list(dataset.image_size),
        "train": len(dataset.train),
        "val": len(dataset.val),
        "test": len(dataset.test),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "sha256": dataset.fingerprint,
        **_target_facts(dataset),
        **({"origins": dict(dataset.origins)} if dataset.origins else {}),
        **({"classes_without_test": dataset.untested} if dataset.untested else {}),
        **({"unreadable": dict(dataset.unreadable)} if dataset.unreadable else {}),
        **_stream_facts(dataset),
        **({"ood": ood} if ood else {}),
    }


def _stream_facts(dataset: Dataset) -> dict[str, Any]:
    """Return that images were streamed, and the fingerprint that repaired files leave."""
    if not dataset.streamed:
        return {}
    return {"streamed": True, "names_sha256": dataset.names_fingerprint}


def _target_facts(dataset: Dataset) -> dict[str, Any]:
    """Return the task and what predicting needs of targets; nothing for several classes."""
    facts = dataset.target
    found: dict[str, Any] = {} if facts.task == CLASSIFICATION else {"task": facts.task}
    if dataset.table is not None:
        found["table"] = dict(dataset.table)
    if facts.mean:
        found |= {"target_mean": list(facts.mean), "target_std": list(facts.std)}
    return found


def run_facts(
    command: str,
    options: dict[str, Any],
    dataset: Dataset,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of ``report.json`` in addition to the methods."""
    return {
        "command": command,
        "task": _task_words(dataset),
        "data": dataset.name,
        "model": options["model"],
        "seed": options["seed"],
        "config": options,
        "dataset": dataset_facts(dataset),
        "environment": environment,
    }


def _task_words(dataset: Dataset) -> str:
    """Return the task of a run in words, as contracted for classification."""
    return f"{dataset.example} {dataset.target.task}"


def environment_facts(device: torch.device, threads: int) -> dict[str, Any]:
    """Return versions and hardware, but no times."""
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "hardware": hardware_name(device),
        "cpu_count": os.cpu_count(),
        "threads": threads,
    }
