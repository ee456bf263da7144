"""Names that others chose make no tags, links, headings, formulas or colours, wherever they are."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from fge.observer import visible
from fge.report import (
    ConsoleObserver,
    Page,
    Section,
    Series,
    Table,
    csv_text,
    draw,
    markdown_name,
    markdown_table,
    methods_chart,
    plain_name,
    save_figure,
    write_pages,
)
from fge.report.escaping import html_cell, html_text, markdown_cell, markdown_text

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/pixel.png)",
    "<https://evil.example>",
    "https://evil.example/a",
    "www.evil.example",
    "me@evil.example",
    "[x]: https://evil.example",
    "[^1]",
    "[^1]: note",
    "[TOC]",
    "[x][y]",
    "# heading",
    "#heading",
    "> quotation",
    "- item",
    "+ item",
    "* item",
    "1. item",
    "1) item",
    "12. item",
    "---",
    "***",
    "___",
    "===",
    "```python",
    "~~~",
    "~~struck~~",
    "**strong**",
    "*emphasis*",
    "_emphasis_",
    "__strong__",
    "`code`",
    "``code``",
    "a|b|c",
    "| a | b |",
    "&lt;b&gt;",
    "&#60;b>",
    "\\<b>",
    "\\[x](y)",
    "name\\",
    "a\n\n# heading",
    "a\r\n<b>",
    "a\n---",
    "    code",
    "\tcode",
    "text {: #id .class }",
    "text {#id}",
    "!!! note",
    "??? note",
    ": definition",
    "*[x]: abbreviation",
    "$x$",
    "</details>",
    "--8<-- file",
    "a_b_c",
    "résumé 文件 (1).png",
]
EXTENSIONS: list[list[str]] = [
    [],
    ["extra", "toc", "admonition", "sane_lists", "nl2br", "codehilite", "wikilinks"],
]


class Reader(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def renderings(text: str) -> list[str]:
    """What Markdown becomes: by two libraries, plain and with the usual extensions."""
    found = [markdown.markdown(text, extensions=["tables", *names]) for names in EXTENSIONS]
    linked = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
    return [*found, linked.render(text)]


def shown(name: str) -> str:
    """A name as it is to be read: on one line."""
    return " ".join(name.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_paragraph_of_itself(name: str) -> None:
    for html in renderings(markdown_name(name)):
        page = read(html)
        assert page.tags == ["p"], html
        assert page.text.strip() == shown(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_heading_and_a_text_stays_itself(name: str) -> None:
    texts = [f"# {markdown_name(name)}", markdown_text(f"The data {plain_name(name)}, with `fge`.")]
    for html in renderings("\n\n".join(texts)):
        page = read(html)
        assert page.tags == ["h1", "p", "code"], html
        assert set(page.attributes) <= {"id"}  # of headings
        assert page.text.split("\n")[0].strip() == shown(name)
        assert f"The data {plain_name(name)}, with fge." in page.text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_table_is_one_cell(name: str) -> None:
    table = markdown_table(["name", name, "error"], [[name, name, "**7.50**"]])
    for html in renderings(table):
        page = read(html)
        row = ["tr", "th", "th", "th"], ["tr", "td", "td", "td", "strong"]
        assert page.tags == ["table", "thead", *row[0], "tbody", *row[1]], html
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", html)
        assert [read(cell).text for cell in cells[1:5:2]] == [shown(name)] * 2


@pytest.mark.parametrize("name", HOSTILE)
def test_a_caption_is_the_text_of_its_picture(name: str) -> None:
    for html in renderings(f"![{markdown_name(name)}](figures/a.png)"):
        page = read(html)
        assert page.tags == ["p", "img"], html
        assert set(page.attributes) == {"alt", "src"}
        assert 'src="figures/a.png"' in html


@given(st.text(max_size=30))
def test_no_name_makes_a_tag(name: str) -> None:
    tags = {"p"} if shown(visible(name)) else set()
    for html in renderings(markdown_name(name)):
        assert set(read(html).tags) <= tags, html


@pytest.mark.parametrize("name", HOSTILE)
def test_whole_pages_have_the_tags_of_harmless_names(name: str, tmp_path: Path) -> None:
    pages = []
    for given_name in ("harmless", name):
        folder = tmp_path / f"run {len(pages)}"
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "a.png").write_bytes(b"PNG")
        text = plain_name(given_name)
        page = Page(
            f"one run on {given_name}",
            f"On {text} it gained.\n\nThe class {text} is `hard`.",
            [Table(f"Of {given_name}", ["name", given_name], [[given_name, "**1.5**"]], text)],
            {"a.png": f"Caption {text}"},
        )
        content: dict[str, Any] = {
            "command": "fge",
            "config": {"data": given_name, "model": "convnet"},
            "environment": {"hardware": given_name},
        }
        write_pages(folder, page, [Section(folder, page, content, given_name)])
        pages.append(folder)
    harmless, hostile = ([(f / "report.html").read_text() for f in pages], pages[1])
    first, second = map(read, harmless)
    assert first.tags == second.tags
    assert set(second.attributes) <= set(first.attributes) | {"class"}  # of columns of words
    for before, after in zip(
        renderings((pages[0] / "report.md").read_text()),
        renderings((hostile / "report.md").read_text()),
        strict=True,
    ):
        assert read(before).tags == read(after).tags


def test_own_marks_stay_marks() -> None:
    text = "`fold` has **7.5** < 8, *not* more"
    assert markdown_text(text) == "`fold` has **7.5** &lt; 8, \\*not\\* more"
    assert html_text(text) == ("<code>fold</code> has <strong>7.5</strong> &lt; 8, *not* more")
    assert (html_cell("**7.5**"), html_cell("**x**")) == ("<strong>7.5</strong>", "**x**")
    assert (markdown_cell("**-7.5**"), markdown_cell("**x**")) == ("**-7.5**", "\\*\\*x\\*\\*")
    assert html_text("`<b>`") == "<code>&lt;b&gt;</code>"


# -------------------------------------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "=1"]
)
def test_a_spreadsheet_takes_no_name_for_a_formula(name: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_text([["name", "figure"], [name, 0.5]]), newline="")))
    assert rows == [["name", "figure"], [f"'{name}", "0.5"]]


def test_numbers_and_other_names_are_as_they_are() -> None:
    assert csv_text([["\r=1", "\x1b"]]) == "\\r=1,\\x1b\n"
    row = ["a,b", 'say "x"', "two\nlines", "a=b", -0.5, "-0.5", "-1e-05", "+3", "-inf", "", 7]
    (read_row,) = csv.reader(io.StringIO(csv_text([row])))
    assert read_row == [str(cell) for cell in row]


# --------------------------------------------------------------------------------------- terminal


@pytest.mark.parametrize("live", [False, True])
def test_no_name_colours_or_moves_in_a_terminal(live: bool) -> None:
    name = "[red]x[/red] :smile: \x1b[31mred\x1b[0m \x07\x08 \x9b2J \u202eexe.png"
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=live, markup=False, emoji=False, highlight=False, width=200
    )
    with ConsoleObserver(console) as observer:
        observer.note(name)
        observer.point(name, 10, 10)
        observer.epoch({"stage": name, "train_loss": 1.0}, 1, 1)
        observer.table(name, ["name", name], [[name, "a\nb"]])
    out = file.getvalue()
    assert not re.search("[\x07\x08\x9b\u202e]|\x1b\\[31m", out)
    assert "[red]x[/red] :smile: \\x1b[31mred\\x1b[0m \\x07\\x08 \\x9b2J \\u202eexe.png" in out


def test_the_console_of_commands_takes_no_markup() -> None:
    console = ConsoleObserver().console
    with console.capture() as captured:
        console.print("[red]x[/red] :smile: [link=file:///x]y[/link]")
    assert captured.get() == "[red]x[/red] :smile: [link=file:///x]y[/link]\n"


# ------------------------------------------------------------------------------------------ plots


@pytest.mark.parametrize("name", [r"$\frac{1$", "a$b$c", r"\$x", "x\ny\x1b"])
def test_a_picture_shows_names_and_no_formulas(name: str, tmp_path: Path) -> None:
    chart = methods_chart([Series(name, [1.0, 2.0], [3.0, 2.5])], x=name, y=name)
    save_figure(draw(chart), tmp_path / "a.png")
    (text,) = draw(chart).legends[0].get_texts()
    shown_text, is_math = text._preprocess_math(text.get_text())
    assert (shown_text, is_math) == (visible(name), False)
