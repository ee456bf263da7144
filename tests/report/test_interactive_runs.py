"""Interactive plots of training, curves and sharpness show what their static figures show."""

from __future__ import annotations

from typing import Any

from plot_checks import check_plot, pairs

from fge.report import (
    ENSEMBLE_LABELS,
    Plot,
    curve_plot,
    ensemble_plot,
    sharpness_plot,
    spectrum_plot,
)
from fge.report.interactive_runs import dynamics_plot, training_plot
from fge.report.plots import TrainingCurves
from fge.report.sharpness import SharpnessCurves

CURVES = TrainingCurves(
    rate_epochs=[0.0, 1.0, 2.0],
    rates=[0.05, 0.01, 0.05],
    epochs=[1.0, 2.0],
    snapshot_error=[9.0, 9.5],
    ensemble_error=[9.0, 8.5],
    distances=[3.0],
    single=(2.0, 8.75),
)


def by_name(plot: Plot) -> dict[str, Any]:
    found = {trace["name"]: trace for trace in plot.data}
    assert len(found) == len(plot.data)
    return found


def records(height: float) -> list[dict[str, float]]:
    keys = ("train_loss", "train_error", "test_loss", "test_error")
    return [
        {"t": t, **{key: k + height * t for k, key in enumerate(keys, start=1)}}
        for t in (0.0, 0.5, 1.0)
    ]


def test_training_has_rate_errors_and_distances_in_three_panels() -> None:
    plot = training_plot(CURVES)
    check_plot(plot)
    found = by_name(plot)
    assert pairs(found["learning rate"]) == [(0, 0.05), (1, 0.01), (2, 0.05)]
    assert pairs(found["snapshot"]) == [(1, 9.0), (2, 9.5)]
    assert pairs(found["ensemble so far"]) == [(1, 9.0), (2, 8.5)]
    assert pairs(found["single network"]) == [(2, 8.75)]
    assert pairs(found["distance to previous snapshot"]) == [(2, 3.0)]
    panels = [trace.get("yaxis", "y") for trace in plot.data]
    assert panels == ["y", "y2", "y2", "y2", "y3"]
    assert [shape["x0"] for shape in plot.layout["shapes"]] == [1, 2]


def test_training_without_validation_has_no_errors() -> None:
    plot = training_plot(TrainingCurves([0.0, 1.0], [0.1, 0.1], [1.0], [], [], []))
    check_plot(plot)
    assert list(by_name(plot)) == ["learning rate", "distance to previous snapshot"]


def test_a_curve_has_loss_and_error_of_both_paths_and_splits() -> None:
    plot = curve_plot(records(1.0), records(10.0), place="where")
    check_plot(plot)
    assert plot.layout["xaxis"]["title"]["text"] == "where"
    found = {(trace["name"], trace.get("yaxis", "y")): trace for trace in plot.data}
    assert pairs(found["curve, test", "y"]) == [(0, 3.0), (0.5, 3.5), (1, 4.0)]
    assert pairs(found["curve, train", "y"]) == [(0, 1.0), (0.5, 1.5), (1, 2.0)]
    assert pairs(found["segment, test", "y2"]) == [(0, 4.0), (0.5, 9.0), (1, 14.0)]
    assert pairs(found["segment, train", "y2"]) == [(0, 2.0), (0.5, 7.0), (1, 12.0)]
    shown = [trace["name"] for trace in plot.data if trace["showlegend"]]
    assert len(shown) == len(set(shown)) == 4
    groups = {trace["name"]: trace["legendgroup"] for trace in plot.data}
    assert len(set(groups.values())) == 4


def test_ensembles_are_shown_against_distance_by_their_labels() -> None:
    path = [{"distance": 0.0, "ensemble_error": 9.0}, {"distance": 2.0, "ensemble_error": 8.0}]
    plot = ensemble_plot({"curve": path, "random-at-angle": path[:1]}, ENSEMBLE_LABELS)
    check_plot(plot)
    found = by_name(plot)
    assert list(found) == ["curve", "random, at the curve's angle"]
    assert pairs(found["curve"]) == [(0, 9), (2, 8)]


def test_eigenvalues_and_the_threshold_are_on_a_logarithmic_axis() -> None:
    plot = sharpness_plot([2, 4], [[30, 5], [40, 6]], place="epochs", thresholds=[380, 38])
    check_plot(plot)
    found = by_name(plot)
    assert pairs(found["top eigenvalue"]) == [(2, 30), (4, 40)]
    assert pairs(found["eigenvalue 2"]) == [(2, 5), (4, 6)]
    assert pairs(found["2 (1 + momentum) / learning rate"]) == [(2, 380), (4, 38)]
    assert plot.layout["yaxis"]["type"] == "log"


def test_negative_eigenvalues_need_a_linear_axis() -> None:
    plot = sharpness_plot([1], [[3, -1]], place="t")
    check_plot(plot)
    assert "type" not in plot.layout["yaxis"]


def test_dynamics_are_above_the_learning_rate() -> None:
    curves = SharpnessCurves(
        epochs=[1, 2],
        eigenvalues=[50.0, 80.0],
        snapshots=[2],
        rate_epochs=[0.0, 1.0, 2.0],
        rates=[0.1, 0.1, 0.0],
        thresholds=[38.0, 38.0, float("nan")],
        single=([2], [60.0]),
    )
    plot = dynamics_plot(curves)
    check_plot(plot)
    found = by_name(plot)
    assert pairs(found["top eigenvalue"]) == [(1, 50), (2, 80)]
    assert pairs(found["single network"]) == [(2, 60)]
    assert pairs(found["2 (1 + momentum) / learning rate"]) == [(0, 38), (1, 38), (2, None)]
    assert pairs(found["learning rate"]) == [(0, 0.1), (1, 0.1), (2, 0)]
    assert found["learning rate"]["yaxis"] == "y2"
    assert [shape["x0"] for shape in plot.layout["shapes"]] == [2]


def test_dynamics_without_a_line_have_none() -> None:
    curves = SharpnessCurves([1], [50.0], [], [0.0, 1.0], [0.1, 0.1], thresholds=[])
    plot = dynamics_plot(curves)
    check_plot(plot)
    assert list(by_name(plot)) == ["top eigenvalue", "learning rate"]


def test_a_density_spans_eight_decades() -> None:
    plot = spectrum_plot([-1.0, 0.0, 1.0, 2.0], [1e-9, 1.0, 1.1e-8, 0.0])
    check_plot(plot)
    assert pairs(plot.data[0]) == [(-1, None), (0, 1), (1, 1.1e-8), (2, None)]
    assert plot.layout["yaxis"]["type"] == "log"
