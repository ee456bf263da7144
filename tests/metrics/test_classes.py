"""The confusion matrix and errors by class, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from fge.errors import UserError
from fge.metrics import balanced_error, class_errors, class_rankings, confusion


def probs_of(predicted: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[predicted]


def test_the_majority_alone_has_a_balanced_error_of_one_half() -> None:
    targets = np.repeat([0, 1], [990, 10])
    counts = confusion(probs_of([0] * 1000, 2), targets)
    assert counts.tolist() == [[990, 0], [10, 0]]
    assert class_errors(counts).tolist() == [0, 100]
    assert balanced_error(counts) == 50


def test_rows_are_true_classes_and_those_without_examples_do_not_count() -> None:
    counts = confusion(probs_of([0, 2, 2, 1, 0], 4), [0, 0, 2, 2, 2])
    assert counts.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    errors = class_errors(counts)
    assert errors[[0, 2]] == pytest.approx([50, 200 / 3])
    assert np.isnan(errors[[1, 3]]).all()
    assert balanced_error(counts) == pytest.approx((50 + 200 / 3) / 2)


def test_it_is_what_scikit_learn_says() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(5), 300), rng.choice(4, 300, p=[0.7, 0.2, 0.09, 0.01])
    counts, predicted = confusion(probs, targets), probs.argmax(axis=1)
    assert (counts == sklearn.confusion_matrix(targets, predicted, labels=range(5))).all()
    expected = 100 - 100 * sklearn.recall_score(
        targets, predicted, labels=range(4), average="macro", zero_division=0
    )
    assert balanced_error(counts) == pytest.approx(expected, rel=1e-12)


def test_targets_that_are_no_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"^targets must be integers in \[0, 2\)"):
        confusion(probs_of([0, 1], 2), [0, 2])


def test_rankings_of_classes_are_those_of_scikit_learn() -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    probs = generator.dirichlet(np.ones(4), size=200).round(2)  # some are equal
    probs[:, 3] = 1 - probs[:, :3].sum(axis=1)
    targets = np.where(generator.random(200) < 0.5, probs.argmax(axis=1), generator.integers(4))
    found = class_rankings(probs, targets)
    each = [
        (
            oracle.roc_auc_score(targets == k, probs[:, k]),
            oracle.average_precision_score(targets == k, probs[:, k]),
        )
        for k in range(4)
    ]
    auroc, precision = np.mean(each, axis=0)
    assert found == pytest.approx({"auroc": auroc, "average_precision": precision}, rel=1e-12)
    # A class without examples has no part.
    padded = np.column_stack([probs, np.zeros(200)])
    assert class_rankings(padded, targets) == found
    assert class_rankings(probs[:3], [1, 1, 1]) == {}
    with pytest.raises(UserError, match="targets"):
        class_rankings(probs, targets[:5])
