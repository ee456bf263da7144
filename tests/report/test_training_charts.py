"""The charts of a training show the numbers that they were given."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fge.errors import UserError
from fge.report import Chart, Panel, dynamics_chart, training_chart
from fge.report.training import SharpnessCurves, TrainingCurves

CURVES = TrainingCurves(
    rate_epochs=[0.0, 0.5, 1.0, 1.5, 6.0],
    rates=[0.1, 0.2, 0.05, 0.01, 0.15],
    epochs=[2, 4, 6],
    snapshot_error=[12.0, 11.0, 10.5],
    ensemble_error=[12.0, 9.0, 8.5],
    distances=[3.5, 1.25],
    single=(6, 9.75),
)
SHARPNESS = SharpnessCurves(
    epochs=[1, 2, 3],
    eigenvalues=[40.0, 20.0, 30.0],
    snapshots=[2],
    rate_epochs=[0.0, 1.0, 2.0, 3.0],
    rates=[0.1, 0.2, 0.0, 0.05],
    thresholds=[38.0, 19.0, math.nan, 76.0],
    single=([3], [15.0]),
)


def lines(panel: Panel) -> dict[str, tuple[list[float], list[float]]]:
    return {one.name: (list(one.x), list(one.y)) for one in panel.series}


def test_rate_errors_and_distances_have_a_panel_each() -> None:
    chart = training_chart(CURVES)
    rate, error, distance = chart.panels
    assert lines(rate) == {"learning rate": (CURVES.rate_epochs, CURVES.rates)}
    assert lines(error) == {
        "snapshot": ([2, 4, 6], CURVES.snapshot_error),
        "ensemble so far": ([2, 4, 6], CURVES.ensemble_error),
        "single network": ([6], [9.75]),
    }
    assert lines(distance) == {"distance": ([4, 6], [3.5, 1.25])}
    assert [p.label for p in chart.panels] == [
        "learning rate",
        "validation error (%)",
        "distance to\nprevious snapshot",
    ]
    assert (chart.x, list(chart.marks), chart.whole) == ("epochs", [2, 4, 6], True)
    assert [one.name for one in chart.legend] == ["snapshot", "ensemble so far", "single network"]
    assert rate.y_limits[0] == distance.y_limits[0] == 0


def test_every_point_lies_within_its_panel() -> None:
    chart = training_chart(CURVES)
    left, right = chart.x_limits
    for panel in chart.panels:
        low, high = panel.y_limits
        for x, y in lines(panel).values():
            assert left <= min(x) <= max(x) <= right
            assert low <= min(y) <= max(y) <= high


def test_without_a_single_network_there_is_none() -> None:
    assert list(lines(training_chart(replace(CURVES, single=None)).panels[1])) == [
        "snapshot",
        "ensemble so far",
    ]


def test_without_validation_the_chart_says_so() -> None:
    bare = replace(CURVES, snapshot_error=[], ensemble_error=[], single=None)
    error = training_chart(bare).panels[1]
    assert (lines(error), error.note) == ({}, "no validation data")


def test_one_snapshot_has_no_distance() -> None:
    one = replace(CURVES, epochs=[2], snapshot_error=[12.0], ensemble_error=[12.0], distances=[])
    distance = training_chart(one).panels[2]
    assert lines(distance) == {"distance": ([], [])}
    assert distance.y_limits[0] == 0


def sharpness_of(chart: Chart) -> Panel:
    return chart.panels[0]


def test_eigenvalues_snapshots_and_threshold_are_above_the_rate() -> None:
    chart = dynamics_chart(SHARPNESS)
    found = lines(sharpness_of(chart))
    assert found.pop("2 (1 + momentum) / learning rate") == (
        SHARPNESS.rate_epochs,
        SHARPNESS.thresholds,
    )
    assert found == {
        "top eigenvalue": ([1, 2, 3], [40, 20, 30]),
        "at a snapshot": ([2], [20]),
        "single network": ([3], [15]),
    }
    assert lines(chart.panels[1]) == {"learning rate": (SHARPNESS.rate_epochs, SHARPNESS.rates)}
    assert sharpness_of(chart).log
    assert list(chart.marks) == [2]
    low, high = sharpness_of(chart).y_limits
    assert low < 15
    assert high > 40


def test_without_thresholds_no_line_is_drawn() -> None:
    found = lines(sharpness_of(dynamics_chart(replace(SHARPNESS, thresholds=[]))))
    assert set(found) == {"top eigenvalue", "at a snapshot", "single network"}


def test_eigenvalues_that_are_not_positive_have_a_linear_axis() -> None:
    chart = dynamics_chart(replace(SHARPNESS, eigenvalues=[-1.0, 20.0, 30.0]))
    assert not sharpness_of(chart).log
    assert sharpness_of(chart).y_limits[0] < -1


def test_without_a_single_network_there_is_no_sharpness_of_it() -> None:
    chart = dynamics_chart(replace(SHARPNESS, single=((), ())))
    assert "single network" not in lines(sharpness_of(chart))


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(UserError, match="needs a measurement, got none"):
        dynamics_chart(replace(SHARPNESS, epochs=[], eigenvalues=[], snapshots=[]))
