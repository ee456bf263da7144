"""Metrics of random probabilities against scikit-learn's and torchmetrics'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import (
    brier_score_loss,
    hamming_loss,
    log_loss,
    matthews_corrcoef,
    roc_auc_score,
    zero_one_loss,
)
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_calibration_error,
)

from fge import metrics

pytestmark = pytest.mark.slow

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
SHAPES = [(1, 2), (7, 3), (50, 2), (300, 10), (1000, 100)]
"""Examples and classes."""
SPREADS = [0.05, 0.5, 5.0]
"""Of Dirichlet distributions: predictions near certainty, usual ones, and near indifference."""
CASES = [(*shape, spread) for shape in SHAPES for spread in SPREADS]


def drawn(count: int, classes: int, spread: float) -> tuple[Array, Labels]:
    """Return probabilities (N, C), of which no target is 0, and targets that they half explain."""
    rng = np.random.default_rng([count, classes, round(100 * spread)])
    probs = rng.dirichlet(np.full(classes, spread), size=count) + 1e-6
    probs /= probs.sum(axis=1, keepdims=True)
    informed = np.array([rng.choice(classes, p=row) for row in probs])
    guesses = rng.integers(0, classes, count)
    return probs, np.where(rng.random(count) < 0.5, informed, guesses)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_scikit_learn(case: tuple[int, int, float]) -> None:
    probs, targets = drawn(*case)
    classes = range(probs.shape[1])
    wrong = zero_one_loss(targets, probs.argmax(axis=1))
    assert metrics.error(probs, targets) == pytest.approx(100 * wrong, rel=1e-12)
    expected = log_loss(targets, probs, labels=classes)
    assert metrics.nll(probs, targets) == pytest.approx(expected, rel=1e-12)
    each = [
        log_loss([t], p[None], labels=classes) for p, t in zip(probs[:20], targets, strict=False)
    ]
    np.testing.assert_allclose(metrics.nll_per_example(probs, targets)[:20], each, rtol=1e-12)
    brier = brier_score_loss(targets, probs, labels=classes, scale_by_half=False)
    assert metrics.brier(probs, targets) == pytest.approx(brier, rel=1e-12)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("case", CASES)
def test_ece_and_accuracy_are_those_of_torchmetrics(
    case: tuple[int, int, float], bins: int
) -> None:
    probs, targets = drawn(*case)
    p, y = torch.tensor(probs), torch.tensor(targets)
    options: dict[str, Any] = {"num_classes": probs.shape[1]}
    expected = multiclass_calibration_error(p, y, n_bins=bins, norm="l1", **options)
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(float(expected), abs=2e-6)
    right = multiclass_accuracy(p, y, average="micro", **options)
    assert metrics.error(probs, targets) == pytest.approx(100 * (1 - float(right)), abs=1e-4)
    # The same by another of its functions: whether the prediction is right is a binary target.
    confidence = p.max(dim=1).values
    binary = binary_calibration_error(confidence, (p.argmax(dim=1) == y).int(), bins, norm="l1")
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(float(binary), abs=2e-6)


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("case", CASES)
def test_reliability_is_the_calibration_curve_of_scikit_learn(
    case: tuple[int, int, float], bins: int
) -> None:
    probs, targets = drawn(*case)
    found = metrics.reliability(probs, targets, bins=bins)
    right = probs.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(right, probs.max(axis=1), n_bins=bins)
    filled = found.counts > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy, rtol=1e-12)
    np.testing.assert_allclose(found.confidence[filled], confidence, rtol=1e-12)
    gap = np.abs(accuracy - confidence) @ found.counts[filled] / len(targets)
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(gap, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_aurocs_are_those_of_scikit_learn_and_torchmetrics(
    case: tuple[int, int, float], rounded: bool
) -> None:
    """Rounded probabilities have many ties, half of which count."""
    inside, outside = drawn(*case)[0], drawn(case[0] + 5, case[1], 2 * case[2])[0]
    if rounded:
        inside, outside = (_rounded(p) for p in (inside, outside))
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    doubt = np.concatenate([1 - inside.max(axis=1), 1 - outside.max(axis=1)])
    found = metrics.ood_auroc(inside, outside)["max_probability"]
    assert found == pytest.approx(roc_auc_score(labels, doubt), rel=1e-9)
    with_torch = binary_auroc(torch.tensor(doubt), torch.tensor(labels))
    assert found == pytest.approx(float(with_torch), abs=1e-5)
    assert metrics.auroc(doubt[labels == 0], doubt[labels == 1]) == pytest.approx(found, rel=1e-9)


def _rounded(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return tenths that sum to 1: what rounding leaves over goes to the first class."""
    tenths = np.floor(10 * probs.clip(0, 1)).astype(int)
    tenths[:, 0] += 10 - tenths.sum(axis=1)
    return tenths / 10


@pytest.mark.parametrize("case", CASES)
def test_members_differ_as_scikit_learn_says(case: tuple[int, int, float]) -> None:
    """The error correlation of two members is Matthews' of their errors."""
    probs, targets = drawn(*case)
    other = np.roll(probs, 1, axis=0) if len(probs) > 1 else probs[:, ::-1]
    first, second = probs.argmax(axis=1), other.argmax(axis=1)
    found = metrics.disagreement([probs, other])
    assert found == pytest.approx(100 * hamming_loss(first, second), rel=1e-12)
    wrong = first != targets, second != targets
    if all(0 < each.mean() < 1 for each in wrong):
        correlation = metrics.error_correlation([probs, other], targets)
        assert correlation == pytest.approx(matthews_corrcoef(*wrong), rel=0, abs=1e-12)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose logits are its inputs."""

    def __init__(self, classes: int = 2) -> None:
        self.classes = classes

    def fit(self, *_: Array) -> Given:
        self.classes_ = np.arange(self.classes)
        return self

    def decision_function(self, x: Array) -> Array:
        return x

    def predict(self, x: Array) -> Labels:
        classes: Labels = x.argmax(axis=1)
        return classes


@pytest.mark.parametrize("power", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [3, 10])
def test_temperatures_are_those_of_scikit_learn(classes: int, power: float) -> None:
    probs, targets = drawn(400, classes, 1.0)
    targets[:classes] = range(classes)  # it needs an example of each
    probs = probs**power / (probs**power).sum(axis=1, keepdims=True)
    given = FrozenEstimator(Given(classes).fit(probs, targets))
    scaler = CalibratedClassifierCV(given, method="temperature", ensemble=False)
    scaler.fit(np.log(probs), targets)
    expected = scaler.predict_proba(np.log(probs))
    temperature = metrics.fit_temperature(probs, targets)
    assert abs(temperature - 1) > 0.05  # there is something to find
    np.testing.assert_allclose(metrics.scale_temperature(probs, temperature), expected, atol=1e-5)
    scaled = metrics.tempered_nll_per_example(probs, targets).mean()
    assert scaled <= log_loss(targets, expected, labels=range(classes)) + 1e-12
