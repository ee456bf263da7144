"""Tables: the columns of a ``.csv`` or ``.parquet`` file, as numbers or as words."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.errors import UserError, missing_package, one_line, unknown
from fge.files import check_file, printable

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""What stands for no value in a CSV file."""
_FIRST_LINE = 2
"""Of the rows of a CSV file; the first line names the columns."""


@dataclass(frozen=True)
class Table:
    """The columns of a table by name: numbers (N,) with NaN where there are none, or words.

    Words are an object array (N,) of text, and None where there is none. ``first``: the number of
    the first row in messages.
    """

    path: Path
    columns: Mapping[str, NDArray[Any]]
    first: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def row(self, position: int) -> str:
        """Return the name of a row in messages."""
        return f"{'line' if self.first == _FIRST_LINE else 'row'} {position + self.first}"

    def column(self, name: str) -> NDArray[Any]:
        """Return a column.

        Raises:
            UserError: there is no such column; the message names the nearest.
        """
        if name not in self.columns:
            raise UserError(f"{self.path}: {unknown('column', name, self.columns)}")
        return self.columns[name]


def read_table(path: str | Path) -> Table:
    """Return the columns of a table.

    A column of a CSV file is one of numbers if all its values are, beside the missing ones
    (:data:`MISSING`).

    Raises:
        UserError: it cannot be read, has no rows, or columns of one name or of another type; or
            pyarrow is not installed.
    """
    path = Path(path)
    check_file(path, "table")
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if not table.columns or len(table) == 0:
        raise UserError(f"{path} has no rows; give a table with a line of names and rows below it")
    return table


def words_of(column: NDArray[Any]) -> list[str | None]:
    """Return the values of a column as words; whole numbers without a point, None if missing.

    >>> words_of(np.array([1.0, 2.5, np.nan]))
    ['1', '2.5', None]
    """
    if column.dtype == object:
        return list(column)
    return [None if math.isnan(x) else f"{x:.17g}" for x in column.tolist()]


def _read_csv(path: Path) -> Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8; save it as CSV in UTF-8") from None
    rows = _csv_rows(path, text)
    names = next(rows, [])
    _check_names(path, names)
    cells = list(zip(*rows, strict=True))
    columns = {name: _parsed(column) for name, column in zip(names, cells, strict=False)}
    return Table(path, columns, _FIRST_LINE)


def _csv_rows(path: Path, text: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    count = None
    try:
        for row in reader:
            if not row:  # an empty line, such as the last one
                continue
            if count is not None and len(row) != count:
                raise UserError(
                    f"{path}, line {reader.line_num}: there are {len(row)} values for {count} "
                    "columns; mend the line"
                )
            count = len(row)
            yield row
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
        return np.array([math.nan if cell in MISSING else float(cell) for cell in stripped])
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
        columns = {
            name: _from_arrow(path, name, column, pyarrow.types)
            for name, column in zip(names, table.columns, strict=True)
        }
    except UserError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises many types
        raise UserError(
            f"{path} cannot be read as Parquet: {one_line(f'{type(error).__name__}: {error}')}"
        ) from None
    return Table(path, columns, 0)


def _from_arrow(path: Path, name: str, column: Any, types: Any) -> NDArray[Any]:
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    values = column.to_pylist()
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return np.array([math.nan if value is None else float(value) for value in values])
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        return np.array([None if value is None else str(value) for value in values], dtype=object)
    raise UserError(
        f"{path}: the column {printable(name)!r} is of the type {kind}; leave it out, or make it "
        "numbers or words"
    )
