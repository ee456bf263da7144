"""Temperatures and calibration errors against closed forms, scikit-learn and slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from fge import metrics
from fge.errors import UserError
from fge.metrics import (
    adaptive_ece,
    calibrated_ece,
    calibrated_log_likelihood,
    calibrated_nll_per_example,
    calibrated_summary,
    fit_temperature,
    scale_temperature,
)
from fge.metrics.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE

Array = NDArray[np.float64]
FLOAT32_TINY = 2.0**-126


def random_case(seed: int, count: int, classes: int, power: float = 2.0) -> tuple[Array, list[int]]:
    """Return predictions whose best temperature is near ``power``, and targets."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.full(classes, 0.7), size=count)
    targets = [int(rng.choice(classes, p=row)) for row in true]
    probs = true**power
    return probs / probs.sum(axis=1, keepdims=True), targets


def binary(confidence: float, right: int, wrong: int) -> tuple[Array, list[int]]:
    """Return equal rows that favour class 0, which is right so many times and wrong so many."""
    rows = np.tile([confidence, 1 - confidence], (right + wrong, 1))
    return rows, [0] * right + [1] * wrong


def slow_log_scaled(row: Sequence[float], temperature: float) -> list[float]:
    logits = [math.log(max(p, FLOAT32_TINY)) / temperature for p in row]
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [x - top - math.log(total) for x in logits]


def slow_nll(probs: Array, targets: Sequence[int], temperature: float) -> float:
    rows = zip(probs.tolist(), targets, strict=True)
    return -math.fsum(slow_log_scaled(row, temperature)[t] for row, t in rows) / len(targets)


def slow_temperature(probs: Array, targets: Sequence[int]) -> float:
    """Return the temperature by golden section over log T: good to about 1e-8."""
    return math.exp(
        minimize_scalar(
            lambda log_t: slow_nll(probs, targets, math.exp(log_t)),
            bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
            method="bounded",
            options={"xatol": 1e-9},
        ).x
    )


@pytest.mark.parametrize("confidence", [0.501, 0.7, 0.99, 1 - 1e-9])
@pytest.mark.parametrize(("right", "wrong"), [(3, 2), (9, 1), (999, 1)])
def test_equal_predictions_are_scaled_to_their_accuracy(
    confidence: float, right: int, wrong: int
) -> None:
    probs, targets = binary(confidence, right, wrong)
    expected = math.log(confidence / (1 - confidence)) / math.log(right / wrong)
    temperature = fit_temperature(probs, targets)
    if expected < MIN_TEMPERATURE:
        assert temperature == MIN_TEMPERATURE
    else:
        # 1 - confidence is 1e-9 in float64: its logarithm is good to 1e-8 at best.
        rel = 1e-8 if confidence > 0.999 else 1e-10
        assert temperature == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_certain_predictions_are_scaled_to_their_accuracy(classes: int) -> None:
    probs = np.eye(classes)[np.zeros(10, int)]
    temperature = fit_temperature(probs, [0] * 8 + [1] * 2)
    # Softmax of (126 log 2) / T against 0 for each other class must give 8 in 10.
    expected = 126 * math.log(2) / math.log(0.8 * (classes - 1) / 0.2)
    assert temperature == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_are_logistic_regression_through_the_origin(seed: int) -> None:
    probs, targets = random_case(seed, 200, 2, power=[0.4, 1.0, 3.0][seed])
    logits = np.log(probs[:, 1:] / probs[:, :1])
    model = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-13)
    model.fit(logits, targets)
    assert fit_temperature(probs, targets) == pytest.approx(1 / model.coef_.item(), rel=1e-7)


@pytest.mark.parametrize(("count", "classes", "power"), [(150, 10, 2.0), (40, 3, 0.3), (7, 4, 1.0)])
def test_the_temperature_is_a_slow_searchs(count: int, classes: int, power: float) -> None:
    probs, targets = random_case(count, count, classes, power)
    expected = slow_temperature(probs, targets)
    assert fit_temperature(probs, targets) == pytest.approx(expected, rel=1e-6)


def test_the_temperature_is_exact_to_1e_8() -> None:
    probs, targets = random_case(0, 300, 6)
    found = fit_temperature(probs, targets)
    inverse = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    logs, labels = torch.tensor(probs).log(), torch.tensor(targets)
    for _ in range(30):  # Newton's method
        loss = torch.nn.functional.cross_entropy(inverse * logs, labels)
        (slope,) = torch.autograd.grad(loss, inverse, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, inverse)
        inverse = (inverse - slope / curvature).detach().requires_grad_()
    assert found == pytest.approx(1 / inverse.item(), rel=1e-11)


@given(st.integers(0, 50), st.floats(0.3, 3.0))
def test_a_power_of_the_probabilities_changes_the_temperature_alone(
    seed: int, power: float
) -> None:
    probs, targets = random_case(seed, 30, 4)
    raised = scale_temperature(probs, 1 / power)
    expected = power * fit_temperature(probs, targets)
    if MIN_TEMPERATURE < expected < MAX_TEMPERATURE:
        assert fit_temperature(raised, targets) == pytest.approx(expected, rel=1e-8)
    assert calibrated_log_likelihood(raised, targets, splits=1) == pytest.approx(
        calibrated_log_likelihood(probs, targets, splits=1), rel=1e-8
    )


def test_where_every_target_is_the_most_probable_class_no_temperature_is_low_enough() -> None:
    assert fit_temperature([[0.6, 0.4], [0.3, 0.7]], [0, 1]) == MIN_TEMPERATURE
    assert fit_temperature(np.eye(3), [0, 1, 2]) == MIN_TEMPERATURE
    assert fit_temperature([[0.6, 0.4]], [0]) == MIN_TEMPERATURE


def test_where_predictions_tell_nothing_no_temperature_is_high_enough() -> None:
    assert fit_temperature([[0.6, 0.4], [0.6, 0.4]], [0, 1]) == MAX_TEMPERATURE
    assert fit_temperature(np.eye(3), [1, 2, 0]) == MAX_TEMPERATURE


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_equally_probable_classes_keep_temperature_one(classes: int) -> None:
    probs = np.full((4, classes), 1 / classes)
    assert fit_temperature(probs, [0, classes - 1, 0, 0]) == 1.0
    expected = -math.log(classes)
    assert calibrated_log_likelihood(probs, [0] * 4) == pytest.approx(expected, rel=0, abs=1e-15)


def test_scaled_probabilities_are_the_softmax_of_scaled_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5))
    probs = torch.tensor(logits).softmax(1)
    expected = torch.tensor(logits / 2.5).softmax(1)
    np.testing.assert_allclose(scale_temperature(probs, 2.5), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(scale_temperature(probs, 1), probs, rtol=0, atol=1e-15)


def test_scaling_a_certain_prediction_counts_zero_as_the_smallest_float32() -> None:
    scaled = scale_temperature([[1.0, 0.0]], 63)  # odds of 2 ** (126 / 63)
    np.testing.assert_allclose(scaled, [[0.8, 0.2]], rtol=0, atol=1e-14)


def slow_calibrated(
    probs: Array, targets: Sequence[int], splits: int, seed: int
) -> tuple[float, float]:
    """Return the calibrated log-likelihood and ECE, example by example."""
    rng = np.random.default_rng(seed)
    likelihoods, errors = [], []
    for _ in range(splits):
        order = rng.permutation(len(targets)).tolist()
        half = len(targets) // 2
        scaled = np.empty_like(probs)
        for fitted, scored in ((order[:half], order[half:]), (order[half:], order[:half])):
            temperature = slow_temperature(probs[fitted], [targets[n] for n in fitted])
            for n in scored:
                scaled[n] = np.exp(slow_log_scaled(probs[n].tolist(), temperature))
        likelihoods.append(np.mean([math.log(scaled[n, t]) for n, t in enumerate(targets)]))
        errors.append(metrics.ece(scaled, targets))
    return float(np.mean(likelihoods)), float(np.mean(errors))


@pytest.mark.parametrize(("count", "splits", "seed"), [(60, 5, 0), (41, 2, 3)])
def test_calibrated_metrics_score_each_half_with_the_others_temperature(
    count: int, splits: int, seed: int
) -> None:
    probs, targets = random_case(count, count, 4)
    probs[0] = [1, 0, 0, 0]
    log_likelihood, error = slow_calibrated(probs, targets, splits, seed)
    options = {"splits": splits, "seed": seed}
    found = calibrated_log_likelihood(probs, targets, **options)
    assert found == pytest.approx(log_likelihood, rel=0, abs=1e-7)
    found_ece = calibrated_ece(probs, targets, **options)
    assert found_ece == pytest.approx(error, rel=0, abs=1e-7)
    assert calibrated_summary(probs, targets, **options) == {
        "calibrated_log_likelihood": found,
        "calibrated_ece": found_ece,
    }


def test_two_examples_are_each_scored_with_the_others_temperature() -> None:
    # The one that is right is fitted by the lowest temperature, the wrong one by the highest.
    gap = math.log(0.8 / 0.2)
    right = -math.log1p(math.exp(-gap / MAX_TEMPERATURE))
    wrong = -gap / MIN_TEMPERATURE
    value = calibrated_log_likelihood([[0.8, 0.2], [0.8, 0.2]], [0, 1])
    assert value == pytest.approx((right + wrong) / 2, rel=1e-12)


def test_many_splits_and_their_seeds_are_drawn_anew() -> None:
    probs, targets = random_case(1, 30, 3)
    values = {calibrated_log_likelihood(probs, targets, splits=1, seed=s) for s in range(4)}
    assert len(values) == 4
    assert calibrated_log_likelihood(probs, targets, splits=2) != pytest.approx(
        calibrated_log_likelihood(probs, targets, splits=1), rel=1e-6
    )


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_adaptive_ece_is_that_of_scikit_learns_quantile_bins(bins: int) -> None:
    probs, targets = random_case(2, 40 * bins, 5)
    right = probs.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(
        right, probs.max(axis=1), n_bins=bins, strategy="quantile"
    )
    expected = np.abs(accuracy - confidence).mean()
    assert adaptive_ece(probs, targets, bins=bins) == pytest.approx(expected, rel=0, abs=1e-12)


def slow_adaptive_ece(probs: Array, targets: Sequence[int], bins: int) -> float:
    """Return the error after repeating each example ``bins`` times, so that all bins are whole."""
    confidences = probs.max(axis=1).tolist()
    right = (probs.argmax(axis=1) == targets).tolist()
    pairs = []
    for c in sorted(confidences):
        tied = [r for other, r in zip(confidences, right, strict=True) if other == c]
        pairs += [sum(tied) / len(tied) - c] * bins
    size = len(targets)
    return math.fsum(abs(math.fsum(pairs[b * size : (b + 1) * size])) for b in range(bins)) / len(
        pairs
    )


@pytest.mark.parametrize("bins", [1, 3, 15])
@pytest.mark.parametrize(
    ("probs", "targets"),
    [
        random_case(3, 50, 4),
        random_case(4, 1, 3),
        random_case(5, 7, 2),
        (np.eye(3)[[0, 1, 2, 0, 1, 2, 0]], [0, 1, 2, 1, 2, 0, 0]),
        (np.tile([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], (9, 1)), [0, 1, 1] * 6),
        (np.full((6, 4), 0.25), [0, 1, 2, 3, 0, 0]),
    ],
    ids=["many", "one example", "fewer than bins", "certain", "ties", "undecided"],
)
def test_adaptive_ece_agrees_with_a_slow_loop(
    probs: Array, targets: Sequence[int], bins: int
) -> None:
    expected = slow_adaptive_ece(probs, targets, bins)
    assert adaptive_ece(probs, targets, bins=bins) == pytest.approx(expected, rel=0, abs=1e-12)


def test_adaptive_ece_does_not_depend_on_the_order_of_ties() -> None:
    probs, targets = np.tile([0.7, 0.3], (30, 1)), [0] * 15 + [1] * 15
    assert adaptive_ece(probs, targets) == pytest.approx(0.2, rel=0, abs=1e-12)


ALL: list[Callable[..., object]] = [
    adaptive_ece,
    fit_temperature,
    calibrated_log_likelihood,
    calibrated_ece,
    calibrated_summary,
]


@pytest.mark.parametrize("function", ALL)
def test_what_are_no_predictions_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(UserError, match=r"got \(2, 2\) and \(3,\)"):
        function(np.full((2, 2), 0.5), [0, 1, 0])
    with pytest.raises(UserError, match=r"N >= 1, got \(0, 2\)"):
        function(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(UserError, match=r"targets must be integers in \[0, 2\)"):
        function(np.full((2, 2), 0.5), [0, 2])
    with pytest.raises(UserError, match="from -1 to 2; apply a softmax"):
        function([[2.0, -1.0], [0.0, 0.0]], [0, 1])


@pytest.mark.parametrize("function", ALL[2:])
def test_one_example_cannot_be_split(function: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="splitting into halves needs at least 2 examples, got 1"):
        function([[0.5, 0.5]], [0])
    with pytest.raises(UserError, match="splits must be >= 1, got 0"):
        function([[0.5, 0.5]] * 2, [0, 0], splits=0)


@pytest.mark.parametrize("function", [adaptive_ece, calibrated_ece, calibrated_summary])
def test_fewer_than_one_bin_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="bins must be >= 1, got -2"):
        function([[0.5, 0.5]] * 2, [0, 0], bins=-2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(
        UserError, match=f"temperature must be finite and above 0, got {temperature}"
    ):
        scale_temperature([[0.5, 0.5]], temperature)
    with pytest.raises(UserError, match="probs must be probabilities"):
        scale_temperature([[5.0, 0.5]], 1.0)


@pytest.mark.parametrize(("count", "splits"), [(2, 1), (7, 3), (200, 5)])
def test_the_calibrated_nll_of_examples_has_the_likelihood_as_its_mean(
    count: int, splits: int
) -> None:
    probs, targets = random_case(4, count, 3)
    values = calibrated_nll_per_example(probs, targets, splits=splits, seed=2)
    assert values.shape == (count,)
    expected = -calibrated_log_likelihood(probs, targets, splits=splits, seed=2)
    assert values.mean() == pytest.approx(expected, rel=0, abs=1e-12)


def test_each_example_is_scored_at_the_other_halfs_temperature() -> None:
    probs, targets = random_case(5, 9, 3)
    order = np.random.default_rng(0).permutation(9)
    halves = order[:4], order[4:]
    values = calibrated_nll_per_example(probs, targets, splits=1)
    for fitted, scored in (halves, halves[::-1]):
        temperature = fit_temperature(probs[fitted], [targets[i] for i in fitted])
        for i in scored:
            expected = -slow_log_scaled(probs[i].tolist(), temperature)[targets[i]]
            assert values[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_examples_that_cannot_be_split_have_no_calibrated_nll() -> None:
    with pytest.raises(UserError, match="at least 2 examples, got 1"):
        calibrated_nll_per_example([[0.5, 0.5]], [0])
    with pytest.raises(UserError, match="splits must be >= 1, got 0"):
        calibrated_nll_per_example([[0.5, 0.5]] * 2, [0, 1], splits=0)
