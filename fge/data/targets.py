"""What is predicted: how targets of each task look, and which of them are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.config import CLASSIFICATION, OF_CLASSES, TaskName
from fge.errors import UserError

LARGEST = 1e100
"""Of a number, so that its square is one."""
_SHAPES = {
    CLASSIFICATION: "(N,)",
    "binary": "(N,)",
    "multilabel": "(N, L), a column per label",
    "regression": "(N,) or (N, K), a column per output",
}


@dataclass(frozen=True)
class TargetFacts:
    """The task of a data set, and of a regression the mean and standard deviation (K,).

    They are those of the training targets, in the targets' units.
    """

    task: TaskName = CLASSIFICATION
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, task: TaskName, train: NDArray[Any]) -> TargetFacts:
        """Return the facts about training targets; an output that never changes has std 1."""
        if task != "regression":
            return cls(task)
        std = train.std(axis=0)
        return cls(
            task,
            tuple(map(float, train.mean(axis=0))),
            tuple(float(s) if s > 0 else 1.0 for s in std),
        )


MANY = TargetFacts()
"""Of a data set of several classes."""


def outputs_of(task: TaskName, names: int) -> int:
    """Return the outputs of a network for a task with so many classes, labels or numbers."""
    return 1 if task == "binary" else names


def checked_targets(task: TaskName, name: str, values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return targets as a task needs them: classes (N,) and labels (N, L) int64, else (N, K).

    Args:
        task: what they are for.
        name: of the array or the columns, for errors.
        values: as they were found.
        count: examples that they are of.

    Raises:
        UserError: a wrong shape or type, or naming the first wrong value and its place.
    """
    columns = 1 if task in OF_CLASSES else 2
    ranks = (1, 2) if task == "regression" else (columns,)
    if values.ndim not in ranks or len(values) != count or 0 in values.shape[1:]:
        raise UserError(
            f"{name} must be {_SHAPES[task]}, for --task {task} with N = {count}, got shape "
            f"{values.shape}"
        )
    if values.dtype.kind not in "iufb":
        raise UserError(f"{name} must be numbers for --task {task}, got {values.dtype}")
    if task == "regression":
        numbers = values.astype(np.float64).reshape(count, -1)
        _check_each(name, numbers, np.isfinite(numbers), "finite for --task regression")
        most = f"at most {LARGEST:g} in size, in other units"
        _check_each(name, numbers, np.abs(numbers) <= LARGEST, most)
        return numbers
    _check_each(name, values, np.isin(values, (0, 1)), f"0 or 1 for --task {task}")
    return values.astype(np.int64)


def _check_each(name: str, values: NDArray[Any], good: NDArray[np.bool_], what: str) -> None:
    if good.all():
        return
    place = tuple(int(axis[0]) for axis in np.nonzero(~good))
    where = f"row {place[0]}" + (
        f", column {place[1]}" if values.shape[1:] not in ((), (1,)) else ""
    )
    raise UserError(f"{name} must be {what}, got {values[place]:g} in {where} (counted from 0)")


def strata(targets: NDArray[Any]) -> NDArray[np.int64]:
    """Return which examples a split should spread alike (N,): those of a class, or set of labels.

    The targets of a regression are all one stratum.
    """
    if targets.dtype.kind == "f":
        return np.zeros(len(targets), np.int64)
    if targets.ndim == 1:
        return targets
    return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)


def as_tensor(targets: NDArray[Any]) -> Tensor:
    """Return targets as a tensor: int64 for classes and labels, float64 for numbers."""
    kind = np.float64 if targets.dtype.kind == "f" else np.int64
    return torch.from_numpy(targets.astype(kind))
