"""Files that are written completely or not at all, and read only if they are regular files."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from fge import disk, manifest
from fge.errors import UserError
from fge.memory import check_fits

T = TypeVar("T")
_SMALL = 2**20
"""Bytes that are read at once: to ask how many are free would take longer."""
_ATTEMPTS = 5
"""Reads of a file that another process may be writing, before it is called damaged."""
_DEPTH = 100
"""Levels of lists and objects in JSON; files of this program have fewer than 50."""
_DIGITS = 300
"""Digits of whole numbers in JSON: all are within the range of floats."""
_LONGEST_REASON = 300
RESTORE = "restore it from a copy"
"""What to do about a damaged file of which nothing better is known."""
AGAIN = "restore the file from a copy, or start the run again with --overwrite"
"""What to do about a damaged file that a run needs and nothing else holds."""


def check_file(path: str | Path, kind: str = "file") -> None:
    """Check that a path is a regular file: opening a named pipe or a device could take for ever.

    Args:
        path: of the file, or a link to it.
        kind: what it should be, for the error, such as "data file".

    Raises:
        UserError: there is no such file, or the path is something else.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        if path.is_symlink():
            raise UserError(f"{path} is a link to nothing and no {kind}") from None
        raise UserError(f"no {kind} {path}; check the path") from None
    if not stat.S_ISREG(mode):
        what = disk.KINDS.get(stat.S_IFMT(mode), "something special")
        raise UserError(f"{path} is {what} and no {kind}")


def printable(text: str) -> str:
    r"""Return a text with escapes for the bytes of a file name that are no UTF-8.

    >>> printable(os.fsdecode(b"caf\xe9.png"))
    'caf\\xe9.png'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: temporary file, fsync, rename, fsync of the folder.

    After an OSError (a full disk, for example) ``path`` is unchanged. In a folder that this process
    has opened, the manifest records the file.

    Raises:
        UserError: in such a folder, something that is not of the run is in the way.
    """
    writer = manifest.writer_of(path)
    if writer is None:
        disk.write_whole(path, data)
        return
    keeper, name = writer
    with keeper.replacing(name, data):
        disk.write_whole(path, data)


def read_bytes(path: str | Path, kind: str = "file") -> bytes:
    """Return the content of a file, compared with the manifest of its folder if there is one.

    Args:
        path: of the file.
        kind: what it should be, for the error, such as "weights file".

    Raises:
        UserError: it is not what the manifest says, there is no such file, it is not a regular one,
            or larger than the memory.
        OSError: it cannot be read.
    """
    path = Path(path)
    check_file(path, kind)
    size = path.stat().st_size
    if size > _SMALL:
        check_fits(size, f"{path} needs", f"it is larger than a {kind} should be")
    for attempt in itertools.count(1):
        data = disk.read_whole(path)
        reader = manifest.reader_of(path)
        fault = reader[0].fault_of(reader[1], data) if reader else None
        if reader is None or fault is None:
            return data
        if attempt == _ATTEMPTS:
            raise manifest.damaged(fault, reader[0].root)
        time.sleep(0.01 * attempt)  # a running writer may be ahead of the manifest read here
    raise AssertionError("unreachable")


def is_there(path: Path) -> bool:
    """Return whether there is a file; one of a run may not have gone without its manifest.

    Raises:
        UserError: the manifest of its folder has it, and there is none, or no regular one.
    """
    reader = manifest.reader_of(path) if disk.kind_of(path) != "" else None
    if reader is not None and (fault := reader[0].fault(reader[1])) is not None:
        raise manifest.damaged(fault, reader[0].root)
    return path.exists()


def check_written(path: Path) -> None:
    """Compare a file with the manifest of its folder if there is one that knows it.

    Raises:
        UserError: it is not what the manifest says.
    """
    if manifest.reader_of(path) is not None:
        read_bytes(path)


def remove(path: Path) -> None:
    """Remove a file if it is there; in a folder that this process has opened, only one of its own.

    Raises:
        UserError: the file is not one of the run's.
    """
    writer = manifest.writer_of(path)
    if writer is None:
        path.unlink(missing_ok=True)
        return
    keeper, name = writer
    if name in keeper.files:
        keeper.remove(name)
    elif disk.kind_of(path) is not None:
        raise UserError(f"{path} is not a file of this run, and is in the way; move it away")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically; what no UTF-8 can hold is escaped."""
    try:
        data = printable(text).encode("utf-8")
    except UnicodeEncodeError:  # half a character, which no file name gives
        data = text.encode("utf-8", "backslashreplace")
    write_bytes(path, data)


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; NaN and infinity are refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json_text(value))


def read_json(
    path: Path,
    kind: type[T],
    *,
    what: str = "file",
    damaged: str = "is damaged",
    remedy: str = "",
) -> T:
    """Return the value in a JSON file, after checking that it is of a type.

    Args:
        path: of the file.
        kind: the type: a ``TypedDict``, whose other keys are kept, or any that msgspec checks.
        what: the file should be, for the error of a missing one, such as "config file".
        damaged: the words for a file that is of another type, or no JSON.
        remedy: what to do then; by default to restore the file.

    Raises:
        UserError: the file is damaged; the message names the first part that does not fit.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path, what), kind, f"{path} {damaged}", remedy)


def parse_json(
    data: bytes, kind: type[T], damaged: str, remedy: str = "", *, infinite: bool = False
) -> T:
    """Return the value in JSON bytes; see :func:`read_json`.

    ``damaged`` begins the error; with ``infinite``, NaN and infinity are numbers too.
    """
    try:
        text = data.decode("utf-8-sig")
        value = _decoder(infinite).decode(text)
        if "\\u" in text:
            # No half of a surrogate pair, but bytes of a file name that is no UTF-8.
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise _damaged(damaged, _reason(error), remedy) from None
    return checked(value, kind, damaged, remedy)


def _reason(error: ValueError | RecursionError) -> str:
    """Return why bytes are no JSON."""
    if isinstance(error, RecursionError):
        return f"it has more than {_DEPTH} levels"
    if isinstance(error, UnicodeDecodeError):
        return f"it is no UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return f"it holds {error.object[error.start]!a}, half of a character"
    return str(error)


def checked(value: Any, kind: type[T], damaged: str, remedy: str = "") -> T:
    """Return a value from JSON after checking that it is of a type; see :func:`read_json`.

    Raises:
        UserError: it is not; the message names the first part that does not fit.
    """
    import msgspec

    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _damaged(damaged, str(error), remedy) from None
    return cast(T, value)


def _damaged(damaged: str, reason: str, remedy: str) -> UserError:
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]} [...]"
    return UserError(f"{damaged}: {reason}; {remedy or RESTORE}")


@functools.cache
def _decoder(infinite: bool) -> json.JSONDecoder:
    constant = float if infinite else _finite
    return json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    """Raise a RecursionError for lists and objects that are nested more deeply than is used."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEPTH):
        parts = (node.values() if isinstance(node, dict) else node for node in level)
        if not (level := [p for part in parts for p in part if isinstance(p, dict | list)]):
            return
    raise RecursionError


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line, replacing an incomplete last line if there is one."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    writer = manifest.writer_of(path)
    if writer is None or writer[0].is_stream(writer[1]):
        disk.append_line(path, line)
    else:
        writer[0].append(writer[1], line)


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a JSON-lines file, atomically."""
    lines = (json.dumps(record, allow_nan=False) for record in records)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_records(
    path: Path, kinds: type[Any] | Mapping[str, type[Any]] | None = None
) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file without an incomplete last line; [] if no file.

    Args:
        path: of the file.
        kinds: the type of every record, or types of records by their ``event``; by default those
            of a file with this name, ``fge.schemas.RECORDS``. Other keys and events are kept.

    Raises:
        UserError: a record is damaged or of another type; the message names its line.
    """
    if not path.exists():
        return []
    from fge import schemas  # parsing options needs no schema

    known = schemas.RECORDS.get(path.name, dict) if kinds is None else kinds
    lines = enumerate(read_bytes(path).split(b"\n")[:-1], start=1)
    return [_record(line, known, f"line {number} of {path} is damaged") for number, line in lines]


def _record(
    line: bytes, kinds: type[Any] | Mapping[str, type[Any]], damaged: str
) -> dict[str, Any]:
    if not isinstance(kinds, Mapping):
        return cast(dict[str, Any], parse_json(line, kinds, damaged, AGAIN))
    record = parse_json(line, dict[str, Any], damaged, AGAIN)
    event = checked(record.get("event"), str, f"{damaged}: its event", AGAIN)
    return checked(record, kinds.get(event, dict), damaged, AGAIN)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
