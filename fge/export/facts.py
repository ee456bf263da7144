"""What an exported file says of itself: what it takes and predicts, and what is in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from fge import __version__
from fge.config import TaskName
from fge.data import Column
from fge.export.rows import column_facts

FACTS = "facts"
"""The key of the facts, as JSON, in the metadata of an exported file."""
SCHEMA_VERSION = 1
_KEYS: dict[TaskName, str] = {"multilabel": "labels", "regression": "targets"}
_OUTPUTS: dict[TaskName, str] = {
    "multilabel": "probabilities: float32 (batch, labels), each by itself",
    "regression": "predictions: float64 (batch, targets), in the units of the targets; variance: "
    "float64 (batch, targets), that over members plus the noise",
}
_OF_CLASSES = "probabilities: float32 (batch, classes), rows sum to 1"


@dataclass(frozen=True)
class ImageInput:
    """Images that an exported file takes.

    Args:
        channels: 1 for grey ones, 3 for RGB.
        height: in pixels.
        width: in pixels.
        mean: of each channel, in grey levels from 0 to 255; it is subtracted within the file.
        std: of each channel; it divides within the file.
        resize: the shorter side to which images are resized before their centre is cropped, which
            is not within the file; None if they were used as they are.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    name = "images"

    def facts(self) -> dict[str, Any]:
        """Return the facts, with words for what goes in."""
        words = (
            f"images: uint8 (batch, {self.channels}, {self.height}, {self.width}), grey levels "
            "from 0 to 255; they are normalised within the file"
        )
        return {"input": words, **asdict(self)}


@dataclass(frozen=True)
class RowInput:
    """Rows of a table that an exported file takes, by their columns of features."""

    columns: tuple[Column, ...]
    name = "rows"

    def facts(self) -> dict[str, Any]:
        """Return the facts, with words for what goes in."""
        words = (
            f"rows: float64 (batch, {len(self.columns)}), in the order of columns: numbers, NaN "
            "for none, and codes of words; they are standardised within the file"
        )
        return {"input": words, "columns": [column_facts(column) for column in self.columns]}


@dataclass(frozen=True)
class Facts:
    """The facts in an exported file.

    Args:
        task: what is predicted.
        names: of the classes, labels or targets, in the order of the output.
        given: what the file takes.
        members: the numbers of the snapshots.
        averaged: whether their weights are averaged into one network.
        precision: ``"float32"`` or ``"float16"``, in which the networks compute.
        model: the name of the architecture.
        noise: the noise variance of each target of a regression, which is part of the variance;
            None if the run has none.
    """

    task: TaskName
    names: tuple[str, ...]
    given: ImageInput | RowInput
    members: tuple[int, ...]
    averaged: bool
    precision: str
    model: str
    noise: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """The key of the names: classes, labels or targets."""
        return _KEYS.get(self.task, "classes")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return ("predictions", "variance") if self.task == "regression" else ("probabilities",)

    def text(self) -> str:
        """Return the facts as JSON, with words for what goes in and comes out."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "program": f"fast-geometric-ensembling {__version__}",
            "task": self.task,
            "output": _OUTPUTS.get(self.task, _OF_CLASSES),
            self.key: self.names,
            **self.given.facts(),
            "members": self.members,
            "averaged": self.averaged,
            "precision": self.precision,
            "model": self.model,
            **({"noise": self.noise} if self.task == "regression" else {}),
        }
        return json.dumps(content)
