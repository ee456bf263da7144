"""The command ``report``: writes the page of a run again, or one page for several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from fge.config import CLASSIFICATION, ReportConfig, TaskName, read_report
from fge.errors import UserError
from fge.files import checked
from fge.report import (
    COLUMNS,
    COSTS,
    OTHER_COLUMNS,
    ConsoleObserver,
    Gallery,
    Page,
    Picture,
    Plot,
    Section,
    Table,
    write_pages,
)
from fge.runs import RunFolder, is_run, open_pages, open_run_folder
from fge.schemas import Count, NotNegative, Percent, Positive, Share
from fge.tasks import make_task

_IMAGES = ("sha256", "train", "val", "test")
"""Keys that show whether runs used the same images, OOD images aside."""
_COLUMNS = (*COLUMNS[:2], ("budget", "budget", "{} B"), *OTHER_COLUMNS, *COLUMNS[2:])
"""The columns of single runs, and the budget of a comparison's rows."""
_WRITE_AGAIN = "run its command with --resume, which writes it again"


class _Method(TypedDict):
    name: str
    members: NotRequired[NotNegative]
    budget: NotRequired[NotNegative]
    error: NotRequired[Percent]
    nll: NotRequired[float]
    brier: NotRequired[NotNegative]
    ece: NotRequired[Share]
    train_epochs: NotRequired[NotNegative]
    forward_passes: NotRequired[NotNegative]


class _Images(TypedDict):
    sha256: NotRequired[str]
    train: NotRequired[Count]
    val: NotRequired[Count]
    test: NotRequired[Count]
    task: NotRequired[TaskName]
    table: NotRequired[dict[str, Any]]


class _OwnCode(TypedDict):
    """The options that may name the user's own code."""

    model: NotRequired[str | None]
    method: NotRequired[str | None]
    methods: NotRequired[list[str] | None]


class _Inputs(TypedDict):
    """The options of ``predict``, which has no config file."""

    run: str
    images: str
    image_size: NotRequired[int | None]
    coverage: NotRequired[float | None]
    skip_unreadable: NotRequired[bool]
    keep_members: NotRequired[bool]


class _Environment(TypedDict):
    processes: NotRequired[Positive]


class _Report(TypedDict):
    """What a page shows of a ``report.json``."""

    command: str
    config: _OwnCode
    environment: _Environment
    methods: list[_Method]
    data: NotRequired[str]
    model: NotRequired[str | None]
    dataset: NotRequired[_Images | None]


class _Table(TypedDict):
    title: str
    headings: list[str]
    rows: list[list[str]]
    note: NotRequired[str]


class _Layout(TypedDict):
    height: NotNegative


class _Plot(TypedDict):
    data: list[dict[str, Any]]
    layout: _Layout


class _Picture(TypedDict):
    file: str
    caption: str


class _Gallery(TypedDict):
    title: str
    pictures: list[_Picture]
    note: NotRequired[str]


class _Page(TypedDict):
    """A ``page.json``."""

    title: str
    verdict: str
    tables: list[_Table]
    figures: dict[str, str]
    files: list[str]
    plots: dict[str, _Plot]
    figure_format: NotRequired[Literal["png", "svg", "pdf"]]
    galleries: NotRequired[list[_Gallery]]


def report(config: ReportConfig) -> Path:
    """Write the page of a run again, or one page for several runs; return its folder."""
    sections = [read_section(run) for run in config.runs]
    page = sections[0].page
    if len(sections) > 1:
        names = _names(config.runs)
        sections = [replace(s, name=name) for s, name in zip(sections, names, strict=True)]
        page = joined_page(sections)
    with closing(_folder(config)) as folder:
        out = folder.path
        write_pages(out, page, sections)
    ConsoleObserver().note(f"report: {out / 'report.html'}")
    return out


def read_section(folder: Path) -> Section:
    """Return the section of a finished run."""
    if not any((folder / name).is_file() for name in ("config.json", "report.json")):
        raise UserError(f"{folder} is not a run folder (no config.json); give the folder of a run")
    for name in ("report.json", "page.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"the run in {folder} is not finished (no {name}); resume it with its command and "
                "--resume"
            )
    content = read_report(folder / "report.json", _Report)
    shown = read_report(folder / "page.json", _Page)
    if content["command"] == "predict":  # the page shows the command that repeats it
        checked(content["config"], _Inputs, f"{folder / 'report.json'} is damaged", _WRITE_AGAIN)
    page = Page(
        title=shown["title"],
        verdict=shown["verdict"],
        tables=[_table(table, folder / "page.json") for table in shown["tables"]],
        figures=shown["figures"],
        files=shown["files"],
        plots={name: Plot(plot["data"], plot["layout"]) for name, plot in shown["plots"].items()},
        figure_format=shown.get("figure_format", "png"),
        galleries=[_gallery(gallery) for gallery in shown.get("galleries", [])],
    )
    figures = folder / "figures"
    pictures = (picture.file for gallery in page.galleries for picture in gallery.pictures)
    for name in (*page.figures, *pictures):
        # A page.json from elsewhere may name any file, and the page would contain that file.
        strange = Path(name).name != name or "\0" in name
        if strange or (figures / name).resolve().parent != figures.resolve():
            raise UserError(
                f"the report in {folder} is damaged: {name!r} is not in figures/; {_WRITE_AGAIN}"
            )
        if not (figures / name).is_file():
            raise UserError(f"{folder} lacks figures/{name}; run its command with --resume")
    return Section(folder, page, dict(content))


def _gallery(gallery: _Gallery) -> Gallery:
    pictures = [Picture(picture["file"], picture["caption"]) for picture in gallery["pictures"]]
    return Gallery(gallery["title"], pictures, gallery.get("note", ""))


def _table(table: _Table, path: Path) -> Table:
    headings, rows = table["headings"], table["rows"]
    if any(len(row) != len(headings) for row in rows):
        raise UserError(
            f"{path} is damaged: a row of the table {table['title']!r} has no {len(headings)} "
            f"cells; {_WRITE_AGAIN}"
        )
    return Table(table["title"], headings, rows, table.get("note", ""))


def _names(runs: Sequence[Path]) -> list[str]:
    """Return distinct names of runs: the names of their folders, or their paths."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _folder(config: ReportConfig) -> RunFolder:
    """Return the folder of the page, opened to write; it is that of a single run by default."""
    out, alone = config.out, len(config.runs) == 1
    if out is None and not alone:
        return open_run_folder(None, "report", resume=False, overwrite=False)
    if alone and (out is None or out.resolve() == config.runs[0].resolve()):
        run = config.runs[0]
        if not is_run(run):  # the results of a run, without the rest of it
            return RunFolder(run)
        return open_run_folder(run, "report", resume=True, overwrite=False)
    assert out is not None
    return open_pages(out, "report", overwrite=config.overwrite)


def joined_page(sections: Sequence[Section]) -> Page:
    """Return the top of a page of several runs: whether they are comparable, and all methods."""
    names = ", ".join(section.name for section in sections)
    lines = [(section, method) for section in sections for method in section.content["methods"]]
    tables = [_methods_table(sections, lines)] if lines else []
    return Page(f"{len(sections)} runs: {names}", _sameness(sections), tables)


def _sameness(sections: Sequence[Section]) -> str:
    """Return a sentence about whether the runs are comparable."""
    examples = f"{_example(sections)}s"
    if len({tuple(facts.get(key) for key in _IMAGES) for facts in _datasets(sections)}) > 1:
        return f"The runs used different {examples}: do not compare their numbers."
    if len({s.content.get("model") for s in sections}) > 1:
        return f"The runs used the same {examples} and different models."
    return f"The runs used the same {examples} and the same model."


def _datasets(sections: Sequence[Section]) -> list[Mapping[str, Any]]:
    return [section.content.get("dataset") or {} for section in sections]


def _example(sections: Sequence[Section]) -> str:
    return "row" if all("table" in facts for facts in _datasets(sections)) else "image"


def _units(sections: Sequence[Section]) -> str:
    """Return the units of the figures of all tasks of the runs."""
    tasks = dict.fromkeys(facts.get("task", CLASSIFICATION) for facts in _datasets(sections))
    units = (make_task(task, ()).units.format(example=_example(sections)) for task in tasks)
    return " ".join([*units, COSTS])


def _methods_table(
    sections: Sequence[Section], lines: Sequence[tuple[Section, Mapping[str, Any]]]
) -> Table:
    differing = [
        key for key in ("data", "model") if len({str(s.content.get(key)) for s in sections}) > 1
    ]
    columns = [column for column in _COLUMNS if any(column[0] in method for _, method in lines)]
    rows = []
    for section, method in lines:
        row = [section.name, *(str(section.content.get(key)) for key in differing)]
        row += [_cell(method.get(key), form) for key, _, form in columns]
        rows.append(row)
    headings = ["run", *differing, *(heading for _, heading, _ in columns)]
    return Table("Methods of all runs, on their test sets", headings, rows, _units(sections))


def _cell(value: Any, form: str) -> str:
    """Return a value as text; a mean count over seeds may be a fraction."""
    if value is None:
        return "-"
    if isinstance(value, float) and form == "{}":
        return f"{value:.1f}".removesuffix(".0")
    return form.format(value) if isinstance(value, int | float) else str(value)
