"""Bytes on disk, without a manifest: atomic writes, appended lines, reads of regular files only."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from fge.errors import UserError

_BLOCK = 4096
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: temporary file, fsync, rename, fsync of the folder.

    After an OSError (a full disk, for example) ``path`` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, replacing an incomplete last line if there is one; never through a link.

    Raises:
        UserError: ``path`` is not a regular file.
    """
    handle = _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
    with os.fdopen(handle, "ab+") as file:
        file.truncate(complete_length(file))
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file to append to, for a process that writes there; never through a link.

    Raises:
        UserError: ``path`` is not a regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(_opened(path, flags), "ab")


def read_whole(path: Path) -> bytes:
    """Return the content of a regular file; what could block, such as a pipe, is refused.

    Raises:
        UserError: ``path`` is not a regular file.
        OSError: it cannot be opened.
    """
    with os.fdopen(_opened(path, os.O_RDONLY), "rb") as file:
        return file.read()


def complete_length(file: BinaryIO) -> int:
    """Return the length of a file up to the end of its last complete line."""
    length = file.seek(0, os.SEEK_END)
    while length > 0:
        start = max(length - _BLOCK, 0)
        file.seek(start)
        newline = file.read(length - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        length = start
    return 0


def complete_lines(data: bytes) -> bytes:
    """Return ``data`` without an incomplete last line."""
    return data[: data.rfind(b"\n") + 1]


def kind_of(path: Path) -> str | None:
    """Return what stands at ``path``, such as "a folder"; "" for a regular file, None for nothing.

    Links are not followed.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        return "a link"
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def _opened(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file, without waiting for whoever writes into a pipe."""
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        if kind := kind_of(path):
            raise UserError(f"{path} is {kind} and no file; move it away") from None
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = KINDS.get(stat.S_IFMT(mode), "something special")
        raise UserError(f"{path} is {kind} and no file; move it away")
    return handle


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
