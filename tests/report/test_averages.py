"""What a report says of averaged weights."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fge.ensemble import Candidate, Fold, Scores, Trial
from fge.report import MethodResult, Swa, average_sentences, average_table, averages_json

NAMES = ["fge-0001", "fge-0002", "fge-0003"]
MEMBERS = (Scores(12.0, 0.5), Scores(10.0, 0.25), Scores(11.0, 0.375))
ENSEMBLE = Scores(9.0, 0.125)


def swa_of(nll: float) -> Swa:
    return Swa(Scores(20.0, nll), MEMBERS, ENSEMBLE)


def fold_of(*trials: Trial) -> Fold:
    kept = [trial.figures for trial in trials if trial.kept]
    network = Candidate({}, kept[-1] if kept else MEMBERS[1])
    return Fold(network, 1, MEMBERS, ENSEMBLE, trials, 64)


REFUSED = fold_of(Trial(2, Scores(13.0, 0.75), False), Trial(0, Scores(14.0, 1.5), False))
FOLDED = fold_of(Trial(2, Scores(9.5, 0.1875), True), Trial(0, Scores(14.0, 1.5), False))


def line(name: str, error: float, nll: float, members: int = 1) -> MethodResult:
    return MethodResult(name, members, 6, members, 4 * members, error, nll, 0.25, 0.125, (name,))


TEST = [line("swa", 20.0, 1.0), line("fold", 10.5, 0.375)]
OF_THREE = line("fge", 10.0, 0.25, members=3)


def test_the_barrier_is_the_rise_above_the_mean_of_the_members() -> None:
    assert swa_of(1.0).barrier == 1.0 - 0.375
    assert swa_of(0.125).barrier == -0.25


@pytest.mark.parametrize(
    ("nll", "harmful"), [(0.4, False), (0.5, False), (0.5001, True), (math.inf, True)]
)
def test_an_average_is_harmful_when_it_is_above_the_worst_member(nll: float, harmful: bool) -> None:
    assert swa_of(nll).harmful is harmful


def test_a_harmful_average_and_a_fold_that_refused_all_are_said() -> None:
    assert average_sentences(swa_of(1.0), REFUSED, NAMES, TEST, OF_THREE) == [
        "Averaging the weights of all snapshots (swa) is harmful here: its validation NLL is "
        "1.0000, and that of the worst snapshot is 0.5000.",
        "No average of weights was safe: every other snapshot raised the validation NLL. `fold` is "
        "fge-0002 alone; it has 0.50 points higher error and 0.1250 higher NLL than the ensemble, "
        "which needs 3 passes per prediction.",
    ]


def test_what_a_folded_network_lost_is_said() -> None:
    assert average_sentences(swa_of(0.25), FOLDED, NAMES, TEST, OF_THREE) == [
        "`fold`, one network, averages the weights of 2 of 3 snapshots; it has 0.50 points higher "
        "error and 0.1250 higher NLL than the ensemble, which needs 3 passes per prediction."
    ]


def test_an_average_without_a_finite_result_is_said_to_be_left_out() -> None:
    left_out = (
        "The average of all snapshots' weights (swa) gives predictions that are not finite; the "
        "tables leave it out."
    )
    assert average_sentences(None, None, NAMES, [], OF_THREE) == [left_out]
    assert average_sentences(swa_of(math.inf), FOLDED, NAMES, TEST[1:], OF_THREE)[0] == left_out


def test_without_validation_nothing_is_said_of_an_average() -> None:
    assert average_sentences(None, None, NAMES, TEST[:1], OF_THREE) == []


def test_the_table_sets_averages_beside_the_best_and_the_worst_snapshot() -> None:
    table = average_table(swa_of(1.0), FOLDED, NAMES, len(NAMES))
    assert [list(row) for row in table.rows] == [
        ["best snapshot (fge-0002)", "1", "", "10.00", "0.2500"],
        ["worst snapshot (fge-0001)", "1", "", "12.00", "0.5000"],
        ["ensemble", "3", "probabilities", "9.00", "0.1250"],
        ["swa", "3", "weights", "20.00", "1.0000"],
        ["fold", "2", "weights", "9.50", "0.1875"],
    ]
    assert len(table.headings) == 5
    assert (
        "mean NLL, is +0.6250 nats; its NLL is above that of the worst snapshot, so averaging all "
        "weights is harmful here. "
    ) in table.note
    assert "raise the NLL: fge-0003 kept (0.1875), fge-0001 refused (1.5000)." in table.note
    assert "harmful" not in average_table(swa_of(0.375), FOLDED, NAMES, len(NAMES)).note


def test_a_fold_of_one_averages_nothing() -> None:
    row = average_table(swa_of(1.0), REFUSED, NAMES, len(NAMES)).rows[-1]
    assert list(row) == ["fold", "1", "", "10.00", "0.2500"]


def test_json_holds_every_figure() -> None:
    content: dict[str, Any] = averages_json(swa_of(1.0), FOLDED, NAMES)
    assert content["swa"] == {
        "snapshots": NAMES,
        "error": 20.0,
        "nll": 1.0,
        "barrier": 0.625,
        "worst_snapshot_nll": 0.5,
        "harmful": True,
    }
    fold = content["fold"]
    assert fold["snapshots"] == ["fge-0002", "fge-0003"]
    assert (fold["error"], fold["nll"]) == (9.5, 0.1875)
    assert fold["best_snapshot"] == {"name": "fge-0002", "error": 10.0, "nll": 0.25}
    assert fold["ensemble"] == {"error": 9.0, "nll": 0.125}
    assert fold["lost"] == {"error": 0.5, "nll": 0.0625}
    assert fold["trials"] == [
        {"snapshot": "fge-0003", "error": 9.5, "nll": 0.1875, "kept": True},
        {"snapshot": "fge-0001", "error": 14.0, "nll": 1.5, "kept": False},
    ]


def test_json_holds_null_where_a_figure_is_not_finite_and_no_more_than_is_known() -> None:
    bad = Swa(Scores(math.nan, math.inf), MEMBERS, ENSEMBLE)
    content = averages_json(bad, None, NAMES)["swa"]
    assert (content["error"], content["nll"], content["barrier"]) == (None, None, None)
    assert content["harmful"] is True
    assert averages_json(None, None, NAMES) == {"swa": {"snapshots": NAMES}}
