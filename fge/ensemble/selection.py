"""Leaving out members that make an ensemble worse, where validation data can tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.metrics import check_probs, nll_per_example

_ERRORS = 2.0
"""Standard errors by which the ensemble without a member has to be better."""


def without_harmful(members: Sequence[ArrayLike], targets: ArrayLike) -> list[int]:
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
        members: probs (N, C) of each, rows sum to 1.
        targets: classes (N,): of validation data, neither training nor test data.

    Raises:
        UserError: no probabilities, or targets that do not fit.
    """
    probs = [check_probs(member) for member in members]
    labels = np.asarray(targets)
    kept = list(range(len(probs)))
    while len(kept) > 1:
        losses = _losses(probs, kept, labels)
        gains = {k: losses - _losses(probs, [j for j in kept if j != k], labels) for k in kept}
        best = max(gains, key=lambda k: float(gains[k].mean()))
        error = gains[best].std(ddof=1) / np.sqrt(len(labels)) if len(labels) > 1 else np.inf
        if not gains[best].mean() > _ERRORS * error:
            break
        kept.remove(best)
    return kept


def _losses(
    probs: Sequence[NDArray[np.float64]], kept: Sequence[int], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the NLL (N,) of the averaged probabilities of some members."""
    mean = np.mean([probs[k] for k in kept], axis=0)
    return nll_per_example(mean, labels)
