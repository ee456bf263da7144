"""The examples of which an ensemble is least certain: pictures, or rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fge import metrics
from fge.data import Encoder, Split, TableFacts
from fge.ensemble import PredictionFile
from fge.report.builder import ReportBuilder
from fge.report.escaping import plain_name
from fge.report.methods import MethodResult
from fge.report.page import Table
from fge.report.pictures import SHOWN, captions, least_certain
from fge.tasks import Regression

GALLERY = "Pictures of the least certain images"
ROWS = "The least certain test rows"
MOST_COLUMNS = 12
"""Columns of a table that are shown."""
MOST_TARGETS = 6
"""Labels or targets that are shown."""
_IMAGE_SIDES = 4
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Doubtful:
    """The least certain examples of a split.

    ``order`` (n,): their numbers, the least certain first; ``cells``: by heading, the n targets,
    predictions and measures of uncertainty; ``why``: these; ``captions``: of pictures, by default
    the cells.
    """

    order: NDArray[np.int64]
    cells: Mapping[str, Sequence[str]]
    why: str
    captions: Sequence[str] = ()

    def texts(self) -> list[str]:
        """Return what to say of each picture."""
        rows = zip(*self.cells.values(), strict=True)
        found = ["; ".join(f"{h}: {t}" for h, t in zip(self.cells, r, strict=True)) for r in rows]
        return list(self.captions) or found


def add_least_certain(
    report: ReportBuilder,
    result: MethodResult,
    test: PredictionFile,
    split: Split,
    names: Sequence[str],
    table: TableFacts | None = None,
) -> None:
    """Show the test examples of which a line is least certain, with their targets.

    Args:
        report: gets pictures, or a table of rows.
        result: the line. One network of a regression does not say how certain it is.
        test: the test predictions of its members.
        split: the test examples, of which only these are read.
        names: of the classes, labels or targets.
        table: the columns, if these are rows of a table.
    """
    of_images = len(split.shape) == _IMAGE_SIDES
    if not of_images and table is None:
        return
    members = result.member_names
    whose = f"`{result.name}`" + (f" ({len(members)} members)" if len(members) > 1 else "")
    if test.task.of_classes:
        found = _of_classes(test, members, names, whose, "images" if of_images else "rows")
    elif not isinstance(test.task, Regression):
        found = _of_labels(test, members, whose)
    elif len(members) > 1:
        found = _of_numbers(test, test.task, members, whose)
    else:
        return
    if of_images:
        add_pictures(report, split, found.order, found.texts(), found.why)
    elif table is not None:
        report.table(_rows_table(split, found, table))


def _of_classes(
    test: PredictionFile, members: Sequence[str], names: Sequence[str], whose: str, what: str
) -> _Doubtful:
    figures = metrics.uncertainty(test.probabilities(name) for name in members)
    if len(members) == 1:  # its own mean: there is nothing to disagree on
        del figures["mutual_information"]
    order = least_certain(figures["mean"], SHOWN)
    mean, targets = figures["mean"][order], test.targets[order]
    cells = {
        "true": [plain_name(names[k]) for k in targets],
        "predicted": [plain_name(names[k]) for k in mean.argmax(axis=1)],
        "probability": [f"{p:.3f}" for p in mean.max(axis=1)],
    }
    for key in ("entropy", "mutual_information"):
        if key in figures:
            cells[key.replace("_", " ")] = [f"{value:.3f}" for value in figures[key][order]]
    why = f"The test {what} to which {whose} gives the lowest largest probability; in nats."
    texts = captions(order, figures, names, targets=test.targets)
    return _Doubtful(order, cells, why, texts)


def _of_labels(test: PredictionFile, members: Sequence[str], whose: str) -> _Doubtful:
    mean = test.mean(members).numpy()
    entropy = np.mean([metrics.entropy(np.stack([1 - p, p], axis=1)) for p in mean.T], axis=0)
    order = np.argsort(-entropy, kind="stable")[:SHOWN]
    cells: dict[str, list[str]] = {}
    for label, name in enumerate(map(plain_name, test.task.names[:MOST_TARGETS])):
        cells[name] = [str(int(value)) for value in test.targets[order, label]]
        cells[f"p({name})"] = [f"{p:.3f}" for p in mean[order, label]]
    cells["entropy"] = [f"{value:.3f}" for value in entropy[order]]
    why = f"Those on whose labels {whose} has the largest entropy, in nats, a mean over labels."
    return _Doubtful(order, cells, why + _first(len(test.task.names), MOST_TARGETS, "labels"))


def _of_numbers(
    test: PredictionFile, task: Regression, members: Sequence[str], whose: str
) -> _Doubtful:
    mean = test.mean(members).numpy()
    variance, _ = test.variances(members)
    assert variance is not None, "a regression has one"
    spread = np.sqrt(variance)
    doubt = (spread / np.array(task.std)).mean(axis=1)
    order = np.argsort(-doubt, kind="stable")[:SHOWN]
    cells: dict[str, list[str]] = {}
    for k, name in enumerate(map(plain_name, task.names[:MOST_TARGETS])):
        cells[name] = [f"{value:.6g}" for value in test.targets[order, k]]
        pairs = zip(mean[order, k], spread[order, k], strict=True)
        cells[f"{name} predicted"] = [f"{value:.6g} ± {own:.2g}" for value, own in pairs]
    why = f"Those on which the members of {whose} differ most; ± is their standard deviation."
    return _Doubtful(order, cells, why + _first(len(task.names), MOST_TARGETS, "targets"))


def _rows_table(split: Split, found: _Doubtful, facts: TableFacts) -> Table:
    columns = row_cells(split, found.order, facts)
    rows = list(map(list, zip(*columns.values(), *found.cells.values(), strict=True)))
    note = found.why + _first(len(facts["columns"]), MOST_COLUMNS, "columns")
    return Table(ROWS, [*columns, *found.cells], rows, note)


def row_cells(split: Split, index: NDArray[np.int64], facts: TableFacts) -> dict[str, list[str]]:
    """Return the values of some rows by column, of the first columns.

    Args:
        split: of the rows, as features.
        index: of the rows (n,).
        facts: of the table.
    """
    features = split.take(torch.from_numpy(index)).numpy()
    found = Encoder.of(facts).decode(features)
    shown = list(found.items())[:MOST_COLUMNS]
    return {plain_name(name): [plain_name(word) for word in words] for name, words in shown}


def _first(count: int, most: int, what: str) -> str:
    return f" The first {most} of {count} {what} are shown." if count > most else ""


def add_gallery(
    report: ReportBuilder,
    split: Split,
    figures: dict[str, Array],
    classes: Sequence[str],
    *,
    note: str,
    names: Sequence[str] | None = None,
) -> None:
    """Show the images of a split that are the least certain, if they are images.

    Args:
        report: gets at most ``SHOWN`` pictures.
        split: of the images, of which only these are read.
        figures: of all images, as :func:`fge.report.captions` takes them.
        classes: names of the classes.
        note: says of what they are.
        names: of the images, if they have any.
    """
    if len(split.shape) != _IMAGE_SIDES:
        return
    index = least_certain(figures["mean"], SHOWN)
    add_pictures(report, split, index, captions(index, figures, classes, names=names), note)


def add_pictures(
    report: ReportBuilder,
    split: Split,
    index: NDArray[np.int64],
    texts: Sequence[str],
    note: str,
) -> None:
    """Show images of a split.

    Args:
        report: gets them.
        split: of the images, of which only these are read.
        index: of the images (n,).
        texts: what to say of each.
        note: says why these.
    """
    images = split.take(torch.from_numpy(index)).numpy()
    files = [f"uncertain-{number:02d}.png" for number in range(1, len(index) + 1)]
    report.gallery(GALLERY, list(zip(files, images, texts, strict=True)), note)
