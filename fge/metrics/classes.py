"""Errors by class: the confusion matrix, each class's error, their mean, and rankings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.metrics.labels import mean_rankings
from fge.metrics.scores import check_examples


def confusion(probs: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Return the examples of each class by the class that is predicted for them.

    >>> confusion([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], [0, 1, 1]).tolist()
    [[1, 0], [1, 1]]

    Args:
        probs: (N, C), rows sum to 1.
        targets: (N,), integers.

    Returns:
        Counts (C, C): rows are true classes, columns predicted ones.

    Raises:
        UserError: as :func:`fge.metrics.check_examples`.
    """
    p, y = check_examples(probs, targets)
    classes = p.shape[1]
    counts = np.bincount(y * classes + p.argmax(axis=1), minlength=classes**2)
    return counts.reshape(classes, classes)


def class_errors(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the percentage of each class's examples that is wrong (C,); NaN without examples.

    Args:
        counts: (C, C), of :func:`confusion`.
    """
    with np.errstate(invalid="ignore"):
        errors: NDArray[np.float64] = 100 - 100 * np.diag(counts) / counts.sum(axis=1)
    return errors


def balanced_error(counts: NDArray[np.int64]) -> float:
    """Return the mean of the errors of the classes that have examples, in percent.

    A network that always predicts the larger of two classes has 50 %, whatever their sizes.

    >>> balanced_error(np.array([[990, 0], [10, 0]]))
    50.0

    Args:
        counts: (C, C), of :func:`confusion`.
    """
    return float(np.nanmean(class_errors(counts)))


def class_rankings(probs: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Return ``auroc`` and ``average_precision`` of classes against the rest, means over classes.

    By the probability of each class. It needs examples in it and outside of it; a figure is
    left out if no class has both.

    >>> class_rankings([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 1])
    {'auroc': 1.0, 'average_precision': 1.0}

    Args:
        probs: (N, C), rows sum to 1.
        targets: (N,), integers.

    Raises:
        UserError: as :func:`fge.metrics.check_examples`.
    """
    p, y = check_examples(probs, targets)
    return mean_rankings((p[:, k], y == k) for k in range(p.shape[1]))
