"""Conformal sets of labels: exact coverage over draws, and what is counted by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from fge.errors import UserError
from fge.metrics import (
    Conformal,
    conformal_label_sets,
    conformal_sets,
    coverage_range,
    fit_conformal,
    fit_conformal_labels,
    label_set_coverage,
)

DRAWS, EXAMPLES, TESTS = 400, 59, 100
COVERAGE = 0.85
Pair = tuple[NDArray[np.float64], NDArray[np.int64]]


def examples(generator: np.random.Generator, count: int, labels: int = 4) -> Pair:
    """Return wrong probabilities and labels, at least one each: no ties of the scores."""
    logits = generator.normal(size=(count, labels)) + generator.normal(size=(count, 1))
    targets = (generator.random((count, labels)) < expit(logits)).astype(int)
    targets[np.arange(count), generator.integers(labels, size=count)] = 1
    return expit(2 * logits), targets


def test_the_coverage_over_draws_is_the_exact_one() -> None:
    """Each draw is beta-binomial: k / (n + 1) on average, and with that distribution's spread."""
    rank = math.ceil((EXAMPLES + 1) * COVERAGE)
    expected = stats.betabinom(TESTS, rank, EXAMPLES + 1 - rank)
    generator, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        fit = fit_conformal_labels(*examples(generator, EXAMPLES), coverage=COVERAGE)
        probs, targets = examples(generator, TESTS)
        found.append(label_set_coverage(conformal_label_sets(probs, fit), targets).coverage)
    error = expected.std() / TESTS / math.sqrt(DRAWS)
    assert abs(np.mean(found) - rank / (EXAMPLES + 1)) < 4 * error
    assert 0.85 < np.std(found) / (expected.std() / TESTS) < 1.15
    low, high = coverage_range(COVERAGE, EXAMPLES, TESTS)
    assert 0.93 <= np.mean([low <= one <= high for one in found]) <= 0.985


def test_the_figures_are_those_counted_by_hand() -> None:
    generator = np.random.default_rng(1)
    fit = fit_conformal_labels(*examples(generator, 100), coverage=0.7)
    probs, targets = examples(generator, 50)
    targets[:3] = 0
    sets = conformal_label_sets(probs, fit)
    held, found, sizes = 0, 0, []
    for p, y in zip(probs, targets, strict=True):
        inside = [k for k in range(4) if 1 - p[k] <= fit.threshold]
        own = [k for k in range(4) if y[k]]
        held += set(own) <= set(inside)
        found += len(set(own) & set(inside))
        sizes.append(len(inside))
    measured = label_set_coverage(sets, targets)
    assert measured == pytest.approx(
        (held / 50, found / targets.sum(), np.mean(sizes), targets.sum() / 50, sizes.count(0) / 50)
    )
    assert 0 < measured.coverage < measured.recall < 1


def test_one_label_for_each_example_is_as_conformal_sets_of_classes() -> None:
    """Then the score is 1 - p of the class, and the sets are those of ``lac``."""
    generator = np.random.default_rng(2)
    probs = generator.dirichlet(np.ones(3), size=80)
    classes = generator.integers(3, size=80)
    of_classes = fit_conformal(probs[:40], classes[:40], coverage=0.8)
    of_labels = fit_conformal_labels(probs[:40], np.eye(3)[classes[:40]], coverage=0.8)
    assert of_labels.threshold == of_classes.threshold
    sets = conformal_label_sets(probs[40:], of_labels)
    assert np.array_equal(sets, conformal_sets(probs[40:], of_classes))


def test_examples_without_labels_are_held_by_any_set() -> None:
    fit = fit_conformal_labels(np.full((20, 2), 0.4), np.zeros((20, 2)), coverage=0.9)
    assert fit.threshold == 0.0
    sets = conformal_label_sets([[0.99, 1.0]], fit)
    assert sets.tolist() == [[False, True]]
    assert label_set_coverage(sets, [[0, 0]])._asdict() == {
        "coverage": 1.0,
        "recall": 1.0,
        "size": 1.0,
        "labels": 0.0,
        "empty": 0.0,
    }


def test_too_few_examples_give_sets_of_all_labels() -> None:
    fit = fit_conformal_labels(np.full((8, 2), 0.4), np.ones((8, 2)), coverage=0.9)
    assert not fit.enough
    assert fit.least == 9
    assert conformal_label_sets([[0.0, 0.5]], fit).all()


LABELS = Conformal("labels", 0.9, 10, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_conformal_labels([[0.5]], [[1]], coverage=90), "coverage must be above 0 and"),
        (lambda: fit_conformal_labels([[0.5, 0.5]], [0]), r"probs and targets must be \(N, L\)"),
        (lambda: fit_conformal_labels([[3.0]], [[1]]), "probs must be probabilities"),
        (lambda: fit_conformal_labels([[0.5]], [[2]]), "targets must be 0 or 1, got 2"),
        (lambda: conformal_label_sets([0.5], LABELS), r"probs must be \(N, L\) with N and L >= 1"),
        (lambda: conformal_label_sets([[[0.5]]], LABELS), "move the dimension of the labels last"),
        (lambda: conformal_label_sets([[np.nan]], LABELS), "probs must be probabilities"),
        (
            lambda: conformal_label_sets([[0.5]], Conformal("lac", 0.9, 10, 0.5)),
            r"the fit is one of sets \(lac\); use conformal_sets",
        ),
        (
            lambda: conformal_label_sets([[0.5]], Conformal("residual", 0.9, 10, 0.5)),
            r"the fit is one of intervals \(residual\); use conformal_intervals",
        ),
        (
            lambda: conformal_sets([[0.5, 0.5]], LABELS),
            r"the fit is one of labels \(labels\); use conformal_label_sets",
        ),
        (
            lambda: label_set_coverage([[0.5]], [[1]]),
            r"sets must be .* got float64 \(1, 1\)",
        ),
        (lambda: label_set_coverage([True], [[1]]), r"got bool \(1,\) and targets \(1, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
