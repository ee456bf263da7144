"""``report``: a page made again is the page of the run; several runs are joined, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fge.commands import cli
from fge.commands.report import joined_page, read_section, report
from fge.config import ReportConfig
from fge.errors import UserError
from fge.report import (
    UNITS,
    Page,
    ReportBuilder,
    Section,
    Series,
    Table,
    methods_chart,
    write_report,
)
from fge.runs import RunFolder

METHOD = {
    "name": "fge",
    "members": 3,
    "error": 9.456,
    "nll": 0.26,
    "brier": 0.1367,
    "ece": 0.0143,
    "train_epochs": 100,
    "forward_passes": 3,
}
SAME = {"data": "tiny", "model": "convnet", "dataset": {"sha256": "abc"}}


def make_run(path: Path, **changes: Any) -> Path:
    """Leave a finished run, with a figure that has a plot and one that has none."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    built = ReportBuilder(RunFolder(path))
    chart = methods_chart([Series("a", [1, 2], [1 / 3, float("nan")])], x="x", y="y")
    built.chart("a.png", chart, "The first")
    built.chart("b.png", chart, "The second")
    built.table(Table("Results", ("method", "error"), [("fge", "9.46")], "In `percent`."))
    built.say("It gained.")
    page = built.page(f"run {path.name}")
    page = replace(page, plots={"a.png": page.plots["a.png"]})
    content = {
        "command": "fge",
        "config": {"model": "my_models:build", "epochs": 100},
        "environment": {"torch": "2.9"},
        "methods": [METHOD],
        **SAME,
        **changes,
    }
    write_report(RunFolder(path), page, content)
    return path


def pages(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("report.html", "report.md")]


def test_a_figure_format_is_refused_as_a_page_draws_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    before = pages(run)
    for given in (["--figure-format", "svg"], ["--figure-format=svg"]):
        assert cli.main(["report", str(run), *given]) == 2
        assert capsys.readouterr().err == (
            "error: --figure-format svg is not used: the page shows the figures that the run has; "
            "give it to the run's command\n"
        )
    assert pages(run) == before
    assert cli.main(["report", "--help"]) == 0
    assert "figure" not in capsys.readouterr().out


@pytest.mark.parametrize("out", [False, True])
def test_a_page_made_again_is_that_of_the_run(tmp_path: Path, out: bool) -> None:
    run = make_run(tmp_path / "run")
    before = pages(run)
    for name in ("report.html", "report.md"):
        (run / name).unlink()
    where = ["--out", str(run)] if out else []
    assert cli.main(["report", str(run), *where]) == 0
    assert pages(run) == before


def test_a_page_may_go_to_another_folder_and_links_to_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = pages(run)
    out = report(ReportConfig((run,), out=tmp_path / "deep" / "page"))
    assert out == tmp_path / "deep" / "page"
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "report.html",
        "report.md",
    ]
    assert '<a href="../../run/report.json">' in (out / "report.html").read_text()
    assert "(../../run/figures/a.png)" in (out / "report.md").read_text()
    assert pages(run) == before


def test_several_runs_share_a_page_with_one_table_of_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    swa = {**METHOD, "name": "swa", "members": 1, "error": 9.5}
    make_run(tmp_path / "one")
    make_run(tmp_path / "two", methods=[METHOD, {**swa, "ece": 0.02}])
    make_run(tmp_path / "three", methods=[])
    assert cli.main(["report", "one", "two", "three"]) == 0
    assert capsys.readouterr().out == f"report: {Path('runs/report-001/report.html')}\n"
    text = (tmp_path / "runs" / "report-001" / "report.md").read_text()
    assert text.startswith("# 3 runs: one, two, three\n\n**The runs used the same images and ")
    assert (
        "| run | method | members | error | NLL | Brier | ECE | epochs | passes |\n"
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |\n"
        "| one | fge | 3 | 9.46 | 0.2600 | 0.1367 | 0.0143 | 100 | 3 |\n"
        "| two | fge | 3 | 9.46 | 0.2600 | 0.1367 | 0.0143 | 100 | 3 |\n"
        "| two | swa | 1 | 9.50 | 0.2600 | 0.1367 | 0.0200 | 100 | 3 |\n\n"
    ) in text
    for name in ("one", "two", "three"):
        assert f"## {name}: run {name}\n\n**It gained.**\n\n### Results\n" in text
    html = (tmp_path / "runs" / "report-001" / "report.html").read_text()
    assert html.count("* plotly.js v") == 1
    assert html.count('<div class="plot"') == 3


def section(name: str, **changes: Any) -> Section:
    content = {"methods": [METHOD], **SAME, **changes}
    return Section(Path(name), Page(name, "", []), content, name)


def test_runs_of_other_data_or_models_say_so_and_that_they_do_not_compare() -> None:
    models = joined_page([section("a"), section("b", model="vgg16")])
    assert models.verdict == "The runs used the same images and different models."
    assert models.tables[0].headings[:3] == ["run", "model", "method"]
    assert [row[:3] for row in models.tables[0].rows] == [
        ["a", "convnet", "fge"],
        ["b", "vgg16", "fge"],
    ]
    images = joined_page([section("a"), section("b", dataset={"sha256": "x"}, data="other")])
    assert "do not compare their numbers" in images.verdict
    assert images.tables[0].headings[:3] == ["run", "data", "method"]


def test_runs_on_tables_and_of_other_tasks_have_their_words() -> None:
    facts = {"sha256": "abc", "train": 9, "val": 1, "test": 5}
    assert joined_page([section("a"), section("b")]).tables[0].note == UNITS
    rows = [
        section(name, dataset={**facts, "task": "regression", "table": {}}, methods=[NUMBERS])
        for name in ("a", "b")
    ]
    page = joined_page(rows)
    assert page.verdict == "The runs used the same rows and the same model."
    assert "RMSE" in page.tables[0].headings
    assert page.tables[0].note.startswith("RMSE and MAE are in the units of the targets")
    assert "per row" in page.tables[0].note
    assert "Error is in percent" not in page.tables[0].note


NUMBERS = {"name": "fge", "members": 3, "rmse": 12.5, "nll": 3.1, "train_epochs": 9}


def test_ood_images_make_no_other_data() -> None:
    facts = {"sha256": "abc", "train": 9, "val": 1, "test": 5}
    runs = [section("a", dataset=facts), section("b", dataset={**facts, "ood": {"noise": {}}})]
    assert joined_page(runs).verdict == "The runs used the same images and the same model."
    other = section("c", dataset={**facts, "val": 0})
    assert "do not compare their numbers" in joined_page([*runs, other]).verdict


def test_lines_of_a_comparison_have_their_budget_and_whole_counts() -> None:
    means = {"members": 2.0, "train_epochs": 95.0, "forward_passes": 2.5, "error": 9}
    lines = [{**METHOD, **means, "budget": budget} for budget in (1, 2)]
    page = joined_page([section("a"), section("b", methods=lines)])
    assert page.tables[0].headings[:4] == ["run", "method", "members", "budget"]
    found = [[*row[1:5], *row[-2:]] for row in page.tables[0].rows]
    assert found == [
        ["fge", "3", "-", "9.46", "100", "3"],
        ["fge", "2", "1 B", "9.00", "95", "2.5"],
        ["fge", "2", "2 B", "9.00", "95", "2.5"],
    ]


def test_what_a_method_lacks_is_left_out() -> None:
    page = joined_page([section("a"), section("b", methods=[{"name": "own", "error": 1.0}])])
    assert page.tables[0].rows[1] == ["b", "own", "-", "1.00", "-", "-", "-", "-", "-"]
    bare = joined_page([section("a", methods=[]), section("b", methods=[])])
    assert list(bare.tables) == []


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / part / "run") for part in ("a", "b")]
    out = report(ReportConfig((runs[0], runs[1]), out=tmp_path / "page"))
    assert (out / "report.md").read_text().startswith(f"# 2 runs: {runs[0]}, {runs[1]}\n")


def test_what_is_read_is_what_was_shown(tmp_path: Path) -> None:
    found = read_section(make_run(tmp_path / "run"))
    assert found.page.tables == [
        Table("Results", ["method", "error"], [["fge", "9.46"]], "In `percent`.")
    ]
    assert list(found.page.figures.items()) == [("a.png", "The first"), ("b.png", "The second")]
    assert found.page.plots["a.png"].data[0]["y"] == [0.333333, None]
    assert found.content["methods"] == [METHOD]


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line of a command that the user can mend."""
    assert cli.main(["report", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ").rstrip("\n")


def test_runs_are_needed_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give the folder of a finished run" in fails(capsys)
    run = make_run(tmp_path / "run")
    again = tmp_path / "run" / ".." / "run"
    assert fails(capsys, run, again) == f"the run folder {run} is given twice"
    long = make_run(tmp_path / ("long" * 40))  # no line of the message may break it
    assert fails(capsys, long, long) == f"the run folder {long} is given twice"


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    message = f"{tmp_path} is not a run folder (no config.json); give the folder of a run"
    assert fails(capsys, run, tmp_path) == message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["report.json", "page.json"])
def test_an_unfinished_run_is_to_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    assert fails(capsys, run) == (
        f"the run in {run} is not finished (no {name}); resume it with its command and --resume"
    )


@pytest.mark.parametrize("name", ["report.json", "page.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 1, "tables": 3}'])
def test_a_damaged_report_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    assert "damaged" in fails(capsys, run)


@pytest.mark.parametrize("methods", [None, 3, [3]])
def test_methods_that_are_none_are_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], methods: Any
) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    content = json.loads((run / "report.json").read_text())
    del content["methods"]
    content |= {} if methods is None else {"methods": methods}
    (run / "report.json").write_text(json.dumps(content))
    assert f"{run / 'report.json'} is damaged: " in fails(capsys, other, run)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("page.json", {"title": 3}, "Expected `str`, got `int` - at `$.title`"),
        ("page.json", {"tables": [{"title": "A"}]}, "required field `headings`"),
        (
            "page.json",
            {"tables": [{"title": "A", "headings": ["x", "y"], "rows": [["1", "2"], ["3"]]}]},
            "a row of the table 'A' has no 2 cells; run its command with --resume",
        ),
        ("page.json", {"plots": {"a.png": {"data": [], "layout": {}}}}, "required field `height`"),
        ("page.json", {"plots": {"a.png": {"data": [3], "layout": {}}}}, "got `int`"),
        ("page.json", {"figures": {"a\0.png": "A"}}, "'a\\x00.png' is not in figures/"),
        (
            "page.json",
            {"galleries": [{"title": "A", "pictures": [{"file": "../x", "caption": "A"}]}]},
            "'../x' is not in figures/",
        ),
        ("page.json", {"galleries": [{"title": "A", "pictures": [3]}]}, "got `int`"),
        ("page.json", {"figure_format": "gif"}, "Invalid enum value 'gif'"),
        ("report.json", {"environment": {"processes": 0}}, "Expected `int` >= 1"),
        ("report.json", {"environment": []}, "Expected `object`, got `array`"),
        ("report.json", {"config": {"model": 3}}, "at `$.config.model`"),
        ("report.json", {"dataset": {"sha256": []}}, "at `$.dataset.sha256`"),
        ("report.json", {"methods": [{"name": "x", "error": -1}]}, "Expected `float` >= 0"),
        ("report.json", {"command": "predict", "config": {}}, "required field `run`"),
    ],
)
def test_what_does_not_fit_in_a_report_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    run = make_run(tmp_path / "run")
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | changes))
    told = fails(capsys, run)
    assert message in told, told
    assert str(run) in told
    assert "which writes it again" in told


@pytest.mark.parametrize("how", ["absolute", "above", "link"])
def test_no_file_from_elsewhere_is_put_into_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "secret").write_text("mine")
    (run / "figures" / "link.png").symlink_to(tmp_path / "secret")
    secret = str(tmp_path / "secret")
    name = {"absolute": secret, "above": "../../secret", "link": "link.png"}[how]
    content = json.loads((run / "page.json").read_text())
    (run / "page.json").write_text(json.dumps({**content, "figures": {name: "A figure"}}))
    before = pages(run)
    assert fails(capsys, run) == (
        f"the report in {run} is damaged: {name!r} is not in figures/; run its command with "
        "--resume, which writes it again"
    )
    assert pages(run) == before


def test_a_later_schema_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    content = json.loads((run / "page.json").read_text())
    (run / "page.json").write_text(json.dumps({**content, "schema_version": 2}))
    assert fails(capsys, run) == (f"{run / 'page.json'} has schema_version 2; this program reads 1")


def test_a_figure_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    (run / "figures" / "b.png").unlink()
    assert fails(capsys, run) == f"{run} lacks figures/b.png; run its command with --resume"


def test_a_page_replaces_another_only_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert fails(capsys, one, two, "--out", out, *more) == (
            f"{out / 'report.md'} is a file that this run did not write, and is in the way; move "
            "it away"
        )
        assert (out / "report.md").read_text() == "mine"
        assert [path.name for path in out.iterdir()] == ["report.md"]
    (out / "report.md").unlink()
    assert cli.main(["report", str(one), "--out", str(out)]) == 0
    assert fails(capsys, one, two, "--out", out) == (
        f"{out} already holds report.html; replace it with --overwrite"
    )
    assert cli.main(["report", str(one), str(two), "--out", str(out), "--overwrite"]) == 0
    assert (out / "report.md").read_text().startswith("# 2 runs")


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_the_page_of_another_run_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    before = pages(two)
    for runs in ([one], [one, two]):
        assert fails(capsys, *runs, "--out", two, *more) == (
            f"--out {two} is the folder of a run, and its page would be lost; give another --out"
        )
    assert pages(two) == before


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "file"
    out.write_text("mine")
    assert fails(capsys, run, "--out", out) == f"--out {out} is a file; give a folder"


def test_the_options_are_checked_in_the_library_too() -> None:
    with pytest.raises(UserError, match="give the folder of a finished run"):
        ReportConfig(())
    assert replace(ReportConfig((Path("a"), Path("b"))), overwrite=True).overwrite
