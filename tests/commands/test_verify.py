"""``verify``: every damaged file is found; what follows from the rest is repaired bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from curve_runs import curve_job, done
from fge_runs import config
from promised import is_promised, promised

from fge.commands import cli
from fge.commands.train import fge
from fge.manifest import Manifest
from fge.runs import repair_run
from fge.runs.adopting import files_of_old_run
from fge.runs.opening import manifest_of
from fge.train import Learner

STEPS = 3
"""Steps an epoch: 96 images less 24 for validation, in batches of 32."""


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ended") / "run"
    fge(config(data, out))
    return out


@pytest.fixture(scope="module")
def half(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run interrupted in its fifth epoch; it has two snapshots."""
    out = tmp_path_factory.mktemp("half") / "run"
    step, taken = Learner.step, 0

    def stepping(self: Learner, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        if taken == 4 * STEPS + 2:
            raise KeyboardInterrupt
        return step(self, inputs, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", stepping)
        with pytest.raises(KeyboardInterrupt):
            fge(config(data, out))
    return out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def delete(path: Path) -> None:
    path.unlink()


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGE = [flip, empty, cut, delete, linked]

MOSTLY_SLOW = [flip, *(pytest.param(d, marks=pytest.mark.slow) for d in DAMAGE if d is not flip)]
"""All damage, one kind of it in a plain ``pytest``."""


def verify(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["verify", str(folder), *more])
    return (code, *capsys.readouterr())


def test_a_sound_run_is_said_to_be_one(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = sum(path.is_file() for path in ended.rglob("*")) - 1  # without the manifest
    assert verify(ended, capsys) == (0, f"{ended}: {count} files as written\n", "")


def test_files_of_others_are_named_and_left(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "notes.txt").write_text("mine")
    code, out, _ = verify(run, capsys, "--repair")
    assert code == 0
    assert "not of the run, and left alone: notes.txt\n" in out
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_found(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    names = [str(p.relative_to(ended)) for p in ended.rglob("*") if p.is_file()]
    names = [n for n in names if n not in ("manifest.json", "timing.jsonl")]
    count = len(names) + 1
    names = [n for n in names if "/uncertain-" not in n or n.endswith("-01.png")]  # one of twelve
    for number, name in enumerate(names):
        run = shutil.copytree(ended, tmp_path / str(number) / "run")
        damage(run / name)
        code, out, err = verify(run, capsys)
        assert code == 2, name
        assert f"{run / name} " in out
        assert err.startswith(f"error: 1 of {count} files of {run} is not as written")


AGAIN = (
    *("figures/training.png", "figures/uncertain-01.png", "report.json", "report.md", "page.json"),
    *("predictions/test.npz", "predictions/val.npz", "snapshots/index.json", "swa.safetensors"),
    *("folded.safetensors", "state/average-fold.safetensors", "manifest.json"),
)


@pytest.mark.slow  # every picture is drawn again
@pytest.mark.parametrize("damage", MOSTLY_SLOW)
def test_what_follows_from_the_rest_is_made_again(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    """One file after the other by one kind of damage; all at once by the other kinds."""
    run = shutil.copytree(ended, tmp_path / "run")
    *files, manifest = AGAIN
    together = [[name] for name in files] if damage is flip else [files]
    if damage in (flip, empty, cut):
        together.append([manifest])
    for names in together:
        for name in names:
            damage(run / name)
            if damage is linked:
                (tmp_path / "run" / "elsewhere").unlink(missing_ok=True)
                (tmp_path / "elsewhere").unlink(missing_ok=True)
        code, _, err = verify(run, capsys, "--repair")
        assert (code, err) == (0, ""), names
        ours, theirs = promised(run), promised(ended)
        assert [n for n in theirs if ours.get(n) != theirs[n]] in ([], ["manifest.json"]), names
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("name", ["config.json", "snapshots/0001.safetensors", "log.jsonl"])
def test_what_is_lost_is_said_and_nothing_else_is_touched(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = shutil.copytree(half, tmp_path / "run")
    if name == "log.jsonl":
        data = bytearray((run / name).read_bytes())
        data[20] ^= 1
        (run / name).write_bytes(data)
    else:
        flip(run / name)
    before = promised(run)
    code, out, err = verify(run, capsys, "--repair")
    assert code == 2
    assert f"{run / name} was damaged or changed after it was written; nothing follows it" in out
    assert err.endswith("is not as written\n")
    assert promised(run) == before


def last_checkpoint(run: Path) -> Path:
    """Return the later checkpoint: the fourth is the second of its file."""
    return run / "state" / "checkpoint-2.safetensors"


def last_lines(run: Path) -> Path:
    data = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(data[: -len(data.splitlines(keepends=True)[-1])])
    return run / "log.jsonl"


def validation(run: Path) -> Path:
    return run / "predictions" / "val.npz"


@pytest.mark.parametrize("damage", MOSTLY_SLOW)
@pytest.mark.parametrize("of", [last_checkpoint, last_lines, validation])
def test_a_half_finished_run_goes_on_from_what_is_sound_and_ends_the_same(
    half: Path,
    ended: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    of: Callable[[Path], Path],
    damage: Callable[[Path], None],
) -> None:
    run = shutil.copytree(half, tmp_path / "run")
    path = of(run)
    if of is not last_lines:
        damage(path)
    elif damage is not flip:
        pytest.skip("the log is cut in one way")
    if damage is linked:
        (tmp_path / "run" / "elsewhere").unlink()
    capsys.readouterr()
    resume = ["fge", "--out", str(run), "--resume"]
    assert cli.main(resume) == 2
    assert str(path) in capsys.readouterr().err
    assert verify(run, capsys, "--repair")[0] == 0
    fge(config(data, run, resume=True))
    ours, theirs = promised(run), promised(ended)
    assert [n for n in theirs if ours.get(n) != theirs[n]] == []
    assert sorted(ours) == sorted(theirs)


def test_a_run_from_before_there_were_manifests_is_taken_in(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "manifest.json").unlink()
    code, _, err = verify(run, capsys)
    assert code == 2
    assert "has no manifest.json: it is no run" in err
    (tmp_path / "manifest.json").write_text('{"method": "fge"}')
    assert "has no manifest.json of this program: it is no run" in verify(tmp_path, capsys)[2]
    assert verify(run, capsys, "--repair")[0] == 0
    assert {n: d for n, d in promised(run).items() if is_promised(n)} == promised(ended)
    (run / "manifest.json").unlink()
    assert cli.main(["report", str(run)]) == 0
    taken, before = Manifest.read(run), Manifest.read(ended)
    assert taken is not None
    assert before is not None
    assert (taken.command, set(taken.files)) == (before.command, set(before.files))


def test_what_cannot_be_made_again_is_one_line(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged manifest was made again, unchecked, and the command then finds the damage."""
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "manifest.json").unlink()
    cut(run / "state" / "checkpoint.safetensors")
    cut(run / "state" / "checkpoint-2.safetensors")
    code, _, err = verify(run, capsys, "--repair")
    assert code == 2
    assert err.startswith("error: what is missing is not made again by `")
    assert f"fge --out {run} --resume`: {run / 'state'}" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("of", ["half", "ended"])
def test_times_that_are_gone_stop_nothing(
    of: str,
    half: Path,
    ended: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(half if of == "half" else ended, tmp_path / "run")
    delete(run / "timing.jsonl")
    code, out, _ = verify(run, capsys)
    assert code == 2
    assert f"{run / 'timing.jsonl'} is missing; --repair forgets it\n" in out
    resumed = shutil.copytree(run, tmp_path / "resumed" / "run")
    assert verify(run, capsys, "--repair")[0] == 0
    for folder in (run, resumed):  # repaired before, or not
        fge(config(data, folder, resume=True))
    ours, theirs = promised(run), promised(ended)
    assert [n for n in theirs if ours.get(n) != theirs[n]] == []
    names = ours.keys() - {"manifest.json", "report.html"}  # the page names the folder
    assert {n: promised(resumed)[n] for n in names} == {n: ours[n] for n in names}


def test_where_something_is_lost_nothing_is_removed(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run could not make it again."""
    run = shutil.copytree(ended, tmp_path / "run")
    for name in ("report.json", "predictions/test.npz", "log.jsonl"):
        flip(run / name)
    before = promised(run)
    for _ in range(2):
        code, out, err = verify(run, capsys, "--repair")
        assert code == 2
        assert "log.jsonl was damaged or changed after it was written; nothing follows it" in out
        assert err.startswith("error: 3 of ")
    assert promised(run) == before


def test_an_index_that_does_not_follow_from_the_log_is_lost(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between the index and the log; no repair is promised."""
    run = shutil.copytree(half, tmp_path / "run")
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    last = max(k for k, line in enumerate(lines) if b'"snapshot"' in line)
    (run / "log.jsonl").write_bytes(b"".join(lines[:last]))
    manifest = Manifest.read(run)
    assert manifest is not None
    manifest.adopt(["log.jsonl"])
    manifest.save()
    delete(run / "snapshots" / "index.json")
    code, out, err = verify(run, capsys)
    assert code == 2
    assert "index.json is missing; it does not follow from the log: restore it" in out
    assert "--repair" not in err


@pytest.mark.slow
def test_resuming_without_a_manifest_says_that_nothing_was_compared(
    half: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(half, tmp_path / "run")
    delete(run / "manifest.json")
    capsys.readouterr()
    fge(config(data, run, resume=True))
    out = capsys.readouterr().out
    assert re.search(
        r"run had no manifest\.json: its \d+ files are taken as they are, and were", out
    )


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.parent / "x")])
def test_what_is_in_the_place_of_the_lock_is_named(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    make(run / ".lock")
    assert cli.main(["fge", "--out", str(run), "--resume"]) == 2
    kind = "a link" if (run / ".lock").is_symlink() else "a folder"
    assert capsys.readouterr().err == (
        f"error: {run / '.lock'} is {kind} and no file; move it away\n"
    )


@pytest.mark.parametrize(("argument", "words"), [("none", "no folder "), (".", "is no run, or")])
def test_where_there_is_no_run_there_is_nothing_to_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, words: str
) -> None:
    code, _, err = verify(tmp_path / argument, capsys)
    assert code == 2
    assert words in err


@pytest.mark.slow
@pytest.mark.parametrize("damage", [delete, linked])
def test_a_curve_and_its_predictions_are_made_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    ended = done("curve-ensemble", curve_job(data, tmp_path / "whole"))
    run = shutil.copytree(ended, tmp_path / "copy" / "run")
    curves = [p.relative_to(run) for p in sorted(run.glob("curves/*/*"))]
    assert {"curve.safetensors", "curve.jsonl", "fit.jsonl"} <= {path.name for path in curves}
    manifest = Manifest.read(ended)
    assert manifest is not None
    assert set(files_of_old_run(ended)) == set(manifest.files)
    for name in (Path("predictions/test.npz"), *curves):
        damage(run / name)
        for leftover in (tmp_path / "copy").rglob("elsewhere"):
            leftover.unlink()
        assert verify(run, capsys, "--repair")[0] == 0, name
        ours, theirs = promised(run), promised(ended)
        changed = [n for n in theirs if ours.get(n) != theirs[n]]
        # Reports name the folder.
        assert {n.split(".")[0] for n in changed} <= {"manifest", "config", "report"}, name
    with np.load(run / "predictions" / "test.npz") as mine:
        assert len(mine["members"]) > 2


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_in_the_way_is_said_and_stays(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    path = run / "predictions" / "val.npz"
    path.unlink()
    make(path)
    code, out, err = verify(run, capsys, "--repair")
    assert code == 2
    assert f"{path} is a " in out
    assert ": move it away\n" in out
    assert err.endswith("is not as written\n")
    assert err.count("error:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_in_the_way_of_a_checkpoint_is_moved_away_first(
    half: Path,
    ended: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
) -> None:
    run = shutil.copytree(half, tmp_path / "run")
    path = last_checkpoint(run)
    path.unlink()
    make(path)
    before = promised(run)
    code, out, err = verify(run, capsys, "--repair")
    assert code == 2
    assert f"{path} is a " in out
    assert "; move it away; then --repair goes back to the checkpoint before\n" in out
    assert err.endswith("is not as written\n")
    assert promised(run) == before
    assert cli.main(["fge", "--out", str(run), "--resume"]) == 2
    path.rename(tmp_path / "away")
    assert verify(run, capsys, "--repair")[0] == 0
    fge(config(data, run, resume=True))
    assert promised(run) == promised(ended)


@pytest.mark.parametrize("damage", [delete, linked, flip])
def test_resuming_without_the_options_names_their_file(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    damage(run / "config.json")
    if damage is linked:
        (tmp_path / "elsewhere").unlink()
    capsys.readouterr()
    assert cli.main(["fge", "--out", str(run), "--resume"]) == 2
    assert f"{run / 'config.json'} " in capsys.readouterr().err


def test_an_older_comparison_is_taken_in_with_its_runs(tmp_path: Path) -> None:
    """Whoever lost the manifest of a comparison gets one that names the same runs again."""
    for folder, command in ((".", "compare"), ("runs/b", "train"), ("runs/a", "train")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        content = {"schema_version": 2, "command": command, "options": {}}
        (tmp_path / folder / "config.json").write_text(json.dumps(content))
    for name in ("runs/mine/config.json", "logs/a.json", "logs/mine.json", "logs/a.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "runs" / "a")
    manifest = manifest_of(tmp_path, "compare")
    assert manifest.folders == ["runs/a", "runs/b"]
    assert sorted(manifest.files) == ["config.json", "logs/a.json"]
    manifest.note(folders=["runs/b", "runs/0"])
    assert manifest.folders == ["runs/0", "runs/a", "runs/b"]


@pytest.fixture
def outer(ended: Path, tmp_path: Path) -> Path:
    """A folder with a run in it, and a file of times that is not compared."""
    root = tmp_path / "outer"
    shutil.copytree(ended, root / "runs" / "one")
    (root / "timing.jsonl").write_text('{"event": "a"}\n{"event": "b"}\n')
    outer = Manifest(root, "compare")
    outer.note(folders=["runs/one"], streams=["timing.jsonl"])
    outer.save()
    return root


@pytest.mark.parametrize("damage", [delete, linked])
def test_a_run_within_that_lost_its_manifest_is_found_and_gets_one_again(
    outer: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    code, out, _ = verify(outer, capsys)
    assert code == 0, out
    damage(outer / "runs" / "one" / "manifest.json")
    code, out, _ = verify(outer, capsys)
    assert code == 2
    what = "missing" if damage is delete else "a link"
    assert f"outer/runs/one/manifest.json is {what}; --repair writes it again, unchecked" in out
    assert verify(outer, capsys, "--repair")[0] == 0
    assert verify(outer, capsys)[0] == 0
    assert not (outer / "runs" / "one" / "manifest.json").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("of", [last_checkpoint, validation])
def test_a_finished_run_within_makes_again_what_is_missing(
    outer: Path, ended: Path, capsys: pytest.CaptureFixture[str], of: Callable[[Path], Path]
) -> None:
    """The comparison reads no checkpoint of a finished job, and would not resume it."""
    inner = outer / "runs" / "one"
    delete(of(inner))
    code, _, err = verify(outer, capsys, "--repair")
    assert (code, err) == (0, "")
    ours, theirs = promised(inner), promised(ended)
    changed = [n for n in theirs if ours.get(n) != theirs[n]]
    assert changed in ([], ["manifest.json", "report.html"])  # the page names the folder
    assert sorted(ours) == sorted(theirs)


def test_repair_removes_what_was_being_written(ended: Path, tmp_path: Path) -> None:
    """It forgets a write that did not take place, and so does away with its temporary file."""
    run = Path(shutil.copytree(ended, tmp_path / "run"))
    manifest = Manifest.read(run)
    assert manifest is not None
    with (
        pytest.raises(OSError, match="killed"),
        manifest.replacing("state/new.safetensors", b"12345"),
    ):
        raise OSError("killed")
    begun = run / "state" / ".new.safetensors.abcd1234.tmp"
    begun.write_bytes(b"123")
    foreign = run / "state" / ".other.safetensors.abcd1234.tmp"
    foreign.write_bytes(b"123")
    assert "state/new.safetensors" in Manifest.read(run).files  # type: ignore[union-attr]
    assert list(repair_run(run)) == []
    assert (begun.exists(), foreign.exists()) == (False, True)
    assert "state/new.safetensors" not in Manifest.read(run).files  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["timing.jsonl", "logs/job.log", "locks/job"])
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a link"])
def test_what_stands_in_the_place_of_a_file_that_is_not_compared_is_found(
    outer: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    """The comparison would write to it, and be refused."""
    manifest = Manifest.read(outer)
    assert manifest is not None
    manifest.note(folders=[], streams=["logs/*", "locks/*"])
    manifest.save()
    path = outer / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make = {"a folder": Path.mkdir, "a named pipe": os.mkfifo, "a link": symlink_to_copy}
    make[kind](path)
    code, out, err = verify(outer, capsys)
    assert (code, f"outer/{name} is {kind}, not a file; move it away\n" in out) == (2, True), out
    assert err.endswith("outer is not as written\n")
    assert verify(outer, capsys, "--repair")[0] == 2
    assert os.path.lexists(path)
    path.rmdir() if kind == "a folder" else path.unlink()
    assert verify(outer, capsys)[0] == 0


def symlink_to_copy(path: Path) -> None:
    outside = path.parent.parent.parent / f"{path.name}-copy"
    outside.write_bytes(b"")
    path.symlink_to(outside)


def test_damaged_lines_of_times_that_are_not_compared_are_dropped(
    outer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (outer / "timing.jsonl").write_bytes(b'{"event": "\x01"}\n{"event": "b"}\n')
    code, out, _ = verify(outer, capsys)
    assert code == 2
    assert "timing.jsonl is damaged" in out
    assert list(repair_run(outer))
    assert (outer / "timing.jsonl").read_bytes() == b'{"event": "b"}\n'
    assert verify(outer, capsys)[0] == 0
