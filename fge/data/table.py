"""A table of labels: a CSV file that says which images of a folder are of which class."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fge.data.images import Skipped, list_images
from fge.data.pictures import FilePaths, Sources
from fge.data.raw import VAL_NAMES
from fge.errors import UserError
from fge.files import check_file, printable

TABLE = "labels.csv"
"""The name of the table in a folder."""
_COLUMNS = "the columns file, label and perhaps split"
_PARTS = {"train": "train", "test": "test"} | dict.fromkeys(VAL_NAMES, "val")
_NOT_LISTED = "not in the table of labels"


@dataclass(frozen=True)
class Listed:
    """The files of a folder: ``parts`` by name, with their labels and where they are from."""

    classes: tuple[str, ...]
    parts: dict[str, tuple[Sources, NDArray[np.int64], str]]


def from_table(folder: Path, table: Path, skipped: Skipped) -> Listed:
    """Return the files of a folder that a table names; classes are in sorted order.

    Without a column ``split`` all of them train.

    Args:
        folder: of the images; the names in the table are relative to it.
        table: a CSV file in UTF-8.
        skipped: counts the images of the folder that the table does not name.

    Raises:
        UserError: naming the first row that is wrong.
    """
    rows: dict[str, list[tuple[Path, str]]] = {}
    named: set[Path] = set()
    for line, (name, label, part) in _rows(table):
        path = folder / name
        if path in named:
            raise UserError(f"{table}, line {line}: {name} is there twice; keep one of the rows")
        if not path.exists():
            raise UserError(f"{table}, line {line}: there is no image {path}")
        check_file(path, "image file")
        named.add(path)
        rows.setdefault(part, []).append((path, label))
    if "train" not in rows:
        raise UserError(f"{table} names no image of the split train; the network needs some")
    classes = tuple(sorted({label for _, label in rows["train"]}))
    number = {label: k for k, label in enumerate(classes)}
    parts: dict[str, tuple[Sources, NDArray[np.int64], str]] = {}
    for part, found in rows.items():
        for path, label in found:
            if label not in number:
                raise UserError(
                    f"{table}: {printable(str(path))} is of the class {label!r}, of which there is "
                    "no training image; add some or remove it"
                )
        labels = np.array([number[label] for _, label in found], np.int64)
        files = FilePaths(folder, [path for path, _ in found])
        parts[part] = (files, labels, f"of the split {part} in {table.name}")
    for path in list_images(folder, skipped):
        if path not in named:
            skipped.add(_NOT_LISTED, path.name)
    return Listed(classes, parts)


def _rows(table: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield the number of each line of a table, and its file, label and part."""
    check_file(table, "table of labels")
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{table} is not in UTF-8; save it as CSV in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise UserError(f"{table} needs {_COLUMNS}, got {found}")
        for row in reader:
            yield reader.line_num, _row(row, f"{table}, line {reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: this is no CSV: {error}") from None


def _row(row: dict[str, str | None], where: str) -> tuple[str, str, str]:
    file, label = row["file"], row["label"]
    if not file or not label or "\0" in file:
        raise UserError(f"{where}: a file and a label are needed, got {file!r} and {label!r}")
    split = row.get("split", "train") or ""
    if split not in _PARTS:
        raise UserError(f"{where}: split must be train, val or test, got {split!r}")
    if Path(file).is_absolute():
        raise UserError(f"{where}: give the name of {file} in the folder, not its whole path")
    return file, label, _PARTS[split]
