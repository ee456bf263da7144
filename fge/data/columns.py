"""Tables: the columns of a ``.csv`` or ``.parquet`` file, as numbers or as words."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.errors import UserError, missing_package, one_line, unknown
from fge.files import check_file, printable

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""What stands for no value in a CSV file."""


@dataclass(frozen=True)
class Table:
    """The columns of a table by name: numbers (N,) with NaN where there are none, or words.

    Words are an object array (N,) of text, and None where there is none. ``lines``: of a CSV file
    those where the rows begin (N,), from 1; ``cells``: returns what the file says, of columns of
    numbers; ``other``: columns that are neither numbers nor words, and their types; ``index``:
    those that are no more than the rows' names.
    """

    path: Path
    columns: Mapping[str, NDArray[Any]]
    lines: Sequence[int] = ()
    cells: Mapping[str, Callable[[], Sequence[Any]]] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)
    index: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def row(self, position: int) -> str:
        """Return the name of a row in messages."""
        return f"line {self.lines[position]}" if self.lines else f"row {position}"

    def column(self, name: str) -> NDArray[Any]:
        """Return a column.

        Raises:
            UserError: there is no such column; the message names the nearest. Or it is neither of
                numbers nor of words.
        """
        if name in self.other:
            raise UserError(
                f"{self.path}: the column {printable(name)!r} is of the type {self.other[name]}; "
                "make it numbers or words"
            )
        if name not in self.columns:
            raise UserError(f"{self.path}: {unknown('column', name, self.columns)}")
        return self.columns[name]

    def words(self, name: str) -> list[str | None]:
        """Return the values of a column as words, as the file has them; None if missing.

        They do not depend on the other rows: ``02139`` stays so in a column of numbers.

        Raises:
            UserError: as :meth:`column`.
        """
        column, cells = self.column(name), self.cells.get(name)
        return [_word(cell) for cell in cells()] if cells else words_of(column)


def read_table(path: str | Path) -> Table:
    """Return the columns of a table.

    A column of a CSV file is one of numbers if all its values are, beside the missing ones
    (:data:`MISSING`).

    Raises:
        UserError: it cannot be read, has no rows, no column of numbers or words, or columns of one
            name; or pyarrow is not installed.
    """
    path = Path(path)
    check_file(path, "table")
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if table.other and not table.columns:
        types = ", ".join(f"{printable(name)}: {kind}" for name, kind in table.other.items())
        raise UserError(f"{path} has no column of numbers or words; add one ({types})")
    if not table.columns or len(table) == 0:
        raise UserError(f"{path} has no rows; give a table with a line of names and rows below it")
    return table


def words_of(column: NDArray[Any]) -> list[str | None]:
    """Return the values of a column as words; whole numbers without a point, None if missing.

    >>> words_of(np.array([1.0, 0.1, np.nan]))
    ['1', '0.1', None]
    """
    return list(column) if column.dtype == object else [_word(x) for x in column.tolist()]


def _word(cell: Any) -> str | None:
    """Return a value as a word; a number as the shortest one that is read as the same number."""
    if isinstance(cell, str):
        stripped = cell.strip()
        return None if stripped in MISSING else stripped
    if cell is None or cell != cell:  # NaN
        return None
    text = f"{cell:f}" if isinstance(cell, Decimal) else str(cell)
    if isinstance(cell, Decimal) and "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if cell == 0 else text.removesuffix(".0")


def number_of(word: str) -> int | float:
    """Return a number in words, exact if it is whole.

    >>> number_of("9007199254740993"), number_of("2.0"), number_of("0.1")
    (9007199254740993, 2, 0.1)
    """
    try:
        return int(word)
    except ValueError:
        number = float(word)
        return int(number) if number.is_integer() else number


def as_float(word: str | float) -> float:
    """Return a number that may be in words, without Python's marks between its digits.

    Raises:
        ValueError: it is none; ``3_2`` is a word.
    """
    if isinstance(word, str) and "_" in word:
        raise ValueError(f"could not convert string to float: {word!r}")
    return float(word)


def _read_csv(path: Path) -> Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8; save it as CSV in UTF-8") from None
    rows = _csv_rows(path, text)
    _, names = next(rows, (0, []))
    _check_names(path, names)
    below = list(rows)
    found = dict(zip(names, zip(*(cells for _, cells in below), strict=True), strict=False))
    columns = {name: _parsed(cells) for name, cells in found.items()}
    given: dict[str, Callable[[], Sequence[Any]]] = {
        name: partial(tuple, found[name])
        for name, column in columns.items()
        if column.dtype != object
    }
    return Table(path, columns, [line for line, _ in below], given)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file, that of the names too, with the line where each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    count, last = None, 0
    try:
        for row in reader:
            line, last = last + 1, reader.line_num
            if not row:  # an empty line, such as the last one
                continue
            if count is not None and len(row) != count:
                raise UserError(
                    f"{path}, line {line}: there are {len(row)} values for {count} "
                    "columns; mend the line"
                )
            count = len(row)
            yield line, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: this is no CSV: {error}") from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) == 1 and ";" in names[0]:
        raise UserError(f"{path} separates its columns by semicolons; save it with commas")
    for name in names:
        if not name.strip():
            raise UserError(f"{path} has a column without a name; name it in the first line")
        if names.count(name) > 1:
            raise UserError(f"{path} has two columns {printable(name)!r}; rename one of them")


def _parsed(cells: Sequence[str]) -> NDArray[Any]:
    """Return the cells of a CSV column as numbers if they are, else as words."""
    stripped = [cell.strip() for cell in cells]
    try:
        return np.array([math.nan if cell in MISSING else as_float(cell) for cell in stripped])
    except ValueError:
        return np.array([None if cell in MISSING else cell for cell in stripped], dtype=object)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("a .parquet table", "pyarrow", error, extra="parquet") from None
    try:
        table = pyarrow.parquet.read_table(path)
        names = list(map(str, table.column_names))
        _check_names(path, names)
        by_name = dict(zip(names, table.columns, strict=True))
        found = {name: _from_arrow(column, pyarrow.types) for name, column in by_name.items()}
        index = list((table.schema.pandas_metadata or {}).get("index_columns", []))
    except UserError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises many types
        raise UserError(
            f"{path} cannot be read as Parquet: {one_line(f'{type(error).__name__}: {error}')}"
        ) from None
    columns = {name: column for name, column in found.items() if column is not None}
    given: dict[str, Callable[[], Sequence[Any]]] = {
        name: partial(_cells_of, by_name[name])
        for name, column in columns.items()
        if column.dtype != object
    }
    other = {name: str(by_name[name].type) for name in names if name not in columns}
    # A range of numbers is described by a mapping and has no column.
    own = tuple(name for name in index if isinstance(name, str) and name in by_name)
    return Table(path, columns, (), given, other, own)


def _from_arrow(column: Any, types: Any) -> NDArray[Any] | None:
    """Return a column as numbers or words, or None if it is neither."""
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        values = column.to_pylist()
        return np.array([math.nan if value is None else float(value) for value in values])
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        values = column.to_pylist()
        return np.array([None if value is None else str(value) for value in values], dtype=object)
    return None


def _cells_of(column: Any) -> list[Any]:
    """Return the numbers of a column; those of a narrow type are shorter in words."""
    values = column.to_pylist()
    narrow = {"halffloat": np.float16, "float": np.float32}.get(str(column.type))
    return [None if x is None else narrow(x) for x in values] if narrow else values
