"""Files that are written whole or not at all: text, JSON, arrays, and append-only records."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fge.errors import UserError

if TYPE_CHECKING:  # NumPy is loaded where arrays are read: options are parsed without it
    from numpy.typing import ArrayLike, NDArray

_BLOCK = 4096


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: the write failed (a full disk, say); ``path`` is as it was before.
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
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; NaN and infinity are refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json_text(value))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line, in the place of an incomplete last line where there is one."""
    with path.open("ab+") as file:
        file.truncate(_complete_length(file))
        file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a JSON-lines file anew, atomically."""
    lines = (json.dumps(record, allow_nan=False) for record in records)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _complete_length(file: BinaryIO) -> int:
    """Return the length of a file up to the end of its last complete line."""
    length = file.seek(0, os.SEEK_END)
    while length > 0:
        start = max(length - _BLOCK, 0)
        file.seek(start)
        found = file.read(length - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        length = start
    return 0


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; an incomplete last line is left out.

    Raises:
        UserError: another line is broken.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise UserError(
                f"line {number} of {path} is damaged; bring the file back from a copy, or begin "
                "the run anew with --overwrite"
            ) from None
    return records


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove what interrupted writes left behind in ``folder`` and below."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays called ``names``.

    Raises:
        UserError: no such file, it is damaged or no ``.npz``, or it lacks an array.
    """
    import numpy as np

    if not path.is_file():
        raise UserError(f"no data file {path}")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds a single array, not the arrays of an .npz")
        with archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise UserError(f"{path} has no array {missing[0]!r}; it needs {', '.join(names)}")
            return {name: archive[name] for name in names}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read, it may be truncated or damaged: {error}") from None


def write_npz(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays by name to an ``.npz`` file, atomically.

    Raises:
        OSError: it could not be written; the file is as it was.
    """
    import numpy as np

    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(buffer, **named)
    write_bytes(path, buffer.getvalue())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
