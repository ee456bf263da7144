"""A table of labels: a CSV file that says which images of a folder are of which class."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fge.data.images import LEAVE_OUT, Skipped, list_images
from fge.data.parts import is_part, part_of
from fge.data.pictures import FilePaths, Sources
from fge.errors import UserError
from fge.files import check_file, printable

TABLE = "labels.csv"
"""The name of the table in a folder."""
_COLUMNS = "the columns file, label and perhaps split"
_NOT_LISTED = "not in the table of labels"


@dataclass(frozen=True)
class Listed:
    """The files of a folder: ``parts`` by name, with their labels and where they are from."""

    classes: tuple[str, ...]
    parts: dict[str, tuple[Sources, NDArray[np.int64], str]]


def from_table(
    folder: Path, table: Path, skipped: Skipped, missing: dict[str, str] | None = None
) -> Listed:
    """Return the files of a folder that a table names; classes are in sorted order.

    Without a column ``split`` all of them train.

    Args:
        folder: of the images; the names in the table are relative to it.
        table: a CSV file in UTF-8.
        skipped: counts the images of the folder that the table does not name.
        missing: gets the files that there are not, and why; without it the first is an error.

    Raises:
        UserError: naming the first row that is wrong.
    """
    rows: dict[str, list[tuple[Path, str]]] = {}
    named: dict[Path, int] = {}
    for line, (name, label, part) in _rows(table):
        path, same = folder / name, folder / os.path.normpath(name)
        if same in named:
            raise UserError(
                f"{table}, line {line}: {name} is there twice, first in line {named[same]}; keep "
                "one of the rows"
            )
        named[same] = line
        own = rows.setdefault(part, [])
        if not path.exists():
            reason = f"{table}, line {line}: there is no image {path}"
            if missing is None:
                raise UserError(f"{reason}{LEAVE_OUT}")
            missing[str(path)] = reason
            continue
        check_file(path, "image file")
        own.append((path, label))
    for part, found in rows.items():
        if not found and missing:
            first = next(iter(missing.values()))
            raise UserError(f"no image of the split {part} in {table} is there; {first}")
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
        reader.fieldnames = _headings(table, reader.fieldnames or ())
        for row in reader:
            yield reader.line_num, _row(row, f"{table}, line {reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: this is no CSV: {error}") from None


def _headings(table: Path, given: Sequence[str]) -> list[str]:
    """Return the headings of a table in small letters."""
    names = [name.strip().casefold() for name in given]
    if not {"file", "label"} <= set(names):
        found = ", ".join(given) or "none"
        other = any(mark in found for mark in ";\t|")
        remedy = "; separate columns by commas" if other else ""
        raise UserError(f"{table} needs {_COLUMNS}, got {found}{remedy}")
    twice = next((n for n in ("file", "label", "split") if names.count(n) > 1), None)
    if twice:
        raise UserError(f"{table} has the column {twice} twice; keep one of them")
    return names


def _row(row: dict[str, str | None], where: str) -> tuple[str, str, str]:
    file, label = row["file"], (row["label"] or "").strip()
    if not file or not label or "\0" in file:
        raise UserError(
            f"{where}: a file and a label are needed, got {file!r} and {row['label']!r}"
        )
    split = (row.get("split", "train") or "").strip()
    if not is_part(split):
        raise UserError(f"{where}: split must be train, val or test, got {split!r}")
    if Path(file).is_absolute():
        raise UserError(f"{where}: give the name of {file} in the folder, not its whole path")
    if Path(os.path.normpath(file)).parts[:1] == ("..",):
        raise UserError(f"{where}: {file} is outside the folder of the images; move it there")
    return file, label, part_of(split, f"{where}: split {split!r}")
