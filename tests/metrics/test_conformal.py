"""Conformal sets and intervals: exact coverage, closed forms, hand-written oracles."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import softmax

from fge.errors import UserError
from fge.metrics import (
    Conformal,
    Score,
    conformal_intervals,
    conformal_quantile,
    conformal_sets,
    coverage_range,
    fit_conformal,
    fit_conformal_intervals,
    interval_coverage,
    set_coverage,
)

Array = NDArray[np.float64]
DRAWS, EXAMPLES, TESTS = 400, 59, 100
COVERAGE = 0.85


def examples(generator: np.random.Generator, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Return wrong predictions and labels: exchangeable, and not what the model says."""
    logits = generator.normal(size=(count, 5))
    labels = (logits + 2 * generator.gumbel(size=(count, 5))).argmax(axis=1)
    return softmax(2 * logits, axis=1), labels


def coverages(score: Score) -> Array:
    generator = np.random.default_rng(0)
    found = []
    for draw in range(DRAWS):
        fit = fit_conformal(
            *examples(generator, EXAMPLES), coverage=COVERAGE, score=score, seed=draw
        )
        probs, labels = examples(generator, TESTS)
        found.append(set_coverage(conformal_sets(probs, fit, seed=draw), labels).coverage)
    return np.array(found)


@pytest.mark.parametrize("score", ["lac", "aps-random"])
def test_the_coverage_over_draws_is_the_exact_one(score: Score) -> None:
    """Each draw is beta-binomial: k / (n + 1) on average, and with that distribution's spread."""
    rank = math.ceil((EXAMPLES + 1) * COVERAGE)
    expected = stats.betabinom(TESTS, rank, EXAMPLES + 1 - rank)
    found = coverages(score)
    error = expected.std() / TESTS / math.sqrt(DRAWS)
    assert expected.mean() / TESTS == pytest.approx(rank / (EXAMPLES + 1))
    assert abs(found.mean() - rank / (EXAMPLES + 1)) < 4 * error
    assert 0.85 < found.std() / (expected.std() / TESTS) < 1.15
    low, high = coverage_range(COVERAGE, EXAMPLES, TESTS)
    assert 0.93 <= np.mean((low <= found) & (found <= high)) <= 0.985


def test_ties_only_raise_the_coverage() -> None:
    found = coverages("aps")  # all examples whose first class is right have the score 0
    assert found.mean() > COVERAGE
    # Every score is the same: all classes are in every set.
    fit = fit_conformal(np.full((20, 4), 0.25), np.arange(20) % 4, coverage=0.5)
    assert fit.threshold == 0.75
    assert conformal_sets(np.full((3, 4), 0.25), fit).all()


@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 19, 99, 100])
@pytest.mark.parametrize("percent", [1, 50, 55, 90, 95, 99])
def test_the_quantile_is_the_one_of_exact_fractions(count: int, percent: int) -> None:
    scores = np.random.default_rng(count).permutation(count) + 1.0
    place = math.ceil((count + 1) * Fraction(percent, 100))
    expected = place if place <= count else math.inf
    assert conformal_quantile(scores, percent / 100) == expected
    both = conformal_quantile(np.stack([scores, 10 * scores], axis=1), percent / 100)
    assert both.tolist() == [expected, 10 * expected]  # type: ignore[union-attr]
    fit = Conformal("lac", percent / 100, count, float(expected))
    assert fit.enough == (place <= count)
    assert fit.least == math.ceil(Fraction(percent, 100 - percent))


@pytest.mark.parametrize("nines", range(1, 6))
def test_the_fewest_examples_are_those_of_a_finite_quantile(nines: int) -> None:
    least = 10**nines - 1
    coverage = least / 10**nines
    for count in (least - 1, least):
        fit = Conformal("lac", coverage, count, float(conformal_quantile(range(count), coverage)))
        assert fit.least == least
        assert fit.enough == math.isfinite(fit.threshold) == (count == least)


def test_lac_by_hand() -> None:
    probs = [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]]
    fit = fit_conformal(probs, [0, 2, 1, 2], coverage=0.6)  # scores .3, .6, .7, .1; the third
    assert fit == Conformal("lac", 0.6, 4, pytest.approx(0.6))  # type: ignore[arg-type]
    sets = conformal_sets([[0.5, 0.45, 0.05], [0.39, 0.31, 0.3], [1.0, 0.0, 0.0]], fit)
    assert sets.tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    measured = set_coverage(sets, [1, 0, 0])
    assert measured == (pytest.approx(2 / 3), 1.0, pytest.approx(1 / 3), pytest.approx(1 / 3))


def romano(row: Array, u: float, tau: float) -> set[int]:
    """Return S(x, u; tau) of Romano et al. 2020, equations 4 and 5."""
    order = sorted(range(len(row)), key=lambda c: -row[c])
    total, chosen = 0.0, []
    for c in order:
        chosen.append(c)
        total += row[c]
        if total >= tau:
            break
    excess = (total - tau) / row[chosen[-1]]
    return set(chosen[:-1] if u <= excess else chosen)


@pytest.mark.parametrize("score", ["aps", "aps-random"])
def test_aps_is_that_of_its_paper(score: Score) -> None:
    generator = np.random.default_rng(3)
    probs, labels = examples(generator, 40)
    seed = 11
    # As u goes to 1 - u in our score, equation 5 drops the last class where u <= V.
    calibration = np.random.default_rng([seed, 0]).random(40) if score != "aps" else np.zeros(40)
    new = np.random.default_rng([seed, 1]).random(40) if score != "aps" else np.zeros(40)
    smallest = []
    for row, label, u in zip(probs, labels, 1 - calibration, strict=True):
        low, high = 0.0, 1.0
        for _ in range(60):  # equation 7: the least tau whose set holds the label
            middle = (low + high) / 2
            low, high = (low, middle) if label in romano(row, u, middle) else (middle, high)
        smallest.append(high)
    tau = sorted(smallest)[math.ceil(41 * 0.8) - 1]
    fit = fit_conformal(probs, labels, coverage=0.8, score=score, seed=seed)
    assert fit.threshold == pytest.approx(tau, abs=1e-9)
    sets = conformal_sets(probs, fit, seed=seed)
    for row, mask, u in zip(probs, sets, 1 - new, strict=True):
        assert set(np.flatnonzero(mask).tolist()) == romano(row, u, tau + 1e-9)
    assert len(set(sets.sum(axis=1).tolist())) > 2
    if score == "aps":  # the most probable class is in every set
        assert sets[np.arange(40), probs.argmax(axis=1)].all()


def test_too_few_examples_leave_every_set_full_and_every_interval_infinite() -> None:
    fit = fit_conformal([[0.9, 0.1]] * 8, [0] * 8, coverage=0.9)
    assert (fit.enough, fit.least, fit.threshold) == (False, 9, math.inf)
    assert conformal_sets([[1.0, 0.0]], fit).all()
    fit = fit_conformal([[0.9, 0.1]] * 9, [0] * 9, coverage=0.9)
    assert fit.enough
    assert conformal_sets([[1.0, 0.0]], fit).tolist() == [[True, False]]
    wide = fit_conformal_intervals([0.0] * 8, [1.0] * 8, coverage=0.9)
    assert conformal_intervals([2.0], wide).tolist() == [[-math.inf, math.inf]]
    assert coverage_range(0.9, 8, 100) == (1.0, 1.0)


def test_intervals_by_hand_and_of_each_output_by_itself() -> None:
    fit = fit_conformal_intervals([0.0, 0.0, 0.0], [3.0, -1.0, 2.0], coverage=0.5)
    assert fit == Conformal("residual", 0.5, 3, 2.0)
    assert conformal_intervals([10.0], fit).tolist() == [[8.0, 12.0]]
    scaled = fit_conformal_intervals([0.0] * 3, [3.0, -1.0, 2.0], coverage=0.5, spread=[3, 1, 0.5])
    assert scaled == Conformal("normalised", 0.5, 3, 1.0)
    ends = conformal_intervals([10.0, 10.0], scaled, spread=[0.5, 4.0])
    assert ends.tolist() == [[9.5, 10.5], [6.0, 14.0]]
    assert interval_coverage(ends, [9.5, 15.0]) == (0.5, 4.5)
    two = fit_conformal_intervals(np.zeros((3, 2)), [[3, 30], [-1, -10], [2, 20]], coverage=0.5)
    assert conformal_intervals([[0.0, 1.0]], two).tolist() == [[[-2.0, 2.0], [-19.0, 21.0]]]


@pytest.mark.parametrize("normalised", [False, True])
def test_intervals_cover_exactly_too(normalised: bool) -> None:
    generator = np.random.default_rng(1)
    found, widths = [], []
    for _ in range(DRAWS):
        s = generator.uniform(0.2, 3, size=EXAMPLES + TESTS)
        y = s * generator.standard_t(3, size=len(s))
        cut = slice(None, EXAMPLES), slice(EXAMPLES, None)
        f = np.zeros(len(s))
        spreads = [s[part] if normalised else None for part in cut]
        fit = fit_conformal_intervals(f[cut[0]], y[cut[0]], coverage=COVERAGE, spread=spreads[0])
        ends = conformal_intervals(f[cut[1]], fit, spread=spreads[1])
        coverage, width = interval_coverage(ends, y[cut[1]])
        found.append(coverage)
        widths.append(width)
    rank = math.ceil((EXAMPLES + 1) * COVERAGE)
    spread = stats.betabinom(TESTS, rank, EXAMPLES + 1 - rank).std() / TESTS
    assert abs(np.mean(found) - rank / (EXAMPLES + 1)) < 4 * spread / math.sqrt(DRAWS)


@pytest.mark.parametrize(("n", "tests"), [(20, 7), (900, 2000), (9, 1)])
def test_the_range_is_that_of_the_beta_binomial(n: int, tests: int) -> None:
    rank = math.ceil((n + 1) * 0.9 - 1e-9)
    expected = stats.betabinom(tests, rank, n + 1 - rank).ppf([0.025, 0.975]) / tests
    assert coverage_range(0.9, n, tests) == pytest.approx(tuple(expected))


FIT = fit_conformal([[0.9, 0.1]] * 9, [0] * 9)
LINE = fit_conformal_intervals([0.0] * 9, [1.0] * 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_conformal([[1.0, 0.0]], [0], coverage=1.0), "coverage must be above 0 and be"),
        (lambda: conformal_quantile([1.0], 90), "below 1, got 90; for 90 % give 0.9"),
        (lambda: conformal_quantile([1.0], math.nan), "below 1, got nan"),
        (lambda: conformal_quantile([], 0.9), r"n >= 1, got shape \(0,\)"),
        (lambda: conformal_quantile([math.nan], 0.9), "scores must be numbers, got nan"),
        (lambda: fit_conformal([[1.0, 0.0]], [2]), r"targets must be integers in \[0, 2\)"),
        (
            lambda: fit_conformal([[1.0, 0.0]], [0], score="raps"),  # type: ignore[arg-type]
            "score must be 'lac', 'aps', 'aps-random', got 'raps'",
        ),
        (lambda: conformal_sets([[3.0, -2.0]], FIT), "must be probabilities"),
        (lambda: conformal_sets([[1.0, 0.0]], LINE), r"one of intervals \(residual\)"),
        (lambda: conformal_intervals([1.0], FIT), r"the fit is one of sets \(lac\)"),
        (
            lambda: conformal_intervals([1.0], LINE, spread=[1.0]),
            "made without a spread; give",
        ),
        (lambda: fit_conformal_intervals([1.0], [1.0, 2.0]), r"got \(1,\) and \(2,\)"),
        (lambda: fit_conformal_intervals([math.inf], [1.0]), "predictions must be finite, got inf"),
        (
            lambda: fit_conformal_intervals([1.0], [1.0], spread=[0.0]),
            "spread must be standard deviations above 0, got 0; add a",
        ),
        (lambda: set_coverage([[1, 0]], [0]), "True and False, got int64"),
        (lambda: set_coverage([[True, False]], [2]), "targets must be integers"),
        (lambda: interval_coverage([[1.0, 2.0]], [1.0, 2.0]), r"must be \(2, 2\) as the targets"),
        (lambda: coverage_range(0.9, 0, 3), "must be >= 1, got 0 and 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        call()
    assert "\n" not in str(found.value)
