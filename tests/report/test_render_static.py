"""Static figures are whole files of the wanted format, the same for the same chart."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from chart_examples import CHARTS, PLANES
from matplotlib.figure import Figure

from fge.report import Chart, Panel, draw, save_figure

HEADS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}


def test_a_figure_is_written_as_png_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "training.png"
    save_figure(Figure(figsize=(2, 1)), path)
    data = path.read_bytes()
    assert data.startswith(HEADS["png"])
    assert struct.unpack(">II", data[16:24]) == (240, 120)


@pytest.mark.parametrize("form", HEADS)
def test_the_same_chart_makes_the_same_bytes(tmp_path: Path, form: str) -> None:
    files = [tmp_path / f"{name}.{form}" for name in ("a", "b")]
    for file in files:
        save_figure(draw(CHARTS["dynamics"]), file)
    one, other = (file.read_bytes() for file in files)
    assert one.startswith(HEADS[form])
    assert one == other


@pytest.mark.parametrize("name", PLANES)
def test_planes_are_drawn(tmp_path: Path, name: str) -> None:
    save_figure(draw(PLANES[name]), tmp_path / "plane.png")
    assert (tmp_path / "plane.png").read_bytes().startswith(HEADS["png"])


def test_a_panel_without_series_says_why() -> None:
    (axes,) = draw(Chart("x", [Panel("z", note="no data")])).axes
    assert [text.get_text() for text in axes.texts] == ["no data"]


def test_spreads_are_drawn_up_and_down() -> None:
    containers = draw(CHARTS["comparison"]).axes[0].containers
    (bars,) = containers[0].lines[2]  # type: ignore[attr-defined]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([8.8, 9.2]), pytest.approx([7.9, 8.1])]


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
