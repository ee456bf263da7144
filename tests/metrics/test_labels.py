"""Scores of labels, against scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn import metrics as oracle

from fge import metrics
from fge.errors import UserError

RNG = np.random.default_rng(0)
LOGITS = np.round(RNG.normal(size=(200, 3)), 1)  # rounded: some scores are equal
PROBS = expit(LOGITS)
TARGETS = (RNG.random((200, 3)) < expit(0.4 * LOGITS)).astype(int)


@pytest.mark.parametrize("label", range(3))
def test_rankings_equal_those_of_scikit_learn(label: int) -> None:
    p, y = PROBS[:, label], TARGETS[:, label]
    assert metrics.average_precision(p, y) == pytest.approx(oracle.average_precision_score(y, p))
    found = metrics.ranking_scores(p[:, None], y[:, None])
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(y, p))


def test_the_summary_equals_scikit_learn() -> None:
    found = metrics.labels_summary(PROBS, TARGETS)
    said = PROBS > 0.5
    assert found["error"] == pytest.approx(100 * oracle.hamming_loss(TARGETS, said))
    assert found["exact_match"] == pytest.approx(100 * oracle.accuracy_score(TARGETS, said))
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(TARGETS, PROBS))
    expected = oracle.average_precision_score(TARGETS, PROBS)
    assert found["average_precision"] == pytest.approx(expected)
    each = [oracle.log_loss(TARGETS[:, k], PROBS[:, k]) for k in range(3)]
    assert found["nll"] == pytest.approx(sum(each))
    brier = [oracle.brier_score_loss(TARGETS[:, k], PROBS[:, k]) for k in range(3)]
    assert found["brier"] == pytest.approx(np.mean(brier))


def test_the_calibration_error_by_hand() -> None:
    # In the bin of .9 two of four have the label, in that of .1 none: |.5 - .9| and |0 - .1|.
    probs, targets = np.array([[0.9, 0.1]] * 4), np.array([[1, 0]] * 2 + [[0, 0]] * 2)
    assert metrics.labels_ece(probs, targets) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


def test_labels_without_both_values_have_no_ranking() -> None:
    targets = TARGETS.copy()
    targets[:, 1] = 1
    found = metrics.ranking_scores(PROBS, targets)
    kept = [0, 2]
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(targets[:, kept], PROBS[:, kept]))
    assert metrics.ranking_scores(PROBS[:, :1], np.ones((200, 1), int)) == {}


def test_one_temperature_makes_the_nll_lowest() -> None:
    def at(temperature: float) -> float:
        return float(metrics.labels_nll_per_example(expit(LOGITS / temperature), TARGETS).mean())

    best = metrics.tempered_labels_nll(PROBS, TARGETS).mean()
    grid = [at(t) for t in np.linspace(0.5, 8, 400)]
    assert best <= min(grid) + 1e-12
    assert best == pytest.approx(min(grid), abs=1e-5)


def test_calibration_does_not_depend_on_the_scale_of_the_logits() -> None:
    first = metrics.calibrated_labels_nll(PROBS, TARGETS)
    second = metrics.calibrated_labels_nll(expit(3 * logit(PROBS)), TARGETS)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert first.mean() >= metrics.tempered_labels_nll(PROBS, TARGETS).mean()


def test_one_label_is_a_classification_of_two_classes() -> None:
    p, y = PROBS[:, 0], TARGETS[:, 0]
    pairs = np.stack([1 - p, p], axis=1)
    np.testing.assert_allclose(
        metrics.calibrated_labels_nll(p[:, None], y[:, None]),
        metrics.calibrated_nll_per_example(pairs, y),
    )


@pytest.mark.parametrize(
    ("probs", "targets", "message"),
    [
        ([[0.5]], [[2]], r"targets must be 0 or 1, got 2"),
        ([[1.5]], [[1]], r"probs must be probabilities .* apply a sigmoid"),
        ([0.5], [1], r"must be \(N, L\)"),
        ([[0.5, 0.5]], [[1]], r"must be \(N, L\)"),
    ],
)
def test_wrong_labels_are_named(probs: list, targets: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metrics.labels_summary(probs, targets)


def test_average_precision_needs_a_positive() -> None:
    with pytest.raises(UserError, match="with a target of 1"):
        metrics.average_precision([0.5], [0])


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.1, 0.9], [-1, 1], "targets must be 0 or 1, got -1"),
        ([0.1, 0.9, 0.3], [1, 2, 0], "targets must be 0 or 1, got 2"),
        ([0.1, math.nan, 0.3], [0, 1, 1], "scores must be finite, got nan"),
    ],
)
def test_average_precision_of_what_it_is_not_defined_for(
    scores: list, targets: list, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        metrics.average_precision(scores, targets)
    assert metrics.average_precision([0.1, 0.9], [False, True]) == 1.0


def test_the_entropy_of_labels_is_that_of_each_summed() -> None:
    halves = metrics.labels_entropy([[0.5, 0.5], [1.0, 0.0], [0.25, 0.5]])
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert halves == pytest.approx([2 * np.log(2), 0.0, quarter + np.log(2)])
    assert (
        metrics.labels_entropy([[0.2, 0.7, 0.4]])[0] == metrics.labels_entropy([[0.4, 0.2, 0.7]])[0]
    )
    with pytest.raises(UserError, match=r"probs must be \(N, L\)"):
        metrics.labels_entropy([0.5])
    with pytest.raises(UserError, match="probs must be probabilities"):
        metrics.labels_entropy([[1.5]])
    assert metrics.labels_entropy([[1 + 1e-9, 0.0]])[0] == 0  # rounding of a sigmoid
