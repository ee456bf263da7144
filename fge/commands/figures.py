"""What logs of curves, planes and lines hold: the figures that a task has, by split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fge.schemas import Infinite, Loss, NotNegative, Percent, extended
from fge.tasks import Task

ENSEMBLE = "ensemble"
"""The word before the figures of the two networks {w(0), w(t)}."""


def with_figures(
    kind: type[Any], task: Task, splits: Iterable[str], *, infinite: bool = False
) -> type[Any]:
    """Return a type of records with loss, measure and NLL of each split, such as ``test_nll``.

    Args:
        kind: their other keys.
        task: whose measure it is.
        splits: the words before the keys; those of ensembles have no loss.
        infinite: whether the figures may lack a finite value.
    """
    measure: Any = Percent if task.measure.unit == "%" else NotNegative
    nll: Any = float if task.uses_noise else Loss  # that of a density may be below 0
    found: dict[str, Any] = {}
    for split in splits:
        own = {} if split == ENSEMBLE else {f"{split}_loss": Loss}
        found |= {**own, f"{split}_{task.measure.key}": measure, f"{split}_nll": nll}
    return extended(kind, {k: v | Infinite if infinite else v for k, v in found.items()})
