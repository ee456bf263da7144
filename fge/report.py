"""From predictions to results: the method table, ``report.json``, ``.md`` and ``.html``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fge import metrics
from fge.config import RunConfig
from fge.data import Dataset
from fge.ensemble import RunningMean
from fge.files import write_json, write_text
from fge.predictions import PredictionFile
from fge.runfolder import RunFolder

SCHEMA_VERSION = 1
_COLUMNS = (
    ("method", "method", "{}"),
    ("members", "members", "{}"),
    ("error", "error", "{:.2f}"),
    ("nll", "NLL", "{:.4f}"),
    ("brier", "Brier", "{:.4f}"),
    ("ece", "ECE", "{:.4f}"),
    ("train_epochs", "epochs", "{}"),
    ("forward_passes", "passes", "{}"),
)


@dataclass(frozen=True)
class MethodResult:
    """One line of the table: a method, what it cost and how it did on the test set.

    ``error`` in percent, ``nll`` in nats per example, ``brier`` summed over classes, ``ece`` a
    fraction of 15 bins; ``train_epochs`` counts every epoch with a backward pass that the method
    needs; ``forward_passes`` are those of one prediction.
    """

    name: str
    members: int
    train_epochs: int
    forward_passes: int
    weight_bytes: int
    error: float
    nll: float
    brier: float
    ece: float
    chosen: str | None = None


def fge_results(
    test: PredictionFile,
    snapshots: Sequence[dict[str, Any]],
    *,
    weight_bytes: int,
    budget: int,
) -> list[MethodResult]:
    """Return the table of an FGE run.

    Args:
        test: test predictions of members ``fge-0001``, ... and, where trained, ``single-0001``.
        snapshots: their facts (epoch, val_nll) in the order of the cycles.
        weight_bytes: of one network.
        budget: epochs of the single network.
    """
    names = [f"fge-{position + 1:04d}" for position in range(len(snapshots))]
    used = int(snapshots[-1]["epoch"])

    def result(name: str, members: Sequence[str], epochs: int, chosen: str | None = None) -> Any:
        mean = RunningMean()
        for member in members:
            mean.update(test.probabilities(member))
        figures = metrics.summary(mean.value, test.targets)
        size = len(members)
        return MethodResult(name, size, epochs, size, size * weight_bytes, chosen=chosen, **figures)

    results = []
    if "single-0001" in test:
        results.append(result("single", ["single-0001"], budget))
    results.append(result("last-snapshot", names[-1:], used))
    if all("val_nll" in facts for facts in snapshots):
        best = int(np.argmin([facts["val_nll"] for facts in snapshots]))
        results.append(result("best-snapshot", names[best : best + 1], used, names[best]))
    results += [
        result("fge", names[:size], int(snapshots[size - 1]["epoch"]))
        for size in range(2, len(names) + 1)
    ]
    return results


def verdict(results: Sequence[MethodResult]) -> str:
    """Say in a sentence what the ensemble gained over its last snapshot and the single network.

    It speaks of this one run on these test images, not of the method.
    """
    if results[-1].name != "fge":
        return "One snapshot only: there is no ensemble to compare; train longer or cycle faster."
    ensemble = results[-1]
    others = [r for r in results if r.name in ("last-snapshot", "single")]
    parts = [
        f"{_change(ensemble.error - other.error, 'error', '{:.2f} points')} and "
        f"{_change(ensemble.nll - other.nll, 'NLL', '{:.4f}')} than {_described(other)}"
        for other in others
    ]
    return (
        f"The ensemble of {ensemble.members} snapshots ({ensemble.error:.2f} % error, NLL "
        f"{ensemble.nll:.4f}) has {'; '.join(parts)}. One run, one test set: see the README for "
        "means over seeds."
    )


def _described(result: MethodResult) -> str:
    if result.name == "single":
        return f"the single network of {result.train_epochs} epochs"
    return "its last snapshot"


def _change(difference: float, name: str, form: str) -> str:
    if round(difference, 4) == 0:
        return f"the same {name}"
    word = "lower" if difference < 0 else "higher"
    return f"{form.format(abs(difference))} {word} {name}"


def table_rows(results: Sequence[MethodResult]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the method table as text."""
    rows = []
    for result in results:
        values = {**asdict(result), "method": result.name}
        rows.append([form.format(values[key]) for key, _, form in _COLUMNS])
    return [heading for _, heading, _ in _COLUMNS], rows


def write_report(folder: RunFolder, results: Sequence[MethodResult], facts: dict[str, Any]) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html``.

    Args:
        folder: of the run; pictures in ``figures`` are shown in the page.
        results: the method table.
        facts: task, data, model, seed, config and environment, for ``report.json``.
    """
    methods = [{k: v for k, v in asdict(r).items() if v is not None} for r in results]
    content = {"schema_version": SCHEMA_VERSION, **facts, "methods": methods}
    content["verdict"] = verdict(results)
    write_json(folder.path / "report.json", content)
    headings, rows = table_rows(results)
    write_text(folder.path / "report.md", _markdown(content, headings, rows))
    write_text(folder.path / "report.html", _html(folder, content, headings, rows))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left and the others right aligned."""
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def _markdown(content: dict[str, Any], headings: list[str], rows: list[list[str]]) -> str:
    return (
        f"# {content['model']} on {content['data']}, seed {content['seed']}\n\n"
        f"{content['verdict']}\n\n{markdown_table(headings, rows)}\n\n{_notes(content)}\n\n"
        "![Learning rate, validation error and distance over epochs](figures/training.png)\n"
    )


def _notes(content: dict[str, Any]) -> str:
    sizes = content["dataset"]
    chosen = [m["chosen"] for m in content["methods"] if "chosen" in m]
    best = (
        f" `best-snapshot` is {chosen[0]}, the one with the lowest validation NLL."
        if chosen
        else " Without validation data there is no `best-snapshot`."
    )
    return (
        f"Test set: {sizes['test']} images; trained on {sizes['train']}, validated on "
        f"{sizes['val']}. Error in percent, NLL in nats per image, Brier summed over classes, ECE "
        f"as a fraction (15 bins).{best}"
    )


def _html(
    folder: RunFolder, content: dict[str, Any], headings: list[str], rows: list[list[str]]
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fge"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    figures = [
        (path.stem, base64.b64encode(path.read_bytes()).decode())
        for path in sorted(folder.figures.glob("*.png"))
    ]
    page = environment.get_template("report.html")
    return page.render(
        content=content,
        headings=headings,
        rows=rows,
        notes=_notes(content).replace("`", ""),
        figures=figures,
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

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "hardware": name or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
    }
