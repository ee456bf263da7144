"""Results on pages: ``report.json``, ``page.json``, ``report.md`` and ``report.html``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fge.config.base import RunConfig
from fge.data.splits import Dataset
from fge.files import json_text, write_text
from fge.report.page import FILES, Page, Section, Table, write_pages
from fge.runs.folder import RunFolder

__all__ = [
    "FILES",
    "UNITS",
    "Page",
    "Table",
    "dataset_facts",
    "environment_facts",
    "run_facts",
    "splits_note",
    "write_report",
]

SCHEMA_VERSION = 1
UNITS = (
    "Error in percent, NLL in nats per image, Brier summed over classes, ECE as a fraction "
    "(15 bins); epochs are all that the method trained, fits included; passes are network "
    "evaluations per prediction."
)


def write_report(folder: RunFolder, page: Page, content: dict[str, Any]) -> None:
    """Write ``page.json``, ``report.md`` and ``report.html``, and last ``report.json``.

    Whoever finds that one finds all: a run that has it is finished.

    Args:
        folder: of the run; the page's figures lie in ``figures``.
        page: what the two pages show; kept in ``page.json``, so that they can be made anew.
        content: of ``report.json``, beside its ``schema_version`` and ``verdict``.
    """
    content = {"schema_version": SCHEMA_VERSION, **content, "verdict": page.verdict}
    encoded = json_text(content)  # nothing is written of what cannot be written whole
    kept = {"schema_version": SCHEMA_VERSION, **asdict(page)}
    # In one line: an indented array of a plot would have a line per number.
    write_text(folder.path / "page.json", json.dumps(kept, allow_nan=False) + "\n")
    write_pages(folder.path, page, [Section(folder.path, page, content)])
    write_text(folder.path / "report.json", encoded)


def splits_note(facts: dict[str, Any]) -> str:
    """Say how many images were trained on, held out and tested, from :func:`dataset_facts`."""
    return (
        f"Test set: {facts['test']} images; trained on {facts['train']}, validated on "
        f"{facts['val']}."
    )


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """Return what describes a data set: all that predicting needs, and its fingerprints."""
    foreign = {
        n: {"images": len(o.split), "sha256": o.fingerprint} for n, o in dataset.foreign.items()
    }
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
        **({"ood": foreign} if foreign else {}),
    }


def run_facts(
    command: str,
    config: RunConfig,
    options: dict[str, Any],
    dataset: Dataset,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Return what ``report.json`` says beside the methods."""
    return {
        "command": command,
        "task": "image classification",
        "data": dataset.name,
        "model": config.model,
        "seed": config.seed,
        "config": options,
        "dataset": dataset_facts(dataset),
        "environment": environment,
    }


def environment_facts(device: torch.device, threads: int) -> dict[str, Any]:
    """Return what the figures were computed with: versions and hardware, no clock."""
    import os
    import platform

    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "hardware": name,
        "cpu_count": os.cpu_count(),
        "threads": threads,
    }


def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
