"""Results on pages: ``report.json``, ``report.md`` and ``report.html``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fge.config import RunConfig
from fge.data import Dataset
from fge.files import write_json, write_text
from fge.runfolder import RunFolder

SCHEMA_VERSION = 1
FILES = ("report.json", "config.json", "log.jsonl")
"""What every run folder holds for other programs."""
UNITS = (
    "Error in percent, NLL in nats per image, Brier summed over classes, ECE as a fraction "
    "(15 bins); epochs are all that the method trained, fits included; passes are network "
    "evaluations per prediction."
)


@dataclass(frozen=True)
class Table:
    """Text cells under headings, with a title and a note that says what they mean."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What a report shows: title, verdict, tables, and figures by file name with a caption.

    ``files`` are those of the run folder that the page links to.
    """

    title: str
    verdict: str
    tables: Sequence[Table]
    figures: dict[str, str] = field(default_factory=dict)
    files: Sequence[str] = (*FILES, "predictions/test.npz")


def write_report(folder: RunFolder, page: Page, content: dict[str, Any]) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html``.

    Args:
        folder: of the run; the page's figures lie in ``figures``.
        page: what the two pages show.
        content: of ``report.json``, beside its ``schema_version`` and ``verdict``.
    """
    content = {"schema_version": SCHEMA_VERSION, **content, "verdict": page.verdict}
    write_json(folder.path / "report.json", content)
    write_text(folder.path / "report.md", _markdown(page))
    write_text(folder.path / "report.html", _html(folder, page, content))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left and the others right aligned."""
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (headings, rule, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown(page: Page) -> str:
    parts = [f"# {page.title}", page.verdict]
    for table in page.tables:
        parts += [f"## {table.title}", markdown_table(table.headings, table.rows)]
        parts += [table.note] if table.note else []
    parts += [f"![{caption}](figures/{name})" for name, caption in page.figures.items()]
    return "\n\n".join(parts) + "\n"


def _html(folder: RunFolder, page: Page, content: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fge"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    figures = [
        (caption, base64.b64encode((folder.figures / name).read_bytes()).decode())
        for name, caption in page.figures.items()
    ]
    template = environment.get_template("report.html")
    return template.render(page=page, content=content, figures=figures)


def splits_note(facts: dict[str, Any]) -> str:
    """Say how many images were trained on, held out and tested, from :func:`dataset_facts`."""
    return (
        f"Test set: {facts['test']} images; trained on {facts['train']}, validated on "
        f"{facts['val']}."
    )


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """Return what describes a data set: all that predicting needs, and its fingerprint."""
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
