"""Diversity and the gain of averaging against scikit-learn, plain loops and identities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, hamming_loss, log_loss, matthews_corrcoef

from fge import metrics
from fge.errors import UserError
from fge.metrics import (
    GainSplit,
    disagreement,
    disagreement_matrix,
    error_correlation,
    error_correlation_matrix,
    gain_split,
)

Array = NDArray[np.float64]


def random_case(seed: int, members: int, count: int, classes: int) -> tuple[Array, list[int]]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, 0.5), size=(members, count))
    targets = [int(rng.choice(classes, p=row)) for row in probs.mean(axis=0)]
    return probs, targets


def certain(*classes: Sequence[int]) -> Array:
    """Return members that predict the given classes, of three, with certainty."""
    return np.eye(3)[np.array(classes)]


CASES = {
    "many": random_case(0, 5, 200, 6),
    "two classes": random_case(1, 3, 80, 2),
    "one example": random_case(2, 4, 1, 3),
    "absent class": (random_case(3, 3, 50, 4)[0], [n % 3 for n in range(50)]),
    "certain": (certain([0, 1, 2, 0], [0, 2, 2, 1], [1, 1, 2, 1]), [0, 1, 0, 0]),
    "undecided": (np.full((3, 6, 4), 0.25), [0, 1, 2, 3, 0, 0]),
    "twins": (np.repeat(random_case(4, 1, 40, 3)[0], 2, axis=0), [n % 3 for n in range(40)]),
}


@pytest.mark.parametrize("case", CASES)
def test_disagreement_is_the_hamming_loss_of_pairs(case: str) -> None:
    members, _ = CASES[case]
    classes = members.argmax(axis=2)
    expected = [[100 * hamming_loss(a, b) for b in classes] for a in classes]
    found = disagreement_matrix(members)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    pairs = [found[i, j] for i, j in itertools.combinations(range(len(members)), 2)]
    assert disagreement(members) == pytest.approx(np.mean(pairs), rel=0, abs=1e-12)


def test_disagreement_is_in_percent() -> None:
    assert disagreement(certain([0, 1, 2, 0], [0, 1, 2, 1])) == 25.0
    assert disagreement(certain([0, 0], [1, 1], [2, 2])) == 100.0


@pytest.mark.parametrize("case", ["many", "two classes", "absent class", "twins", "undecided"])
def test_error_correlation_is_the_matthews_coefficient_of_pairs(case: str) -> None:
    members, targets = CASES[case]
    wrong = members.argmax(axis=2) != targets
    expected = [[matthews_corrcoef(a, b) for b in wrong] for a in wrong]
    found = error_correlation_matrix(members, targets)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, np.corrcoef(wrong), rtol=0, atol=1e-12)
    pairs = [found[i, j] for i, j in itertools.combinations(range(len(members)), 2)]
    assert error_correlation(members, targets) == pytest.approx(np.mean(pairs), rel=0, abs=1e-12)


def test_errors_may_be_the_same_apart_or_independent() -> None:
    same = certain([0, 0, 1, 1], [0, 0, 2, 2])
    assert error_correlation(same, [0] * 4) == pytest.approx(1, rel=0, abs=1e-15)
    apart = certain([0, 0, 1, 1], [1, 1, 0, 0])
    assert error_correlation(apart, [0] * 4) == pytest.approx(-1, rel=0, abs=1e-15)
    independent = certain([0, 0, 1, 1], [0, 1, 0, 1])
    assert error_correlation(independent, [0] * 4) == 0


def test_the_correlation_with_a_member_that_never_errs_is_undefined() -> None:
    members = certain([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1])
    matrix = error_correlation_matrix(members, [0] * 4)
    expected = [[np.nan] * 3, [np.nan, 1, 0], [np.nan, 0, 1]]
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-15)
    assert error_correlation(members, [0] * 4) == 0  # of the one pair that is left
    assert math.isnan(error_correlation(members[:2], [0] * 4))
    assert math.isnan(error_correlation(certain([1], [0]), [0]))


@pytest.mark.parametrize("case", CASES)
def test_the_gain_in_nll_and_brier_is_the_diversity(case: str) -> None:
    members, targets = CASES[case]
    split = gain_split(members, targets)
    for name in ("nll", "brier"):
        assert split[name].gain == pytest.approx(split[name].diversity, rel=1e-12, abs=1e-12)
        assert split[name].diversity >= -1e-12
    assert split["error"].diversity == disagreement(members)


@pytest.mark.parametrize("case", ["many", "two classes", "absent class"])
def test_the_parts_are_means_of_scikit_learns_scores(case: str) -> None:
    members, targets = CASES[case]
    labels = range(members.shape[2])
    split, mean = gain_split(members, targets), members.mean(axis=0)

    def brier(p: Array) -> float:
        return float(brier_score_loss(targets, p, labels=labels, scale_by_half=False))

    def nll(p: Array) -> float:
        return float(log_loss(targets, p, labels=labels))

    for name, oracle in (("brier", brier), ("nll", nll)):
        expected = np.mean([oracle(p) for p in members])
        assert split[name].members == pytest.approx(expected, rel=0, abs=1e-9)
        assert split[name].ensemble == pytest.approx(oracle(mean), rel=0, abs=1e-9)
    expected = np.mean([metrics.error(p, targets) for p in members])
    assert split["error"].members == pytest.approx(expected, rel=0, abs=1e-12)
    assert split["error"].ensemble == metrics.error(mean, targets)


def test_the_nll_diversity_is_the_divergence_of_the_targets_choice_of_members() -> None:
    members, targets = CASES["many"]
    total = 0.0
    for n, target in enumerate(targets):
        likelihoods = members[:, n, target].tolist()
        weights = [p / math.fsum(likelihoods) for p in likelihoods]
        total += math.fsum(math.log(1 / len(weights) / w) / len(weights) for w in weights)
    found = gain_split(members, targets)["nll"].diversity
    assert found == pytest.approx(total / len(targets), rel=1e-12)


def test_the_brier_diversity_is_the_variance_of_the_members() -> None:
    members, targets = CASES["many"]
    expected = members.var(axis=0).sum(axis=1).mean()
    assert gain_split(members, targets)["brier"].diversity == pytest.approx(expected, rel=1e-12)


def test_a_certain_wrong_member_and_a_right_one_gain_by_hand() -> None:
    split = gain_split(certain([0], [1]), [0])
    cost = 126 * math.log(2)  # nats of a zero, which counts as the smallest float32
    assert split["nll"].members == pytest.approx(cost / 2, rel=1e-15)
    assert split["nll"].ensemble == pytest.approx(math.log(2), rel=1e-15)
    assert split["nll"].gain == pytest.approx(split["nll"].diversity, rel=1e-15)
    assert split["brier"] == GainSplit(members=1.0, ensemble=0.5, diversity=0.5)
    assert split["error"] == GainSplit(members=50.0, ensemble=0.0, diversity=100.0)
    assert split["error"].gain == 50.0


def test_averaging_may_lose_in_error_in_spite_of_diversity() -> None:
    members = np.array([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]])
    error = gain_split(members, [0])["error"]
    assert error.gain == pytest.approx(100 / 3 - 100, rel=1e-12)
    assert error.diversity == pytest.approx(200 / 3, rel=1e-12)


def test_members_may_be_an_array_tensors_or_a_generator() -> None:
    members, targets = CASES["many"]
    expected = gain_split(members, targets)
    assert gain_split([torch.tensor(p) for p in members], torch.tensor(targets)) == expected
    assert gain_split((p.tolist() for p in members), targets) == expected


FUNCTIONS: list[Callable[..., object]] = [
    lambda members, _: disagreement(members),
    lambda members, _: disagreement_matrix(members),
    error_correlation,
    error_correlation_matrix,
    gain_split,
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_members_that_do_not_fit_are_refused(function: Callable[..., object]) -> None:
    probs = np.full((4, 2), 0.5)
    with pytest.raises(UserError, match="diversity needs at least 2 members, got 1"):
        function([probs], [0] * 4)
    with pytest.raises(UserError, match="diversity needs at least 2 members, got 0"):
        function([], [0] * 4)
    with pytest.raises(UserError, match=r"member 2 has shape \(3, 2\), but member 0 has \(4, 2\)"):
        function([probs, probs, probs[:3]], [0] * 4)
    with pytest.raises(UserError, match=r"member 1 must be probabilities .* from 1.5 to 1.5"):
        function([probs, 3 * probs], [0] * 4)
    with pytest.raises(UserError, match=r"member 0 must be \(N, C\) with N >= 1, got \(2,\)"):
        function(probs, [0] * 4)
    with pytest.raises(UserError, match=r"member 0 must be .* N >= 1, got \(0, 2\)"):
        function([probs[:0], probs[:0]], [])


@pytest.mark.parametrize("function", FUNCTIONS[2:])
def test_targets_that_do_not_fit_are_refused(function: Callable[..., object]) -> None:
    members = np.full((2, 4, 2), 0.5)
    with pytest.raises(UserError, match=r"targets \(N,\).*\(4, 2\) and \(3,\)"):
        function(members, [0] * 3)
    with pytest.raises(UserError, match=r"targets must be integers in \[0, 2\)"):
        function(members, [0, 1, 2, 0])
