"""Bootstrap intervals against exact distributions and the normal theory of large samples."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t as scipy_t

from fge import metrics
from fge.errors import UserError
from fge.metrics import Interval, intervals, paired_difference, paired_difference_over_seeds

Array = NDArray[np.float64]


def random_probs(count: int, seed: int, classes: int = 4) -> Array:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.6), size=count)


def random_targets(count: int, classes: int = 4) -> NDArray[np.int64]:
    return np.random.default_rng(99).integers(0, classes, count)


def right_or_wrong(*right: bool) -> Array:
    """Return certain predictions of class 0 where right, of class 1 elsewhere."""
    return np.array([[1.0, 0.0] if r else [0.0, 1.0] for r in right])


def loop_values(probs: Array, targets: NDArray[np.int64], metric: str) -> list[float]:
    rows = zip(probs.tolist(), targets.tolist(), strict=True)
    if metric == "error":
        return [100.0 * (row.index(max(row)) != target) for row, target in rows]
    return [-math.log(row[target]) for row, target in rows]


@pytest.mark.parametrize("metric", ["error", "nll"])
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_the_interval_of_many_examples_is_that_of_normal_theory(metric: Any, level: float) -> None:
    count, targets = 3000, random_targets(3000)
    a, b = random_probs(count, 0), random_probs(count, 1)
    found = paired_difference(a, b, targets, metric, draws=8000, level=level)
    values = np.subtract(loop_values(a, targets, metric), loop_values(b, targets, metric))
    deviation = values.std() / math.sqrt(count)
    width = NormalDist().inv_cdf((1 + level) / 2) * deviation
    assert found.difference == pytest.approx(values.mean(), rel=1e-9)
    # An end of the interval is a quantile of 8000 draws: its own deviation is 0.03 of theirs
    # at 95 %; what is left is the skewness of the values, of order 1 / sqrt(count).
    assert found.low == pytest.approx(values.mean() - width, rel=0, abs=0.15 * deviation)
    assert found.high == pytest.approx(values.mean() + width, rel=0, abs=0.15 * deviation)


def test_examples_on_which_both_agree_add_no_width() -> None:
    a = right_or_wrong(*[n % 2 == 0 for n in range(2000)])
    b = a.copy()
    b[1] = a[0]  # A alone is wrong on one example, both are on 999
    found = paired_difference(a, b, np.zeros(2000, int))
    # How often the one is drawn is Poisson of mean 1, whose middle 95 % end at 0 and 3 of 2000.
    assert found == pytest.approx((0.05, 0.0, 0.15), rel=0, abs=1e-12)


@pytest.mark.parametrize("metric", ["error", "nll"])
def test_identical_predictions_differ_by_exactly_nothing(metric: Any) -> None:
    probs, targets = random_probs(500, 0), random_targets(500)
    assert paired_difference(probs, probs.copy(), targets, metric) == (0.0, 0.0, 0.0)


def test_a_difference_that_all_examples_share_is_certain() -> None:
    a, b = np.tile([0.5, 0.5], (40, 1)), np.tile([0.25, 0.75], (40, 1))
    found = paired_difference(a, b, np.zeros(40, int), "nll")
    assert found == pytest.approx([-math.log(2)] * 3, rel=1e-12)
    all_wrong = paired_difference(
        right_or_wrong(*[False] * 9), right_or_wrong(*[True] * 9), np.zeros(9, int)
    )
    assert all_wrong == (100.0, 100.0, 100.0)


def test_two_examples_have_the_binomial_distribution() -> None:
    a, b = right_or_wrong(False, True), right_or_wrong(True, True)
    # The mean of two draws from (100, 0) is 0, 50, 100 with probabilities 1/4, 1/2, 1/4.
    targets = np.zeros(2, int)
    assert paired_difference(a, b, targets, level=0.4) == (50.0, 50.0, 50.0)
    assert paired_difference(a, b, targets, level=0.6) == (50.0, 0.0, 100.0)


def test_one_example_has_an_interval_of_one_point() -> None:
    a, b = np.array([[0.8, 0.2]]), np.array([[0.4, 0.6]])
    found = paired_difference(a, b, [0], "nll")
    assert found == pytest.approx([-math.log(2)] * 3, rel=1e-12)


@pytest.mark.parametrize("metric", ["error", "nll"])
def test_the_difference_is_that_of_the_metrics_and_changes_sign_with_the_order(metric: Any) -> None:
    a, b, targets = random_probs(300, 2), random_probs(300, 3), random_targets(300)
    forth = paired_difference(a, b, targets, metric)
    back = paired_difference(b, a, targets, metric)
    of = {"error": metrics.error, "nll": metrics.nll}[metric]
    assert forth.difference == of(a, targets) - of(b, targets)
    assert (-back.difference, -back.high, -back.low) == pytest.approx(forth, rel=0, abs=1e-12)
    assert forth.low < forth.difference < forth.high


def test_the_seed_decides_and_the_level_widens() -> None:
    a, b, targets = random_probs(300, 2), random_probs(300, 3), random_targets(300)
    one = paired_difference(a, b, targets, "nll", seed=1)
    assert isinstance(one, Interval)
    assert one == paired_difference(a, b, targets, "nll", seed=1)
    assert one != paired_difference(a, b, targets, "nll", seed=2)
    wide = paired_difference(a, b, targets, "nll", seed=1, level=0.99)
    assert wide.low < one.low < one.high < wide.high


def test_a_single_draw_is_an_interval_of_one_point() -> None:
    a, b, targets = random_probs(50, 2), random_probs(50, 3), random_targets(50)
    found = paired_difference(a, b, targets, "nll", draws=1)
    assert found.low == found.high != found.difference


@pytest.mark.parametrize("at_once", [1, 250, 999])
def test_resampling_in_parts_fills_every_draw(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", at_once)
    a, b, targets = random_probs(100, 2), random_probs(100, 3), random_targets(100)
    values = np.subtract(loop_values(a, targets, "nll"), loop_values(b, targets, "nll"))
    means = intervals._resampled_means(values, 801, 0)
    deviation = values.std() / 10
    assert abs(means.mean() - values.mean()) < 5 * deviation / math.sqrt(801)
    assert means.std() == pytest.approx(deviation, rel=0.15)
    assert len(np.unique(means)) == 801


def test_tensors_are_taken_and_certain_misses_cost_a_finite_number_of_nats() -> None:
    a, b = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 3)
    found = paired_difference(a, b, torch.ones(3, dtype=torch.int64), "nll")
    assert found == pytest.approx([126 * math.log(2)] * 3, rel=1e-12)


def test_memory_stays_small() -> None:
    count = 10_000
    a, b, targets = random_probs(count, 0, 10), random_probs(count, 1, 10), random_targets(count)
    tracemalloc.start()
    try:
        paired_difference(a, b, targets, "nll", draws=300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6


PROBS, TARGETS = random_probs(6, 0), random_targets(6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "eror"}, "unknown metric 'eror'; did you mean 'error'"),
        ({"draws": 0}, "draws must be >= 1, got 0"),
        ({"level": 0.0}, r"level must be in \(0, 1\), got 0.0"),
        ({"level": 95}, r"level must be in \(0, 1\), got 95"),
        ({"level": math.nan}, r"level must be in \(0, 1\), got nan"),
        ({"b_probs": PROBS[:5]}, r"a_probs and b_probs must have one shape, got \(6, 4\) and"),
        ({"b_probs": np.full((6, 4), np.nan)}, "b_probs holds values that are not finite"),
        ({"a_probs": np.full((6, 4), np.inf)}, "a_probs holds values that are not finite"),
        ({"targets": TARGETS[:5]}, r"probs must be \(N, C\) and targets \(N,\)"),
        ({"targets": TARGETS + 4}, r"targets must be integers in \[0, 4\)"),
        ({"targets": TARGETS / 2}, r"targets must be integers in \[0, 4\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], message: str) -> None:
    options = {"a_probs": PROBS, "b_probs": PROBS, "targets": TARGETS} | change
    with pytest.raises(UserError, match=f"^{message}"):
        paired_difference(**options)


def crossed(seeds: int, examples: int, deviations: tuple[float, float, float], rng: Any) -> Array:
    """Return effects of seeds, of examples and of one seed on one example, of mean 0, summed."""
    of_seeds, of_examples, of_both = deviations
    values: Array = of_seeds * rng.normal(size=(seeds, 1)) + of_examples * rng.normal(size=examples)
    values += of_both * rng.normal(size=(seeds, examples))
    return values


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "deviations",
    [(1.0, 0.0, 0.01), (0.1, 0.0, 1.0), (0.0, 0.0, 1.0), (0.1, 1.0, 1.0), (0.0, 1.0, 0.1)],
    ids=["seeds", "seeds and residuals", "residuals", "all", "examples"],
)
def test_intervals_over_seeds_hold_the_true_mean_as_often_as_they_say(
    seeds: int, deviations: tuple[float, float, float]
) -> None:
    rng, held, repeats = np.random.default_rng(7), 0, 500
    for _ in range(repeats):
        values = 3.0 + crossed(seeds, 100, deviations, rng)
        found = paired_difference_over_seeds(values, np.zeros_like(values), draws=500)
        held += found.low <= 3.0 <= found.high
    # The deviation of a share of 500 near 95 % is 1 point.
    assert 92 <= 100 * held / repeats <= 99


def test_without_the_factor_an_interval_of_three_seeds_would_miss_too_often() -> None:
    """The reason for the factor: plain percentiles of three seeds hold the mean in 70 to 85 %."""
    rng, held, repeats = np.random.default_rng(8), 0, 500
    for _ in range(repeats):
        means = intervals._resampled_means(rng.normal(size=3), 500, 0)
        low, high = np.quantile(means, [0.025, 0.975])
        held += low <= 0 <= high
    assert 65 <= 100 * held / repeats <= 88


def test_many_seeds_and_no_residuals_give_the_interval_of_normal_theory() -> None:
    rng = np.random.default_rng(3)
    values = crossed(400, 500, (1.0, 1.0, 0.0), rng)
    found = paired_difference_over_seeds(values, np.zeros_like(values), draws=8000)
    variance = values.mean(axis=1).var() / 400 + values.mean(axis=0).var() / 500
    assert found.difference == pytest.approx(values.mean(), rel=0, abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.04)


def test_residuals_count_once() -> None:
    """Where seeds and examples have no effect of their own, the mean has the residuals' error."""
    values = crossed(60, 3000, (0.0, 0.0, 1.0), np.random.default_rng(3))
    found = paired_difference_over_seeds(values, np.zeros_like(values), draws=8000)
    once = 2 * 1.96 * values.std() / math.sqrt(values.size)
    # Twice would be 1.41 as wide; the variance of 60 seeds is known to 18 %.
    assert found.high - found.low == pytest.approx(once, rel=0.15)


def test_seeds_that_agree_leave_the_examples_uncertainty() -> None:
    a = np.tile([0.0, 0.0, 100.0, 0.0], (3, 400))
    found = paired_difference_over_seeds(a, np.zeros_like(a))
    deviation = 100 * math.sqrt(0.25 * 0.75 / 1600)
    assert found.difference == 25.0
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.06)


def test_seeds_of_one_mean_by_chance_do_not_make_a_difference_certain() -> None:
    """Both seeds gain one image, each another one: the difference of 50 points is not sure."""
    a, b = np.zeros((2, 4)), np.array([[100.0, 0.0, 100.0, 0.0], [0.0, 100.0, 0.0, 100.0]])
    a[:, 0] = 100.0
    found = paired_difference_over_seeds(a, b)
    assert found.difference == -25.0
    assert found.low < -40 < -10 < found.high


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_a_single_example_gives_the_expanded_percentiles_of_the_seeds(seeds: int) -> None:
    values = np.random.default_rng(5).normal(size=(seeds, 1))
    found = paired_difference_over_seeds(values, np.zeros_like(values), draws=20_000)
    means = np.array(list(itertools.product(values[:, 0], repeat=seeds))).mean(axis=1)
    ends = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    low, high = ends - values.mean()
    factor = math.sqrt(seeds / (seeds - 1)) * scipy_t.ppf(0.975, seeds - 1) / 1.959964
    width = factor * (high - low)
    assert found.low - values.mean() == pytest.approx(factor * low, rel=0, abs=0.03 * width)
    assert found.high - values.mean() == pytest.approx(factor * high, rel=0, abs=0.03 * width)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "pooled"), [(5, 2), (5, 3)])
def test_rows_that_share_runs_are_not_taken_for_independent(seeds: int, pooled: int) -> None:
    rng, held, naive, repeats = np.random.default_rng(9), 0, 0, 500
    for _ in range(repeats):
        runs = crossed(seeds, 100, (0.2, 0.3, 1.0), rng)
        values = np.mean([np.roll(runs, -k, axis=0) for k in range(pooled)], axis=0)
        zeros = np.zeros_like(values)
        found = paired_difference_over_seeds(values, zeros, pooled=pooled, draws=500)
        held += found.low <= 0 <= found.high
        found = paired_difference_over_seeds(values, zeros, draws=500)
        naive += found.low <= 0 <= found.high
    assert 93 <= 100 * held / repeats <= 99.5
    assert naive < held


def test_the_spectrum_of_pools_by_hand() -> None:
    # Means of 2 of 4 going round: 1, i at j = 1: |1 - i|^2 / 4; 1, -1 at j = 2.
    np.testing.assert_allclose(intervals._pooled_spectrum(4, 2), [0.5, 0, 0.5], atol=1e-15)
    np.testing.assert_allclose(intervals._pooled_spectrum(4, 1), [1, 1, 1], atol=1e-15)


def test_a_difference_that_seeds_and_examples_share_is_certain() -> None:
    a = np.full((4, 30), 0.75)
    assert paired_difference_over_seeds(a, a - 0.5) == (0.5, 0.5, 0.5)


def test_over_seeds_too_the_order_changes_the_sign_and_the_level_widens() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(12, 200)), rng.normal(size=(12, 200))
    forth, back = paired_difference_over_seeds(a, b), paired_difference_over_seeds(b, a)
    assert (-back.difference, -back.high, -back.low) == pytest.approx(forth, rel=0, abs=1e-12)
    assert forth == paired_difference_over_seeds(a, b, seed=0)
    assert forth != paired_difference_over_seeds(a, b, seed=1)
    wide = paired_difference_over_seeds(a, b, level=0.99)
    assert wide.low < forth.low < forth.difference < forth.high < wide.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": np.zeros((1, 3)), "b": np.zeros((1, 3))},
            "an interval over seeds needs at least 2 seeds, got",
        ),
        ({"a": np.zeros((2, 4))}, r"a and b must have one shape \(S, N\) with N >= 1, got \(2, 4"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, r"a and b must have one shape \(S, N\)"),
        ({"a": np.zeros((2, 0)), "b": np.zeros((2, 0))}, r"a and b must have one shape"),
        ({"b": np.full((2, 3), np.nan)}, "b holds values that are not finite"),
        ({"pooled": 2}, r"pooled must be in \[1, 1\] for 2 seeds, got 2"),
        ({"pooled": 0}, r"pooled must be in \[1, 1\] for 2 seeds, got 0"),
        ({"draws": 0}, "draws must be >= 1, got 0"),
        ({"level": 1.0}, r"level must be in \(0, 1\), got 1.0"),
    ],
)
def test_seeds_that_cannot_be_compared_are_refused(change: dict[str, Any], message: str) -> None:
    options = {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))} | change
    with pytest.raises(UserError, match=f"^{message}"):
        paired_difference_over_seeds(**options)


def test_the_interval_of_values_is_that_of_the_metric_which_is_their_mean() -> None:
    targets, sides = random_targets(300), [random_probs(300, seed) for seed in (0, 1)]
    for metric in ("error", "nll"):
        expected = paired_difference(*sides, targets, metric, draws=200, seed=3, level=0.8)
        values = [np.array(loop_values(probs, targets, metric)) for probs in sides]
        found = metrics.paired_difference_of_values(*values, draws=200, seed=3, level=0.8)
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1.0], [1.0, 2.0], {}, r"one shape \(N,\) with N >= 1, got \(1,\) and \(2,\)"),
        ([[1.0]], [[1.0]], {}, "one shape"),
        ([], [], {}, "one shape"),
        ([1.0, math.inf], [0.0, 1.0], {}, "not finite"),
        ([1.0], [1.0], {"draws": 0}, "draws"),
        ([1.0], [1.0], {"level": 1.0}, "level"),
    ],
)
def test_values_that_have_no_interval_are_refused(
    a: Any, b: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        metrics.paired_difference_of_values(a, b, **options)
