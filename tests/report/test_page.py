"""Pages: interactive plots in place of figures, words as they are marked, links, the command."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from fge.report import (
    Page,
    Plot,
    Section,
    Series,
    Table,
    methods_chart,
    plot_of,
    write_pages,
)
from fge.report.page import repeat_command

CONTENT: dict[str, Any] = {
    "command": "fge",
    "config": {"model": "convnet", "epochs": 3, "flip": True, "lr": None, "methods": ["a", "b"]},
    "environment": {"torch": "2.9"},
}
PNG = b"\x89PNG these bytes"
HOSTILE = "</script><!--<script>alert(1)//"
PLOT = plot_of(methods_chart([Series(HOSTILE, [1.0, 2.0], [3.0, 2.5])], x="epochs", y="error"))
PAGE = Page(
    "one run",
    "It gained.",
    [Table("Results", ["name", "error"], [["fge", "**7.50**"]], "`fge` is 2 ** 3 < 9")],
    {"a.png": "The first", "b.png": "The second"},
    plots={"a.png": PLOT},
)


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)


def section(folder: Path, page: Page = PAGE, name: str = "", **content: Any) -> Section:
    for figure in page.figures:
        path = folder / "figures" / figure
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return Section(folder, page, {**CONTENT, **content}, name)


def written(folder: Path, page: Page = PAGE) -> str:
    write_pages(folder, page, [section(folder, page)])
    return (folder / "report.html").read_text(encoding="utf-8")


def plots_in(html: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="plots">(.*?)</script>', html)
    content: dict[str, Any] = json.loads(found)
    return content


def test_a_plot_stands_in_for_its_figure_which_is_there_without_scripts(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert plots_in(html) == {"run-1-plot-1": {"data": PLOT.data, "layout": PLOT.layout}}
    assert html.count('<div class="plot" id="run-1-plot-1" role="group"') == 1
    assert html.count("<noscript><img ") == 1
    assert html.count('<img alt="The first"') == html.count('<img alt="The second"') == 1


def test_plotly_is_in_the_page_once_and_only_for_plots(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert html.count("* plotly.js v") == 1
    assert not re.findall(r"<script[^>]+src", html)
    plain = written(tmp_path, replace(PAGE, plots={}))
    assert "<script" not in plain
    assert len(plain) < 20_000


@pytest.mark.usefixtures("without_plotly")
def test_without_plotly_figures_are_pictures(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert html == written(tmp_path, replace(PAGE, plots={}))
    assert html.count("<img ") == 2
    assert "noscript" not in html


def test_names_in_plots_end_no_script(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert HOSTILE not in html
    assert plots_in(html)["run-1-plot-1"]["data"][0]["name"] == (
        "&lt;/script&gt;&lt;!--&lt;script&gt;alert(1)//"
    )
    page = replace(PAGE, plots={"a.png": Plot([{"name": HOSTILE}], {"height": 100})})
    html = written(tmp_path, page)
    assert HOSTILE not in html
    assert plots_in(html)["run-1-plot-1"]["data"] == [{"name": HOSTILE}]


def test_code_and_strong_are_marked_and_all_else_is_text(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert "<td><strong>7.50</strong></td>" in html
    assert "<code>fge</code> is 2 ** 3 &lt; 9" in html


def test_columns_of_words_stand_to_the_left(tmp_path: Path) -> None:
    rows = [["a", "fge", "1", "x", ""], ["b", "", "y", "2", ""]]
    table = Table("Mixed", ["run", "words", "n", "mixed", "none"], rows)
    html = written(tmp_path, replace(PAGE, tables=[table], plots={}))
    headings = re.findall(r"<th scope=\"col\"([^>]*)>(.*?)</th>", html)
    assert [name for attributes, name in headings if "words" in attributes] == ["run", "words"]
    assert html.count('<td class="words">') == 2
    written(tmp_path, replace(PAGE, tables=[replace(table, rows=[])], plots={}))


def test_options_are_shown_as_words(tmp_path: Path) -> None:
    html = written(tmp_path)
    found = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert found == {
        "model": "convnet",
        "epochs": "3",
        "flip": "yes",
        "lr": "not set",
        "methods": "a b",
        "torch": "2.9",
    }


def repeated(command: str, folder: Path = ROOT, **content: Any) -> str:
    given = {**CONTENT, "command": command, **content}
    return repeat_command(given, folder)


@pytest.mark.parametrize("model", ["convnet", "torchvision:resnet18"])
def test_the_command_repeats_a_run(model: str) -> None:
    expected = "python cli.py fge --config config.json --out NEW_FOLDER"
    assert repeated("fge", config={"model": model}) == expected


def test_the_command_says_where_the_command_line_is() -> None:
    expected = "python ../../cli.py fge --config config.json --out NEW_FOLDER"
    assert repeated("fge", ROOT / "runs" / "fge-001") == expected


def test_own_methods_are_given_again() -> None:
    assert repeated("compare", config={"model": "vgg16", "methods": ["fge", "my:m"]}) == (
        "python cli.py compare --config config.json --methods fge my:m --out NEW_FOLDER"
    )


def test_the_command_names_a_users_own_model(tmp_path: Path) -> None:
    own = {"model": "my_models:build"}
    assert repeated("fge", config=own) == (
        "python cli.py fge --config config.json --model my_models:build --out NEW_FOLDER"
    )
    sentence = "with that of your own code in <code>PYTHONPATH</code>"
    assert sentence not in written(tmp_path)
    write_pages(tmp_path, PAGE, [section(tmp_path, config=own)])
    assert sentence in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_several_processes_are_started_as_many_again() -> None:
    assert repeated("train", environment={"processes": 4}) == (
        "torchrun --standalone --nproc-per-node 4 cli.py train --config config.json "
        "--out NEW_FOLDER"
    )


def test_predictions_are_repeated_by_their_run_and_images() -> None:
    options = {"run": "/a b/run", "images": "/in.npz", "model": "my_models:build", "threads": None}
    assert repeated("predict", config=options) == (
        "python cli.py predict --run '/a b/run' --images /in.npz --model my_models:build "
        "--out NEW_FOLDER"
    )


def test_several_runs_have_a_section_each_under_the_joint_tables(tmp_path: Path) -> None:
    runs = [section(tmp_path / "r uns" / name, name=name) for name in ("one", "two")]
    top = Page("2 runs", "Compared.", [Table("All", ["run"], [["one"], ["two"]])])
    (tmp_path / "out").mkdir()
    write_pages(tmp_path / "out", top, runs)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert list(plots_in(html)) == ["run-1-plot-1", "run-2-plot-1"]
    ids = re.findall(
        r' id="([^"]+)"', html.replace(re.findall(r"<script>.*?</script>", html, re.S)[0], "")
    )
    assert len(ids) == len(set(ids))
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == ["All", "one: one run", "two: one run"]
    assert re.findall(r'<li><a href="#(.*?)">(.*?)</a>', html) == [
        ("run-1", "one"),
        ("run-2", "two"),
    ]
    assert '<a href="../r%20uns/two/report.json">report.json</a>' in html
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == (
        "# 2 runs\n\n**Compared.**\n\n## All\n\n| run |\n| :-- |\n| one |\n| two |\n\n"
        + "\n\n".join(
            f"## {name}: one run\n\n**It gained.**\n\n### Results\n\n"
            "| name | error |\n| :-- | --: |\n| fge | **7.50** |\n\n`fge` is 2 \\*\\* 3 &lt; 9\n\n"
            f"![The first](../r%20uns/{name}/figures/a.png)\n\n"
            f"![The second](../r%20uns/{name}/figures/b.png)"
            for name in ("one", "two")
        )
        + "\n"
    )
