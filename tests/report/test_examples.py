"""The least certain test examples of each task: rows with their columns, or pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fge.data import Column, Encoder, Split
from fge.ensemble import PredictionFile
from fge.report import ReportBuilder, add_uncertainty, method_result, row_cells
from fge.runs import RunFolder
from fge.tasks import make_task

COLUMNS = (
    Column("size", 100.0, 10.0, missing=True),
    Column("colour", categories=("blue", "r*ed", None)),
    Column("age", 4.0, 2.0),
)
FACTS = Encoder(COLUMNS, ("kind",), {}).facts()
FEATURES = torch.tensor(
    [
        [0.25, 0, 0, 1, 0, -1.5],
        [0.0, 1, 0, 0, 1, 0.0],
        [-1.0, 0, 0, 0, 0, 3.0],
    ]
)


def page_of(
    folder: Path, task: Any, targets: Any, members: list[Any], images: torch.Tensor | None = None
) -> Any:
    """Return the page of an ensemble of some members' predictions."""
    test = PredictionFile(folder / "test.npz", torch.tensor(targets), task)
    names = [f"m{k}" for k in range(len(members))]
    for name, values in zip(names, members, strict=True):
        test.add(name, name, torch.tensor(values, dtype=torch.float64))
    line = method_result("fge", test, names, train_epochs=1, weight_bytes=4)
    report = ReportBuilder(RunFolder(folder))
    split = Split(FEATURES if images is None else images, torch.tensor(targets))
    table = FACTS if images is None else None
    example = "row" if images is None else "image"
    add_uncertainty(report, [line], test, None, split, task.names, example, table)
    return report.page("t")


def rows_of(page: Any) -> tuple[list[str], list[list[str]], str]:
    (table,) = (table for table in page.tables if table.title == "The least certain test rows")
    return list(table.headings), [list(row) for row in table.rows], table.note


def test_features_are_the_values_that_they_were_made_of() -> None:
    cells = row_cells(Split(FEATURES, torch.zeros(3)), np.array([2, 0, 1]), FACTS)
    assert cells == {
        "size": ["90", "102.5", ""],
        "colour": ["(other)", "r_ed", ""],
        "age": ["10", "1", "4"],
    }


def test_rows_of_classes_have_their_class_and_how_sure_it_is(tmp_path: Path) -> None:
    members = [[[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], [[0.7, 0.3], [0.5, 0.5], [0.5, 0.5]]]
    task = make_task("classification", ["new", "old"])
    headings, rows, note = rows_of(page_of(tmp_path, task, [0, 1, 1], members))
    assert headings == [
        *("size", "colour", "age", "true", "predicted", "probability", "entropy"),
        "mutual information",
    ]
    assert [row[:6] for row in rows] == [
        ["90", "(other)", "10", "old", "new", "0.550"],
        ["", "", "4", "old", "old", "0.600"],
        ["102.5", "r_ed", "1", "new", "new", "0.800"],
    ]
    mean = np.array([0.55, 0.45])
    total = -(mean * np.log(mean)).sum()
    assert rows[0][6] == f"{total:.3f}"
    own = np.mean([-(p * np.log(p)).sum() for p in np.array([[0.6, 0.4], [0.5, 0.5]])])
    assert rows[0][7] == f"{total - own:.3f}"
    assert note == (
        "The test rows to which `fge` (2 members) gives the lowest largest probability; in nats."
    )


def test_rows_of_a_regression_are_those_on_which_members_differ_in_targets_units(
    tmp_path: Path,
) -> None:
    # The members differ by 2, 0 and 1 in y, whose std is 100, and by .1, .4 and 0 in z, of std 1.
    members = [[[1, 0.1], [5, 0.0], [8, 3.0]], [[3, 0.2], [5, 0.4], [9, 3.0]]]
    task = make_task("regression", ["y", "z"], mean=[0.0, 0.0], std=[100.0, 1.0])
    page = page_of(tmp_path, task, [[2.0, 0.0], [4.0, 1.0], [8.0, 2.5]], members)
    headings, rows, note = rows_of(page)
    assert headings[3:] == ["y", "y predicted", "z", "z predicted"]
    assert [row[3:] for row in rows] == [
        ["4", "5 ± 0", "1", "0.2 ± 0.2"],
        ["2", "2 ± 1", "0", "0.15 ± 0.05"],
        ["8", "8.5 ± 0.5", "2.5", "3 ± 0"],
    ]
    assert "the members of `fge` (2 members) differ most" in note
    alone = page_of(tmp_path / "one", task, [[2.0, 0.0], [4.0, 1.0], [8.0, 2.5]], members[:1])
    assert alone.tables == [], "one network does not say"


def test_rows_of_labels_have_the_largest_entropy(tmp_path: Path) -> None:
    members = [[[0.9, 0.5], [0.5, 0.45], [0.99, 0.01]]]
    task = make_task("multilabel", ["up", "wide"])
    page = page_of(tmp_path, task, [[1, 0], [0, 1], [1, 1]], members)
    headings, rows, _ = rows_of(page)
    assert headings[3:] == ["up", "p(up)", "wide", "p(wide)", "entropy"]
    assert [row[3:7] for row in rows] == [
        ["0", "0.500", "1", "0.450"],
        ["1", "0.900", "0", "0.500"],
        ["1", "0.990", "1", "0.010"],
    ]
    assert rows[1][7] == f"{(np.log(2) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)) / 2:.3f}"


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_pictures_of_other_tasks_say_targets_and_predictions(tmp_path: Path, task: Any) -> None:
    shades = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 8, 8)
    members = [[[0.4], [0.1], [0.9]], [[0.5], [0.3], [0.9]]]
    made = make_task(task, ["up"], mean=[0.0], std=[1.0])
    targets = [[0.0], [1.0], [1.0]] if task == "regression" else [[0], [1], [1]]
    page = page_of(tmp_path, made, targets, members, shades)
    captions = [picture.caption for picture in page.galleries[0].pictures]
    assert len(captions) == 3
    if task == "regression":
        assert captions[0] == "up: 1; up predicted: 0.2 ± 0.1"
    else:
        p = 0.45
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
        assert captions[0] == f"up: 0; p(up): 0.450; entropy: {entropy:.3f}"


def test_of_wide_tables_the_first_columns_are_shown() -> None:
    columns = tuple(Column(f"c{k}") for k in range(14))
    facts = Encoder(columns, ("kind",), {}).facts()
    cells = row_cells(Split(torch.zeros(2, 14), torch.zeros(2)), np.array([1]), facts)
    assert list(cells) == [f"c{k}" for k in range(12)]
