"""Conformal sets of labels: they hold all labels of an example as often as stated; float64.

The score of an example is 1 - p of the least probable of the labels that it has, and a set takes
every label whose 1 - p is at most the threshold. So a set holds all labels of an example if, and
only if, the score of the example is at most the threshold, and the promise is that of
:mod:`fge.metrics.conformal`. (The outer sets of Cauchois et al. 2021, arXiv 2004.10181, are these
where nothing is assumed about how labels depend on each other.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError
from fge.metrics.conformal import (
    OF_LABELS,
    Conformal,
    check_coverage,
    check_fit,
    conformal_quantile,
)
from fge.metrics.given import as_array
from fge.metrics.labels import check_label_probs, check_labels

Masks = NDArray[np.bool_]


def fit_conformal_labels(
    probs: ArrayLike, targets: ArrayLike, *, coverage: float = 0.9
) -> Conformal:
    """Return the threshold of conformal sets of labels, from predictions of calibration examples.

    Args:
        probs: (n, L), of each label by itself, of examples that neither trained nor chose the
            model.
        targets: (n, L), 1 where the example has the label, 0 elsewhere. An example without labels
            has the score 0: any set holds all that it has.
        coverage: in (0, 1), of the examples whose set is to hold all their labels.

    Raises:
        UserError: the coverage is not in (0, 1), or probs and targets do not fit.

    >>> fit = fit_conformal_labels([[0.9, 0.8], [0.7, 0.1], [0.2, 0.6]], [[1, 1], [1, 0], [0, 1]],
    ...                            coverage=0.75)
    >>> fit.threshold, conformal_label_sets([[0.95, 0.65], [0.5, 0.3]], fit).tolist()
    (0.4, [[True, True], [False, False]])
    """
    check_coverage(coverage)
    p, y = check_labels(probs, targets)
    scores = np.where(y == 1, 1 - p, 0.0).max(axis=1)
    return Conformal(OF_LABELS, float(coverage), len(y), conformal_quantile(scores, coverage))


def conformal_label_sets(probs: ArrayLike, fit: Conformal) -> Masks:
    """Return which labels are in the conformal set of each example.

    Args:
        probs: (N, L), of new examples by the same model.
        fit: of :func:`fit_conformal_labels`.

    Returns:
        (N, L): True for the labels in the set. All are, if there were too few examples for the
        fit (``fit.enough``).

    Raises:
        UserError: values are not probabilities, or the fit is one of classes or intervals.
    """
    check_fit(fit, OF_LABELS)
    inside: Masks = 1 - check_label_probs(probs) <= fit.threshold
    return inside


class LabelSetCoverage(NamedTuple):
    """What conformal sets of labels did on examples with known targets.

    ``coverage``: the fraction of examples whose set holds all their labels; ``recall``: the
    fraction of all their labels that are in the sets, 1 if they have none; ``size``: the mean
    number of labels in a set, and ``labels`` of those that an example has; ``empty``: the fraction
    of sets without a label.
    """

    coverage: float
    recall: float
    size: float
    labels: float
    empty: float


def label_set_coverage(sets: ArrayLike, targets: ArrayLike) -> LabelSetCoverage:
    """Return coverage and size of conformal sets of labels, measured.

    Args:
        sets: (N, L), of :func:`conformal_label_sets`.
        targets: (N, L), 0 or 1.

    Raises:
        UserError: shapes or targets do not fit.

    >>> label_set_coverage([[True, True], [False, True]], [[1, 0], [1, 1]])._asdict()
    {'coverage': 0.5, 'recall': 0.6666666666666666, 'size': 1.5, 'labels': 1.5, 'empty': 0.0}
    """
    masks, shape = as_array(sets), as_array(targets).shape
    if masks.dtype != np.bool_ or masks.ndim != 2 or masks.shape != shape:
        raise UserError(
            "sets must be (N, L) of True and False, as the targets, got "
            f"{masks.dtype} {masks.shape} and targets {shape}"
        )
    _, y = check_labels(masks, targets)
    held, sizes = masks | (y == 0), masks.sum(axis=1)
    count = int(y.sum())
    return LabelSetCoverage(
        float(held.all(axis=1).mean()),
        float((masks & (y == 1)).sum() / count) if count else 1.0,
        float(sizes.mean()),
        count / len(y),
        float((sizes == 0).mean()),
    )
