"""Tables, sentences and charts of curves and planes name the figure of the task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fge.landscape import PlaneGrid
from fge.report import (
    MethodResult,
    connection_verdict,
    curve_chart,
    ensemble_chart,
    line_chart,
    line_table,
    line_verdict,
    pair_result,
    pair_verdict,
    pairs_table,
    path_table,
    plane_chart,
    plane_table,
    plane_verdict,
    strategy_table,
)
from fge.tasks import Multilabel, Regression, Task

NUMBERS = Regression(("a",), (0.0,), (1.0,))
LABELS = Multilabel(("a", "b"))
GEOMETRY = {"distance": 5.0, "angle": 60.0, "length": 8.0}


def records(task: Task, *values: float) -> list[dict[str, float]]:
    """Records at evenly spaced t: the loss is a hundredth of the measure."""
    key = task.measure.key
    found = []
    for k, value in enumerate(values):
        figures = {f"{part}_{key}": value for part in ("train", "test", "ensemble")}
        losses = dict.fromkeys(("train_loss", "test_loss", "test_nll", "train_nll"), value / 100)
        place = {"t": k / (len(values) - 1), "arc": float(k), "distance": float(k)}
        found.append({**place, **figures, **losses})
    return found


def paths(task: Task) -> dict[str, list[dict[str, float]]]:
    return {"segment": records(task, 10.0, 40.0, 20.0), "curve": records(task, 10.0, 16.0, 20.0)}


def pair(task: Task) -> Any:
    return pair_result("a--b", GEOMETRY, paths(task), fit_epochs=3, task=task, example="row")


def lines(task: Task) -> list[MethodResult]:
    def line(name: str, members: int, value: float, nll: float) -> MethodResult:
        figures = {task.measure.key: value, "nll": nll}
        empty = MethodResult(name, members, 20, members, 40, None, nll, None, None, ())
        return replace(empty, task=task).with_figures(figures)

    curve = replace(line("curve", 5, 8.0, 0.3), train_epochs=23)
    return [
        line("network-1", 1, 10, 1),
        line("network-2", 1, 20, 2),
        line("ends", 2, 9, 0.5),
        curve,
    ]


def test_paths_of_numbers() -> None:
    table = path_table(pair(NUMBERS))
    assert table.headings[-3:] == ["RMSE: min", "max", "barrier"]
    assert table.rows[0][-3:] == ["10", "40", "25"]
    assert (
        "Training loss (squared error of standardised targets, rows without augmentation), test "
        "RMSE in the units of the targets." in table.note
    )
    several = pairs_table([pair(NUMBERS)], "Connected")
    assert several.headings[-4:] == ["RMSE barrier: segment", "curve", "max RMSE: segment", "curve"]
    assert several.rows[0][-4:] == ["25", "1", "40", "20"]
    assert (
        "Loss barriers are those of the squared error of standardised targets, on training rows "
        "without augmentation; RMSE barriers are in the units of the targets, on the test set."
        in several.note
    )
    strategies = strategy_table([(pair(NUMBERS), lines(NUMBERS))])
    assert strategies.rows[0][1:3] == ["10", "20"]
    assert "Test RMSEs are in the units of the targets: of each network" in strategies.note


def test_paths_of_labels() -> None:
    table = path_table(pair(LABELS))
    assert table.headings[-3] == "error per label: min"
    assert table.rows[0][-3:] == ["10.00", "40.00", "25.00"]
    assert (
        "Training loss in nats (binary cross-entropy summed over labels, rows without "
        "augmentation), test error per label in percent." in table.note
    )
    note = pairs_table([pair(LABELS)], "Connected").note
    assert "error per label barriers are in points and largest errors in percent" in note
    assert pair(LABELS).barrier("segment") == 25


@pytest.mark.parametrize(
    ("task", "sentences"),
    [
        (
            NUMBERS,
            [
                "The ensemble of 5 networks along the curve has RMSE 8 and NLL 0.3000, for 23 "
                "epochs of training and 5 passes per prediction (one pair of runs, one test set).",
                "It has 1 lower RMSE and 0.2000 lower NLL than its two ends alone, which have RMSE "
                "9 and NLL 0.5000; the curve costs 3 epochs more.",
                "Between the networks a--b, the test RMSE rises 25 on the segment and 1 on the "
                "curve.",
            ],
        ),
        (
            LABELS,
            [
                "The ensemble of 5 networks along the curve has 8.00 % error per label and NLL "
                "0.3000, for 23 epochs of training and 5 passes per prediction (one pair of runs, "
                "one test set).",
                "It has 1.00 points lower error per label and 0.2000 lower NLL than its two ends "
                "alone, which have 9.00 % error per label and NLL 0.5000; the curve costs 3 epochs "
                "more.",
                "Between the networks a--b, the test error per label rises 25.00 points on the "
                "segment and 1.00 points on the curve.",
            ],
        ),
    ],
    ids=["numbers", "labels"],
)
def test_the_verdict_of_a_pair(task: Task, sentences: list[str]) -> None:
    assert pair_verdict(pair(task), lines(task)) == sentences


def test_the_verdict_of_several_pairs_of_numbers() -> None:
    assert connection_verdict([pair(NUMBERS)]) == [
        "The test RMSE rises by at most 1 on the curves and 25 on the segments (1 pair of "
        "networks, one test set).",
        "a--b: 25 on the segment, 1 on the curve.",
    ]


def test_charts_of_curves_have_axes_of_the_task() -> None:
    along = paths(NUMBERS)
    chart = curve_chart(along["curve"], along["segment"], task=NUMBERS)
    assert [panel.label for panel in chart.panels] == ["loss", "RMSE"]
    assert list(chart.panels[1].series[0].y) == [10.0, 16.0, 20.0]
    (panel,) = ensemble_chart(along, task=NUMBERS).panels
    assert panel.label == "test RMSE of the two"
    along = paths(LABELS)
    chart = curve_chart(along["curve"], along["segment"], task=LABELS)
    assert [panel.label for panel in chart.panels] == ["loss (nats)", "error per label (%)"]
    (panel,) = ensemble_chart(along, task=LABELS).panels
    assert panel.label == "test error per label of the two (%)"


def test_a_plane_of_numbers() -> None:
    values = np.arange(9.0).reshape(3, 3)
    figures = {"train_loss": values / 10, "test_rmse": values + 1}
    grid = PlaneGrid(np.arange(3.0), np.arange(3.0), figures, np.zeros((3, 2)), np.eye(2))
    network = {"name": "a", "x": 0.0, "y": 0.0, "off_plane": 0.0}
    network |= {"train_loss": 0.5, "train_rmse": 2.25, "test_rmse": 3.5, "test_nll": -1.0}
    table = plane_table([network], "", task=NUMBERS)
    assert table.headings[4:] == ["train loss", "train RMSE", "test RMSE", "test NLL"]
    assert table.rows[0][4:] == ["0.5000", "2.25", "3.5", "-1.0000"]
    last = plane_verdict(grid, [network], task=NUMBERS)[-1]
    expected = "The training loss lies between 0.0000 and 0.8, the test RMSE between 1 and 9."
    assert last == expected
    assert plane_chart(grid, "test_rmse", task=NUMBERS).label == "test RMSE"
    assert plane_chart(grid, "train_loss", task=NUMBERS).label == "train loss"
    assert plane_chart(grid, "train_loss", task=LABELS).label == "train loss (nats)"


def test_a_line_of_numbers() -> None:
    along = {"segment": records(NUMBERS, 10.0, 40.0, 20.0)}
    table = line_table(along, "", barriers=True, task=NUMBERS)
    assert table.headings[-4:] == ["barrier", "test RMSE: start", "end", "highest"]
    assert table.rows[0][-4:] == ["0.2500", "10", "20", "40"]
    assert line_verdict(along, "a and b", barriers=True, task=NUMBERS) == [
        "The highest barrier of the training loss is 0.2500, on segment.",
        "The training loss lies between 0.1000 and 0.4, the test RMSE between 10 and 40.",
        "The line is a and b.",
    ]
    (panel,) = line_chart(along, key="test_rmse", task=NUMBERS).panels
    assert panel.label == "test RMSE"
