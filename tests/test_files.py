"""Files are written whole or not at all; records survive an incomplete last line."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fge import files, memory
from fge.errors import UserError, one_line
from fge.files import read_records


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_bytes_are_written_and_parents_made(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a" / "b" / "file", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"\x00\xff"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_text_is_utf8(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file", "Größe\n")
    assert (tmp_path / "file").read_bytes() == b"Gr\xc3\xb6\xc3\x9fe\n"


@pytest.mark.usefixtures("full_disk")
def test_failing_write_of_a_new_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_failing_write_leaves_the_old_content(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files.write_bytes(tmp_path / "file", b"old")
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failing_rename_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no rename"):
        files.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_interruption_between_write_and_rename_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(tmp_path / "file", b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_data_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append("fsync")
        sync(handle)

    def replace(source: str, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(tmp_path / "file", b"new")
    assert calls == ["fsync", "rename", "fsync"]


@pytest.mark.usefixtures("umask_027")
def test_umask_is_honoured(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("umask_027")
def test_reading_the_umask_does_not_change_it(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "file", b"x")
    assert os.umask(0o027) == 0o027


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_not_finite(tmp_path: Path, value: float) -> None:
    files.write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "file.json", {"a": value})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


def test_records_come_back_in_order(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 0.1}, {"step": 2, "text": "Größe\nline"}]
    for record in records:
        files.append_record(tmp_path / "lines.jsonl", record)
    assert files.read_records(tmp_path / "lines.jsonl") == records
    assert (tmp_path / "lines.jsonl").read_text().count("\n") == 2


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert files.read_records(tmp_path / "lines.jsonl") == []


@pytest.mark.parametrize("tail", ['{"step": 2', '{"step": 2}', '{"text": "Gr'])
def test_incomplete_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    (tmp_path / "lines.jsonl").write_text('{"step": 1}\n' + tail)
    assert files.read_records(tmp_path / "lines.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b"\xff", b""])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=rf"^line 2 of {path} is damaged: .+; restore the file"):
        read_records(path)


def test_record_after_an_incomplete_line_is_not_glued_to_it(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    files.append_record(tmp_path / "lines.jsonl", {"step": 3})
    assert files.read_records(tmp_path / "lines.jsonl") == [{"step": 1}, {"step": 3}]


def test_sha256_of_a_known_text() -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert files.sha256(b"abc") == expected


# ---------------------------------------------------------------------------- reading, names


SPECIAL = {
    "is a named pipe and no config file": os.mkfifo,
    "is a device and no config file": lambda path: path.symlink_to("/dev/null"),
    "is a folder and no config file": Path.mkdir,
    "is a link to nothing and no config file": lambda path: path.symlink_to("gone"),
}


@pytest.mark.parametrize("message", SPECIAL)
def test_only_regular_files_are_read(tmp_path: Path, message: str) -> None:
    path = tmp_path / "file"
    SPECIAL[message](path)
    for read in (files.read_bytes, files.check_file):
        with pytest.raises(UserError, match=f"^{path} {message}$"):
            read(path, "config file")


@pytest.mark.parametrize("name", ["none", "none/file", "a\0b"])
def test_a_missing_file_is_named_with_its_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(
        UserError, match=f"^no config file {re.escape(one_line(str(path)))}; check the path$"
    ):
        files.read_bytes(path, "config file")


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    assert files.read_json(tmp_path / "link", dict) == {"a": 1}


def test_a_file_larger_than_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(5_000_000)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 5_000_000)
    assert files.read_bytes(tmp_path / "file") == data
    monkeypatch.setattr(memory, "free_host_memory", lambda: 4_000_000)
    with pytest.raises(UserError, match="needs 5 MB of memory, but 4 MB are free"):
        files.read_bytes(tmp_path / "file", "file")


def test_json_nested_too_deeply_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="it has more than 100 levels"):
        files.read_json(tmp_path / "file", list)


def test_a_pipe_is_not_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    for call in (
        lambda: files.append_record(tmp_path / "log.jsonl", {}),
        lambda: read_records(tmp_path / "log.jsonl"),
    ):
        with pytest.raises(UserError, match="is a named pipe and no file"):
            call()


def test_a_name_that_is_no_utf8_is_escaped_in_a_text_that_all_can_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    files.write_text(tmp_path / "file", f"{name},ä\n")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "caf\\xe9.png,ä\n"
    files.write_json(tmp_path / "file.json", [name])
    assert files.read_json(tmp_path / "file.json", list) == [name]
    assert files.printable(name) == r"caf\xe9.png"
    assert files.printable("Größe") == "Größe"


def test_half_a_character_is_written_as_an_escape(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file", "a\ud800b")
    assert (tmp_path / "file").read_bytes() == rb"a\ud800b"
