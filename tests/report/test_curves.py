"""From records along curves to tables and sentences, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fge.report import (
    MethodResult,
    PairResult,
    connection_verdict,
    pair_result,
    pair_verdict,
    pairs_table,
    path_table,
    strategy_table,
)

GEOMETRY = {"distance": 5.0, "angle": 60.0, "length": 8.0}


def records(values: list[float], arc: list[float]) -> list[dict[str, float]]:
    """Records at evenly spaced t: the loss is a hundredth of the error."""
    keys = ("train_error", "test_error")
    losses = ("train_loss", "test_loss", "test_nll")
    return [
        {"t": k / (len(values) - 1), "arc": arc[k]}
        | dict.fromkeys(keys, value)
        | dict.fromkeys(losses, value / 100)
        for k, value in enumerate(values)
    ]


def pair(name: str = "a--b") -> PairResult:
    """A segment that rises to 40 % between 10 and 20 %, and a curve that rises to 16 %."""
    paths = {
        "segment": records([10.0, 40.0, 20.0], [0.0, 2.5, 5.0]),
        "curve": records([10.0, 16.0, 20.0], [0.0, 2.0, 8.0]),
    }
    return pair_result(name, GEOMETRY, paths, fit_epochs=3)


def line(name: str, members: int, error: float, nll: float, epochs: int) -> MethodResult:
    return MethodResult(name, members, epochs, members, 40 * members, error, nll, 0.2, 0.1, ())


def lines(**changes: Any) -> list[MethodResult]:
    curve = replace(line("curve", 5, 8.0, 0.3, 23), **changes)
    return [
        line("network-1", 1, 10.0, 0.4, 10),
        line("network-2", 1, 20.0, 0.5, 10),
        line("ends", 2, 9.5, 0.35, 20),
        curve,
    ]


def test_a_pair_has_the_barriers_means_and_bounds_of_its_paths() -> None:
    found = pair()
    assert found.barrier("segment") == 40 - 15
    assert found.barrier("curve") == 1.0
    assert found.barrier("segment", "train_loss") == pytest.approx(0.25, abs=1e-15)
    loss = found.summaries["curve"]["train_loss"]
    # The trapezoid rule over t, and over chords of 2 and 6.
    assert loss["mean"] == pytest.approx((0.13 + 0.18) / 2, abs=1e-15)
    assert loss["arc_mean"] == pytest.approx((0.13 * 2 + 0.18 * 6) / 8, abs=1e-15)
    assert found.bounds["curve"] == {"lowest": 0.1, "mean": loss["mean"]}
    assert (found.distance, found.angle, found.length, found.fit_epochs) == (5.0, 60.0, 8.0, 3)
    assert found.as_json()["summaries"] == found.summaries


def test_a_pair_s_table_has_a_line_for_each_path() -> None:
    table = path_table(pair())
    assert table.title == "Between the networks a--b"
    assert all(len(row) == len(table.headings) for row in table.rows)
    segment = ["0.1000", "0.4000", "0.2750", "0.2750", "0.2500", "10.00", "40.00", "25.00"]
    curve = ["0.1000", "0.2000", "0.1550", "0.1675", "0.0100", "10.00", "20.00", "1.00"]
    assert table.rows == [["segment", "5.0", *segment], ["curve", "8.0", *curve]]
    assert (
        "distance of the networks is 5.0, the angle between their weights 60.0 degrees"
        in table.note
    )


def test_a_table_of_pairs_has_a_line_for_each_pair() -> None:
    table = pairs_table([pair(), pair("b--c")], "Connected")
    assert table.title == "Connected"
    assert all(len(row) == len(table.headings) for row in table.rows)
    figures = ["5.0", "60.0", "8.0", "0.2500", "0.0100", "25.00", "1.00", "40.00", "20.00"]
    assert table.rows == [["a--b", *figures], ["b--c", *figures]]


def test_strategies_are_one_table() -> None:
    table = strategy_table([(pair("G-1--G-2"), lines()), (pair("G-1--A-2"), lines(error=7.0))])
    assert all(len(row) == len(table.headings) for row in table.rows)
    barriers = ["5.0", "0.2500", "0.0100", "25.00", "1.00"]
    ends = ["9.50", "0.3500"]
    networks = ["10.00", "20.00"]
    assert table.rows == [
        ["G-1--G-2", *networks, *barriers, *ends, "8.00", "0.3000", "5", "23"],
        ["G-1--A-2", *networks, *barriers, *ends, "7.00", "0.3000", "5", "23"],
    ]


def test_the_verdict_says_what_the_ensemble_has_and_what_lies_between() -> None:
    assert pair_verdict(pair(), lines()) == [
        "The ensemble of 5 networks along the curve has 8.00 % error and NLL 0.3000, for 23 epochs "
        "of training and 5 passes per prediction (one pair of runs, one test set).",
        "It has 1.50 points lower error and 0.0500 lower NLL than its two ends alone, which have "
        "9.50 % error and NLL 0.3500; the curve costs 3 epochs more.",
        "Between the networks a--b, the test error rises 25.00 points on the segment and 1.00 "
        "points on the curve.",
    ]


@pytest.mark.parametrize(
    ("error", "nll", "words"),
    [
        (10.0, 0.3, "0.50 points higher error and 0.0500 lower NLL than"),
        (8.0, 0.4, "1.50 points lower error and 0.0500 higher NLL than"),
        (9.5, 0.35, "the same error and NLL as"),
    ],
)
def test_what_is_not_lower_is_not_called_so(error: float, nll: float, words: str) -> None:
    change = pair_verdict(pair(), lines(error=error, nll=nll, train_epochs=21))[1]
    assert change.startswith(f"It has {words} its two ends alone")
    assert change.endswith("the curve costs 1 epoch more.")


def test_the_highest_rises_of_all_connections_come_first() -> None:
    assert connection_verdict([pair(), pair("b--c")]) == [
        "The test error rises by at most 1.00 points on the curves and 25.00 points on the "
        "segments (2 pairs of networks, one test set).",
        "a--b: 25.00 points on the segment, 1.00 on the curve.",
        "b--c: 25.00 points on the segment, 1.00 on the curve.",
    ]
