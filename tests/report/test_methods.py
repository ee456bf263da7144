"""The method table against closed forms, and what the verdict says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fge.data import EvalBatches, Normaliser, Split
from fge.ensemble import MemberPredictions, PredictionFile
from fge.report import (
    MethodResult,
    as_methods,
    comparison,
    ensemble_results,
    method_result,
    table_rows,
    verdict,
    views_note,
    with_views,
)

TARGETS = (0, 1, 1, 0)
RIGHT = {  # probability of the right class of two, per image; exact in float32
    "fge-0001": (0.875, 0.75, 0.375, 0.625),
    "fge-0002": (0.625, 0.75, 0.875, 0.875),
    "fge-0003": (0.25, 0.375, 0.875, 0.75),
    "single-0001": (0.75, 0.75, 0.75, 0.25),
}
SNAPSHOTS: list[dict[str, Any]] = [
    {"val_nll": 0.5, "train_epochs": 4, "refresh_images": 5, "validation_images": 7},
    {"val_nll": 0.3, "train_epochs": 8, "refresh_images": 6, "validation_images": 7},
    {"val_nll": 0.4, "train_epochs": 12, "refresh_images": 8, "validation_images": 7},
]


def prediction_file(folder: Path, *members: str) -> PredictionFile:
    file = PredictionFile(folder / "test.npz", torch.tensor(TARGETS))
    for name in members or RIGHT:
        probs = [
            [p, 1 - p] if y == 0 else [1 - p, p] for p, y in zip(RIGHT[name], TARGETS, strict=True)
        ]
        file.add(name, "sha", torch.tensor(probs, dtype=torch.float64))
    return file


def mean_of(*members: str) -> list[float]:
    return [sum(values) / len(values) for values in zip(*(RIGHT[m] for m in members), strict=True)]


def result(name: str = "fge", members: int = 3, **changes: Any) -> MethodResult:
    names = tuple(f"fge-{position + 1:04d}" for position in range(members))
    base = MethodResult(name, members, 12, members, 40 * members, 10.0, 0.5, 0.25, 0.125, names)
    return replace(base, **changes)


def found(folder: Path, snapshots: list[dict[str, Any]], *members: str) -> list[MethodResult]:
    test = prediction_file(folder, *members)
    return ensemble_results(test, snapshots, weight_bytes=40, budget=16)


@pytest.mark.parametrize("kept", [[0], [1], [0, 1]])
def test_snapshots_that_validation_left_out_are_paid_for(tmp_path: Path, kept: list[int]) -> None:
    test = prediction_file(tmp_path)
    lines = ensemble_results(
        test, SNAPSHOTS, weight_bytes=40, budget=16, name="auto", kept=kept, networks=()
    )
    line = lines[-1]
    assert (line.name, line.members) == ("auto", len(kept))
    assert (line.train_epochs, line.validation_images) == (12, 21)
    assert line.refresh_images == sum(SNAPSHOTS[k]["refresh_images"] for k in kept)


def test_a_member_alone_has_its_closed_forms(tmp_path: Path) -> None:
    one = method_result(
        "one", prediction_file(tmp_path), ["fge-0001"], train_epochs=4, weight_bytes=40
    )
    assert one.error == 25.0
    assert one.nll == pytest.approx(-math.log(0.875 * 0.75 * 0.375 * 0.625) / 4, abs=1e-15)
    # 2 (1 - p)^2 for two classes: (1 + 4 + 25 + 9) / 64, doubled, over four images.
    assert one.brier == pytest.approx(39 / 128, abs=1e-15)
    # Bins of .875 and .75 hold one image each, that of .625 a right and a wrong one.
    assert one.ece == pytest.approx((0.125 + 0.25 + 0.25) / 4, abs=1e-15)


def test_an_ensemble_averages_its_members_probabilities_and_adds_up_its_costs(
    tmp_path: Path,
) -> None:
    pair = method_result(
        "pair",
        prediction_file(tmp_path),
        ["fge-0001", "fge-0002"],
        train_epochs=8,
        weight_bytes=40,
        refresh_images=512,
        validation_images=64,
        chosen="by hand",
    )
    mean = mean_of("fge-0001", "fge-0002")
    assert mean == [0.75, 0.75, 0.625, 0.75]
    assert (pair.name, pair.members, pair.member_names) == ("pair", 2, ("fge-0001", "fge-0002"))
    assert (pair.train_epochs, pair.forward_passes, pair.weight_bytes) == (8, 2, 80)
    assert (pair.refresh_images, pair.validation_images, pair.chosen) == (512, 64, "by hand")
    assert pair.error == 0.0
    assert pair.nll == pytest.approx(-sum(map(math.log, mean)) / 4, abs=1e-15)
    assert pair.brier == pytest.approx(2 * (3 * 0.25**2 + 0.375**2) / 4, abs=1e-15)
    assert pair.ece == pytest.approx((3 * 0.25 + 0.375) / 4, abs=1e-15)


def test_the_table_of_a_run_has_its_methods_in_order_each_with_its_cost(tmp_path: Path) -> None:
    rows = found(tmp_path, SNAPSHOTS)
    costs = [(r.name, r.members, r.train_epochs, r.forward_passes, r.weight_bytes) for r in rows]
    assert costs == [
        ("single", 1, 16, 1, 40),
        ("last-snapshot", 1, 12, 1, 40),
        ("best-snapshot", 1, 12, 1, 40),
        ("fge", 2, 8, 2, 80),
        ("fge", 3, 12, 3, 120),
    ]
    members = [
        ["single-0001"],
        ["fge-0003"],
        ["fge-0002"],
        ["fge-0001", "fge-0002"],
        ["fge-0001", "fge-0002", "fge-0003"],
    ]
    assert [list(row.member_names) for row in rows] == members
    for row, names in zip(rows, members, strict=True):
        mean = mean_of(*names)
        assert row.error == 25.0 * sum(p < 0.5 for p in mean)
        assert row.nll == pytest.approx(-sum(map(math.log, mean)) / 4, abs=1e-15)


def test_each_line_counts_the_images_passed_forward_for_it(tmp_path: Path) -> None:
    rows = found(tmp_path, SNAPSHOTS)
    assert [(r.name, r.refresh_images, r.validation_images) for r in rows] == [
        ("single", 0, 7),
        ("last-snapshot", 8, 21),
        ("best-snapshot", 6, 21),
        ("fge", 5 + 6, 14),
        ("fge", 5 + 6 + 8, 21),
    ]


def test_the_best_snapshot_is_that_of_the_lowest_validation_nll(tmp_path: Path) -> None:
    assert [r.chosen for r in found(tmp_path, SNAPSHOTS)] == [None, None, "fge-0002", None, None]


def test_of_equal_snapshots_the_first_is_the_best(tmp_path: Path) -> None:
    equal = [{**facts, "val_nll": 0.25} for facts in SNAPSHOTS]
    assert found(tmp_path, equal)[2].chosen == "fge-0001"


@pytest.mark.parametrize("without", [[0, 1, 2], [1]])
def test_there_is_no_best_snapshot_unless_all_were_validated(
    tmp_path: Path, without: list[int]
) -> None:
    snapshots = [
        {k: v for k, v in facts.items() if k != "val_nll" or position not in without}
        for position, facts in enumerate(SNAPSHOTS)
    ]
    names = [r.name for r in found(tmp_path, snapshots)]
    assert names == ["single", "last-snapshot", "fge", "fge"]


def test_there_is_no_single_network_unless_it_was_trained(tmp_path: Path) -> None:
    names = [r.name for r in found(tmp_path, SNAPSHOTS, "fge-0001", "fge-0002", "fge-0003")]
    assert names == ["last-snapshot", "best-snapshot", "fge", "fge"]


def test_one_snapshot_makes_no_ensemble_and_the_verdict_says_so(tmp_path: Path) -> None:
    rows = found(tmp_path, SNAPSHOTS[:1], "fge-0001")
    assert [r.name for r in rows] == ["last-snapshot", "best-snapshot"]
    first, advice = verdict(rows)
    assert first.startswith("The run has one snapshot and no ensemble; the snapshot has ")
    assert advice == "For an ensemble, train longer or use shorter cycles."


def test_the_verdict_compares_the_largest_ensemble_with_snapshot_and_single_network() -> None:
    rows = [
        result("single", 1, error=12.5, nll=0.45, train_epochs=16),
        result("last-snapshot", 1, error=10.0, nll=0.625),
        result("best-snapshot", 1, error=1.0, nll=0.01),
        result("fge", 2, error=50.0, nll=3.0),
        result("fge", 3, error=10.0, nll=0.5),
    ]
    assert verdict(rows) == [
        "The ensemble of 3 snapshots has 10.00 % error and NLL 0.5000, for 12 epochs of training "
        "and 3 passes per prediction (one run, one test set).",
        "It has 2.50 points lower error and 0.0500 higher NLL than the single network of 16 "
        "epochs.",
        "It has the same error and 0.1250 lower NLL than its last snapshot.",
        "This is one run: other seeds give other numbers.",
    ]


def test_one_network_has_its_figures_and_cost() -> None:
    (sentence,) = verdict([result("ema", 1, error=10.0, nll=0.5)], "ema")
    assert sentence == (
        "The network of ema has 10.00 % error and NLL 0.5000, for 12 epochs of training and 1 pass "
        "per prediction (one run, one test set)."
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ((10.0, 0.5), (12.0, 0.75), "2.00 points lower error and 0.2500 lower NLL than"),
        ((12.0, 0.75), (10.0, 0.5), "2.00 points higher error and 0.2500 higher NLL than"),
        ((10.0, 0.5), (10.0, 0.50004), "the same error and NLL as"),
        ((10.0, 0.5), (10.0, 0.50006), "the same error and 0.0001 lower NLL than"),
    ],
)
def test_results_are_compared_by_error_and_nll(
    ours: tuple[float, float], theirs: tuple[float, float], sentence: str
) -> None:
    first, second = (result(error=error, nll=nll) for error, nll in (ours, theirs))
    assert comparison(first, second) == sentence


def test_a_difference_that_is_not_shown_is_none() -> None:
    sentence = comparison(result(error=10.0), result(error=10.004))  # 1 of 25,000 images
    assert sentence == "the same error and NLL as"


def test_the_table_shows_each_figure_in_its_precision() -> None:
    headings, rows = table_rows(
        [
            result(error=1 / 3, nll=1 / 3, brier=2 / 3, ece=0.00005),
            result("single", 1, train_epochs=100, error=100.0),
        ]
    )
    assert headings == ["method", "members", "error", "NLL", "Brier", "ECE", "epochs", "passes"]
    assert rows == [
        ["fge", "3", "0.33", "0.3333", "0.6667", "0.0001", "12", "3"],
        ["single", "1", "100.00", "0.5000", "0.2500", "0.1250", "100", "1"],
    ]


def test_report_entries_have_every_figure_and_no_nulls() -> None:
    plain, chosen = as_methods([result(), result("best-snapshot", 1, chosen="fge-0002")])
    assert plain == {
        "name": "fge",
        "members": 3,
        "train_epochs": 12,
        "forward_passes": 3,
        "weight_bytes": 120,
        "error": 10.0,
        "nll": 0.5,
        "brier": 0.25,
        "ece": 0.125,
        "member_names": ("fge-0001", "fge-0002", "fge-0003"),
        "refresh_images": 0,
        "validation_images": 0,
    }
    assert chosen["chosen"] == "fge-0002"


# ----------------------------------------------------------------------- test-time augmentation


def test_views_add_a_line_to_the_largest_of_each_name_and_count_their_passes(
    tmp_path: Path,
) -> None:
    split = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor(TARGETS))
    batches = EvalBatches(split, Normaliser([0.0], [1.0], torch.device("cpu")), 4)
    prediction_file(tmp_path)
    predictions = MemberPredictions(tmp_path, batches, views=[batches, batches])
    assert predictions.tta is not None
    for name in RIGHT:  # each is as sure of the right class with views: 3/4
        probs = [[0.75, 0.25] if y == 0 else [0.25, 0.75] for y in TARGETS]
        predictions.tta.add(name, "sha", torch.tensor(probs, dtype=torch.float64))
    lines = ensemble_results(predictions.test, SNAPSHOTS, weight_bytes=40, budget=16)
    # Points on curves have no views; nor has an average that is not predicted with them.
    lines += [result("fge+refit", 3), result("swa", 1, member_names=("swa-0001",))]
    shown = with_views(lines, predictions)
    assert [line for line in shown if line in lines] == lines
    viewed = {line.name: line for line in shown if line not in lines}
    assert list(viewed) == ["single+tta", "last-snapshot+tta", "fge+tta"]
    assert [line.name for line in shown[:4]] == [
        "single",
        "single+tta",
        "last-snapshot",
        "last-snapshot+tta",
    ]
    line = viewed["fge+tta"]
    assert (line.members, line.forward_passes, line.weight_bytes) == (3, 9, 120)
    assert (line.train_epochs, line.refresh_images, line.validation_images) == (12, 19, 21)
    assert (line.error, line.brier) == (0, 0.125)
    assert line.nll == pytest.approx(-math.log(0.75), abs=1e-15)
    assert with_views(lines, predictions.plain) == lines


def test_the_note_says_what_the_views_are() -> None:
    assert views_note(1) == ""
    assert "over 2 views of an image: the image itself, and 1 that varies as" in views_note(2)
    assert "over 3 views of an image: the image itself, and 2 that vary as" in views_note(3)
