"""The training figure shows the numbers that it was given."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fge.report import training_figure
from fge.report.plots import ENSEMBLE, RATE, SINGLE, SNAPSHOT, TrainingCurves, save_figure

CURVES = TrainingCurves(
    rate_epochs=[0.0, 0.5, 1.0, 1.5, 6.0],
    rates=[0.1, 0.2, 0.05, 0.01, 0.15],
    epochs=[2, 4, 6],
    snapshot_error=[12.0, 11.0, 10.5],
    ensemble_error=[12.0, 9.0, 8.5],
    distances=[3.5, 1.25],
    single=(6, 9.75),
)


def series(axes: Axes) -> list[Line2D]:
    """Return the lines of an axes but those that mark the snapshots' epochs."""
    return [line for line in axes.lines if not is_mark(line)]


def is_mark(line: Line2D) -> bool:
    """Say whether the line goes from the bottom of the axes to the top, whatever its values."""
    return line.get_linestyle() == "-" and shown(line)[1] == [0, 1]


def marks(axes: Axes) -> list[float]:
    places = [shown(line)[0] for line in axes.lines if is_mark(line)]
    assert all(left == right for left, right in places)
    return [left for left, _ in places]


def shown(line: Line2D) -> tuple[list[float], list[float]]:
    x, y = (np.asarray(values, dtype=float).tolist() for values in line.get_data())
    return x, y


def panels(curves: TrainingCurves) -> tuple[Axes, Axes, Axes]:
    figure = training_figure(curves)
    rate, error, distance = figure.axes
    return rate, error, distance


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def test_the_rate_is_drawn_over_epochs_and_from_zero() -> None:
    rate, _, _ = panels(CURVES)
    (line,) = series(rate)
    assert shown(line) == (CURVES.rate_epochs, CURVES.rates)
    assert to_hex(line.get_color()) == RATE
    assert rate.get_ylabel() == "learning rate"
    low, high = rate.get_ylim()
    assert low == 0
    assert high > max(CURVES.rates)


def test_errors_of_snapshots_ensemble_and_single_network_are_drawn() -> None:
    _, error, _ = panels(CURVES)
    found = {
        str(line.get_label()): (*shown(line), to_hex(line.get_color())) for line in series(error)
    }
    assert found == {
        "snapshot": ([2, 4, 6], CURVES.snapshot_error, SNAPSHOT),
        "ensemble so far": ([2, 4, 6], CURVES.ensemble_error, ENSEMBLE),
        "single network": ([6], [9.75], SINGLE),
    }
    assert legend(error) == ["snapshot", "ensemble so far", "single network"]
    assert error.get_ylabel() == "validation error (%)"


def test_distances_are_drawn_from_the_second_snapshot_on() -> None:
    _, _, distance = panels(CURVES)
    (line,) = series(distance)
    assert shown(line) == ([4, 6], [3.5, 1.25])
    assert distance.get_ylabel() == "distance to\nprevious snapshot"
    assert distance.get_xlabel() == "epochs"
    low, high = distance.get_ylim()
    assert low == 0
    assert high > 3.5


def test_each_panel_marks_the_epochs_of_the_snapshots() -> None:
    for axes in panels(CURVES):
        assert marks(axes) == [2, 4, 6]
        assert axes.get_xlim() == panels(CURVES)[0].get_xlim(), "the panels share their epochs"


def test_every_point_lies_within_its_panel() -> None:
    for axes in panels(CURVES):
        left, right = axes.get_xlim()
        low, high = axes.get_ylim()
        for line in series(axes):
            x, y = (np.asarray(values) for values in shown(line))
            assert left <= x.min() <= x.max() <= right
            assert low <= y.min() <= y.max() <= high


def test_without_a_single_network_there_is_none_in_the_figure() -> None:
    _, error, _ = panels(replace(CURVES, single=None))
    assert legend(error) == ["snapshot", "ensemble so far"]
    assert len(series(error)) == 2


def test_without_validation_the_figure_says_so() -> None:
    _, error, distance = panels(replace(CURVES, snapshot_error=[], ensemble_error=[], single=None))
    assert [text.get_text() for text in error.texts] == ["no validation data"]
    assert series(error) == []
    assert legend(error) == []
    assert shown(series(distance)[0]) == ([4, 6], [3.5, 1.25])


@pytest.mark.filterwarnings("error")
def test_one_snapshot_has_no_distance() -> None:
    _, error, distance = panels(
        replace(CURVES, epochs=[2], snapshot_error=[12.0], ensemble_error=[12.0], distances=[])
    )
    assert shown(series(error)[0]) == ([2], [12.0])
    assert shown(series(distance)[0]) == ([], [])
    assert distance.get_ylim()[0] == 0


def test_a_figure_is_written_as_png_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "training.png"
    save_figure(Figure(figsize=(2, 1)), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (240, 120)


def test_a_failed_write_leaves_the_earlier_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "training.png"
    path.write_bytes(b"earlier")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save_figure(Figure(figsize=(2, 1)), path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
