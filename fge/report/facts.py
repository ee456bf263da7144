"""Facts about every run for ``report.json``: data, options and hardware, but no times."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from fge.data import Dataset
from fge.devices import hardware_name


def splits_note(facts: dict[str, Any]) -> str:
    """Return how many images test, train and validate, and where from, by :func:`dataset_facts`."""
    origins = facts.get("origins", {})
    counts = [
        f"{facts[part]} {name} images {origins.get(part, '') if facts[part] else ''}".rstrip()
        for part, name in (("test", "test"), ("train", "training"), ("val", "validation"))
    ]
    return f"{', '.join(counts)}."


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
        **({"origins": dict(dataset.origins)} if dataset.origins else {}),
        **({"ood": ood} if ood else {}),
    }


def run_facts(
    command: str,
    options: dict[str, Any],
    dataset: Dataset,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of ``report.json`` in addition to the methods."""
    return {
        "command": command,
        "task": "image classification",
        "data": dataset.name,
        "model": options["model"],
        "seed": options["seed"],
        "config": options,
        "dataset": dataset_facts(dataset),
        "environment": environment,
    }


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
