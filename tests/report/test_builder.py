"""A report is what was added to it, in that order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chart_examples import CHARTS

from fge.report import FILES, ReportBuilder, Table
from fge.runs import RunFolder

FACTS = {"command": "fge", "config": {}, "environment": {}}


def built(folder: Path, figure_format: str = "png") -> ReportBuilder:
    report = ReportBuilder(RunFolder(folder), figure_format=figure_format)
    report.say("It gained.", "By much.")
    report.table(Table("Results", ["method"], [["fge"]]))
    report.say("And surely.")
    report.chart("b.png", CHARTS["curve"], "first")
    report.chart("a.png", CHARTS["bars"], "second")
    report.facts(methods=[{"name": "fge"}], extra=1)
    report.files.append("more.npz")
    return report


def test_a_page_shows_everything_in_its_order(tmp_path: Path) -> None:
    page = built(tmp_path).write("title", FACTS)
    assert (page.title, page.headline, page.details) == (
        "title",
        "It gained.",
        ["By much.", "And surely."],
    )
    assert [table.title for table in page.tables] == ["Results"]
    assert list(page.figures.items()) == [("b.png", "first"), ("a.png", "second")]
    assert list(page.plots) == ["b.png", "a.png"]
    assert list(page.files) == [*FILES, "more.npz"]
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == {
        "schema_version": 1,
        **FACTS,
        "methods": [{"name": "fge"}],
        "extra": 1,
        "verdict": "It gained.\n\nBy much.\n\nAnd surely.",
    }
    for name in page.figures:
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_figures_for_papers_lie_beside_and_are_linked_to(tmp_path: Path, form: str) -> None:
    built(tmp_path, form).write("title", FACTS)
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == sorted(["a.png", f"a.{form}", "b.png", f"b.{form}"])
    html = (tmp_path / "report.html").read_text()
    assert f'<a href="figures/a.{form}">{form.upper()}</a>' in html
