"""The report's files: well-formed, escaped, whole, and without NaN."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from fge.data import Dataset, Split
from fge.report import (
    Page,
    Table,
    dataset_facts,
    environment_facts,
    markdown_table,
    run_facts,
    splits_note,
    write_report,
)
from fge.report import page as page_module
from fge.runs import RunFolder

HOSTILE = """</title></td><script>alert("1")</script> & 'q' {{ 7 * 7 }} <img src=x onerror=y>"""
PNG = b"\x89PNG\r\n\x1a\n no picture, but these bytes"
VOID = {"meta", "img", "link", "br", "hr", "input"}
TABLE = Table("Results", ["method", "error"], [["single", "9.00"], ["fge", "7.50"]], "In `percent`")
PAGE = Page("convnet on tiny", "It gained.", [TABLE], {"training.png": "The rate over epochs"})
CONTENT: dict[str, Any] = {
    "command": "fge",
    "config": {"epochs": 40, "data": "tiny"},
    "environment": {"torch": "2.9", "device": "cpu"},
}


@dataclass
class Element:
    """An element of a page: its tag, attributes, the tags around it and the text in it."""

    tag: str
    attributes: dict[str, str | None]
    path: tuple[str, ...]
    text: str = ""


@dataclass
class Parsed(HTMLParser):
    """A page's elements in order; an end tag without its start tag fails."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        path = tuple(element.tag for element in self.open)
        self.elements.append(Element(tag, dict(attrs), path))
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is given twice"
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def find(self, tag: str, inside: str = "html") -> list[Element]:
        return [e for e in self.elements if e.tag == tag and inside in (*e.path, "html")]


def write(folder: Path, page: Page = PAGE, content: dict[str, Any] | None = None) -> RunFolder:
    run = RunFolder(folder)
    run.figures.mkdir(exist_ok=True)
    for name in page.figures:
        (run.figures / name).write_bytes(PNG)
    write_report(run, page, CONTENT if content is None else content)
    return run


def parsed(run: RunFolder) -> Parsed:
    page = Parsed()
    page.feed((run.path / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == [], "every element is closed"
    return page


def texts(elements: list[Element]) -> list[str]:
    return [element.text for element in elements]


def test_the_page_is_well_formed_and_says_what_it_is(tmp_path: Path) -> None:
    run = write(tmp_path)
    page = parsed(run)
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert [e.attributes.get("lang") for e in page.find("html")] == ["en"]
    assert {"charset": "utf-8"} in [e.attributes for e in page.find("meta")]
    assert texts(page.find("title")) == ["convnet on tiny"]
    assert texts(page.find("h1")) == ["convnet on tiny"]
    assert texts(page.find("p"))[0] == "It gained."
    assert texts(page.find("h2")) == [
        "Results",
        "Figures",
        "Repeat it",
        "Environment",
        "Options",
    ]


def test_every_table_has_headers_with_a_scope(tmp_path: Path) -> None:
    other = Table("More", ["pair", "length", "angle"], [["a-b", "1.0", "90.0"]])
    page = parsed(write(tmp_path, replace(PAGE, tables=[TABLE, other])))
    assert len(page.find("table")) == 2
    columns = page.find("th", inside="thead")
    assert texts(columns) == ["method", "error", "pair", "length", "angle"]
    assert {e.attributes.get("scope") for e in columns} == {"col"}
    rows = page.find("th", inside="tbody")
    assert texts(rows) == ["single", "fge", "a-b"]
    assert {e.attributes.get("scope") for e in rows} == {"row"}
    assert texts(page.find("td")) == ["9.00", "7.50", "1.0", "90.0"]
    assert texts(page.find("caption")) == ["Results", "More"]
    by_id = {e.attributes["id"]: e for e in page.elements if "id" in e.attributes}
    regions = [e for e in page.elements if e.attributes.get("role") == "region"]
    names = [by_id[region.attributes["aria-labelledby"]].text for region in regions]
    assert names == ["Results", "More"]
    one, two = page.find("table")
    assert by_id[one.attributes["aria-describedby"]].text == "In percent"
    assert "aria-describedby" not in two.attributes


def test_figures_are_in_the_page_each_with_its_caption(tmp_path: Path) -> None:
    figures = {"b.png": "The first", "a.png": "The second"}
    page = parsed(write(tmp_path, replace(PAGE, figures=figures)))
    pictures = page.find("img", inside="figure")
    assert [e.attributes["alt"] for e in pictures] == ["The first", "The second"]
    assert texts(page.find("figcaption")) == ["The first", "The second"]
    for picture in pictures:
        head, _, data = (picture.attributes["src"] or "").partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == PNG


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = parsed(write(tmp_path))
    addresses = [e.attributes[k] or "" for e in page.elements for k in e.attributes if k == "src"]
    assert all(address.startswith("data:") for address in addresses)
    links = [e.attributes["href"] or "" for e in page.find("a")]
    assert links == ["#main", "report.json", "config.json", "log.jsonl", "predictions/test.npz"]
    assert not [link for link in links if ":" in link or link.startswith("/")]
    assert not page.find("script")
    assert [e.attributes["href"] for e in page.find("link")] == ["data:,"]


def test_names_are_shown_as_they_are_and_run_nothing(tmp_path: Path) -> None:
    table = Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], HOSTILE)
    content = {
        "command": HOSTILE,
        "config": {HOSTILE: HOSTILE},
        "environment": {HOSTILE: [HOSTILE]},
    }
    hostile = parsed(write(tmp_path, Page(HOSTILE, HOSTILE, [table], {"a.png": HOSTILE}), content))
    tags = {e.tag for e in parsed(write(tmp_path)).elements}
    assert {e.tag for e in hostile.elements} == tags - {"code"}  # that of `percent`
    assert not [e for e in hostile.elements if "onerror" in e.attributes]
    for tag in ("title", "h1", "caption", "th", "td", "figcaption", "dt"):
        assert set(texts(hostile.find(tag))) == {HOSTILE}, tag
    assert HOSTILE in shlex.split(hostile.find("pre")[0].text)
    assert hostile.find("img")[0].attributes["alt"] == HOSTILE


def test_options_and_environment_are_listed(tmp_path: Path) -> None:
    page = parsed(write(tmp_path))
    assert texts(page.find("dt")) == ["torch", "device", "epochs", "data"]
    assert texts(page.find("dd")) == ["2.9", "cpu", "40", "tiny"]


def test_the_json_holds_content_schema_and_verdict(tmp_path: Path) -> None:
    run = write(tmp_path, content={**CONTENT, "methods": [{"name": HOSTILE, "error": 0.1}]})
    content = json.loads((run.path / "report.json").read_text())
    assert content == {
        "schema_version": 1,
        **CONTENT,
        "methods": [{"name": HOSTILE, "error": 0.1}],
        "verdict": "It gained.",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_refused_and_an_earlier_report_stays(tmp_path: Path, value: float) -> None:
    run = write(tmp_path)
    names = ("report.json", "page.json", "report.md", "report.html")
    before = [(run.path / name).read_bytes() for name in names]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path, replace(PAGE, title="new"), {**CONTENT, "methods": [{"nll": value}]})
    assert [(run.path / name).read_bytes() for name in names] == before


def test_the_json_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("killed here")

    monkeypatch.setattr(page_module, "write_pages", fail)
    with pytest.raises(OSError, match="killed here"):
        write(tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_the_same_results_make_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = write(tmp_path / "a"), write(tmp_path / "b")
    for name in ("report.json", "page.json", "report.md", "report.html"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def test_the_markdown_page_holds_the_same(tmp_path: Path) -> None:
    tables = [TABLE, Table("More", ["pair"], [["a-b"]])]
    run = write(tmp_path, replace(PAGE, tables=tables))
    assert (run.path / "report.md").read_text() == (
        "# convnet on tiny\n\n"
        "**It gained.**\n\n"
        "## Results\n\n"
        "| method | error |\n| :-- | --: |\n| single | 9.00 |\n| fge | 7.50 |\n\n"
        "In `percent`\n\n"
        "## More\n\n"
        "| pair |\n| :-- |\n| a-b |\n\n"
        "![The rate over epochs](figures/training.png)\n"
    )
    assert (run.path / "figures" / "training.png").is_file()


def test_the_first_line_is_bold_and_the_rest_is_folded(tmp_path: Path) -> None:
    run = write(tmp_path, replace(PAGE, verdict="Use `fge`.\n\nIt gained.\n\nBy much."))
    page = parsed(run)
    assert texts(page.find("strong")) == ["Use fge."]
    (folded, options) = page.find("details")
    assert "It gained." in folded.text
    assert "By much." in folded.text
    assert "open" not in folded.attributes
    assert "All 2 options" in options.text
    assert (
        (run.path / "report.md")
        .read_text()
        .startswith(
            "# convnet on tiny\n\n**Use `fge`.**\n\n<details><summary>More on this result</summary>"
            "\n\nIt gained.\n\nBy much.\n\n</details>\n\n## Results"
        )
    )


def test_a_page_may_do_without_tables_and_figures(tmp_path: Path) -> None:
    run = write(tmp_path, Page("title", "verdict", []))
    assert (run.path / "report.md").read_text() == "# title\n\n**verdict**\n"
    assert not parsed(run).find("table")


def test_a_markdown_table_has_as_many_cells_in_each_line() -> None:
    text = markdown_table(["a", "b", "c"], [["1", "2", "3"], ["", "", ""]])
    assert [line.count("|") for line in text.splitlines()] == [4, 4, 4, 4]
    assert text.splitlines()[1] == "| :-- | --: | --: |"


def test_a_bar_in_a_cell_makes_no_new_cell() -> None:
    row = markdown_table(["pair", "length"], [["a|b", "1.0"]]).splitlines()[2]
    assert row.replace(r"\|", "").count("|") == 3


def tiny_dataset() -> Dataset:
    def split(count: int) -> Split:
        images = torch.zeros(count, 3, 5, 7, dtype=torch.uint8)
        return Split(images, torch.arange(count) % 2)

    return Dataset(
        name="tiny",
        classes=("cat", HOSTILE),
        train=split(6),
        val=split(2),
        test=split(4),
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
        fingerprint="abc",
    )


def test_classes_and_files_that_a_page_names_are_plain_text_and_few() -> None:
    facts = {**dataset_facts(tiny_dataset()), "classes_without_test": ["**a**"]}
    facts["unreadable"] = {f"`{number}`": "broken" for number in range(25)}
    note = splits_note(facts)
    assert (
        "Classes without test images: __a__. Left out because unreadable: 25 files, '0', " in note
    )
    assert note.endswith(", '19', and 5 more (see config.json).")


def test_a_data_set_is_described_by_all_that_predicting_needs() -> None:
    facts = dataset_facts(tiny_dataset())
    assert facts == {
        "name": "tiny",
        "classes": ["cat", HOSTILE],
        "channels": 3,
        "image_size": [5, 7],
        "train": 6,
        "val": 2,
        "test": 4,
        "mean": [1.0, 2.0, 3.0],
        "std": [4.0, 5.0, 6.0],
        "sha256": "abc",
    }
    assert json.loads(json.dumps(facts)) == facts
    assert splits_note(facts) == "4 test images, 6 training images, 2 validation images."


def test_the_facts_of_a_run_have_the_contracts_keys() -> None:
    options = {"model": "vgg16", "seed": 7, "epochs": 3}
    facts = run_facts("fge", options, tiny_dataset(), {"torch": "2.9"})
    assert facts == {
        "command": "fge",
        "task": "image classification",
        "data": "tiny",
        "model": "vgg16",
        "seed": 7,
        "config": options,
        "dataset": dataset_facts(tiny_dataset()),
        "environment": {"torch": "2.9"},
    }


def test_the_environment_is_told_without_a_clock() -> None:
    facts = environment_facts(torch.device("cpu"), 3)
    assert facts == environment_facts(torch.device("cpu"), 3)
    assert facts["torch"] == torch.__version__
    assert facts["device"] == "cpu"
    assert facts["threads"] == 3
    assert all(facts[key] for key in ("python", "torchvision", "numpy", "platform", "hardware"))
    json.dumps(facts, allow_nan=False)
