"""The figures of curves show the numbers that they were given."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from fge.curves import BASELINES
from fge.report import curve_figure, ensemble_figure
from fge.report.curves import CURVE, SEGMENT

KEYS = ("train_loss", "test_loss", "train_error", "test_error")
TS = [0.0, 0.5, 1.0]


def records(start: float) -> list[dict[str, float]]:
    return [{"t": t, **{key: start + 10 * k + t for k, key in enumerate(KEYS)}} for t in TS]


def along(distances: list[float], errors: list[float]) -> list[dict[str, float]]:
    return [{"distance": d, "ensemble_error": e} for d, e in zip(distances, errors, strict=True)]


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in axes.lines
    }


def test_four_panels_show_loss_and_error_on_both_sets() -> None:
    figure = curve_figure(records(1.0), records(2.0))
    assert len(figure.axes) == 4
    for k, axes in enumerate(figure.axes):
        values = {name: [s + 10 * k + t for t in TS] for name, s in (("curve", 1), ("segment", 2))}
        assert lines(axes) == {name: (TS, ys) for name, ys in values.items()}
        colours = {str(line.get_label()): to_hex(line.get_color()) for line in axes.lines}
        assert colours == {"curve": CURVE, "segment": SEGMENT}
        heights = [y for ys in values.values() for y in ys]
        from_zero = max(heights) > 2 * min(heights)
        assert (axes.get_ylim()[0] == 0) == from_zero == (k == 0)
        assert axes.get_ylim()[1] > max(heights)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == [
        "training loss (nats)",
        "test loss (nats)",
        "training error (%)",
        "test error (%)",
    ]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"curve", "segment"}


def test_what_t_is_can_be_said_otherwise() -> None:
    figure = curve_figure(records(1.0), records(2.0), place="snapshots passed")
    assert [a.get_xlabel() for a in figure.axes] == ["", "", *["snapshots passed"] * 2]
    usual = curve_figure(records(1.0), records(2.0))
    assert usual.axes[2].get_xlabel() == "t, from the first network (0) to the second (1)"


def test_the_ensemble_figure_shows_every_path_over_distance() -> None:
    names = ["curve", *BASELINES]
    paths = {name: along([0.0, 1.0 + k], [9.0, 8.0 - k]) for k, name in enumerate(names)}
    (axes,) = ensemble_figure(paths).axes
    shown = list(lines(axes).values())
    assert shown == [([0.0, 1.0 + k], [9.0, 8.0 - k]) for k in range(len(names))]
    styles = {(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(names)
    legend = axes.get_legend()
    assert legend is not None
    assert len({text.get_text() for text in legend.get_texts()}) == len(names)
    assert axes.get_xlabel() == "distance from the first network"
    assert axes.get_ylabel() == "test error of the two (%)"


def test_a_path_without_a_style_is_no_silent_line() -> None:
    with pytest.raises(KeyError, match="spiral"):
        ensemble_figure({"spiral": along([0.0, 1.0], [1.0, 2.0])})
