"""Rank correlations of the study of sharpness against scipy's, its cache and its words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from fge.config import RunConfig
from fge.files import append_record

sys.path.insert(0, str(ROOT / "benchmarks"))
import sharpness_prediction as study  # type: ignore[import-not-found, unused-ignore]


def pairs(count: int, rho: float, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(count)


@pytest.mark.parametrize("count", [3, 10, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_the_correlation_is_scipys(count: int, ties: bool) -> None:
    for seed in range(5):
        x, y = pairs(count, 0.6, seed)
        if ties:
            x, y = np.round(x), np.round(2 * y)
        expected = stats.spearmanr(x, y).statistic
        assert study.correlation(x, y) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_monotone_maps_do_not_matter_and_reversal_changes_the_sign() -> None:
    x, y = pairs(12, 0.5)
    rho = study.correlation(x, y)
    assert study.correlation(np.exp(x), y**3) == pytest.approx(rho, abs=1e-12)
    assert study.correlation(-x, y) == pytest.approx(-rho, abs=1e-12)
    assert study.correlation(x, x) == pytest.approx(1, abs=1e-12)


def test_a_constant_has_no_correlation() -> None:
    assert np.isnan(study.correlation([1, 1, 1], [1, 2, 3]))
    assert np.isnan(study.interval([1, 1, 1], [1, 2, 3])).all()


@pytest.mark.slow
def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    x, y = pairs(25, 0.6)
    low, high = study.interval(x, y, draws=4000)
    oracle = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Quantiles of 4,000 and 2,000 resamplings: they agree to about .02.
    assert low == pytest.approx(oracle.low, abs=0.03)
    assert high == pytest.approx(oracle.high, abs=0.03)


@pytest.mark.slow
def test_the_interval_holds_resampled_correlations_by_its_level() -> None:
    x, y = pairs(15, 0.3)
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(2000):
        chosen = rng.integers(0, 15, 15)
        drawn.append(stats.spearmanr(x[chosen], y[chosen]).statistic)
    low, high = study.interval(x, y, level=0.8)
    assert np.mean(np.array(drawn) < low) == pytest.approx(0.1, abs=0.03)
    assert np.mean(np.array(drawn) > high) == pytest.approx(0.1, abs=0.03)


def test_resamplings_without_a_correlation_are_left_out() -> None:
    low, high = study.interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], draws=500)
    assert [low, high] == pytest.approx([1, 1])


def test_runs_of_one_group_do_not_count_as_independent() -> None:
    x, y = pairs(20, 0.5)
    names = [f"way {k}" for k in range(20)]
    # A pair that is there twice, or three times, tells no more than once.
    for times in (2, 3):
        again = [np.tile(values, times) for values in (x, y)]
        found = study.interval(*again, names * times, draws=500)
        assert found == pytest.approx(study.interval(x, y, draws=500), abs=1e-12)
        low, high = study.interval(*again, draws=500)
        assert high - low < 0.8 * (found[1] - found[0])


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_groups_of_different_sizes_are_drawn_whole() -> None:
    x, y = pairs(9, 0.4)
    names = list("aabcccdde")
    rng, drawn = np.random.default_rng(3), []
    for row in rng.integers(0, 5, (300, 5)):
        chosen = [i for group in row for i, name in enumerate(names) if name == "abcde"[group]]
        drawn.append(stats.spearmanr(x[chosen], y[chosen]).statistic)
    expected = np.nanquantile(drawn, [0.025, 0.975])
    found = study.interval(x, y, names, draws=300, seed=3)
    assert found == pytest.approx(tuple(expected), abs=1e-9)


def test_the_seed_decides_the_interval() -> None:
    x, y = pairs(10, 0.3)
    assert study.interval(x, y, seed=1) == study.interval(x, y, seed=1)
    assert study.interval(x, y, seed=1) != study.interval(x, y, seed=2)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(16, [2, 3, 8, 16]), (20, [2, 4, 10, 20]), (2, [1, 1, 1, 2])]
)
def test_measurements_are_at_parts_of_the_training(epochs: int, expected: list[int]) -> None:
    assert list(study.measuring_epochs(epochs).values()) == expected


def run_of(seed: int, eigenvalues: list[float], **figures: float) -> dict[str, Any]:
    losses = {"train_loss": 0.5, "train_error": 10.0, "test_loss": 0.75, "test_error": 14.0}
    parts = dict(zip(study.PARTS, eigenvalues, strict=True))
    return {**study.key_of("G", seed, 16, 3000), "eigenvalues": parts, **losses, **figures}


def test_gaps_are_test_less_training() -> None:
    found = study.columns([run_of(0, [1, 2, 3, 4])])
    assert found["gap_loss"] == [0.25]
    assert found["gap_error"] == [4.0]
    assert found["last"] == found["100 %"] == [4]
    assert found["test_error"] == [14.0]


def test_each_part_is_correlated_with_each_target() -> None:
    runs = [run_of(k, [k, k, -k, k], test_error=float(k % 5)) for k in range(10)]
    rows = {(r["part"], r["target"]): r for r in study.correlations(runs)}
    assert len(rows) == 4 * 4 - 1
    assert rows["10 %", "last"]["rho"] == pytest.approx(1)
    assert rows["50 %", "last"]["rho"] == pytest.approx(-1)
    expected = stats.spearmanr(range(10), [k % 5 for k in range(10)]).statistic
    for part in ("10 %", "100 %"):
        assert rows[part, "test_error"]["rho"] == pytest.approx(expected)


def test_the_verdict_claims_only_what_an_interval_allows() -> None:
    rows = [
        {"part": part, "target": target, "rho": 0.5, "low": -0.1, "high": 0.8}
        for part in study.PARTS
        for target in study.TARGETS
        if (part, target) != ("100 %", "last")
    ]
    rows[0] |= {"low": 0.2}
    rows[-1] |= {"low": 0.3}  # of the last eigenvalue, which foretells nothing
    text = study.verdict(rows)
    assert (
        "something of the last eigenvalue from 10 % (+0.50, +0.20 to +0.80): sharper early" in text
    )
    for name in ("test error", "gap of the loss", "gap of the error"):
        assert f"It does not foretell {name}: every interval holds 0." in text


@pytest.mark.parametrize(
    ("variant", "lr", "batch", "schedule"),
    [
        ("lr=0.02 batch=512", 0.02, 512, "endpoint"),
        ("lr=0.2 batch=32", 0.2, 32, "endpoint"),
        ("G", 0.05, 100, "step"),
        ("A", 0.05, 500, "step"),
        ("C", 0.05, 100, "linear"),
    ],
)
def test_variants_are_what_their_names_say(
    variant: str, lr: float, batch: int, schedule: str
) -> None:
    found = study.recipe_of(variant, RunConfig())
    assert (found.lr, found.batch_size, found.schedule) == (lr, batch, schedule)
    assert variant in study.VARIANTS


@pytest.mark.slow
def test_a_rerun_fills_gaps_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int, int, int]] = []

    def fill(jobs: list[tuple[str, int, int, int]], _: int, results: Path) -> None:
        asked.extend(jobs)
        for variant, seed, epochs, size in jobs:
            key = study.key_of(variant, seed, epochs, size)
            append_record(results, {**run_of(seed, [1 + seed, 2, 3, 4 + seed]), **key})

    monkeypatch.setattr(study, "fill", fill)
    file = str(tmp_path / "found.json")
    for seeds in (["0", "1"], ["0", "1", "2", "3"], ["0", "1", "2", "3"]):
        monkeypatch.setattr(
            sys, "argv", ["x", "--results", file, "--variants", *"GABC", "--seeds", *seeds]
        )
        study.main()
    assert sorted((variant, seed) for variant, seed, _, _ in asked) == sorted(
        (variant, seed) for variant in "GABC" for seed in range(4)
    )
    out = capsys.readouterr().out
    assert "All ways to train, 16 runs in 4 ways" in out
    assert "Learning rates and batches alone: 0 ways to train are too few" in out
