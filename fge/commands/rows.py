"""Predictions of rows of a table, and of labels and numbers: what is read and what is written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.commands.inputs import Inputs
from fge.config import PredictConfig, is_table
from fge.data import Encoder, Split, TableFacts, read_table
from fge.errors import UserError
from fge.files import printable, write_bytes, write_text
from fge.observer import Observer
from fge.report import Table, csv_text
from fge.tasks import Task

_SHOWN = 20


def read_rows(config: PredictConfig, facts: TableFacts, observer: Observer) -> Inputs:
    """Return the rows of a table as the network of a run needs them, with their numbers.

    Targets are not needed. Columns that are no features, and words that no training row had, are
    told.

    Raises:
        UserError: it is no table, lacks a column, or holds words where training had numbers.
    """
    if not is_table(str(config.images)):
        raise UserError(
            f"{config.run} was trained on a table; give --images a .csv or .parquet table with the "
            f"same columns, got {config.images}"
        )
    for name in ("image_size", "skip_unreadable"):
        if getattr(config, name):
            option = name.replace("_", "-")
            raise UserError(
                f"--{option} is for images, and {config.images} is a table; leave it out"
            )
    table, encoder = read_table(config.images), Encoder.of(facts)
    rows = torch.from_numpy(encoder.encode(table))
    if unused := encoder.unused(table):
        observer.note(f"columns that the network does not use: {', '.join(map(printable, unused))}")
    for line in encoder.unknown_words(table):
        observer.note(line)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return Inputs([str(position) for position in range(len(rows))], Split(rows, labels), {})


@dataclass(frozen=True)
class Outputs:
    """Predicted labels or numbers of N examples.

    ``mean``: probabilities of labels (N, L), or numbers (N, K); ``spread``: the standard deviation
    over members, of the same shape; ``members``: (S, N, ...) float32, if they are kept.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    members: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, predictions: Tensor, *, keep_members: bool) -> Outputs:
        """Return mean and spread of the members' predictions (S, N, ...)."""
        values = predictions.double().numpy()
        kept = values.astype(np.float32) if keep_members else None
        return cls(values.mean(axis=0), values.std(axis=0), kept)


def write_outputs(
    out: Path, example: str, names: Sequence[str], found: Outputs, task: Task
) -> None:
    """Write labels or numbers to ``predictions.csv`` and ``predictions.npz``.

    Args:
        out: the folder.
        example: what a row of the file is: image or row.
        names: of the examples.
        found: what was predicted.
        task: multilabel or a regression.
    """
    of_labels = task.name == "multilabel"
    form = "{:.6f}" if of_labels else "{:.9g}"
    headings = [f"p({name})" if of_labels else name for name in task.names]
    rows: list[list[object]] = [[example, *headings, *(f"spread of {n}" for n in task.names)]]
    for name, values, spread in zip(names, found.mean.tolist(), found.spread.tolist(), strict=True):
        rows.append([name, *(form.format(value) for value in (*values, *spread))])
    write_text(out / "predictions.csv", csv_text(rows))
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        f"{example}s": np.array(names),
        task.array: found.mean,
        "spread": found.spread,
        "names": np.array(task.names),
    }
    if found.members is not None:
        arrays[f"member_{task.array}"] = found.members
    np.savez(buffer, **arrays)
    write_bytes(out / "predictions.npz", buffer.getvalue())


def outputs_verdict(found: Outputs, what: str, example: str) -> list[str]:
    """Say how many examples were predicted, by what, and how much its members differ."""
    return [
        f"{len(found.mean)} {example}s, predicted by {what}: its members differ by "
        f"{np.sqrt((found.spread**2).mean()):.4g} (standard deviation). The true values are "
        "unknown."
    ]


def outputs_tables(names: Sequence[str], found: Outputs, task: Task, example: str) -> list[Table]:
    """Return what was predicted, and the examples on which the members differ most."""
    mean, spread = found.mean, found.spread
    of_labels = task.name == "multilabel"
    headings = ["predicted", "mean", "lowest", "highest", "spread of the members"]
    columns = zip(task.names, mean.T, np.sqrt((spread**2).mean(axis=0)), strict=True)
    rows = [
        [name, *(f"{value:.4g}" for value in (own.mean(), own.min(), own.max(), deviation))]
        for name, own, deviation in columns
    ]
    if of_labels:
        headings.insert(1, f"{example}s above 0.5")
        for row, own in zip(rows, mean.T, strict=True):
            row.insert(1, str(int((own > 0.5).sum())))
    note = "Spread is the standard deviation over members."
    most = np.argsort(-spread.mean(axis=1), kind="stable")[:_SHOWN]
    differing = [
        [names[k], *(f"{m:.4g} ± {s:.2g}" for m, s in zip(mean[k], spread[k], strict=True))]
        for k in most
    ]
    return [
        Table("Predictions", headings, rows, note),
        Table(
            f"The {example}s on which the members differ most", [example, *task.names], differing
        ),
    ]
