"""Data, classes, files and folders with hostile names, from training to pages of predictions."""

from __future__ import annotations

import csv
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest
from curve_runs import done, flags, job, run
from PIL import Image

from fge.errors import UserError
from fge.methods import Method, single_stages
from fge.networks import import_named
from fge.train import find_method

CLASSES = ["=cmd|' C'!A0", "<script>alert(1)<b>", "[x](javascript:alert(1))\n# h"]
ALLOWED = {"h1", "h2", "h3", "p", "strong", "code", "img", "details", "summary"}
ALLOWED |= {"table", "thead", "tbody", "tr", "th", "td"}


class Tags(HTMLParser):
    """Collects tags and the addresses of links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.scripts += tag == "script"
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in CLASSES:
            (folder / split / name.replace("/", "_")).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
                image.save(folder / split / name.replace("/", "_") / f"{number}.png")


@pytest.mark.slow
def test_no_name_becomes_markup_in_any_file_or_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "<i>data</i> [red]`x`"
    write_images(data)
    out = tmp_path / "**run** [x](y)"
    options = job(data, out, epochs=2, start_epoch=0, cycle_epochs=2, batch_size=8)
    options |= {"val_fraction": 0.2}
    result = run(flags("fge", options))
    assert (result.code, result.err) == (0, "")
    images = tmp_path / "images"
    images.mkdir()
    hostile = ["=1+1.png", "<img src=x>.png", "[x](javascript:y)\n.png"]
    source = next((data / "test").rglob("*.png")).read_bytes()
    for name in hostile:
        (images / name).write_bytes(source)
    (images / os.fsdecode(b"\xff.png")).write_bytes(source)
    monkeypatch.chdir(images)
    predicted = done("predict", {"run": str(out), "images": ".", "out": str(tmp_path / "p")})
    for folder in (out, predicted):
        text = (folder / "report.md").read_text()
        page = Tags(markdown.markdown(text, extensions=["extra", "toc"]))
        assert page.tags <= ALLOWED
        assert all(link.startswith("figures/") for link in page.links)
        whole = (folder / "report.html").read_text()
        html = Tags(re.sub(r"<script>.*?</script>", "", whole, flags=re.S))
        assert html.scripts <= 1  # the data of the plots
        assert not html.tags & {"i", "b", "iframe"}
        assert not [link for link in html.links if "javascript" in link]
    with (predicted / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert {row[0] for row in rows[1:]} >= {"'=1+1.png", "<img src=x>.png"}
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "@"))]


@pytest.mark.parametrize("name", ["<b>:net", "a`b:net", "x:net()", "a b:net", "a/b:net"])
def test_code_is_named_as_python_names_it(name: str) -> None:
    with pytest.raises(UserError, match=r"is no package.module:name: it has other characters"):
        import_named(name, "model")


@pytest.mark.parametrize("name", ["<b>", "a`b", "a|b", "a/b", "a\nb", "", "[x](y)", "=1"])
def test_a_method_s_name_is_one_of_a_row_and_of_a_folder(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fge.methods.mine", Method(name, "", single_stages), raising=False)
    with pytest.raises(UserError, match=r"use letters, digits, spaces and . _ \+ - alone"):
        find_method("fge.methods:mine")
