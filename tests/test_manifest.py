"""The manifest: what is written is recorded, what is read is compared, nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fge import disk
from fge.errors import UserError
from fge.files import append_record, is_there, read_bytes, read_records, remove, write_bytes
from fge.locks import Lock, is_held
from fge.manifest import (
    NAME,
    Content,
    Entry,
    Manifest,
    begin,
    damaged,
    end,
    name_program,
    shown,
    writer_of,
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder whose manifest records what this process writes."""
    folder = tmp_path / "run"
    folder.mkdir()
    manifest = Manifest(folder, "train")
    begin(manifest)
    yield folder
    end(manifest)


def stored(folder: Path) -> dict[str, dict[str, object]]:
    files: dict[str, dict[str, object]] = json.loads((folder / NAME).read_bytes())["files"]
    return files


def digest(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


@pytest.mark.parametrize("files", [0, 1, 2])
def test_the_file_is_ordinary_json_of_one_form(run: Path, files: int) -> None:
    manifest = _manifest(run)
    for k in range(files):
        write_bytes(run / f'a "{k}" é \\ .bin', b"one")
    manifest.note(streams=["logs/*.txt"])
    data = (run / NAME).read_bytes()
    content = json.loads(data)
    assert data == json.dumps(content, indent=1).encode() + b"\n"
    del content["sha256"]
    unsigned = json.dumps(content, indent=1).encode() + b"\n"
    assert json.loads(data)["sha256"] == hashlib.sha256(unsigned).hexdigest()
    assert len(content["files"]) == files


def test_what_is_written_is_recorded(run: Path) -> None:
    write_bytes(run / "deep" / "a.bin", b"one")
    append_record(run / "points.jsonl", {"epoch": 0})
    append_record(run / "points.jsonl", {"epoch": 1})
    write_bytes(run / "deep" / "a.bin", b"two")
    end(_manifest(run))
    assert stored(run) == {
        "deep/a.bin": {"now": digest(b"two"), "by": "train"},
        "points.jsonl": {"now": digest(b'{"epoch": 0}\n{"epoch": 1}\n'), "by": "train"},
    }
    assert Manifest.read(run) is not None


def _manifest(folder: Path) -> Manifest:
    found = writer_of(folder / "x")
    assert found is not None
    return found[0]


def test_what_is_not_in_an_open_folder_is_not_recorded(run: Path, tmp_path: Path) -> None:
    write_bytes(tmp_path / "beside", b"x")
    write_bytes(tmp_path / "run-2" / "beside", b"x")
    end(_manifest(run))
    write_bytes(run / "later", b"x")
    assert stored(run) == {}


def test_the_manifest_of_an_inner_run_records_its_files(run: Path) -> None:
    inner = Manifest(run / "baseline", "curve-ensemble")
    (run / "baseline").mkdir()
    begin(inner)
    write_bytes(run / "baseline" / "a", b"x")
    end(inner)
    write_bytes(run / "b", b"y")
    end(_manifest(run))
    assert list(stored(run)) == ["b"]
    assert list(stored(run / "baseline")) == ["a"]


@pytest.mark.parametrize("link", [False, True])
def test_one_wrong_bit_is_found_when_the_file_is_read(
    run: Path, tmp_path: Path, link: bool
) -> None:
    write_bytes(run / "a.bin", b"right")
    append_record(run / "points.jsonl", {"epoch": 0})
    end(_manifest(run))
    assert read_bytes(run / "a.bin") == b"right"
    (run / "a.bin").write_bytes(b"rigit")
    folder = run
    if link:
        folder = tmp_path / "link"
        folder.symlink_to(run)
    with pytest.raises(UserError, match=r"a\.bin was damaged or changed .* verify "):
        read_bytes(folder / "a.bin")
    (run / "points.jsonl").write_text('{"epoch": 5}\n')
    with pytest.raises(UserError, match=r"points\.jsonl was damaged"):
        read_records(folder / "points.jsonl")


def test_messages_name_the_program_as_it_was_called(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fge.manifest._program", ["fge"])
    monkeypatch.chdir(run.parent)
    assert str(damaged("x", run)).endswith(f" done with: fge verify {run.name}")
    name_program(["python", "-m", "fge"])
    assert str(damaged("x", run.parent / "a b")).endswith(" with: python -m fge verify 'a b'")
    (run / NAME).write_text('{"format": "fge run folder",')
    with pytest.raises(UserError, match=r"`python -m fge verify /.* --repair` writes it again"):
        Manifest.read(run)


def test_a_line_that_was_being_written_is_no_damage(run: Path) -> None:
    append_record(run / "points.jsonl", {"epoch": 0})
    with (run / "points.jsonl").open("a") as file:
        file.write('{"epo')
    end(_manifest(run))
    assert read_records(run / "points.jsonl") == [{"epoch": 0}]


def test_files_of_others_and_folders_without_a_manifest_are_read_as_they_are(
    run: Path, tmp_path: Path
) -> None:
    end(_manifest(run))
    for path in (run / "mine", tmp_path / "mine"):
        path.write_bytes(b"x")
        assert read_bytes(path) == b"x"
    (tmp_path / NAME).write_text('{"name": "of a web page"}')
    assert read_bytes(tmp_path / "mine") == b"x"


def test_a_file_of_a_run_may_not_be_gone(run: Path, tmp_path: Path) -> None:
    manifest = _manifest(run)
    write_bytes(run / "val.npz", b"x")
    end(manifest)
    assert is_there(run / "val.npz")
    assert not is_there(run / "test.npz")
    (run / "val.npz").unlink()
    with pytest.raises(UserError, match=r"val\.npz is missing; restore it, or see .* verify"):
        is_there(run / "val.npz")
    os.mkfifo(run / "val.npz")
    with pytest.raises(UserError, match=r"val\.npz is a named pipe, not a file; "):
        is_there(run / "val.npz")
    (run / NAME).unlink()
    assert not is_there(tmp_path / "val.npz")


@pytest.mark.parametrize("took_place", [False, True])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interrupted_write_is_the_old_or_the_new_file(
    tmp_path: Path, before: bytes | None, took_place: bool
) -> None:
    manifest, path = Manifest(tmp_path, "train"), tmp_path / "a"
    if before is not None:
        path.write_bytes(before)
    now = None if before is None else Content.of(before)
    manifest.files["a"] = Entry(now, Content.of(b"new"), by="train")
    if took_place:
        path.write_bytes(b"new")
    manifest.save()
    found = Manifest.read(tmp_path)
    assert found is not None
    assert found.fault("a") is None
    found.settle()
    expected = b"new" if took_place else before
    assert {n: e.now for n, e in found.files.items()} == (
        {} if expected is None else {"a": Content.of(expected)}
    )


def test_an_interrupted_write_with_a_link_in_its_place_stays_undecided(tmp_path: Path) -> None:
    manifest, outside = Manifest(tmp_path / "run", "train"), tmp_path / "outside"
    outside.write_bytes(b"new")
    manifest.root.mkdir()
    (manifest.root / "a").symlink_to(outside)
    manifest.files["a"] = entry = Entry(None, Content.of(b"new"))
    manifest.settle()
    assert manifest.files == {"a": entry}
    assert manifest.fault("a") == f"{shown(manifest.root / 'a')} is a link"


def test_what_is_neither_old_nor_new_is_damage(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "train")
    manifest.files["a"] = Entry(Content.of(b"old"), Content.of(b"new"))
    (tmp_path / "a").write_bytes(b"nex")
    assert manifest.fault("a") is not None
    manifest.settle()
    assert manifest.fault("a") is not None
    (tmp_path / "a").unlink()
    assert manifest.fault("a") == f"{shown(tmp_path / 'a')} is missing"


def test_a_killed_write_leaves_a_file_that_can_be_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(run / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(run / "a", b"new")
    saved = Manifest.read(run)  # as the next process finds it
    assert saved is not None
    assert saved.fault("a") is None
    write_bytes(run / "a", b"newer")
    end(_manifest(run))
    assert stored(run)["a"]["now"] == digest(b"newer")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_is_not_of_the_run_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (run / "mine").write_bytes(b"mine")
    (tmp_path / "target").write_bytes(b"target")
    (run / "link").symlink_to(tmp_path / "target")
    (run / "folder").symlink_to(tmp_path)
    os.mkfifo(run / "pipe")
    for name, words in (
        ("mine", "mine is a file that this run did not write, and is in the way"),
        ("link", "link is a link"),
        ("folder/a", "folder is a link"),
        ("pipe", "pipe is a named pipe, and is in the way"),
    ):
        with pytest.raises(UserError, match=words):
            write_bytes(run / name, b"new")
        with pytest.raises(UserError, match=words):
            append_record(run / name, {})
    assert (run / "mine").read_bytes() == b"mine"
    assert (tmp_path / "target").read_bytes() == b"target"
    assert not (tmp_path / "a").exists()


def test_only_files_of_the_run_are_removed(run: Path, tmp_path: Path) -> None:
    write_bytes(run / "a", b"x")
    write_bytes(run / "sub" / "b", b"x")
    (run / "mine").write_bytes(b"mine")
    remove(run / "a")
    remove(run / "gone")
    with pytest.raises(UserError, match="mine is not a file of this run"):
        remove(run / "mine")
    (run / "sub").rename(tmp_path / "elsewhere")
    (run / "sub").symlink_to(tmp_path / "elsewhere")
    remove(run / "sub" / "b")
    assert (tmp_path / "elsewhere" / "b").exists()
    assert not (run / "a").exists()
    end(_manifest(run))
    assert stored(run) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b'"size": 1', b'"size": 2', 1),
        lambda data: data[:-20],
        lambda _: b"",
        lambda data: data.replace(b'"a"', b'"../a"'),
        lambda _: b"[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_named(run: Path, damage: Callable[[bytes], bytes]) -> None:
    write_bytes(run / "a", b"x")
    write_bytes(run / "config.json", b"{}")
    end(_manifest(run))
    (run / NAME).write_bytes(damage((run / NAME).read_bytes()))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(.*--repair"):
        Manifest.read(run)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_bytes(run / "a")


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "a named pipe"), (".", "a folder")):
        with pytest.raises(UserError, match=f"is {words} and no file"):
            disk.read_whole(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        disk.read_whole(tmp_path / "none")


def test_a_lock_has_one_holder_and_names_it(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert not is_held(first.path)
    assert first.take("the job a")
    assert is_held(first.path)
    assert not second.take()
    assert second.holder().startswith(f"process {os.getpid()} on ")
    assert "(the job a), since 20" in second.holder()
    first.release()
    first.release()
    assert not first.path.exists()
    assert second.take()
    second.release()


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match="lock is a link and no file; move it away"):
        Lock(tmp_path / "lock").take()
    held = Lock(tmp_path / "held")
    assert held.take()
    (tmp_path / "other").symlink_to(held.path)
    assert (is_held(held.path), is_held(tmp_path / "other")) == (True, False)
    held.release()
    assert (tmp_path / "target").read_text() == "mine"
