"""Errors by class of the compared methods, from which examples each cell has wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.compare.cells import Cell
from fge.compare.comparison import Comparison
from fge.compare.tables import epochs_of
from fge.config import OF_CLASSES
from fge.data import Dataset
from fge.report import ClassCounts, Table, errors_table, plain_name

_NOTE = "Error in percent of the test {example}s of a class, mean over seeds."


@dataclass(frozen=True)
class ClassErrors:
    """Errors by class on the test set.

    ``counts``: of the classes; ``labels``: the class of each test example (N,).
    """

    counts: ClassCounts
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset) -> ClassErrors | None:
        """Return those of a data set, None if it has no exclusive classes."""
        if dataset.target.task not in OF_CLASSES:
            return None
        return cls(ClassCounts.of(dataset), dataset.test.labels.cpu().numpy())

    def errors(self, cells: Iterable[Cell]) -> NDArray[np.float64]:
        """Return the error of each class in percent (C,), a mean over cells; NaN without images."""
        classes = len(self.counts.names)
        wrong = np.mean([cell.wrong for cell in cells], axis=0)
        sums = np.bincount(self.labels, weights=wrong, minlength=classes)
        with np.errstate(invalid="ignore"):
            errors: NDArray[np.float64] = 100 * sums / self.counts.test
        return errors

    def balanced(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return cells that have the balanced error, if the classes differ in size."""
        if not self.counts.imbalanced:
            return list(cells)
        found = [(cell, float(np.nanmean(self.errors([cell])))) for cell in cells]
        return [replace(c, figures={**c.figures, "balanced_error": b}) for c, b in found]

    def tables(self, comparison: Comparison) -> list[Table]:
        """Return a table for each budget."""
        found = []
        for budget in comparison.budgets:
            columns = self._columns(comparison, budget)
            main = self._lowest(comparison, budget)
            title = f"Errors by class at {epochs_of(comparison, budget)}"
            found.append(errors_table(self.counts, columns, main, title=title, note=_NOTE))
        return found

    def sentences(self, comparison: Comparison) -> list[str]:
        """Say what the lowest error of each budget hides, if the classes differ in size."""
        if not self.counts.imbalanced:
            return []
        return [self._sentence(comparison, budget) for budget in comparison.budgets]

    def facts(self, comparison: Comparison) -> dict[str, Any]:
        """Return the content for ``compare.json``: errors in percent, null without test images."""
        return {
            "names": list(self.counts.names),
            "train": self.counts.train.tolist(),
            "test": self.counts.test.tolist(),
            "methods": [
                {
                    "name": name,
                    "budget": budget,
                    "balanced_error": float(np.nanmean(errors)),
                    "errors": [None if np.isnan(error) else float(error) for error in errors],
                }
                for budget in comparison.budgets
                for name, errors in self._columns(comparison, budget).items()
            ],
        }

    def _columns(self, comparison: Comparison, budget: int) -> dict[str, NDArray[np.float64]]:
        rows = comparison.at(budget)
        return {r.method: self.errors(comparison.cells_of(r.method, budget)) for r in rows}

    def _lowest(self, comparison: Comparison, budget: int) -> str:
        return min(comparison.at(budget), key=lambda row: row.mean["error"]).method

    def _sentence(self, comparison: Comparison, budget: int) -> str:
        columns, counts = self._columns(comparison, budget), self.counts
        name = self._lowest(comparison, budget)
        errors, row = columns[name], comparison.row(name, budget)
        assert row is not None
        worst = int(np.nanargmax(errors))
        fairest = min(columns, key=lambda method: float(np.nanmean(columns[method])))
        lowest = "the lowest too"
        if fairest != name:
            lowest = f"the lowest is that of `{fairest}`, {np.nanmean(columns[fairest]):.2f} %"
        return (
            f"{counts.sizes}: at {budget} B `{name}` has the lowest error, {row.mean['error']:.2f} "
            f"%, and a balanced error, the mean over {counts.of_classes}, of "
            f"{np.nanmean(errors):.2f} % ({lowest}). Class {plain_name(counts.names[worst])} has "
            f"its largest error, {errors[worst]:.2f} % of {counts.test[worst]} test "
            f"{counts.example}s."
        )
