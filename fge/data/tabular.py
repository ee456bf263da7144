"""A table as a data set: targets from its columns, parts by a column or by chance, features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fge.config import CLASSIFICATION, OF_CLASSES, TaskName
from fge.data.choice import Chosen, choose
from fge.data.columns import Table, as_float, number_of, read_table, words_of
from fge.data.encoding import Encoder
from fge.data.parts import is_part, part_of
from fge.data.pictures import Pictures
from fge.data.raw import Part, RawData
from fge.data.split import Split
from fge.data.splits import Dataset, check_learnable
from fge.data.targets import LARGEST, TargetFacts, as_tensor, checked_targets
from fge.errors import UserError
from fge.files import printable

SPLIT = "split"
"""The column that says which part a row belongs to."""
_TRUTH = {"0": 0, "1": 1, "false": 0, "true": 1}
_NO_COUNT = 0.5
"""Above this part of the rows, different values are no classes."""


class _Rows(Pictures):
    """The rows of a part, by their positions in the table."""

    def __init__(self, index: NDArray[np.int64]) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)


def load_table(
    path: str | Path,
    targets: Sequence[str],
    task: TaskName,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.1,
) -> Dataset:
    """Load a ``.csv`` or ``.parquet`` table as a data set.

    The column ``split`` says which rows train, validate and test, if there is one. Else a fifth of
    the rows tests, and ``val_fraction`` of the others validates; classes and labels are spread
    alike. Which rows these are does not depend on a run's seed. What becomes of the other columns
    is in :class:`fge.data.encoding.Encoder`.

    Args:
        path: of the table.
        targets: the columns that are predicted.
        task: what is predicted.
        train_size: rows to use for training, validation included.
        test_size: rows to use for testing.
        val_fraction: part of the training rows that validates; 0 for none.

    Raises:
        UserError: naming the first column, line or value that is wrong.
    """
    path = Path(path)
    table = read_table(path)
    classes, values = _targets(table, targets, task)
    raw = _parts(table, classes, values, task)
    try:
        sizes = {"train_size": train_size, "test_size": test_size, "val_fraction": val_fraction}
        chosen = choose(raw, **sizes)  # type: ignore[arg-type]
        check_learnable(chosen.train, raw)
    except UserError as error:
        raise UserError(str(error).replace(" image", " row")) from None
    train, val, test = (_rows_of(part) for part in (chosen.train, chosen.val, chosen.test))
    encoder = Encoder.fit(table, train, targets, (SPLIT,))
    splits = [_split(encoder, table, rows, values) for rows in (train, val, test)]
    origins = {"val": chosen.val.origin, "test": chosen.test.origin}
    features = len(encoder.features)
    return Dataset(
        name=printable(path.stem),
        classes=classes,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        mean=(0.0,) * features,
        std=(1.0,) * features,
        fingerprint=_fingerprint(splits),
        origins={part: origin.replace("image", "row") for part, origin in origins.items()},
        skipped=encoder.note(),
        target=TargetFacts.of(task, values[train]),
        table=encoder.facts(),
    )


def _targets(
    table: Table, names: Sequence[str], task: TaskName
) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the names of classes, labels or numbers, and the targets of all rows."""
    columns = {name: table.column(name) for name in names}
    if task in OF_CLASSES and len(names) > 1:
        raise UserError(
            f"--task {task} predicts one column, got --target {' '.join(names)}; for several use "
            "--task multilabel or regression"
        )
    if len(columns) < len(names) or SPLIT in names:
        raise UserError(f"--target must name different columns but split, got {' '.join(names)}")
    for name, column in columns.items():
        missing = [word is None for word in words_of(column)]
        if any(missing):
            where = table.row(missing.index(True))
            raise UserError(f"{table.path}, {where}: the target {name!r} is missing; fill it in")
    if task in OF_CLASSES:
        return _classes(table, names[0], task)
    if task == "multilabel":
        columns = {name: _labels(table, name, column) for name, column in columns.items()}
    else:
        columns = {name: _numbers(table, name, column) for name, column in columns.items()}
    values = np.stack(list(columns.values()), axis=1)
    checked = checked_targets(task, f"{table.path}: {', '.join(names)}", values, len(table))
    return tuple(names), checked


def _numbers(table: Table, name: str, column: NDArray[Any]) -> NDArray[np.float64]:
    """Return targets (N,) as numbers."""
    numbers = np.empty(len(column))
    for k, value in enumerate(column):
        where = f"{table.path}, {table.row(k)}: the target {name!r} must be"
        try:
            numbers[k] = as_float(value)
        except ValueError:
            raise UserError(f"{where} a number for --task regression, got {value!r}") from None
        if not abs(numbers[k]) <= LARGEST:
            raise UserError(f"{where} finite and at most {LARGEST:g} in size, got {numbers[k]:g}")
    return numbers


def _classes(table: Table, name: str, task: TaskName) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return classes in the order of numbers or words, and the class of each row."""
    words: list[Any] = table.words(name)
    of_words = table.column(name).dtype == object
    values = words if of_words else [number_of(word) for word in words]
    found = sorted(set(values))
    if len(found) == 1:
        raise UserError(
            f"{table.path}: the target {name!r} is {found[0]!r} in all rows; a classifier needs "
            "rows of two classes or more"
        )
    if len(found) > max(2, _NO_COUNT * len(table)):
        raise UserError(
            f"{table.path}: the target {name!r} has {len(found)} different values in {len(table)} "
            "rows, which are no classes; use --task regression for numbers"
        )
    if task == "binary" and len(found) != 2:
        raise UserError(
            f"{table.path}: --task binary needs a target of two values, {name!r} has {len(found)}; "
            f"use --task {CLASSIFICATION}"
        )
    number = {value: k for k, value in enumerate(found)}
    return tuple(map(str, found)), np.array([number[value] for value in values], np.int64)


def _labels(table: Table, name: str, column: NDArray[Any]) -> NDArray[np.float64]:
    """Return labels given as 0 and 1, or false and true."""
    words = [str(word).lower() for word in words_of(column)]
    wrong = next((k for k, word in enumerate(words) if word not in _TRUTH), None)
    if wrong is not None:
        raise UserError(
            f"{table.path}, {table.row(wrong)}: the label {name!r} must be 0 or 1, got "
            f"{words_of(column)[wrong]!r}"
        )
    return np.array([_TRUTH[word] for word in words], dtype=np.float64)


def _parts(table: Table, classes: tuple[str, ...], values: NDArray[Any], task: TaskName) -> RawData:
    """Return the parts of a table, whose pictures are positions of rows."""
    index = np.arange(len(table))
    parts = {"train": index}
    if SPLIT in (*table.columns, *table.other):
        words = table.words(SPLIT)
        wrong = next((k for k, word in enumerate(words) if not is_part(str(word))), None)
        if wrong is not None:
            raise UserError(
                f"{table.path}, {table.row(wrong)}: split must be train, val or test, got "
                f"{words[wrong]!r}; rename the column if it is a feature"
            )
        known = {word: part_of(str(word), f"{table.path}: split {word!r}") for word in {*words}}
        own = np.array([known[word] for word in words])
        parts = {name: index[own == name] for name in ("train", "val", "test")}
        parts = {name: rows for name, rows in parts.items() if len(rows)}
        if "train" not in parts:
            raise UserError(f"{table.path} has no row of the split train; the network needs some")
    made = {
        name: Part(values[rows], (len(rows), 1, 1, 1), _Rows(rows), f"of the split {name}")
        for name, rows in parts.items()
    }
    missing = "column split" if SPLIT not in table.columns else "row of the split test"
    raw = RawData(table.path.stem, classes, made["train"], made.get("test"), made.get("val"))
    return replace(raw, missing=missing, task=task)


def _rows_of(chosen: Chosen) -> NDArray[np.int64]:
    pictures = chosen.part.pictures
    assert isinstance(pictures, _Rows)
    return pictures.index[chosen.order]


def _split(encoder: Encoder, table: Table, rows: NDArray[np.int64], values: NDArray[Any]) -> Split:
    return Split(torch.from_numpy(encoder.encode(table, rows)), as_tensor(values[rows]))


def _fingerprint(splits: Sequence[Split]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.images, split.labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
