"""Figures of a page: saved, in their order, with captions and plots."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fge.report import FigureSet, Plot


def test_figures_are_saved_in_their_order(tmp_path: Path) -> None:
    drawn = FigureSet(tmp_path / "figures")
    plot = Plot([], {})
    drawn.add("b.png", Figure(figsize=(1, 1)), "first", plot)
    drawn.add("a.png", Figure(figsize=(1, 1)), "second")
    assert list(drawn.captions.items()) == [("b.png", "first"), ("a.png", "second")]
    assert drawn.plots == {"b.png": plot}
    for name in drawn.captions:
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
