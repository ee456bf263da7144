"""Figures of sharpness show the numbers that they were given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from fge.errors import UserError
from fge.report import dynamics_figure
from fge.report.sharpness import SharpnessCurves

CURVES = SharpnessCurves(
    epochs=[1, 2, 3],
    eigenvalues=[40.0, 20.0, 30.0],
    snapshots=[2],
    rate_epochs=[0.0, 1.0, 2.0, 3.0],
    rates=[0.1, 0.2, 0.0, 0.05],
    thresholds=[38.0, 19.0, math.nan, 76.0],
    single=([3], [15.0]),
)


def panels(curves: SharpnessCurves) -> tuple[Axes, Axes]:
    sharpness, rate = dynamics_figure(curves).axes
    return sharpness, rate


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (
            np.asarray(line.get_xdata(), dtype=float).tolist(),
            np.asarray(line.get_ydata(), dtype=float).tolist(),
        )
        for line in axes.lines
        if not str(line.get_label()).startswith("_child")
    }


def test_eigenvalues_snapshots_and_threshold_are_drawn() -> None:
    sharpness, _ = panels(CURVES)
    found = lines(sharpness)
    epochs, thresholds = found.pop("2 (1 + momentum) / learning rate")
    assert epochs == CURVES.rate_epochs
    np.testing.assert_array_equal(thresholds, CURVES.thresholds)
    assert found == {
        "top eigenvalue": ([1, 2, 3], [40, 20, 30]),
        "at a snapshot": ([2], [20]),
        "single network": ([3], [15]),
    }
    assert sharpness.get_yscale() == "log"


def test_without_thresholds_no_line_is_drawn() -> None:
    sharpness, _ = panels(replace(CURVES, thresholds=[]))
    assert set(lines(sharpness)) == {"top eigenvalue", "at a snapshot", "single network"}


def test_all_eigenvalues_lie_within_the_panel() -> None:
    low, high = panels(CURVES)[0].get_ylim()
    assert low < 15
    assert high > 40


def test_the_rate_has_a_panel_with_the_snapshots_marked() -> None:
    _, rate = panels(CURVES)
    first, mark = rate.lines
    assert np.asarray(first.get_ydata()).tolist() == CURVES.rates
    assert np.asarray(mark.get_xdata()).tolist() == [2, 2]
    assert (rate.get_ylabel(), rate.get_xlabel()) == ("learning rate", "epochs")


def test_eigenvalues_that_are_not_positive_have_a_linear_axis() -> None:
    sharpness, _ = panels(replace(CURVES, eigenvalues=[-1.0, 20.0, 30.0]))
    assert sharpness.get_yscale() == "linear"


def test_without_a_single_network_there_is_none() -> None:
    assert "single network" not in lines(panels(replace(CURVES, single=((), ())))[0])


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(UserError, match="needs a measurement, got none"):
        dynamics_figure(replace(CURVES, epochs=[], eigenvalues=[], snapshots=[]))
