"""Metrics against plain loops, torchmetrics, scikit-learn and values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from fge import metrics
from fge.errors import UserError

Array = NDArray[np.float64]
FLOAT32_TINY = 2.0**-126


def loop_error(probs: Array, targets: Sequence[int]) -> float:
    wrong = 0
    for row, target in zip(probs.tolist(), targets, strict=True):
        wrong += row.index(max(row)) != target
    return 100 * wrong / len(targets)


def loop_nll(probs: Array, targets: Sequence[int]) -> float:
    terms = [
        -math.log(max(row[t], FLOAT32_TINY)) for row, t in zip(probs.tolist(), targets, strict=True)
    ]
    return math.fsum(terms) / len(targets)


def loop_brier(probs: Array, targets: Sequence[int]) -> float:
    terms = [
        (p - (c == target)) ** 2
        for row, target in zip(probs.tolist(), targets, strict=True)
        for c, p in enumerate(row)
    ]
    return math.fsum(terms) / len(targets)


def loop_ece(probs: Array, targets: Sequence[int], bins: int = 15) -> float:
    total = 0.0
    for b in range(bins):
        confidences, hits = [], []
        for row, target in zip(probs.tolist(), targets, strict=True):
            if b / bins < max(row) <= (b + 1) / bins:
                confidences.append(max(row))
                hits.append(row.index(max(row)) == target)
        if hits:
            accuracy = sum(hits) / len(hits)
            confidence = math.fsum(confidences) / len(confidences)
            total += len(hits) / len(targets) * abs(accuracy - confidence)
    return total


ORACLES: list[tuple[Callable[..., float], Callable[..., float]]] = [
    (metrics.error, loop_error),
    (metrics.nll, loop_nll),
    (metrics.brier, loop_brier),
    (metrics.ece, loop_ece),
]


def random_case(seed: int, count: int, classes: int) -> tuple[Array, list[int]]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, 0.4), size=count)
    targets = [int(rng.choice(classes, p=row)) for row in probs]
    return probs, targets


CASES = {
    "many": random_case(0, 400, 10),
    "two classes": random_case(1, 150, 2),
    "one example": random_case(2, 1, 5),
    "one class": (np.ones((4, 1)), [0, 0, 0, 0]),
    "absent class": (random_case(3, 60, 4)[0], [n % 3 for n in range(60)]),
    "certain and right": (np.eye(3), [0, 1, 2]),
    "certain and wrong": (np.eye(3), [1, 2, 0]),
    "undecided": (np.full((6, 4), 0.25), [0, 1, 2, 3, 0, 0]),
    "float32": (random_case(4, 80, 6)[0].astype(np.float32).astype(np.float64), [3] * 80),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("metric", "oracle"), ORACLES, ids=["error", "nll", "brier", "ece"])
def test_metrics_agree_with_plain_loops(
    metric: Callable[..., float], oracle: Callable[..., float], case: str
) -> None:
    probs, targets = CASES[case]
    assert metric(probs, targets) == pytest.approx(oracle(probs, targets), rel=1e-12, abs=1e-12)


TIES = (np.repeat([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.1, 0.0, 0.9]], 5, axis=0), [0, 1, 2] * 5)
SOME_CERTAIN = (
    np.concatenate([np.eye(4)[[0, 1, 2, 3, 3]], random_case(6, 60, 4)[0]]),
    [0, 1, 3, 2, 3, *random_case(6, 60, 4)[1]],
)
CASES_AND_MORE = CASES | {"ties": TIES, "some certain": SOME_CERTAIN}
del CASES_AND_MORE["one class"]  # which torchmetrics refuses


@pytest.mark.parametrize("case", CASES_AND_MORE)
def test_the_error_is_that_of_torchmetrics(case: str) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy  # takes a second

    probs, targets = CASES_AND_MORE[case]
    accuracy = multiclass_accuracy(
        torch.tensor(probs), torch.tensor(targets), num_classes=probs.shape[1], average="micro"
    )
    assert metrics.error(probs, targets) == pytest.approx(100 * (1 - float(accuracy)), abs=2e-5)


@pytest.mark.parametrize("case", CASES_AND_MORE)
def test_nll_is_that_of_torch_and_scikit_learn(case: str) -> None:
    probs, targets = CASES_AND_MORE[case]
    logs = torch.tensor(probs).clamp(min=FLOAT32_TINY).log()
    value = metrics.nll(probs, targets)
    assert value == pytest.approx(float(F.nll_loss(logs, torch.tensor(targets))), abs=1e-9)
    if probs[np.arange(len(targets)), targets].min() > 1e-15:  # where scikit-learn clips
        exact = probs / probs.sum(axis=1, keepdims=True)
        expected = log_loss(targets, exact, labels=range(probs.shape[1]))
        assert metrics.nll(exact, targets) == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("case", CASES_AND_MORE)
def test_brier_is_that_of_scikit_learn(case: str) -> None:
    probs, targets = CASES_AND_MORE[case]
    exact = probs / probs.sum(axis=1, keepdims=True)
    expected = brier_score_loss(targets, exact, labels=range(probs.shape[1]), scale_by_half=False)
    assert metrics.brier(exact, targets) == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("bins", [1, 15, 20])
@pytest.mark.parametrize("case", CASES_AND_MORE)
def test_ece_is_that_of_torchmetrics(case: str, bins: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, targets = CASES_AND_MORE[case]
    # torchmetrics puts an edge into the bin above, and certainty into one of its own; just below
    # the edges both bin alike. It works in float32.
    below = torch.tensor(probs * (1 - 3e-7))
    expected = multiclass_calibration_error(
        below, torch.tensor(targets), num_classes=probs.shape[1], n_bins=bins, norm="l1"
    )
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(float(expected), abs=1e-6)


def test_reliability_is_the_calibration_curve_of_scikit_learn() -> None:
    probs, targets = CASES["many"]
    found = metrics.reliability(probs, targets, bins=10)
    right = probs.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(right, probs.max(axis=1), n_bins=10)
    filled = found.counts > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.confidence[filled], confidence, rtol=0, atol=1e-12)
    expected = np.histogram(probs.max(axis=1), bins=10, range=(0, 1))[0]
    np.testing.assert_array_equal(found.counts, expected)


def test_reliability_of_bins_without_examples_is_undefined() -> None:
    found = metrics.reliability([[0.9, 0.1], [1.0, 0.0]], [0, 1], bins=3)
    assert found.counts.tolist() == [0, 0, 2]
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, 0.95], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(found.accuracy, [np.nan, np.nan, 0.5])


@pytest.mark.parametrize("bins", [1, 15])
def test_ece_is_the_weighted_gap_of_the_reliability_diagram(bins: int) -> None:
    probs, targets = SOME_CERTAIN
    counts, confidence, accuracy = metrics.reliability(probs, targets, bins=bins)
    expected = np.nansum(counts * np.abs(accuracy - confidence)) / len(targets)
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("metric", [metrics.ece, metrics.reliability])
def test_fewer_than_one_bin_is_refused(metric: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="bins must be >= 1, got 0"):
        metric([[0.5, 0.5]], [0], bins=0)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[1.5, -0.5]], r"probs must be probabilities in \[0, 1\], got values from -0.5 to 1.5"),
        ([[-1e-9, 0.5]], "got values from -1e-09 to 0.5"),
        ([[3.0, 0.0]], "got values from 0 to 3; apply a softmax to logits"),
        ([[math.nan, 1.0]], "got values from nan to nan"),
        ([0.5, 0.5], r"probs must be \(N, C\) with N >= 1, got \(2,\)"),
        (
            np.full((2, 3, 4, 4), 1 / 3),
            r"\(2, 3, 4, 4\); of pixels .*movedim\(1, -1\).flatten\(0, -2",
        ),
        ([[0.5, 0.5], [0.9, 0.8]], "rows that sum to 1, but row 1 sums to 1.7; of independent"),
        ([[0.5, 0.5], [0.5, 0.498]], "row 1 sums to 0.998; take the softmax in float32, or divide"),
        ([[0.5, 0.5], [0.5, 0.49]], "row 1 sums to 0.99; of independent labels"),
        (np.zeros((0, 3)), r"N >= 1, got \(0, 3\)"),
        (np.zeros((2, 0)), r"N >= 1, got \(2, 0\)"),
        ([[0.3], [1.0]], r"a column per class, got \(2, 1\) .* give the columns 1 - p and p"),
    ],
)
def test_values_that_are_no_probabilities_are_refused(probs: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metrics.check_probs(probs)  # type: ignore[arg-type]


def test_probabilities_may_be_rounded_past_one_and_are_named_when_refused() -> None:
    assert metrics.check_probs(np.float32([[1 + 2e-7, 0]])).dtype == np.float64
    with pytest.raises(UserError, match="member 3 must be probabilities"):
        metrics.check_probs([[2.0]], name="member 3")


@pytest.mark.parametrize("bins", [1, 2, 7, 40])
def test_ece_agrees_with_a_plain_loop_for_other_numbers_of_bins(bins: int) -> None:
    probs, targets = CASES["many"]
    expected = loop_ece(probs, targets, bins)
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(expected, rel=0, abs=1e-12)


def binary(confidences: Sequence[float]) -> Array:
    """Return rows that favour class 0 with the given confidences."""
    return np.array([[c, 1 - c] for c in confidences])


@pytest.mark.parametrize(
    ("confidences", "targets", "expected"),
    [
        ([0.8] * 10, [0] * 6 + [1] * 4, 0.2),  # 60 % right at 80 % confidence
        ([0.8] * 10, [0] * 8 + [1] * 2, 0.0),  # calibrated
        ([1.0] * 4, [0, 0, 0, 1], 0.25),
        ([0.9, 0.9, 0.6, 0.6], [0, 1, 0, 0], 0.4),  # bins apart: 1/2 * 0.4 + 1/2 * 0.4
        ([0.61, 0.65], [0, 1], 0.13),  # one bin: |1/2 - 0.63|
    ],
)
def test_ece_in_closed_form(confidences: list[float], targets: list[int], expected: float) -> None:
    value = metrics.ece(binary(confidences), targets)
    assert value == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("edge", range(8, 15))
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(edge: int) -> None:
    at, below, above = edge / 15, edge / 15 - 0.01, edge / 15 + 0.01
    with_below = metrics.ece(binary([at, below]), [0, 1])
    assert with_below == pytest.approx(abs(1 - at - below) / 2, rel=0, abs=1e-12)
    with_above = metrics.ece(binary([at, above]), [0, 1])
    assert with_above == pytest.approx((abs(1 - at) + abs(above)) / 2, rel=0, abs=1e-12)


def test_a_certain_miss_costs_a_finite_number_of_nats() -> None:
    assert metrics.nll([[1.0, 0.0]], [1]) == pytest.approx(126 * math.log(2), rel=1e-15)
    assert metrics.brier([[1.0, 0.0]], [1]) == 2.0
    assert metrics.error([[1.0, 0.0]], [1]) == 100.0


def test_certain_hits_cost_nothing() -> None:
    assert metrics.summary(np.eye(3), [0, 1, 2]) == {
        "error": 0.0,
        "nll": 0.0,
        "brier": 0.0,
        "ece": 0.0,
    }


def test_uniform_predictions_cost_the_log_of_the_number_of_classes() -> None:
    probs = np.full((5, 10), 0.1)
    assert metrics.nll(probs, [0, 3, 5, 7, 9]) == pytest.approx(math.log(10), rel=0, abs=1e-12)
    assert metrics.brier(probs, [0, 3, 5, 7, 9]) == pytest.approx(0.9, rel=0, abs=1e-12)


def test_the_summary_holds_each_metric() -> None:
    probs, targets = CASES["many"]
    assert metrics.summary(probs, targets) == {
        "error": metrics.error(probs, targets),
        "nll": metrics.nll(probs, targets),
        "brier": metrics.brier(probs, targets),
        "ece": metrics.ece(probs, targets),
    }


def test_tensors_are_taken_and_float32_is_summed_in_float64() -> None:
    probs, targets = random_case(5, 300, 7)
    single = torch.from_numpy(probs).float()
    value = metrics.nll(single, torch.tensor(targets, dtype=torch.int32))
    assert value == pytest.approx(loop_nll(single.double().numpy(), targets), rel=1e-12)


@pytest.mark.parametrize("metric", [pair[0] for pair in ORACLES])
@pytest.mark.parametrize(
    ("probs", "targets", "message"),
    [
        ([[0.5, 0.5]], [2], r"targets must be integers in \[0, 2\), got int64 from 2 to 2"),
        ([[0.5, 0.5]], [-1], r"targets must be integers in \[0, 2\), got int64 from -1 to -1"),
        ([[0.5, 0.5]], [0.0], r"targets must be integers in \[0, 2\), got float64"),
        ([[0.5, 0.5]], ["cat"], r"targets must be integers in \[0, 2\), got <U3, such as cat"),
        ([[0.5, 0.5]], [None], r"targets must be integers in \[0, 2\), got object, such as None"),
        ([[0.5, 0.5]], [0, 1], r"probs must be \(N, C\) and targets \(N,\).*\(1, 2\) and \(2,\)"),
        ([0.5, 0.5], [0, 1], r"probs must be \(N, C\) and targets \(N,\).*\(2,\) and \(2,\)"),
        (np.zeros((0, 2)), np.zeros(0, int), r"N >= 1, got \(0, 2\) and \(0,\)"),
    ],
)
def test_shapes_and_targets_that_do_not_fit_are_refused(
    metric: Callable[..., float], probs: object, targets: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        metric(probs, targets)


@pytest.mark.parametrize(
    "metric",
    [
        *(pair[0] for pair in ORACLES),
        metrics.nll_per_example,
        metrics.reliability,
        metrics.summary,
    ],
)
@pytest.mark.parametrize(
    ("row", "found"),
    [([math.nan, 1.0], "nan to nan"), ([4.0, -1.0], "-1 to 4"), ([math.inf, 0.0], "0 to inf")],
)
def test_every_metric_refuses_what_is_no_probability(
    metric: Callable[..., object], row: list[float], found: str
) -> None:
    with pytest.raises(UserError, match=rf"must be probabilities in \[0, 1\], .* from {found}; "):
        metric([[0.5, 0.5], row], [1, 0])


def test_the_nll_is_the_mean_over_examples() -> None:
    probs, targets = [[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]], [0, 1, 0]
    values = metrics.nll_per_example(probs, targets)
    np.testing.assert_allclose(values, [math.log(2), math.log(4 / 3), 0], rtol=1e-15, atol=0)
    assert metrics.nll(probs, targets) == values.mean()


GIVEN: dict[str, Callable[[torch.Tensor], object]] = {
    "bfloat16": lambda values: values.bfloat16(),
    "float16": lambda values: values.half(),
    "with a graph": lambda values: values.clone().requires_grad_() * 1,
    "bfloat16 rows": lambda values: [*values.bfloat16().requires_grad_()],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_tensors_of_any_kind_are_measured(given: Callable[[torch.Tensor], object]) -> None:
    values = torch.tensor([[0.75, 0.25], [0.125, 0.875], [0.5, 0.5]])  # exact in 8 bits
    probs: Any = given(values)
    y, plain = torch.tensor([0, 0, 1]), values.numpy()
    expected = float(F.nll_loss(values.double().log(), y))
    assert metrics.nll(probs, y) == pytest.approx(expected, rel=1e-12)
    assert metrics.summary(probs, y) == metrics.summary(plain, y)
    labels = torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert metrics.labels_nll_per_example(probs, labels).mean() == pytest.approx(
        2 * float(F.binary_cross_entropy(values.double(), labels.double())), rel=1e-12
    )
    assert np.array_equal(metrics.entropy(probs), metrics.entropy(plain))
    noise = torch.tensor([0.5, 2.0])
    each = F.gaussian_nll_loss(
        values, 1 - values, noise.expand(3, 2), full=True, reduction="none"
    ).sum(1)
    found = metrics.gaussian_nll_per_example(probs, 1 - values, given(noise))  # type: ignore[arg-type]
    assert found == pytest.approx(each.numpy(), rel=1e-6)
    assert metrics.uncertainty([probs, probs])["mutual_information"].max() < 1e-12


def test_rows_of_bfloat16_are_told_apart_from_labels() -> None:
    logits = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0))
    probs = (3 * logits).softmax(1).bfloat16()
    with pytest.raises(UserError, match="take the softmax in float32, or divide each row by its s"):
        metrics.check_probs(probs)
    rows = probs.float() / probs.float().sum(1, keepdim=True)
    assert np.array_equal(metrics.check_probs(rows), rows.double().numpy())
