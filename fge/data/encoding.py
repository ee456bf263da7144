"""Features of the rows of a table: standardised numbers, and a feature for each category."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fge.data.columns import Table, as_float
from fge.data.targets import LARGEST
from fge.errors import UserError
from fge.files import printable
from fge.observer import counted, listed

OTHER = "(other)"
"""A word that no training row had."""
_FEW = 20
"""So many different words are categories, however few rows there are."""
_NAMED = 5
"""Columns or words that a line names."""
TRUTH = {"false": 0, "False": 0, "FALSE": 0, "true": 1, "True": 1, "TRUE": 1}
"""How programs spell what 0 and 1 stand for."""
_NO_CODE = -1
_FARTHEST = 1e30
"""Of a number from the mean, in standard deviations: beyond, sums in float32 become infinite."""


@dataclass(frozen=True)
class Column:
    """A column of features, and what its training values were.

    A number becomes (x - ``mean``) / ``std``, one that is missing 0; with ``missing`` another
    feature says whether it was. A word becomes a feature for each of the ``categories`` (None for
    no value), of which one is 1; for a word that is none of them all are 0.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0
    missing: bool = False
    categories: tuple[str | None, ...] = ()

    @property
    def features(self) -> list[str]:
        """The names of its features."""
        if self.categories:
            return [f"{self.name}={'' if word is None else word}" for word in self.categories]
        return [self.name, *([f"{self.name} is missing"] if self.missing else [])]

    @property
    def codes(self) -> dict[str | None, int]:
        """The place among the categories by word: of false and true however they are spelled."""
        codes = {word: place for place, word in enumerate(self.categories)}
        words = [word for word in self.categories if word is not None]
        if {*words} <= {*TRUTH}:
            for word in words:
                truth = TRUTH[word]
                for other in (*(o for o in TRUTH if TRUTH[o] == truth), f"{truth}", f"{truth}.0"):
                    codes.setdefault(other, codes[word])
        return codes

    @property
    def of_truth(self) -> bool:
        """Whether the numbers were 0 and 1: no others have this variance about this mean."""
        return 0 < self.mean < 1 and math.isclose(self.std**2, self.mean * (1 - self.mean))

    def encode(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the features (N, f) of values (N,): numbers, or words if there are categories."""
        if not self.categories:
            known = np.isfinite(values)
            scaled = np.where(known, (np.where(known, values, 0.0) - self.mean) / self.std, 0.0)
            columns = [scaled, *([~known] if self.missing else [])]
            return np.stack(columns, axis=1).astype(np.float64)
        codes = self.codes
        found = np.array([codes.get(word, _NO_CODE) for word in values])
        features: NDArray[np.float64] = np.equal.outer(found, range(len(self.categories)))
        return features.astype(np.float64)

    def decode(self, features: NDArray[Any]) -> list[str]:
        """Return the values of features (N, f) in words, empty if they are missing.

        A missing number without a feature of its own is the mean; an unknown word is ``OTHER``.
        """
        if self.categories:
            words = ["" if word is None else word for word in self.categories]
            return [words[row.argmax()] if row.any() else OTHER for row in features]
        numbers = features[:, 0].astype(np.float64) * self.std + self.mean
        gaps = features[:, 1] if self.missing else np.zeros(len(features))
        return ["" if gap else f"{x:.6g}" for x, gap in zip(numbers, gaps, strict=True)]


class ColumnFacts(TypedDict):
    """A :class:`Column` in a ``config.json``."""

    name: str
    mean: float
    std: float
    missing: bool
    categories: list[str | None]


class TableFacts(TypedDict):
    """What predicting needs of a table: its columns of features, the targets, and those left out.

    ``left_out`` says why, by column.
    """

    columns: list[ColumnFacts]
    targets: list[str]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Encoder:
    """The columns of features, the columns that are predicted, and those that are not used."""

    columns: tuple[Column, ...]
    targets: tuple[str, ...] = ()
    left_out: Mapping[str, str] = ()  # type: ignore[assignment]

    @classmethod
    def fit(
        cls, table: Table, train: NDArray[np.int64], targets: Sequence[str], ignored: Sequence[str]
    ) -> Encoder:
        """Return the encoder of a table by its training rows.

        Columns of one value, row numbers and words that differ in most rows say nothing, and are
        left out; so are the names that pandas gives rows, and columns that are neither numbers nor
        words.

        Args:
            table: of all rows.
            train: the positions of the training rows (n,).
            targets: the columns that are predicted.
            ignored: other columns that are no features.

        Raises:
            UserError: no feature is left, or a number is infinite.
        """
        columns, left_out = [], {}
        for name, values in table.columns.items():
            if name in (*targets, *ignored):
                continue
            reason = "the index of pandas" if name in table.index else _useless(values, train)
            if reason:
                left_out[name] = reason
            else:
                columns.append(_fitted(table, name, values, train))
        left_out |= {name: f"of the type {kind}" for name, kind in table.other.items()}
        if not columns:
            why = "".join(f"; {printable(name)}: {reason}" for name, reason in left_out.items())
            raise UserError(f"{table.path} has no column of features; add one{why}")
        return cls(tuple(columns), tuple(targets), left_out)

    @classmethod
    def of(cls, facts: TableFacts) -> Encoder:
        """Return the encoder that a ``config.json`` describes."""
        columns = [Column(**{**c, "categories": tuple(c["categories"])}) for c in facts["columns"]]  # type: ignore[arg-type]
        return cls(tuple(columns), tuple(facts["targets"]), facts["left_out"])

    def facts(self) -> TableFacts:
        """Return what :meth:`of` takes."""
        columns = [asdict(column) for column in self.columns]
        return {
            "columns": [{**c, "categories": list(c["categories"])} for c in columns],  # type: ignore[typeddict-item]
            "targets": list(self.targets),
            "left_out": dict(self.left_out),
        }

    @property
    def features(self) -> list[str]:
        """The names of the features."""
        return [name for column in self.columns for name in column.features]

    def encode(self, table: Table, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the features (N, F) float32 of the rows of a table, all by default.

        Raises:
            UserError: a column is missing, is neither of numbers nor of words, or holds words
                where training had numbers.
        """
        present = {*table.columns, *table.other}
        lacking = [column.name for column in self.columns if column.name not in present]
        if lacking:
            raise UserError(
                f"{table.path} lacks {_columns(lacking)} that the network was trained with; add "
                "them, empty where values are missing"
            )
        parts = []
        for column in self.columns:
            if column.categories:
                values = np.array(table.words(column.name), dtype=object)
            else:
                values = _as_numbers(table, column)
                _check_finite(table, column.name, values)
            parts.append(column.encode(values if rows is None else values[rows]))
            far = np.flatnonzero(np.abs(parts[-1][:, 0]) > _FARTHEST)
            if len(far):
                row = table.row(int(far[0] if rows is None else rows[far[0]]))
                raise UserError(
                    f"{table.path}, {row}: {printable(column.name)!r} is too far from the training "
                    f"rows', {column.mean:.3g} ± {column.std:.2g}, to compute with; mend it, or "
                    "leave it empty"
                )
        return np.concatenate(parts, axis=1).astype(np.float32)

    def decode(self, features: NDArray[Any]) -> dict[str, list[str]]:
        """Return the values of features (N, F) by column, in words."""
        found, first = {}, 0
        for column in self.columns:
            last = first + len(column.features)
            found[column.name] = column.decode(features[:, first:last])
            first = last
        return found

    def unknown_words(self, table: Table) -> list[str]:
        """Return lines that tell of words, and of missing values, that no training row had."""
        lines = []
        for column in self.columns:
            words = table.words(column.name)
            new = sorted({str(word) for word in words if word is not None} - {*column.codes})
            if column.categories and new:
                shown = ", ".join(printable(word) for word in new[:_NAMED])
                lines.append(f"{column.name}: no training row has {shown}; all features are 0")
            if not (column.missing or None in column.categories) and None in words:
                taken = "all features are 0" if column.categories else "the mean is taken"
                rows = counted(words.count(None), "row")
                lines.append(f"{column.name}: no training row lacks it, as {rows} here; {taken}")
        return lines

    def unused(self, table: Table) -> list[str]:
        """Return the names of columns of a table that are no features."""
        known = {column.name for column in self.columns} | {*self.targets, *self.left_out}
        return [name for name in (*table.columns, *table.other) if name not in known]

    def note(self) -> str | None:
        """Return a line about the columns that are left out, or None."""
        if not self.left_out:
            return None
        shown = [f"{printable(name)} ({why})" for name, why in self.left_out.items()]
        return f"columns left out: {', '.join(shown)}"


def _as_numbers(table: Table, column: Column) -> NDArray[np.float64]:
    """Return the values of a column as the numbers that it had in training."""
    values = table.column(column.name)
    if values.dtype != object:
        return values
    truth = TRUTH if column.of_truth else {}
    numbers = np.full(len(values), np.nan)
    for k, word in enumerate(values):
        try:
            known = None if word is None else truth.get(word, word)
            numbers[k] = np.nan if known is None else as_float(known)
        except ValueError:
            raise UserError(
                f"{table.path}, {table.row(k)}: {printable(column.name)!r} must be a number, as in "
                f"training, got {word!r}"
            ) from None
    return numbers


def _columns(names: Sequence[str]) -> str:
    shown = listed([repr(printable(name)) for name in names[:_NAMED]])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"the column{'s' if len(names) > 1 else ''} {shown}{more}"


def _useless(values: NDArray[Any], train: NDArray[np.int64]) -> str | None:
    """Return why a column says nothing, or None."""
    own = values[train]
    if values.dtype == object:
        different = len(set(own))
        if different == 1:
            return "one value"
        most = max(_FEW, len(own) // 2)
        return "a different word in most rows" if different > most else None
    known = own[~np.isnan(own)]
    if len(known) == 0 or (known == known[0]).all():
        return "one value" if len(known) in (0, len(own)) else None
    numbered = len(values) > 2 and values[0] in (0, 1) and (np.diff(values) == 1).all()
    return "row numbers" if numbered else None


def _fitted(table: Table, name: str, values: NDArray[Any], train: NDArray[np.int64]) -> Column:
    own = values[train]
    if values.dtype == object:
        words = set(own)
        ordered: list[str | None] = [*sorted(word for word in words if word is not None)]
        return Column(name, categories=(*ordered, *([None] if None in words else [])))
    _check_finite(table, name, values)
    known = own[~np.isnan(own)]
    std = float(known.std())
    return Column(name, float(known.mean()), std if std > 0 else 1.0, len(known) < len(own))


def _check_finite(table: Table, name: str, values: NDArray[Any]) -> None:
    if values.dtype == object:
        return
    bad = np.flatnonzero(np.abs(np.nan_to_num(values, nan=0.0, posinf=np.inf)) > LARGEST)
    if len(bad):
        raise UserError(
            f"{table.path}, {table.row(int(bad[0]))}: {printable(name)!r} is {values[bad[0]]:g}; "
            "give finite numbers, or leave it empty"
        )
