"""The task of a data set.

This is a file of its own because it alone knows all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

from fge.config import CLASSIFICATION, TaskName
from fge.data import Dataset
from fge.tasks.base import Task
from fge.tasks.classes import Binary, Classification
from fge.tasks.labels import Multilabel
from fge.tasks.numbers import Regression


def task_of(dataset: Dataset) -> Task:
    """Return the task of a data set, with the names of its classes, labels or numbers."""
    facts = dataset.target
    return make_task(facts.task, dataset.classes, mean=facts.mean, std=facts.std)


def make_task(
    name: TaskName,
    names: Sequence[str],
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Task:
    """Return a task by its name.

    Args:
        name: one of the tasks.
        names: of classes, labels or numbers.
        mean: of the training targets, for a regression (K,).
        std: their standard deviation (K,).
    """
    if name == "regression":
        return Regression(tuple(names), tuple(mean), tuple(std))
    kinds: dict[TaskName, type[Task]] = {
        CLASSIFICATION: Classification,
        "binary": Binary,
        "multilabel": Multilabel,
    }
    return kinds[name](tuple(names))
