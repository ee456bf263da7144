"""Files that are written completely or not at all, and read only if they are regular files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from fge.errors import UserError
from fge.memory import check_fits

_BLOCK = 4096
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path, kind: str = "file") -> None:
    """Check that a path is a regular file: opening a named pipe or a device could take for ever.

    Args:
        path: of the file, or a link to it.
        kind: what it should be, for the error, such as "data file".

    Raises:
        UserError: there is no such file, or the path is something else.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        if path.is_symlink():
            raise UserError(f"{path} is a link to nothing and no {kind}") from None
        raise UserError(f"no {kind} {path}") from None
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "something special")
        raise UserError(f"{path} is {what} and no {kind}")


def read_bytes(path: Path, kind: str = "file") -> bytes:
    """Return the content of a regular file that fits into the memory.

    Raises:
        UserError: as :func:`check_file`, or the file does not fit.
    """
    check_file(path, kind)
    check_fits(path.stat().st_size, f"{path} needs", f"it is larger than a {kind} should be")
    return path.read_bytes()


def read_text(path: Path, kind: str = "file") -> str:
    """Return the UTF-8 text in a regular file.

    Raises:
        UserError: as :func:`read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, kind).decode("utf-8")


def read_json(path: Path, kind: str = "file") -> Any:
    """Return the value in a JSON file.

    Raises:
        UserError: as :func:`read_bytes`.
        ValueError: it is not JSON.
    """
    text = read_text(path, kind)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def open_regular(path: Path, mode: str) -> IO[Any]:
    """Open a file to write to it, unless there is something else than a regular file.

    Raises:
        UserError: as :func:`check_file`.
    """
    if path.exists():
        check_file(path)
    return path.open(mode)


def printable(text: str) -> str:
    r"""Return a text with escapes for the bytes of a file name that are no UTF-8.

    >>> printable(os.fsdecode(b"caf\xe9.png"))
    'caf\\xe9.png'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
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


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically; names of files keep bytes that are no UTF-8."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which no file name gives
        data = text.encode("utf-8", "backslashreplace")
    write_bytes(path, data)


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; NaN and infinity are refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json_text(value))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line, replacing an incomplete last line if there is one."""
    with open_regular(path, "ab+") as file:
        file.truncate(_complete_length(file))
        file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a JSON-lines file, atomically."""
    lines = (json.dumps(record, allow_nan=False) for record in records)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _complete_length(file: IO[bytes]) -> int:
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file without an incomplete last line; [] if no file."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise UserError(
                f"line {number} of {path} is damaged; restore the file from a copy, or start the "
                "run again with --overwrite"
            ) from None
    return records


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of interrupted writes in ``folder`` and below."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


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
