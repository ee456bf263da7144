"""The content of a page of results; writing it as ``report.json``, Markdown and HTML."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fge.config import own_code, program
from fge.files import json_text, read_bytes, write_text
from fge.report.escaping import (
    html_cell,
    html_text,
    markdown_cell,
    markdown_name,
    markdown_text,
)
from fge.report.palette import variables
from fge.report.render_interactive import Plot, plotly_script
from fge.runs import RunFolder
from fge.tasks import MANY_CLASSES

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

FILES = ("report.json", "config.json", "log.jsonl")
"""Files in every run folder for other programs."""
PREDICTIONS, VALIDATION = "predictions/test.npz", "predictions/val.npz"
SCHEMA_VERSION = 1
MORE = "More on this result"
"""The heading of the text that is folded below the first line of a verdict."""
COSTS = (
    "Epochs count all training of the method, fits included; passes are network evaluations per "
    "prediction."
)
UNITS = f"{MANY_CLASSES.units.format(example='image')} {COSTS}"


@dataclass(frozen=True)
class Table:
    """Text cells under headings, with a title and a note that says what they mean."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A small image of the data: its PNG in ``figures``, and a caption that says what it is."""

    file: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Images of the data side by side, with a title and a note that says why these."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What a report shows: title, verdict, tables, galleries, and figures by name with a caption.

    Empty lines separate the paragraphs of the verdict: the first is one line with the main result,
    the others are folded. ``files`` are the files of the run folder that the page links to;
    ``plots``, by file name, replace figures if plotly is installed; ``figure_format`` is the second
    format of the figures, in addition to PNG.
    """

    title: str
    verdict: str
    tables: Sequence[Table]
    figures: dict[str, str] = field(default_factory=dict)
    files: Sequence[str] = (*FILES, PREDICTIONS)
    plots: Mapping[str, Plot] = field(default_factory=dict)
    figure_format: str = "png"
    galleries: Sequence[Gallery] = ()

    @property
    def headline(self) -> str:
        """The first paragraph of the verdict."""
        return self.verdict.partition("\n\n")[0]

    @property
    def details(self) -> list[str]:
        """The other paragraphs."""
        return self.verdict.split("\n\n")[1:]


@dataclass(frozen=True)
class Section:
    """A run on a page: its folder, what it shows, and its ``report.json``.

    ``name`` distinguishes it from other runs on the page.
    """

    folder: Path
    page: Page
    content: Mapping[str, Any]
    name: str = ""


def write_report(folder: RunFolder, page: Page, content: dict[str, Any]) -> None:
    """Write ``page.json``, ``report.md`` and ``report.html``, and last ``report.json``.

    A run with a ``report.json`` is finished, so all other files exist then.

    Args:
        folder: of the run; the page's figures are in ``figures``.
        page: the content of both pages; ``page.json`` holds it, so that they can be made again.
        content: of ``report.json``, in addition to its ``schema_version`` and ``verdict``.
    """
    content = {"schema_version": SCHEMA_VERSION, **content, "verdict": page.verdict}
    encoded = json_text(content)  # an error here leaves no partial report
    kept = {"schema_version": SCHEMA_VERSION, **asdict(page)}
    # On one line: an indented array of a plot would have a line per number.
    write_text(folder.path / "page.json", json.dumps(kept, allow_nan=False) + "\n")
    write_pages(folder.path, page, [Section(folder.path, page, content)])
    write_text(folder.path / "report.json", encoded)


def write_pages(out: Path, page: Page, sections: Sequence[Section]) -> None:
    """Write ``report.md`` and ``report.html``.

    Args:
        out: their folder; links to figures and files of runs are relative to it.
        page: of the only section, or the part above several sections.
        sections: one per run.
    """
    write_text(out / "report.md", _markdown(out, page, sections))
    write_text(out / "report.html", _html(out, page, sections))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left and the others right aligned."""
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    names = [markdown_name(heading) for heading in headings]
    lines = [names, rule, *([markdown_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown_tables(tables: Iterable[Table], level: str) -> list[str]:
    """Return tables as parts of Markdown: a heading, the table and its note.

    Args:
        tables: to show.
        level: of the headings, such as ``##``.
    """
    parts = []
    for table in tables:
        parts += [f"{level} {markdown_name(table.title)}"]
        parts += [markdown_table(table.headings, table.rows)]
        parts += [markdown_text(table.note)] if table.note else []
    return parts


def _markdown(out: Path, page: Page, sections: Sequence[Section]) -> str:
    parts = [f"# {markdown_name(page.title)}", *markdown_verdict(page.headline, page.details)]
    if len(sections) > 1:
        parts += markdown_tables(page.tables, "##")
    for section in sections:
        level = "##"
        if len(sections) > 1:
            parts.append(f"## {markdown_name(f'{section.name}: {section.page.title}')}")
            parts += markdown_verdict(section.page.headline, section.page.details)
            level = "###"
        parts += markdown_tables(section.page.tables, level)
        for name, text in section.page.figures.items():
            parts.append(f"![{markdown_name(text)}]({_link(out, section, f'figures/{name}')})")
        for gallery in section.page.galleries:
            parts += _markdown_gallery(gallery, level, partial(_link, out, section))
    return "\n\n".join(parts) + "\n"


def _markdown_gallery(gallery: Gallery, level: str, link: Callable[[str], str]) -> Iterator[str]:
    """Yield a gallery as parts of Markdown: a heading, the note, and each picture with its caption.

    Args:
        gallery: to show.
        level: of the heading.
        link: returns the link to a file of the run.
    """
    yield f"{level} {markdown_name(gallery.title)}"
    if gallery.note:
        yield markdown_text(gallery.note)
    for picture in gallery.pictures:
        text = markdown_name(picture.caption)
        yield f"![{text}]({link(f'figures/{picture.file}')}) {text}"


def markdown_verdict(headline: str, details: Sequence[str]) -> list[str]:
    """Return a verdict as parts of Markdown: one bold line, and the rest folded."""
    first = f"**{markdown_text(headline.replace('**', ''))}**"
    if not details:
        return [first]
    folded = [markdown_text(paragraph) for paragraph in details]
    return [first, f"<details><summary>{MORE}</summary>", *folded, "</details>"]


def _html(out: Path, page: Page, sections: Sequence[Section]) -> str:
    wanted = any(section.page.plots for section in sections)
    script = plotly_script() if wanted else None
    runs = [_run(out, section, number, script) for number, section in enumerate(sections, start=1)]
    plots = {figure["id"]: figure["plot"] for run in runs for figure in run["figures"]}
    rendered = page_template().render(
        page=page,
        more=MORE,
        light=variables(dark=False),
        dark=variables(dark=True),
        runs=runs,
        joined=len(sections) > 1,
        plots={name: plot for name, plot in plots.items() if plot},
        script=script,
    )
    # Names of files may have bytes that are no text.
    return rendered.encode("utf-8", "backslashreplace").decode()


@cache
def page_template() -> Template:
    """Return the template of a page, compiled once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fge.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": _shown, "worded": _worded}
    environment.filters |= {"marked": _safe(html_text), "cell": _safe(html_cell)}
    return environment.get_template("report.html")


def _run(out: Path, section: Section, number: int, script: str | None) -> dict[str, Any]:
    """Return the values of a run for the template; its number makes names on the page distinct."""
    figures = []
    for position, (name, caption) in enumerate(section.page.figures.items(), start=1):
        plot = section.page.plots.get(name) if script else None
        other = Path("figures", name).with_suffix(f".{section.page.figure_format}").as_posix()
        figures.append(
            {
                "id": f"run-{number}-plot-{position}",
                "caption": caption,
                "link": _link(out, section, other),
                "picture": _encoded(section.folder, name),
                "plot": plot and {"data": plot.data, "layout": plot.layout},
            }
        )
    galleries = [
        {
            "title": gallery.title,
            "note": gallery.note,
            "pictures": [
                {"caption": picture.caption, "picture": _encoded(section.folder, picture.file)}
                for picture in gallery.pictures
            ],
        }
        for gallery in section.page.galleries
    ]
    return {
        "id": f"run-{number}",
        "name": section.name,
        "page": section.page,
        "content": section.content,
        "figures": figures,
        "galleries": galleries,
        "command": repeat_command(section.content, section.folder),
        "own_code": own_code(section.content["config"]),
        "links": [(name, _link(out, section, name)) for name in section.page.files],
    }


def _encoded(folder: Path, name: str) -> str:
    """Return a picture of a run as the page holds it."""
    return base64.b64encode(read_bytes(folder / "figures" / name, "figure")).decode()


def _link(out: Path, section: Section, name: str) -> str:
    """Return the link to a file of a run, relative to the folder of the page."""
    where = Path(os.path.relpath(section.folder.resolve(), out.resolve()), name)
    return quote(os.fsencode(where.as_posix()))


def repeat_command(content: Mapping[str, Any], folder: Path) -> str:
    """Return the command that repeats the run of a ``report.json``, in the folder of the run.

    It names the user's own model and methods, because code that only a file names is not imported.
    It starts as many processes as the run had.

    Args:
        content: of the ``report.json``.
        folder: of the run; a path to ``cli.py`` is relative to it.
    """
    options, processes = content["config"], content["environment"].get("processes", 1)
    start = ["python"]
    if processes > 1:
        start = ["torchrun", "--standalone", "--nproc-per-node", str(processes)]
    words = [*program(start, seen_from=folder), content["command"]]
    if content["command"] == "predict":  # it has no config file
        words += ["--run", options["run"], "--images", options["images"]]
        words += _also_given(options)
    else:
        words += ["--config", "config.json"]
    return shlex.join([*words, *own_code(options), "--out", "NEW_FOLDER"])


def _also_given(options: Mapping[str, Any]) -> list[str]:
    """Return the options of ``predict`` that change what it writes, where they were given."""
    words: list[str] = []
    for name in ("image_size", "coverage", "skip_unreadable", "keep_members"):
        value, flag = options.get(name), f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, str(value)]
    return words


def _safe(render: Callable[[str], str]) -> Callable[[str], Markup]:
    """Return a filter of the template for what returns HTML."""
    from markupsafe import Markup

    return lambda text: Markup(render(text))


def _worded(table: Table) -> list[bool]:
    """Return for each column whether it holds words, which are left aligned, not numbers."""
    columns = [[cell for cell in column if cell] for column in zip(*table.rows, strict=True)]
    found = [bool(cells) and all(cell[0].isalpha() for cell in cells) for cells in columns]
    return found or [False] * len(table.headings)


def _shown(value: Any) -> str:
    """Return an option's value as words."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
