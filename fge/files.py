"""Files that are written completely or not at all: text, JSON, arrays, append-only records."""

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

if TYPE_CHECKING:  # NumPy is imported only to read arrays: parsing options does not need it
    from numpy.typing import ArrayLike, NDArray

_BLOCK = 4096


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
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; NaN and infinity are refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json_text(value))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line, replacing an incomplete last line if there is one."""
    with path.open("ab+") as file:
        file.truncate(_complete_length(file))
        file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a JSON-lines file, atomically."""
    lines = (json.dumps(record, allow_nan=False) for record in records)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _complete_length(file: BinaryIO) -> int:
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
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
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


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays called ``names``; anything else than a complete file is a UserError."""
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
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a data file whose content makes no sense."""
    return UserError(f"{path} cannot be read; it may be truncated or damaged: {error}")


def write_npz(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays by name to an ``.npz`` file, atomically."""
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
    with contextlib.suppress(OSError):  # some file systems cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
