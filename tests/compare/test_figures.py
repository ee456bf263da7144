"""The figures of a comparison show the numbers that they were given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_cells import CURVES, FGES, SINGLES, compared, several
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fge.compare import CAPTIONS, comparison_figures, comparison_plots
from fge.config import ORDER
from fge.report import Series, reliability_figure, series_figure
from fge.report.plots import METHOD_COLOURS, METHOD_MARKERS


def drawn(figure: Figure) -> dict[str, ErrorbarContainer]:
    return {str(c.get_label()): c for c in figure.axes[0].containers}  # type: ignore[misc]


def xs(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_xdata(), dtype=float)]


def ys(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_ydata(), dtype=float)]


def styles(figure: Figure) -> dict[str, tuple[str, str]]:
    lines = {name: container.lines[0] for name, container in drawn(figure).items()}
    return {
        name: (to_hex(line.get_color()), str(line.get_marker()))
        for name, line in lines.items()
        if line is not None
    }


def test_lines_have_their_points_and_bars() -> None:
    series = [
        Series("single", [10, 20], [0.5, 0.25], [0.125, 0.0625]),
        Series("fge", [10], [0.25]),
    ]
    figure = series_figure(series, x="epochs", y="NLL")
    containers = drawn(figure)
    line, _, (bars,) = containers["single"].lines
    assert line is not None
    assert ys(line) == [0.5, 0.25]
    assert xs(line) == pytest.approx([10, 20], abs=0.1)
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [[0.375, 0.625], [0.1875, 0.3125]]
    assert not containers["fge"].has_yerr
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "NLL")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["single", "fge"]


def test_points_of_one_cost_do_not_hide_each_other() -> None:
    series = [Series(name, [24], [0.5]) for name in ORDER]
    lines = [c.lines[0] for c in drawn(series_figure(series, x="epochs", y="NLL")).values()]
    places = sorted(xs(line)[0] for line in lines if line is not None)
    assert len(set(places)) == len(ORDER)
    assert 24 - 0.5 < places[0] < places[-1] < 24 + 0.5


def test_every_method_has_a_style_of_its_own_in_all_figures() -> None:
    assert (
        len(set(zip(METHOD_COLOURS, METHOD_MARKERS, strict=True)))
        == len(METHOD_COLOURS)
        == len(ORDER)
    )
    every = styles(series_figure([Series(n, [1], [1]) for n in ORDER], x="", y=""))
    some = styles(series_figure([Series(n, [1], [1]) for n in ORDER[5:]], x="", y=""))
    assert len(set(every.values())) == len(ORDER)
    assert some == {name: every[name] for name in ORDER[5:]}
    own = styles(series_figure([Series(n, [1], [1]) for n in ("mine", "yours")], x="", y=""))
    assert len(set(own.values())) == 2


def test_the_reliability_figure_shows_the_gap_and_the_counts() -> None:
    notes = ["20 predictions", "400 predictions"]
    figure = reliability_figure([Series("fge", [0.5, 0.75], [0.375, 1.0], notes=notes)])
    gaps, counts = figure.axes
    assert ys(gaps.lines[0]) == [-0.125, 0.25]
    assert ys(counts.lines[0]) == [20, 400]
    assert xs(gaps.lines[0]) == xs(counts.lines[0]) == [0.5, 0.75]


def test_a_comparison_has_its_figures_with_captions_and_interactive_ones() -> None:
    bins = {"bin_counts": np.eye(15, dtype=np.int64)[14] * 50}
    bins |= {"bin_confidence": np.full(15, 0.9), "bin_accuracy": np.full(15, 0.8)}
    singles = [replace(cell, **bins) for cell in SINGLES]
    found = compared(singles, FGES, CURVES)
    figures = comparison_figures(found)
    assert set(figures) == set(CAPTIONS) == set(comparison_plots(found))
    assert list(drawn(figures["error_by_members.png"])) == ["fge", "curve-ensemble"]
    line = drawn(figures["error_by_epochs.png"])["single"].lines[0]
    assert line is not None
    assert ys(line) == pytest.approx([22.0])


def test_figures_without_points_are_left_out() -> None:
    figures = comparison_figures(compared(several("own", [9], [0.4])))
    assert set(figures) == {"error_by_epochs.png", "calibrated_nll_by_epochs.png"}
