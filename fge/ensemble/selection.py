"""Leaving out members that make an ensemble worse, where validation data can tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.metrics import check_probs
from fge.tasks import MANY_CLASSES, Task

_ERRORS = 2.0
"""Standard errors by which the ensemble without a member has to be better."""


def without_harmful(
    members: Sequence[ArrayLike], targets: ArrayLike, task: Task = MANY_CLASSES
) -> list[int]:
    """Return the positions of the members without those that make the ensemble worse.

    A member is left out if the NLL of the others' averaged probabilities is lower than that of all
    by two standard errors of the mean paired difference; of several the one whose absence is best,
    and so on. So a thousand validation examples leave members of about equal worth alone: an
    average of all is then the better choice.

    >>> import numpy as np
    >>> right = np.tile([0.9, 0.1], (50, 1))
    >>> without_harmful([right, 1 - right, right], np.zeros(50, int))
    [0, 2]

    Args:
        members: probs (N, C) of each, rows sum to 1; of labels (N, L).
        targets: classes (N,), or labels (N, L): of validation data, neither training nor test data.
        task: what is predicted; several classes by default.

    Raises:
        UserError: no probabilities, or targets that do not fit.
    """
    found = [check_probs(member) if task.of_classes else member for member in members]
    probs = [np.asarray(member, dtype=np.float64) for member in found]
    labels = np.asarray(targets)
    kept = list(range(len(probs)))
    while len(kept) > 1:
        losses = _losses(probs, kept, labels, task)
        rest = {k: [j for j in kept if j != k] for k in kept}
        gains = {k: losses - _losses(probs, others, labels, task) for k, others in rest.items()}
        best = max(gains, key=lambda k: float(gains[k].mean()))
        error = gains[best].std(ddof=1) / np.sqrt(len(labels)) if len(labels) > 1 else np.inf
        if not gains[best].mean() > _ERRORS * error:
            break
        kept.remove(best)
    return kept


def _losses(
    probs: Sequence[NDArray[np.float64]],
    kept: Sequence[int],
    labels: NDArray[np.int64],
    task: Task,
) -> NDArray[np.float64]:
    """Return the NLL (N,) of the averaged probabilities of some members."""
    mean = np.mean([probs[k] for k in kept], axis=0)
    return task.nll_per_example(mean, labels)
