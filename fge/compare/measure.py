"""Measuring a cell from its finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta
from torch import Tensor

from fge.compare.cells import Cell, Cost, make_cell
from fge.compare.plan import Part, PlannedCell
from fge.config import read_report, without_views
from fge.data import Dataset
from fge.ensemble import TTA_FILE, PredictionFile, noise_data
from fge.errors import UserError
from fge.files import read_records
from fge.schemas import Count, Positive
from fge.tasks import MANY_CLASSES, Task, task_of

_STAGES = {"single": ("start", "single"), "fge": ("start", "fge"), "swa": ("start", "fge")}
"""Stages of an fge run that a line of its report needs."""


class _Images(TypedDict):
    sha256: str


class _Method(TypedDict):
    """What a method of a run has cost, and its members."""

    name: str
    member_names: Annotated[list[str], Meta(min_length=1)]
    train_epochs: Count
    forward_passes: Positive
    weight_bytes: Count
    refresh_images: Count
    validation_images: NotRequired[Count]


class _Report(TypedDict):
    """What a cell takes from the report of a run."""

    dataset: _Images
    model: str
    config: dict[str, Any]
    methods: list[_Method]


@dataclass(frozen=True)
class _Line:
    """A line of a finished run: its row in the report, and the folder of its predictions."""

    part: Part
    folder: Path
    method: _Method

    @property
    def members(self) -> Sequence[str]:
        """The names of the members."""
        names: Sequence[str] = self.method["member_names"]
        return names

    @property
    def viewed(self) -> bool:
        """Whether it is one of test-time augmentation."""
        return self.part.line != without_views(self.part.line)

    def probabilities(self, name: str, targets: Tensor, task: Task = MANY_CLASSES) -> list[Tensor]:
        """Return the members' predictions in a prediction file."""
        file = PredictionFile(self.folder / "predictions" / name, targets, task)
        return [file.probabilities(member) for member in self.members]


def measure_cell(
    planned: PlannedCell, comparison: Path, dataset: Dataset, *, budget_epochs: int
) -> Cell:
    """Measure a cell whose runs are finished.

    Args:
        planned: the cell and its parts.
        comparison: folder, with ``runs`` and ``timing.jsonl``.
        dataset: the data of the runs, with the test labels.
        budget_epochs: of one run.

    Raises:
        UserError: a run has other data, another model or another method.
    """
    lines = [_read_line(part, comparison, dataset, budget_epochs) for part in planned.parts]
    labels = dataset.test.labels.cpu()
    viewed = any(line.viewed for line in lines)
    file, task = TTA_FILE if viewed else "test.npz", task_of(dataset)
    members = [probs for line in lines for probs in line.probabilities(file, labels, task)]
    ood = {
        name: [
            probs
            for line in lines
            for probs in line.probabilities(f"ood-{name}.npz", other.split.labels.cpu(), task)
        ]
        for name, other in dataset.ood.items()
        if not viewed  # views of OOD images are not predicted
    }
    cost = _cost(lines, len(dataset.train))
    return make_cell(
        planned.method,
        planned.budget,
        planned.seed,
        members,
        labels,
        cost=cost,
        ood=ood,
        note=planned.note,
        pooled=planned.pooled,
        parts=planned.part_names,
        task=task,
        held_out=_held_out(lines, dataset) if task.uses_noise else None,
    )


def _held_out(lines: Sequence[_Line], dataset: Dataset) -> tuple[list[Tensor], Tensor]:
    """Return the members' predictions and the targets that say the noise of a regression."""
    name, split = noise_data(dataset)
    targets, task = split.labels.cpu(), task_of(dataset)
    return [found for line in lines for found in line.probabilities(name, targets, task)], targets


def _read_line(part: Part, comparison: Path, dataset: Dataset, budget_epochs: int) -> _Line:
    folder = comparison / "runs" / part.job.name
    content = read_report(folder / "report.json", _Report)
    if content["dataset"]["sha256"] != dataset.fingerprint:
        raise UserError(f"{folder} has other data than {dataset.name}; give another --out")
    if content["model"] != part.job.config.model:
        raise UserError(
            f"{folder} has the model {content['model']}, not {part.job.config.model}; "
            "give another --out"
        )
    method = getattr(part.job.config, "method", None)
    if content["config"].get("method") != method:
        raise UserError(
            f"{folder} has the method {content['config'].get('method')}, not {method}; remove it"
        )
    lines = [method for method in content["methods"] if method["name"] == part.line]
    if not lines:
        raise UserError(f"{folder / 'report.json'} has no method {part.line!r}; remove {folder}")
    # A line that grows with its members is taken as far as the budget goes; what trains for longer
    # at more budgets has a budget of its own.
    limit = part.job.epochs if part.job.command == "train" else budget_epochs
    within = [line for line in lines if line["train_epochs"] <= limit]
    return _Line(part, folder, (within or lines)[-1])


def _cost(lines: Sequence[_Line], train_images: int) -> Cost:
    epochs = sum(line.method["train_epochs"] + line.part.given_epochs for line in lines)
    counted = all("validation_images" in line.method for line in lines)
    return Cost(
        train_epochs=epochs,
        images=epochs * train_images,
        members=sum(len(line.members) for line in lines),
        forward_passes=sum(line.method["forward_passes"] for line in lines),
        weight_bytes=sum(line.method["weight_bytes"] for line in lines),
        refresh_images=sum(line.method["refresh_images"] for line in lines),
        validation_images=sum(line.method.get("validation_images", 0) for line in lines)
        if counted
        else None,
    )


def wall_seconds(planned: PlannedCell, runs: Path, jobs: Sequence[dict[str, Any]]) -> float | None:
    """Return the seconds of training of a cell, or None if they are unknown.

    They are unknown if one of its runs overlapped with another, if records are missing (also of the
    end of an attempt), or if the run fits curves, which are not timed.

    Args:
        planned: the cell and its parts.
        runs: the folder of the runs.
        jobs: the comparison's records of its jobs: ``job begun``, and ``job`` at the end.
    """
    seconds = [_seconds(part, runs, jobs) for part in planned.parts]
    return None if None in seconds else sum(value for value in seconds if value is not None)


def _seconds(part: Part, runs: Path, jobs: Sequence[dict[str, Any]]) -> float | None:
    attempts = [record for record in jobs if record["job"] == part.job.name]
    ended = [record for record in attempts if record["event"] == "job"]
    known = ended and len(attempts) <= 2 * len(ended)
    if not known or any(record["overlapped"] for record in ended) or part.given_epochs:
        return None
    command, name = part.job.command, without_views(part.line)
    if command == "curve-ensemble" or (command == "fge" and name not in _STAGES):
        return None
    records = read_records(runs / part.job.name / "timing.jsonl")
    epochs = [record for record in records if record["event"] == "epoch"]
    if command == "fge":
        epochs = [record for record in epochs if record["stage"] in _STAGES[name]]
    return float(sum(record["seconds"] for record in epochs)) if epochs else None
