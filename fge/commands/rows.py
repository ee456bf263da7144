"""Predictions of rows of a table, and of labels and numbers: what is read and what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.arrays import write_npz
from fge.commands.inputs import Inputs
from fge.commands.measured import OF_MEMBERS, set_in_words
from fge.config import PredictConfig, is_table
from fge.data import Encoder, Split, TableFacts, read_table
from fge.errors import UserError
from fge.files import printable, write_text
from fge.metrics import Conformal, conformal_label_sets, uncertainty
from fge.observer import Observer
from fge.report import (
    SHOWN,
    ReportBuilder,
    Table,
    add_pictures,
    conformal_facts,
    csv_text,
    deviation_of,
    intervals_by,
    plain_name,
    set_size_table,
)
from fge.tasks import Task

_SHOWN = 20
Array = NDArray[np.float64]


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
class Predicted:
    """Predicted labels or numbers of N examples.

    ``mean``: probabilities of labels (N, L), or numbers (N, K); ``spread``: the standard deviation
    over members, of the same shape; ``members``: (S, N, ...) float64, if they are kept;
    ``deviation``: the standard deviation (N, K) of the true numbers, if their noise is known;
    ``intervals``: (N, K, 2), or ``sets`` of labels (N, L), of the threshold ``fit``, if there is
    one; ``no_sets``: why there is none; ``measures``: by name, how uncertain each label is (N, L).
    """

    mean: Array
    spread: Array
    members: Array | None = None
    deviation: Array | None = None
    fit: Conformal | None = None
    intervals: Array | None = None
    sets: NDArray[np.bool_] | None = None
    no_sets: str = ""
    measures: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def of_labels(
        cls, predictions: Tensor, fit: Conformal | None = None, *, keep_members: bool
    ) -> Predicted:
        """Return what the members' probabilities of labels (S, N, L) come to.

        Args:
            predictions: of the members.
            fit: the threshold of sets of labels.
            keep_members: whether their own predictions are kept.
        """
        found = uncertainty(predictions.numpy(), output="sigmoid")
        names = ("entropy", *(OF_MEMBERS if len(predictions) > 1 else ()))
        own = cls.of(predictions, keep_members=keep_members)
        sets = None if fit is None else conformal_label_sets(own.mean, fit)
        return replace(own, fit=fit, sets=sets, measures={name: found[name] for name in names})

    @classmethod
    def of(
        cls,
        predictions: Tensor,
        noise: Sequence[float] | None = None,
        fit: Conformal | None = None,
        *,
        keep_members: bool,
    ) -> Predicted:
        """Return what the members' predictions (S, N, ...) come to.

        Args:
            predictions: of the members.
            noise: the variance (K,) of numbers around the members.
            fit: the threshold of intervals of numbers.
            keep_members: whether their own predictions are kept.
        """
        values = predictions.double().numpy()
        mean, spread = values.mean(axis=0), values.std(axis=0)
        deviation = None if noise is None else deviation_of(spread**2, noise)
        intervals = None
        if fit is not None and deviation is not None:
            intervals = intervals_by(fit, mean, deviation)
        kept = values if keep_members else None
        return cls(mean, spread, kept, deviation, fit, intervals)

    def columns(self, task: Task) -> dict[str, Array]:
        """Return the columns (N,) of ``predictions.csv`` by heading."""
        of_labels = task.name == "multilabel"
        found = {
            f"p({n})" if of_labels else n: v for n, v in zip(task.names, self.mean.T, strict=True)
        }
        more = {"spread": self.spread, **self.measures, "deviation": self.deviation}
        if self.intervals is not None:
            more |= {"low": self.intervals[..., 0], "high": self.intervals[..., 1]}
        for what, values in more.items():
            if values is not None:
                found |= {f"{what} of {n}": v for n, v in zip(task.names, values.T, strict=True)}
        return found

    def facts(self) -> dict[str, Any]:
        """Return the content for ``report.json``: means over the examples, labels and numbers."""
        found: dict[str, Any] = {name: float(v.mean()) for name, v in self.measures.items()}
        if self.fit is None:
            return found
        means = {}
        if self.intervals is not None:
            widths = self.intervals[..., 1] - self.intervals[..., 0]
            means["width"] = widths.mean(axis=0).tolist()
        if self.sets is not None:
            sizes = self.sets.sum(axis=1)
            means |= {"size": float(sizes.mean()), "empty": float((sizes == 0).mean())}
        return found | {"conformal": {**conformal_facts(self.fit), **means}}

    def differing(self) -> NDArray[np.int64]:
        """Return the examples (N,) by how much the members differ, the largest spread first."""
        # Targets of different units count the same.
        share = self.spread / np.maximum(self.spread.mean(axis=0), np.finfo(float).tiny)
        return np.argsort(-share.mean(axis=1), kind="stable")

    def cells(self, example: int) -> list[str]:
        """Return what was predicted for an example, in words."""
        pairs = zip(self.mean[example], self.spread[example], strict=True)
        return [f"{mean:.4g} ± {spread:.2g}" for mean, spread in pairs]


def write_outputs(
    out: Path, example: str, names: Sequence[str], found: Predicted, task: Task
) -> None:
    """Write labels or numbers to ``predictions.csv`` and ``predictions.npz``.

    Args:
        out: the folder.
        example: what a row of the file is: image or row.
        names: of the examples.
        found: what was predicted.
        task: multilabel or a regression.
    """
    # Of numbers far from 0, such as seconds since 1970, nine digits would not show how they differ.
    form = "{:.6f}" if task.name == "multilabel" else "{:.12g}"
    columns = found.columns(task)
    lines = zip(names, np.array(list(columns.values())).T.tolist(), strict=True)
    rows: list[list[object]] = [[example, *columns]]
    rows += [[name, *(form.format(value) for value in values)] for name, values in lines]
    if found.sets is not None:
        cells = map(partial(set_in_words, names=task.names), found.mean, found.sets)
        rows = [[*row, cell] for row, cell in zip(rows, ["set", *cells], strict=True)]
    write_text(out / "predictions.csv", csv_text(rows))
    arrays: dict[str, Any] = {
        f"{example}s": np.array(names),
        task.array: found.mean,
        "spread": found.spread,
        "names": np.array(task.names),
        **found.measures,
    }
    if found.members is not None:
        arrays[f"member_{task.array}"] = found.members
    if found.deviation is not None:
        arrays["deviation"] = found.deviation
    for name, values in (("intervals", found.intervals), ("sets", found.sets)):
        if found.fit is not None and values is not None:
            arrays |= {name: values, "coverage": found.fit.coverage}
    write_npz(out / "predictions.npz", arrays)


def outputs_verdict(found: Predicted, what: str, example: str) -> list[str]:
    """Say how many examples were predicted, by what, and how much its members differ."""
    said = [
        f"{len(found.mean)} {example}s, predicted by {what}: its members differ by "
        f"{np.sqrt((found.spread**2).mean()):.4g} (standard deviation). The true values are "
        "unknown."
    ]
    if found.fit is not None and found.intervals is not None:
        width = (found.intervals[..., 1] - found.intervals[..., 0]).mean()
        said.append(
            f"The conformal intervals, stated to hold the value of {100 * found.fit.coverage:g} % "
            f"of {example}s, are {width:.4g} wide on average."
        )
    if found.fit is not None and found.sets is not None:
        said.append(
            f"The conformal sets, stated to hold all labels of {100 * found.fit.coverage:g} % of "
            f"{example}s, have {found.sets.sum(axis=1).mean():.2f} labels on average."
        )
    if found.no_sets:
        said.append(f"{found.no_sets[:1].upper()}{found.no_sets[1:]}.")
    return said


def outputs_tables(
    names: Sequence[str],
    found: Predicted,
    task: Task,
    example: str,
    columns: Callable[[NDArray[np.int64]], Mapping[str, Sequence[str]]] | None = None,
) -> list[Table]:
    """Return what was predicted, and the examples on which the members differ most.

    Args:
        names: of the examples.
        found: what was predicted.
        task: multilabel or a regression.
        example: what they are called: image or row.
        columns: returns, by heading, the values of some rows of a table.
    """
    mean, spread = found.mean, found.spread
    of_labels = task.name == "multilabel"
    headings = ["predicted", "mean", "lowest", "highest", "spread of the members"]
    pairs = zip(task.names, mean.T, np.sqrt((spread**2).mean(axis=0)), strict=True)
    rows = [
        [name, *(f"{value:.4g}" for value in (own.mean(), own.min(), own.max(), deviation))]
        for name, own, deviation in pairs
    ]
    if of_labels:
        headings.insert(1, f"{example}s above 0.5")
        for row, own in zip(rows, mean.T, strict=True):
            row.insert(1, str(int((own > 0.5).sum())))
    note = "Spread is the standard deviation over members."
    most = found.differing()[:_SHOWN]
    given = columns(most) if columns else {}
    differing = [
        [names[k], *(values[place] for values in given.values()), *found.cells(k)]
        for place, k in enumerate(most)
    ]
    differing_headings = [example, *given, *task.names]
    if found.sets is not None:
        differing_headings.append("set")
        for row, k in zip(differing, most, strict=True):
            row.append(set_in_words(found.mean[k], found.sets[k], task.names) or "(empty)")
    title = f"The {example}s on which the members differ most"
    tables = [
        Table("Predictions", headings, rows, note),
        Table(title, differing_headings, differing),
    ]
    if found.sets is not None and found.fit is not None:
        tables.insert(1, set_size_table(found.sets, found.fit, example))
    return tables


def outputs_pictures(
    report: ReportBuilder, names: Sequence[str], found: Predicted, task: Task, split: Split
) -> None:
    """Show the images on which the members differ most."""
    most = found.differing()[:SHOWN]
    texts = [
        f"{plain_name(names[k])}: "
        + "; ".join(f"{plain_name(n)} {c}" for n, c in zip(task.names, found.cells(k), strict=True))
        for k in most
    ]
    note = "Those on which the members differ most; ± is their standard deviation."
    add_pictures(report, split, most, texts, note)
