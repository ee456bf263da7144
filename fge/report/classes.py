"""Errors by class in a report: which classes a network has learnt, and what it takes them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge import metrics
from fge.config import CLASSIFICATION, OF_CLASSES
from fge.data import Dataset
from fge.ensemble import PredictionFile
from fge.observer import counted
from fge.report.builder import ReportBuilder
from fge.report.escaping import plain_name
from fge.report.methods import MethodResult
from fge.report.page import Table

MOST_CLASSES = 20
"""So many classes have a row each; of more, those of the largest errors are shown."""
MOST_CONFUSIONS = 20
"""The mistakes that are listed instead of a larger matrix."""
MOST_RANKED = 100
"""Of more classes no rankings are made: each class sorts all test images."""
IMBALANCED = 2.0
"""The ratio of the sizes of classes from which the balanced error is a column of its own."""
_NOT_SHOWN = ("best-snapshot", "fold")
_ERRORS = "Error in percent of the test {example}s of a class."


@dataclass(frozen=True)
class ClassCounts:
    """Training and test images, or rows, of each class (C,), with the names of the classes."""

    names: tuple[str, ...]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    example: str = "image"

    @classmethod
    def of(cls, dataset: Dataset) -> ClassCounts:
        """Return the counts of a data set."""
        if dataset.target.task not in OF_CLASSES:
            none = np.zeros(len(dataset.classes), np.int64)
            return cls(tuple(dataset.classes), none, none, dataset.example)
        parts = (dataset.train, dataset.test)
        classes = len(dataset.classes)
        train, test = (np.bincount(p.labels.cpu().numpy(), minlength=classes) for p in parts)
        return cls(tuple(dataset.classes), train, test, dataset.example)

    @property
    def sizes(self) -> str:
        """The sizes of the classes, as the beginning of a sentence."""
        few, many = self.train.min(), self.train.max()
        return f"The classes have from {few} to {many} training {self.example}s"

    @property
    def of_classes(self) -> str:
        """Over which classes a mean is: all, or those that have test images."""
        tested = int((self.test > 0).sum())
        if tested == len(self.test):
            return "the classes"
        return f"the {counted(tested, 'class', 'classes')} with test {self.example}s"

    @property
    def imbalanced(self) -> bool:
        """Whether a class has ``IMBALANCED`` times the images of another one, or there are none."""
        counts = (self.train, self.test)
        return any(c.max() > 0 and c.max() >= IMBALANCED * max(c.min(), 1) for c in counts)


def with_balanced_error(
    results: Sequence[MethodResult], test: PredictionFile
) -> list[MethodResult]:
    """Return the results with the mean of the errors of their classes, if they are of classes."""
    if not test.task.of_classes:
        return list(results)
    return [
        replace(result, balanced_error=metrics.balanced_error(_confusion(result, test)))
        for result in results
    ]


def _confusion(result: MethodResult, test: PredictionFile) -> NDArray[np.int64]:
    return metrics.confusion(test.mean(result.member_names), test.targets)


def add_classes(
    report: ReportBuilder,
    results: Sequence[MethodResult],
    test: PredictionFile,
    dataset: Dataset,
    main: str | None = None,
) -> None:
    """Add the errors by class of a run's best lines, and the confusion matrix of one of them.

    Args:
        report: gets two tables, a sentence where the classes differ in size, and facts.
        results: the lines of the run; of each name the last, largest ensemble is shown.
        test: the test predictions of their members.
        dataset: of the run.
        main: the name of the line whose matrix is shown, by default that with the most members.
    """
    if not test.task.of_classes:
        return
    counts = ClassCounts.of(dataset)
    shown = list({r.name: r for r in results if r.name not in _NOT_SHOWN}.values())
    matrices = [_confusion(result, test) for result in shown]
    names = [r.name if r.members == 1 else f"{r.name} ({r.members})" for r in shown]
    k = _main(shown) if main is None else [r.name for r in shown].index(main)
    errors = map(metrics.class_errors, matrices)
    report.table(errors_table(counts, dict(zip(names, errors, strict=True)), names[k]))
    report.table(confusion_table(counts, shown[k], matrices[k]))
    rankings = _rankings(shown, test, len(counts.names))
    if any(rankings):
        report.table(ranking_table(shown, rankings, counts))
    if counts.imbalanced:
        report.say(class_verdict(counts, shown[k], matrices[k]))
    report.facts(classes=class_facts(counts, shown, matrices, rankings))


def _main(results: Sequence[MethodResult]) -> int:
    """Return the position of the line with the most members, the first of equal ones."""
    return int(np.argmax([result.members for result in results]))


def class_facts(
    counts: ClassCounts,
    results: Sequence[MethodResult],
    matrices: Sequence[NDArray[np.int64]],
    rankings: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Return the content for ``report.json``: errors in percent, null without test images."""
    return {
        "names": list(counts.names),
        "train": counts.train.tolist(),
        "test": counts.test.tolist(),
        "methods": [
            {
                "name": result.name,
                "members": result.members,
                "balanced_error": metrics.balanced_error(matrix),
                "errors": [None if np.isnan(e) else float(e) for e in metrics.class_errors(matrix)],
                "confusion": matrix.tolist(),
                **ranking,
            }
            for result, matrix, ranking in zip(results, matrices, rankings, strict=True)
        ],
    }


def errors_table(
    counts: ClassCounts,
    columns: Mapping[str, NDArray[np.float64]],
    main: str,
    *,
    title: str = "Errors by class",
    note: str = _ERRORS,
) -> Table:
    """Return a table of errors by class; the last row is their mean.

    Args:
        counts: of the classes.
        columns: of each heading, the errors in percent (C,), NaN without test images.
        main: the heading whose largest errors are shown of many classes.
        title: of the table.
        note: what the errors are.
    """
    order = np.arange(len(counts.names))
    note = f"{note.format(example=counts.example)} Balanced is the mean over {counts.of_classes}."
    if len(order) > MOST_CLASSES:
        worst = np.argsort(-np.nan_to_num(columns[main]), kind="stable")
        order = worst[:MOST_CLASSES]
        note += f" The {MOST_CLASSES} of {len(worst)} classes with the largest errors are shown."
    rows = [
        [
            plain_name(counts.names[k]),
            str(counts.train[k]),
            str(counts.test[k]),
            *("" if np.isnan(errors[k]) else f"{errors[k]:.2f}" for errors in columns.values()),
        ]
        for k in order
    ]
    means = [f"{np.nanmean(errors):.2f}" for errors in columns.values()]
    rows.append(["balanced (mean)", str(counts.train.sum()), str(counts.test.sum()), *means])
    return Table(title, ["class", "training", "test", *columns], rows, note)


def confusion_table(counts: ClassCounts, result: MethodResult, matrix: NDArray[np.int64]) -> Table:
    """Return the confusion matrix of a line, or of many classes its most frequent mistakes."""
    of = f"`{result.name}`" + (f", {result.members} members" if result.members > 1 else "")
    names = [plain_name(name) for name in counts.names]
    if len(names) <= MOST_CLASSES:
        rows = [[name, *map(str, row)] for name, row in zip(names, matrix.tolist(), strict=True)]
        note = f"Test {counts.example}s of {of}: rows are true classes, columns predicted ones."
        return Table("Confusion matrix", ["true \\ predicted", *names], rows, note)
    wrong = matrix - np.diag(np.diag(matrix))
    most = [k for k in np.argsort(-wrong, axis=None, kind="stable") if wrong.flat[k]]
    pairs = [divmod(int(k), len(names)) for k in most[:MOST_CONFUSIONS]]
    rows = [[names[true], names[said], str(wrong[true, said])] for true, said in pairs]
    what = f"{counts.example}s"
    note = f"Test {what} of {of}: the most frequent mistakes; report.json has the whole matrix."
    return Table("Confusions", ["true", "predicted", what], rows, note)


def _rankings(
    results: Sequence[MethodResult], test: PredictionFile, classes: int
) -> list[dict[str, float]]:
    """Return AUROC and average precision of lines of several classes, but not of very many."""
    if test.task.name != CLASSIFICATION or classes > MOST_RANKED:
        return [{} for _ in results]
    return [metrics.class_rankings(test.mean(r.member_names), test.targets) for r in results]


def ranking_table(
    results: Sequence[MethodResult], rankings: Sequence[Mapping[str, float]], counts: ClassCounts
) -> Table:
    """Return the table of how well probabilities rank the examples of a class."""
    rows = [
        [result.name, str(result.members), *(f"{value:.4f}" for value in ranking.values())]
        for result, ranking in zip(results, rankings, strict=True)
    ]
    note = (
        f"How well the probability of a class tells its test {counts.example}s from the others: "
        "AUROC and average precision (AP) of each class against the rest, means over "
        f"{counts.of_classes}."
    )
    return Table("Rankings", ["method", "members", "AUROC", "AP"], rows, note)


def class_verdict(counts: ClassCounts, result: MethodResult, matrix: NDArray[np.int64]) -> str:
    """Say what the error hides where classes differ in size."""
    errors = metrics.class_errors(matrix)
    worst = int(np.nanargmax(errors))
    return (
        f"{counts.sizes}: the error of `{result.name}` is {result.error:.2f} %, and its balanced "
        f"error, the mean over {counts.of_classes}, {metrics.balanced_error(matrix):.2f} %. Class "
        f"{plain_name(counts.names[worst])} has the largest error, {errors[worst]:.2f} % of "
        f"{counts.test[worst]} test {counts.example}s."
    )
