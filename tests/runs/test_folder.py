"""Run folders: the log, the states, and how a folder is opened, resumed and replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fge.errors import UserError
from fge.files import write_json, write_text
from fge.runs import RunFolder, open_run_folder

FILES = (
    "log.jsonl",
    "timing.jsonl",
    "report.json",
    "page.json",
    "report.md",
    "report.html",
    "plane.npz",
    "line.npz",
    "snapshots/0001.safetensors",
    "snapshots/index.json",
    "single/0001.safetensors",
    "networks/first/log.jsonl",
    "networks/first/snapshots/0001.safetensors",
    "curves/pair/curve.safetensors",
    "predictions/test.npz",
    "state/checkpoint.safetensors",
    "figures/training.png",
)
EVENTS = "tensorboard/events.out.tfevents.1"


def new_folder(path: Path) -> RunFolder:
    path.mkdir(parents=True)
    return RunFolder(path)


def make_run(path: Path, *others: str, old: bool = False) -> Path:
    """Leave in ``path`` what a run leaves, and other files; an ``old`` run leaves no manifest."""
    with closing(open_run_folder(path, "fge", resume=False, overwrite=False)):
        write_json(path / "config.json", {"command": "fge", "options": {}})
        for name in FILES:
            write_text(path / name, name)
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "events.out.tfevents.1").write_text("events")
    for name in others:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    if old:
        (path / "manifest.json").unlink()
    return path


def tree(path: Path) -> dict[str, bytes]:
    """Return the files by name, without the manifest of the folder itself."""
    files = (p for p in sorted(path.rglob("*")) if p.is_file())
    return {n: p.read_bytes() for p in files if (n := str(p.relative_to(path))) != "manifest.json"}


def reopen(out: Path | None, **how: bool) -> RunFolder:
    folder = open_run_folder(out, "fge", **{"resume": False, "overwrite": False, **how})
    folder.close()
    return folder


def test_paths_are_those_of_the_contract(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.config == tmp_path / "config.json"
    assert folder.log_file == tmp_path / "log.jsonl"
    assert folder.timing_file == tmp_path / "timing.jsonl"
    assert folder.predictions == tmp_path / "predictions"
    assert folder.figures == tmp_path / "figures"
    assert folder.state_path("start") == tmp_path / "state" / "start.safetensors"


def test_log_and_timing_are_kept_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.records() == []
    folder.log({"event": "a", "epoch": 0})
    folder.timing({"seconds": 1.5})
    folder.log({"event": "a", "epoch": 1})
    assert folder.records() == [{"event": "a", "epoch": 0}, {"event": "a", "epoch": 1}]
    assert folder.timing_file.read_text() == '{"seconds": 1.5}\n'


@pytest.mark.parametrize("length", [0, 1, 2, 3, 9])
def test_cutting_the_log_leaves_its_head_byte_for_byte(tmp_path: Path, length: int) -> None:
    folder = RunFolder(tmp_path)
    facts: list[dict[str, Any]] = [{"loss": 0.1}, {"text": 'é "\n'}, {"epoch": 3}]
    records = [{"event": "a", **more} for more in facts]
    for record in records:
        folder.log(record)
    lines = folder.log_file.read_bytes().splitlines(keepends=True)
    folder.cut_log(length)
    assert folder.log_file.read_bytes() == b"".join(lines[:length])
    assert folder.records() == records[:length]


def test_cutting_the_log_drops_what_was_being_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"event": "a"})
    with folder.log_file.open("a") as file:
        file.write('{"event": "b')
    folder.cut_log(5)
    assert folder.log_file.read_text() == '{"event": "a"}\n'


def test_a_log_that_does_not_exist_can_be_cut(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.cut_log(0)
    assert folder.records() == []


def test_no_record_holds_nan(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.log({"loss": float("nan")})
    assert folder.records() == []


def test_states_come_back_and_are_cleared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_state("checkpoint") is None
    folder.clear_states()
    folder.write_state("checkpoint", {"epoch": 3, "weights": torch.tensor([1.5, -2.0])})
    folder.write_state("start", {"epoch": 1})
    state = folder.read_state("checkpoint")
    assert state is not None
    assert state["epoch"] == 3
    assert state["weights"].tolist() == [1.5, -2.0]
    folder.clear_states()
    assert folder.read_state("checkpoint") is None
    assert folder.read_state("start") is None


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_state("checkpoint", {"epoch": 3})
    folder.state_path("checkpoint").write_bytes(b"half")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is not a complete"):
        folder.read_state("checkpoint")


def test_the_default_folder_is_the_next_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fge-002").mkdir(parents=True)
    paths = [reopen(None).path for _ in range(3)]
    assert paths == [Path("runs/fge-001"), Path("runs/fge-003"), Path("runs/fge-004")]
    assert all(path.is_dir() for path in paths)
    other = open_run_folder(None, "curve", resume=False, overwrite=False)
    assert other.path == Path("runs/curve-001")


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_the_default_folder_is_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--resume and --overwrite need --out"):
        reopen(None, **{how: True})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_or_empty_folder_is_used(tmp_path: Path, overwrite: bool) -> None:
    for out in (tmp_path / "a" / "b", tmp_path / "a" / "b"):
        assert reopen(out, overwrite=overwrite).path == out
        assert out.is_dir()


def test_a_folder_in_use_is_left_alone_and_the_ways_out_are_named(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run")
    before = tree(out)
    with pytest.raises(UserError) as raised:
        reopen(out)
    assert str(raised.value) == (
        f"{out} is not empty; continue the run there with --resume, replace it with --overwrite, "
        "or give another --out"
    )
    assert tree(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_folder(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "run"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"^--out .*run is a file; give a folder$"):
        reopen(out, overwrite=overwrite)
    assert out.read_text() == "mine"


def file_only(out: Path) -> None:
    out.write_text("mine")


def folder_of_others(out: Path) -> None:
    new_folder(out)
    (out / "thesis.tex").write_text("mine")


def no_config(out: Path) -> None:
    make_run(out, old=True)
    (out / "config.json").unlink()


@pytest.mark.parametrize("make", [lambda _: None, file_only, folder_of_others, no_config])
def test_where_there_is_no_run_there_is_nothing_to_resume(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    out = tmp_path / "run"
    make(out)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"^no run to resume in .*run; start it without --resume$"):
        reopen(out, resume=True)
    assert tree(tmp_path) == before


def test_a_run_is_resumed_without_the_leftovers_of_interrupted_writes(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", "notes.txt", ".git/.index.abcdefgh.tmp", ".mine.abcdefgh.tmp")
    before = tree(out)
    (out / ".report.json.abcdefgh.tmp").write_text("half")
    (out / "snapshots" / ".0001.safetensors.12345678.tmp").write_text("half")
    assert reopen(out, resume=True).path == out
    assert tree(out) == before


def test_what_the_runs_of_a_comparison_write_is_left_alone(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run")
    live = out / "runs" / "fge-e4-s0" / "state" / ".fge.safetensors.abcdefgh.tmp"
    live.parent.mkdir(parents=True)
    live.write_text("half")
    reopen(out, resume=True)
    assert live.exists()


@pytest.mark.parametrize("names", [[], [".config.json.abcdefgh.tmp"]])
def test_a_run_cut_off_at_its_first_file_can_be_resumed(tmp_path: Path, names: list[str]) -> None:
    out = tmp_path / "run"
    new_folder(out)
    for name in names:
        (out / name).write_text("half")
    assert reopen(out, resume=True).path == out
    assert tree(out) == {}


OTHERS = (
    *("notes.txt", "predict-mine/predictions.csv", "snapshots-old/0001.safetensors"),
    *("predictions/mine.npz", "figures/mine.svg.png", "runs/notes.txt", "state/notes/mine.txt"),
    *(".git/.index.abcdefgh.tmp", "tensorboard/mine.txt", "snapshots/0002.safetensors.mine"),
)


@pytest.mark.parametrize("old", [False, True])
def test_overwriting_removes_what_a_run_leaves_and_nothing_else(tmp_path: Path, old: bool) -> None:
    others = [name for name in OTHERS if not (old and name == "figures/mine.svg.png")]
    out = make_run(tmp_path / "run", *others, old=old)
    assert reopen(out, overwrite=True).path == out
    assert sorted(tree(out)) == sorted(others)
    assert not (out / "networks").exists()


def test_overwriting_a_comparison_removes_its_runs(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run")
    with closing(open_run_folder(out, "compare", resume=True, overwrite=False)) as folder:
        assert folder.manifest is not None
        folder.manifest.note(folders=["runs/fge-s0"])
    make_run(out / "runs" / "fge-s0", "notes.txt")
    make_run(out / "runs" / "mine")
    reopen(out, overwrite=True)
    kept = {name.split("/")[1] for name in tree(out) if name != "runs/fge-s0/notes.txt"}
    assert kept == {"mine"}, "a run that the comparison did not start stays"
    assert (out / "runs" / "fge-s0" / "notes.txt").exists()


def test_overwriting_under_a_running_job_is_refused(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run")
    before = tree(out)
    with closing(open_run_folder(out, "fge", resume=True, overwrite=False)):
        for how in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(UserError, match=r"is being written by process \d+ on .*, since"):
                reopen(out, **how)
    assert tree(out) == before
    assert not (out / ".lock").exists()


@pytest.mark.parametrize("make", [folder_of_others, no_config])
def test_a_folder_that_is_no_run_is_not_overwritten(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    out = tmp_path / "run"
    make(out)
    before = tree(out)
    with pytest.raises(
        UserError, match=r"not hold a run .*, so it is not overwritten; give another --out$"
    ):
        reopen(out, overwrite=True)
    assert tree(out) == before


def test_a_folder_called_like_the_config_file_makes_no_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "config.json").mkdir(parents=True)
    with pytest.raises(UserError, match="does not hold a run"):
        reopen(tmp_path / "run", overwrite=True)


def test_an_interrupted_overwrite_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_run(tmp_path / "run")

    unlink, calls = Path.unlink, 0

    def interrupt(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reopen(out, overwrite=True)
    reopen(out, overwrite=True)
    assert tree(out) == {}


def test_overwriting_removes_the_leftovers_of_interrupted_writes(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run")
    (out / ".report.json.abcdefgh.tmp").write_text("half")
    reopen(out, overwrite=True)
    assert tree(out) == {}


def test_no_file_is_removed_through_a_link(tmp_path: Path) -> None:
    out, elsewhere = make_run(tmp_path / "run"), tmp_path / "elsewhere"
    shutil.move(out / "snapshots", elsewhere)
    (out / "snapshots").symlink_to(elsewhere)
    shutil.move(out / "log.jsonl", tmp_path / "log")
    (out / "log.jsonl").symlink_to(tmp_path / "log")
    kept = tree(elsewhere)
    reopen(out, overwrite=True)
    assert tree(elsewhere) == kept
    assert (tmp_path / "log").read_text() == "log.jsonl"
    assert not (out / "log.jsonl").is_symlink()
    assert (out / "snapshots").is_symlink(), "a link that is not the run's stays"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    out, elsewhere = make_run(tmp_path / "run"), tmp_path / "elsewhere"
    (out / "log.jsonl").rename(elsewhere)
    (out / "log.jsonl").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"log\.jsonl is a link"):
        reopen(out, resume=True)
    assert elsewhere.read_text() == "log.jsonl"
