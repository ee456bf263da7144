"""Scores of a regression, against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn import metrics as oracle

from fge import metrics
from fge.errors import UserError

RNG = np.random.default_rng(1)
TARGETS = RNG.normal(size=(300, 2)) * [1.0, 50.0] + [3.0, 100.0]
MEAN = TARGETS + RNG.normal(size=(300, 2)) * [0.5, 20.0]
SPREAD = RNG.random((300, 2)) * [0.1, 400.0]


def test_distances_equal_those_of_scikit_learn() -> None:
    squared = oracle.mean_squared_error(TARGETS, MEAN)
    assert metrics.rmse(MEAN, TARGETS) == pytest.approx(math.sqrt(squared))
    assert metrics.mae(MEAN, TARGETS) == pytest.approx(oracle.mean_absolute_error(TARGETS, MEAN))
    assert metrics.r2(MEAN, TARGETS) == pytest.approx(oracle.r2_score(TARGETS, MEAN))
    assert metrics.squared_residuals(MEAN, TARGETS).mean() == pytest.approx(squared)


def test_the_likelihood_is_that_of_scipy() -> None:
    noise = np.array([0.2, 300.0])
    expected = -norm.logpdf(TARGETS, MEAN, np.sqrt(noise + SPREAD)).sum(axis=1)
    found = metrics.gaussian_nll_per_example(MEAN, TARGETS, noise, SPREAD)
    np.testing.assert_allclose(found, expected)
    one = metrics.gaussian_nll_per_example(MEAN[:, 0], TARGETS[:, 0], 0.2, SPREAD[:, 0])
    two = metrics.gaussian_nll_per_example(MEAN[:, 1], TARGETS[:, 1], 300.0, SPREAD[:, 1])
    np.testing.assert_allclose(one + two, expected)


def test_the_noise_maximises_the_likelihood() -> None:
    def loss(log_noise: np.ndarray) -> float:
        noise = np.exp(log_noise)
        return float(metrics.gaussian_nll_per_example(MEAN, TARGETS, noise, SPREAD).mean())

    found = metrics.fit_noise(MEAN, TARGETS, SPREAD)
    best = minimize(loss, np.log(found), method="Nelder-Mead", options={"xatol": 1e-9})
    np.testing.assert_allclose(np.log(found), best.x, atol=1e-4)
    squares = ((MEAN - TARGETS) ** 2).mean(axis=0)
    np.testing.assert_allclose(metrics.fit_noise(MEAN, TARGETS), squares)
    np.testing.assert_allclose(metrics.fit_noise(MEAN, TARGETS, 0.04), squares - 0.04)


def test_more_spread_than_residuals_leaves_almost_no_noise() -> None:
    spread = np.where(np.arange(300) % 2, 9.0, 4.0)[:, None]
    assert metrics.fit_noise(np.zeros((300, 1)), np.full((300, 1), 0.1), spread)[0] < 1e-8
    assert metrics.fit_noise([1.0, 2.0], [1.0, 2.0])[0] > 0  # a perfect fit


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_figures_do_not_depend_on_the_units(unit: float) -> None:
    for spread in (0.0, SPREAD[:, :1], SPREAD[:, :1] + 1e6):  # the last leaves no noise
        mean, targets = MEAN[:, :1], TARGETS[:, :1]
        noise = metrics.fit_noise(mean, targets, spread)
        found = metrics.regression_summary(mean, targets, noise, spread)
        scaled = [unit * mean, unit * targets]
        varied = unit**2 * np.asarray(spread)
        small = metrics.fit_noise(*scaled, varied)
        other = metrics.regression_summary(*scaled, small, varied)
        if np.max(spread) < 1:  # else the likelihood is flat
            np.testing.assert_allclose(small, unit**2 * noise, rtol=1e-6)
        assert other["nll"] == pytest.approx(found["nll"] + math.log(unit), abs=1e-9)
        assert other["coverage"] == found["coverage"]
        assert other["rmse"] == pytest.approx(unit * found["rmse"])
        nlls = [
            metrics.calibrated_gaussian_nll(mean, targets, spread),
            metrics.calibrated_gaussian_nll(*scaled, varied),
        ]
        np.testing.assert_allclose(nlls[1], nlls[0] + math.log(unit), atol=1e-7)


def test_coverage_by_hand() -> None:
    # 90 % of a standard normal are within 1.645.
    targets = np.array([-1.7, -1.6, 0.0, 1.6, 1.7])
    assert metrics.coverage(np.zeros(5), targets, 1.0) == pytest.approx(60.0)
    assert metrics.coverage(np.zeros(5), targets, 0.5, np.full(5, 0.5)) == pytest.approx(60.0)
    assert metrics.coverage(np.zeros(5), targets, 1.2) == pytest.approx(100.0)
    drawn = RNG.normal(size=20000)
    assert metrics.coverage(np.zeros(20000), drawn, 1.0, level=0.5) == pytest.approx(50, abs=1.5)


def test_the_calibrated_likelihood_of_a_network_is_that_of_the_halves_by_hand() -> None:
    order = np.random.default_rng(0).permutation(300)
    first, second = order[:150], order[150:]
    expected = np.empty(300)
    for fitted, scored in ((first, second), (second, first)):
        sigma = np.sqrt(((MEAN - TARGETS)[fitted] ** 2).mean(axis=0))
        expected[scored] = -norm.logpdf(TARGETS[scored], MEAN[scored], sigma).sum(axis=1)
    found = metrics.calibrated_gaussian_nll(MEAN, TARGETS, splits=1)
    np.testing.assert_allclose(found, expected)


def test_the_summary_holds_all_figures() -> None:
    noise = metrics.fit_noise(MEAN, TARGETS, SPREAD)
    found = metrics.regression_summary(MEAN, TARGETS, noise, SPREAD)
    assert list(found) == ["rmse", "mae", "r2", "nll", "coverage"]
    assert found["coverage"] == pytest.approx(90, abs=4)


def test_a_target_that_never_changes_has_no_r2() -> None:
    found = metrics.regression_summary([1.0, 2.0], [1.0, 1.0], 1.0)
    assert list(found) == ["rmse", "mae", "nll", "coverage"]
    assert math.isnan(metrics.r2([1.0, 1.0], [1.0, 1.0]))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("count", [3, 100])
def test_nor_has_one_whose_mean_is_rounded(value: float, count: int) -> None:
    targets = np.full((count, 2), value)
    targets[0, 1] += 1
    predicted = targets + RNG.normal(size=targets.shape)
    assert math.isnan(metrics.r2(predicted, targets))
    assert "r2" not in metrics.regression_summary(predicted, targets, 1.0)
    assert metrics.r2(predicted[:, 1], targets[:, 1]) < 1


@pytest.mark.parametrize(
    ("mean", "targets", "message"),
    [
        ([1.0], [1.0, 2.0], r"with one shape, got \(1,\) and \(2,\)"),
        ([math.nan], [1.0], r"predictions must be finite, got nan"),
        ([1.0], [math.inf], r"targets must be finite, got inf"),
        ([], [], r"must be \(N,\) or \(N, K\)"),
    ],
)
def test_wrong_values_are_named(mean: list, targets: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metrics.rmse(mean, targets)


def test_a_variance_is_above_zero() -> None:
    with pytest.raises(UserError, match="noise must be finite and above 0"):
        metrics.coverage([0.0], [0.0], 0.0)
    with pytest.raises(UserError, match="variances must be finite and >= 0"):
        metrics.gaussian_nll_per_example([0.0], [0.0], 1.0, -1.0)


def test_variances_of_other_shapes_are_refused() -> None:
    two = np.zeros((2, 2))
    with pytest.raises(UserError, match=r"must be \(2, 2\) as the predictions, .* shape \(2,\)"):
        metrics.fit_noise(two, two, [1.0, 4.0])  # of examples or of outputs?
    with pytest.raises(UserError, match=r"noise must be \(2,\), .* got shape \(3,\)"):
        metrics.gaussian_nll_per_example(two, two, np.ones(3))
    assert metrics.fit_noise([3.0], [1.0], [1.0]).tolist() == [3.0]
