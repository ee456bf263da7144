"""AUROC and risk-coverage against scikit-learn, torchmetrics, averages over orders and by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fge.errors import UserError
from fge.metrics import aurc, auroc, entropy, error, ood_auroc, risk_coverage, risk_coverage_of

Array = NDArray[np.float64]
RNG = np.random.default_rng(0)


def random_probs(seed: int, count: int, classes: int, spread: float = 0.5) -> Array:
    return np.random.default_rng(seed).dirichlet(np.full(classes, spread), size=count)


SCORES = {
    "apart": (RNG.normal(0, 1, 40), RNG.normal(1, 2, 70)),
    "ties": (RNG.integers(0, 4, 30), RNG.integers(1, 5, 25)),
    "all equal": (np.full(5, 0.3), np.full(3, 0.3)),
    "one each": (np.array([0.2]), np.array([0.1])),
    "separated": (np.arange(5.0), np.arange(5.0, 9.0)),
    "huge": (np.array([-1e300, 0, 1e300]), np.array([1e300, 1e-300])),
}


@pytest.mark.parametrize("case", SCORES)
def test_auroc_is_that_of_scikit_learn(case: str) -> None:
    negatives, positives = SCORES[case]
    labels = [0] * len(negatives) + [1] * len(positives)
    expected = roc_auc_score(labels, np.concatenate([negatives, positives]))
    assert auroc(negatives, positives) == pytest.approx(expected, rel=0, abs=1e-12)
    assert auroc(positives, negatives) == pytest.approx(1 - expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("case", SCORES)
def test_auroc_is_the_share_of_pairs_in_order(case: str) -> None:
    negatives, positives = SCORES[case]
    pairs = [(p > n) + (p == n) / 2 for p in positives.tolist() for n in negatives.tolist()]
    assert auroc(negatives, positives) == pytest.approx(np.mean(pairs), rel=0, abs=1e-12)


OOD = {
    "random": (random_probs(0, 60, 5, 0.2), random_probs(1, 45, 5, 1.0)),
    "certain": (np.eye(3)[[0, 1, 2, 0]], np.concatenate([np.eye(3)[:1], np.full((2, 3), 1 / 3)])),
    "all certain": (np.eye(4), np.eye(4)[[0, 0]]),
    "one each": (np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]])),
    "float32": (np.float32(random_probs(2, 50, 3)), np.float32(random_probs(3, 50, 3))),
}


def exact_entropy(row: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in row if p > 0)


@pytest.mark.parametrize("case", OOD)
def test_out_of_distribution_aurocs_are_those_of_scikit_learn_and_torchmetrics(case: str) -> None:
    from torchmetrics.functional.classification import binary_auroc  # takes a second

    inside, outside = (np.asarray(p, dtype=np.float64) for p in OOD[case])
    labels = [0] * len(inside) + [1] * len(outside)
    rows = np.concatenate([inside, outside])
    found = ood_auroc(*OOD[case])
    scores = {
        "max_probability": 1 - rows.max(axis=1),
        "entropy": np.array([exact_entropy(row) for row in rows.tolist()]) / math.log(rows.size),
    }
    assert found.keys() == scores.keys()
    for name, values in scores.items():
        expected = roc_auc_score(labels, values)
        assert found[name] == pytest.approx(expected, rel=0, abs=1e-9)
        with_torch = binary_auroc(torch.tensor(values), torch.tensor(labels))
        assert found[name] == pytest.approx(float(with_torch), rel=0, abs=1e-6)


def test_entropy_is_in_nats_and_zero_for_certain_predictions() -> None:
    found = entropy([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(found, [math.log(4), 0, math.log(2)], rtol=0, atol=1e-15)
    probs = random_probs(4, 30, 7)
    expected = torch.distributions.Categorical(torch.tensor(probs)).entropy()
    np.testing.assert_allclose(entropy(probs), expected, rtol=0, atol=1e-12)


def test_predictions_that_differ_only_in_the_classes_order_tie() -> None:
    inside = random_probs(5, 40, 6)
    outside = np.stack([row[RNG.permutation(6)] for row in inside])
    for value in ood_auroc(inside, outside).values():
        assert value == pytest.approx(0.5, rel=0, abs=1e-15)


def uniform_outside() -> dict[str, float]:
    return ood_auroc(torch.tensor(random_probs(6, 20, 4)), torch.full((5, 4), 0.25))


def test_uniform_predictions_are_told_apart_entirely() -> None:
    assert uniform_outside() == {"max_probability": 1.0, "entropy": 1.0}


def slow_risks(confidences: Sequence[float], wrong: Sequence[bool]) -> Array:
    """Return the risks at each coverage, averaged over all orders that the confidences allow."""
    count = len(wrong)
    allowed = [
        [wrong[n] for n in order]
        for order in itertools.permutations(range(count))
        if all(confidences[a] >= confidences[b] for a, b in itertools.pairwise(order))
    ]
    risks = [[sum(order[:k]) / k for k in range(1, count + 1)] for order in allowed]
    return np.mean(risks, axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_risk_is_the_mean_over_all_orders_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidences = rng.choice([0.6, 0.7, 1.0], size=7)
    probs = np.stack([confidences, 1 - confidences], axis=1)
    wrong = rng.integers(0, 2, 7)
    coverage, risk = risk_coverage(probs, wrong)
    np.testing.assert_allclose(coverage, np.arange(1, 8) / 7, rtol=0, atol=1e-15)
    expected = slow_risks(confidences.tolist(), (wrong == 1).tolist())
    np.testing.assert_allclose(risk, expected, rtol=0, atol=1e-12)
    assert aurc(probs, wrong) == pytest.approx(expected.mean(), rel=0, abs=1e-12)


def test_aurc_of_distinct_confidences_agrees_with_a_plain_loop() -> None:
    probs = random_probs(7, 200, 5)
    targets = np.random.default_rng(7).integers(0, 5, 200)
    order = sorted(range(200), key=lambda n: -probs[n].max())
    errors, risks = 0, []
    for k, n in enumerate(order, start=1):
        errors += probs[n].argmax() != targets[n]
        risks.append(errors / k)
    np.testing.assert_allclose(risk_coverage(probs, targets).risk, risks, rtol=0, atol=1e-12)
    assert aurc(probs, targets) == pytest.approx(np.mean(risks), rel=0, abs=1e-12)
    assert risk_coverage(probs, targets).risk[-1] == pytest.approx(error(probs, targets) / 100)


def test_aurc_by_hand() -> None:
    probs = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]
    assert aurc(probs, [0, 0, 0]) == 0
    assert aurc(probs, [1, 1, 1]) == 1
    assert aurc(probs, [0, 0, 1]) == pytest.approx((0 + 0 + 1 / 3) / 3, rel=1e-15)
    assert aurc(probs, [1, 0, 0]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, rel=1e-15)
    assert aurc(probs[:1], [1]) == 1


@pytest.mark.parametrize("wrong", [0, 3, 8])
def test_aurc_of_equal_confidences_is_the_error(wrong: int) -> None:
    targets = [1] * wrong + [0] * (8 - wrong)
    for probs in (np.full((8, 2), 0.5), np.eye(2)[[0] * 8]):
        assert aurc(probs, targets) == pytest.approx(wrong / 8, rel=0, abs=1e-15)


@pytest.mark.parametrize(
    ("negatives", "positives", "message"),
    [
        ([], [1.0], r"negatives must be scores \(N,\) with N >= 1, got shape \(0,\)"),
        ([1.0], [], r"positives must be scores \(N,\) with N >= 1, got shape \(0,\)"),
        ([[1.0]], [1.0], r"negatives must be scores \(N,\).*\(1, 1\)"),
        ([1.0], [0.0, math.nan], "positives must be finite, got nan"),
        ([-math.inf], [0.0], "negatives must be finite, got -inf"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(
    negatives: Any, positives: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        auroc(negatives, positives)


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        (np.zeros((0, 2)), np.eye(2), r"^probs must be \(N, C\) with N >= 1, got \(0, 2\)"),
        (np.eye(2), np.zeros((0, 2)), r"^ood_probs must be \(N, C\) with N >= 1, got \(0, 2\)"),
        (np.eye(2), np.eye(3), "must have the same classes, got 2 and 3"),
        (np.eye(2), 2 * np.eye(2), "^ood_probs must be probabilities .* from 0 to 2"),
        (-np.eye(2), np.eye(2), "^probs must be probabilities .* from -1 to -0"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    inside: Array, outside: Array, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ood_auroc(inside, outside)


def test_any_doubt_and_risk_have_a_curve() -> None:
    rng = np.random.default_rng(0)
    doubt, risk = rng.integers(6, size=40), rng.normal(size=40) ** 2  # doubts of many ties
    found = risk_coverage_of(doubt, risk)
    orders = [np.lexsort([rng.random(40), doubt]) for _ in range(4000)]
    means = np.mean([np.cumsum(risk[order]) for order in orders], axis=0) / np.arange(1, 41)
    np.testing.assert_allclose(found.risk, means, atol=0.05)
    assert found.risk[-1] == pytest.approx(risk.mean())
    assert found.coverage.tolist() == [k / 40 for k in range(1, 41)]
    with pytest.raises(UserError, match=r"must have one shape, got \(2,\) and \(1,\)"):
        risk_coverage_of([1.0, 2.0], [1.0])
    with pytest.raises(UserError, match="risk must be finite, got nan"):
        risk_coverage_of([1.0, 2.0], [1.0, math.nan])


@pytest.mark.parametrize("function", [risk_coverage, aurc])
def test_examples_that_do_not_fit_are_refused(function: Any) -> None:
    with pytest.raises(UserError, match=r"got \(2, 2\) and \(1,\)"):
        function(np.eye(2), [0])
    with pytest.raises(UserError, match=r"N >= 1, got \(0, 2\)"):
        function(np.zeros((0, 2)), [])
    with pytest.raises(UserError, match=r"targets must be integers in \[0, 2\)"):
        function(np.eye(2), [0, 2])
    with pytest.raises(UserError, match="from 0 to 2; apply a softmax"):
        function(2 * np.eye(2), [0, 1])
    with pytest.raises(UserError, match="probs must be probabilities"):
        entropy(2 * np.eye(2))
