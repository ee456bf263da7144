"""What a run shows: plain lines where nobody looks, a live bar on a terminal, tables."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from fge.report import ConsoleObserver

EPOCH = {"stage": "fge", "train_loss": 0.98765}
SNAPSHOT = {"stage": "fge", "member": 1, "epoch": 4, "lr": 0.0005}
VALIDATED = {**SNAPSHOT, "val_error": 12.345, "val_nll": 0.43215}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def terminal(file: io.StringIO) -> Console:
    """Return the console that an observer makes itself, but of a terminal."""
    return Console(
        file=file, force_terminal=True, width=80, highlight=False, markup=False, soft_wrap=True
    )


def plain(text: str) -> str:
    """Return the text without a terminal's control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_epochs_are_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ConsoleObserver() as observer:
        observer.epoch({"stage": "start", "train_loss": 2.0}, 1, 12)
        observer.epoch(EPOCH, 2, 12)
    assert capsys.readouterr().out == (
        "epoch 1/12  start: train loss 2.0000\nepoch 2/12  fge: train loss 0.9877\n"
    )


@pytest.mark.parametrize(("total", "told"), [(25, [10, 20, 25]), (20, [10, 20]), (3, [3])])
def test_every_tenth_point_and_the_last_are_told(
    capsys: pytest.CaptureFixture[str], total: int, told: list[int]
) -> None:
    with ConsoleObserver() as observer:
        for done in range(1, total + 1):
            observer.point("G-A: curve", done, total)
    lines = [f"point {done}/{total}  G-A: curve" for done in told]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (SNAPSHOT, "snapshot 1, epoch 4, lr 0.0005"),
        (
            VALIDATED,
            "snapshot 1, epoch 4, lr 0.0005: validation error 12.35 %, NLL 0.4321",
        ),
        (
            {**VALIDATED, "ensemble_val_error": 12.3, "ensemble_val_nll": 0.4},
            "snapshot 1, epoch 4, lr 0.0005: validation error 12.35 %, NLL 0.4321",
        ),
        (
            {**VALIDATED, "member": 3, "ensemble_val_error": 9.5, "ensemble_val_nll": 0.3},
            "snapshot 3, epoch 4, lr 0.0005: validation error 12.35 %, NLL 0.4321; "
            "ensemble of 3: 9.50 %, NLL 0.3000",
        ),
        ({**SNAPSHOT, "stage": "single"}, "single network, epoch 4"),
        (
            {**VALIDATED, "stage": "network"},
            "network, epoch 4: validation error 12.35 %, NLL 0.4321",
        ),
    ],
)
def test_a_snapshot_is_told_with_the_figures_there_are(
    capsys: pytest.CaptureFixture[str], record: dict[str, Any], line: str
) -> None:
    # .43215 lies just below its decimal, 12.345 just above.
    ConsoleObserver().snapshot(record)
    assert capsys.readouterr().out == f"{line}\n"


def test_notes_are_not_broken_nor_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "run folder: [red]/data/" + "x" * 200 + "[/nothing] 1.5 True"
    ConsoleObserver().note(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_notes_are_not_taken_for_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleObserver().note("run folder: /data/:fire:")
    assert capsys.readouterr().out == "run folder: /data/:fire:\n"


def table_lines(text: str) -> list[list[str]]:
    """Return the cells of a printed table, as they are aligned, line by line."""
    lines = [re.split("[│┃]", line)[1:-1] for line in text.splitlines()]
    return [[cell[1:-1] for cell in line] for line in lines if line]


def test_a_table_has_its_title_headings_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["single", "1", "10.25"], ["fge", "12", "9.00"]]
    ConsoleObserver().table("net on data", ["method", "members", "error"], rows)
    text = capsys.readouterr().out
    assert text.splitlines()[0].strip() == "net on data"
    assert table_lines(text) == [
        ["method", "members", "error"],
        ["single", "      1", "10.25"],
        ["fge   ", "     12", " 9.00"],
    ]


@pytest.mark.parametrize("name", ["net[v2]", "net[/v2]"])
def test_a_table_does_not_take_names_for_markup(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    ConsoleObserver().table(name, [name, "error"], [[name, "10.25"]])
    assert capsys.readouterr().out.count(name) == 3


def test_a_table_on_a_terminal_does_not_take_names_for_markup() -> None:
    file, name = io.StringIO(), "net[/v2]"
    ConsoleObserver(terminal(file)).table(name, [name, "error"], [[name, "10.25"]])
    assert plain(file.getvalue()).count(name) == 3


WIDE = ["pair", *(f"heading{i}" for i in range(12))]
WIDE_ROW = ["first-second", *(f"{i}.1234" for i in range(12))]


def test_no_cell_of_a_wide_table_is_cut_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleObserver().table("wide", WIDE, [WIDE_ROW])
    lines = table_lines(capsys.readouterr().out)
    assert [[cell.strip() for cell in line] for line in lines] == [WIDE, WIDE_ROW]


def test_cells_of_a_table_wider_than_the_terminal_are_folded() -> None:
    file = io.StringIO()
    ConsoleObserver(terminal(file)).table("wide", WIDE, [WIDE_ROW])
    text = plain(file.getvalue())
    assert max(map(len, text.splitlines())) <= 80
    columns = zip(*table_lines(text), strict=True)
    whole = ["".join(part.strip() for part in column) for column in columns]
    assert whole == [heading + cell for heading, cell in zip(WIDE, WIDE_ROW, strict=True)]


def test_a_terminal_has_a_bar_instead_of_lines_and_it_is_taken_away() -> None:
    file = io.StringIO()
    with ConsoleObserver(terminal(file)) as observer:
        observer.epoch(EPOCH, 3, 12)
    shown = plain(file.getvalue())
    assert "epoch 3/12" not in shown
    assert "fge: train loss 0.9877" in shown
    assert re.search(r"[━╸╺]+ +3/12 epochs", shown)
    assert file.getvalue().endswith("\x1b[1A\x1b[2K"), "the bar's line is erased at the end"


def test_the_bar_of_points_counts_points() -> None:
    file = io.StringIO()
    with ConsoleObserver(terminal(file)) as observer:
        observer.epoch(EPOCH, 12, 12)
        observer.point("G-A: curve", 10, 61)
    shown = plain(file.getvalue())
    assert "point 10/61" not in shown
    assert re.search(r"G-A: curve [━╸╺]+ +10/61 points", shown)


def test_snapshots_and_notes_stay_above_the_bar() -> None:
    file = io.StringIO()
    with ConsoleObserver(terminal(file)) as observer:
        observer.epoch(EPOCH, 3, 12)
        observer.snapshot(VALIDATED)
        observer.note("measuring")
    lines = [line.strip() for line in plain(file.getvalue()).replace("\r", "\n").splitlines()]
    told = "snapshot 1, epoch 4, lr 0.0005: validation error 12.35 %, NLL 0.4321"
    assert lines.count(told) == 1
    assert lines.count("measuring") == 1


def test_the_bar_is_taken_away_when_the_run_fails() -> None:
    file = io.StringIO()

    def lose() -> None:
        with ConsoleObserver(terminal(file)) as observer:
            observer.epoch(EPOCH, 3, 12)
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        lose()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K")
    assert "\x1b[?25h" in file.getvalue(), "the cursor is shown again"


@pytest.mark.parametrize("name", ["net[v2]: curve", "net[/v2]: curve"])
def test_the_bar_does_not_take_names_for_markup(name: str) -> None:
    file = io.StringIO()
    with ConsoleObserver(terminal(file)) as observer:
        observer.point(name, 10, 61)
    assert name in plain(file.getvalue())
