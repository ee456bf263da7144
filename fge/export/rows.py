"""Rows of a table within an exported file: raw numbers and codes of words become features.

A graph has no words, so a word goes in as its code: its position among the words of the training
rows, -1 for any other. The codes are among the facts of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fge.data import MISSING, TRUTH, Column, Table
from fge.ensemble import KeepsDtype

UNKNOWN = -1
"""The code of a word that no training row had."""
_NO_NUMBER = "nan"
"""What a missing number is, for ``float()``; JSON has no NaN."""


class EncodeRows(KeepsDtype):
    """The features of rows, as :class:`fge.data.Encoder` makes them of a table.

    Args:
        columns: of features, in the order of the inputs.
    """

    source: Tensor
    mean: Tensor
    std: Tensor
    code: Tensor
    is_number: Tensor
    is_gap: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        found: list[tuple[int, float, float, float, bool, bool]] = []
        for place, column in enumerate(columns):
            codes = range(len(column.categories))
            if codes:
                found += [(place, 0.0, 1.0, float(code), False, False) for code in codes]
                continue
            found.append((place, column.mean, column.std, math.nan, True, False))
            if column.missing:
                found.append((place, 0.0, 1.0, math.nan, False, True))
        source, mean, std, code, is_number, is_gap = zip(*found, strict=True)
        self.register_buffer("source", torch.tensor(source))
        for name, values in (("mean", mean), ("std", std), ("code", code)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        self.register_buffer("is_number", torch.tensor(is_number))
        self.register_buffer("is_gap", torch.tensor(is_gap))

    def forward(self, rows: Tensor) -> Tensor:
        """Return features (N, F) float32 of rows (N, columns): numbers, NaN for none, and codes."""
        values = rows.to(torch.float64).index_select(1, self.source)
        known = torch.isfinite(values)
        scaled = torch.where(known, (values - self.mean) / self.std, 0.0)
        is_so = (values == self.code) | (self.is_gap & ~known)
        return torch.where(self.is_number, scaled, is_so.to(torch.float64)).to(torch.float32)


def column_facts(column: Column) -> dict[str, Any]:
    """Return what a program needs to know of a column.

    A word is ``codes[word]``, else ``unknown``; without ``unknown`` it is a number.
    """
    if not column.categories:
        numbers = {"mean": column.mean, "std": column.std}
        truth = TRUTH if column.of_truth else {}
        codes: dict[str, Any] = {**dict.fromkeys(MISSING, _NO_NUMBER), **truth}
        return {"name": column.name, "codes": codes, **numbers}
    codes = {word: k for word, k in column.codes.items() if word is not None}
    if None in column.categories:
        codes |= dict.fromkeys(MISSING, column.categories.index(None))
    return {"name": column.name, "codes": codes, "unknown": UNKNOWN}


def raw_rows(columns: Sequence[Column], table: Table) -> Tensor:
    """Return the rows (N, columns) float64 that an exported file takes, of a table."""
    found = []
    for column in columns:
        values = table.column(column.name)
        if column.categories:
            codes = column.codes
            values = np.array([codes.get(word, UNKNOWN) for word in table.words(column.name)])
        found.append(torch.from_numpy(values.astype(np.float64)))
    return torch.stack(found, dim=1)
