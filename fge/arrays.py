"""Arrays in ``.npz`` files: their sizes before they are read, whole arrays, and rows of them."""

from __future__ import annotations

import io
import math
import reprlib
import textwrap
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError
from fge.files import check_file, check_written, write_bytes
from fge.memory import check_fits, size_text

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000
"""Bytes of a header; those of plain arrays have about 100."""
_CHUNK = 1 << 20
_SMALL = 1 << 12
"""Bytes to ask of bzip2 and LZMA: zipfile unpacks as many packed ones at once, of any size."""
_MOST_BYTES, _MOST_SIDES = 2**63, 32


def is_npz(path: Path) -> bool:
    """Return whether a file is an ``.npz`` file by its name, in capitals or not."""
    return path.suffix.lower() == ".npz"


@dataclass(frozen=True)
class Header:
    """What a file says of an array: ``fortran`` if its first axis varies fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """An ``.npz`` file that is open for reading, to be used in a ``with`` block.

    Raises:
        UserError: it is no complete file of arrays, or what is read does not fit into the memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_file(path, "data file")
        if _is_single(path):
            raise UserError(f"{path} holds a single array, not the arrays of an .npz")
        with self._told():
            self._zip = zipfile.ZipFile(path)

    def __enter__(self) -> Archive:
        """Return the archive."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._zip.close()

    def __contains__(self, name: object) -> bool:
        """Return whether there is an array of that name."""
        return f"{name}.npy" in self._zip.namelist()

    def check_names(self, names: Sequence[str]) -> None:
        """Check that the arrays are there.

        Raises:
            UserError: naming the first that is not, and all that are needed.
        """
        for name in names:
            if name not in self:
                raise UserError(f"{self.path} has no array {name!r}; it needs {', '.join(names)}")

    def header(self, name: str) -> Header:
        """Return shape and type of an array, which the file is as long as they say.

        Raises:
            UserError: they make no sense, or the array needs pickle.
        """
        with self._told(), self._open(name) as (_, header):
            return header

    def read(self, name: str, remedy: str = "free some of it") -> NDArray[Any]:
        """Return an array.

        Args:
            name: of the array.
            remedy: what to do if it does not fit into the memory, for the error.
        """
        with self._told(), self._open(name) as (stream, header):
            check_fits(header.nbytes, f"{self.path}: the array {name!r} needs", remedy)
            data = np.empty(header.nbytes, np.uint8)
            self._fill(stream, data)
            self._finish(stream)
            if header.dtype.itemsize == 0:
                return np.empty(header.shape, header.dtype)
            values = data.view(header.dtype)
            if header.fortran:
                return values.reshape(header.shape[::-1]).transpose()
            return values.reshape(header.shape)

    def rows(self, name: str, index: NDArray[np.int64]) -> NDArray[Any]:
        """Return ``array[index]`` for an index (n,), without holding the other rows in memory."""
        with self._told(), self._open(name) as (stream, header):
            found = np.empty((len(index), *header.shape[1:]), header.dtype)
            take = self._columns if header.fortran else self._rows
            take(stream, header, index, found)
            self._finish(stream)
            return found

    def _rows(
        self, stream: IO[bytes], header: Header, index: NDArray[np.int64], found: NDArray[Any]
    ) -> None:
        """Read rows one after the other; keep those of the index."""
        count = header.shape[0]
        size = header.nbytes // max(count, 1)
        step = max(1, _CHUNK // max(size, 1))
        places = np.argsort(index, kind="stable")
        wanted = index[places]
        buffer = np.empty(min(step, count) * size, np.uint8)
        for start in range(0, count, step):
            stop = min(start + step, count)
            part = buffer[: (stop - start) * size]
            self._fill(stream, part)
            first, last = np.searchsorted(wanted, (start, stop))
            rows = part.view(header.dtype).reshape(stop - start, *header.shape[1:])
            found[places[first:last]] = rows[wanted[first:last] - start]

    def _columns(
        self, stream: IO[bytes], header: Header, index: NDArray[np.int64], found: NDArray[Any]
    ) -> None:
        """Read item after item of all rows, since the first axis varies fastest."""
        count, columns = header.shape[0], math.prod(header.shape[1:])
        step = max(1, _CHUNK // max(count * header.dtype.itemsize, 1))
        places = np.arange(columns).reshape(header.shape[1:]).ravel(order="F")
        into = found.reshape(len(index), columns)
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            part = np.empty((stop - start) * count * header.dtype.itemsize, np.uint8)
            self._fill(stream, part)
            read = part.view(header.dtype).reshape(stop - start, count)
            into[:, places[start:stop]] = read[:, index].T

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Header]]:
        """Yield the bytes of an array, and what was before them."""
        info = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(info) as stream:
            try:
                length, header = _read_header(stream)
            except _UnusableError as error:
                raise UserError(f"{self.path} cannot be read: the array {name!r} {error}") from None
            except Exception as error:  # NumPy's parser raises many types, MemoryError too
                raise ValueError(f"the array {name!r}: {_first_line(error)}") from None
            if header.nbytes != info.file_size - length:
                raise ValueError(
                    f"the array {name!r} {header.shape} of {header.dtype} has "
                    f"{size_text(header.nbytes)}, and the file {size_text(info.file_size - length)}"
                )
            yield stream, header

    def _fill(self, stream: IO[bytes], into: NDArray[np.uint8]) -> None:
        """Read bytes until an array is full."""
        packed = getattr(stream, "_compress_type", zipfile.ZIP_STORED)
        step = _SMALL if packed in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA) else _CHUNK
        done = 0
        while done < len(into):
            data = stream.read(min(step, len(into) - done))
            if not data:
                raise EOFError("it ends within an array")
            into[done : done + len(data)] = np.frombuffer(data, np.uint8)
            done += len(data)

    def _finish(self, stream: IO[bytes]) -> None:
        """Read to the end, where the checksum is compared."""
        if stream.read(1):
            raise ValueError("an array is longer than it says")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn every error of a damaged file into one for the user."""
        try:
            yield
        except UserError:
            raise
        except MemoryError:
            raise UserError(f"{self.path} needs more memory than is free") from None
        except Exception as error:  # zipfile and its decompressors raise many types
            raise unreadable(self.path, error) from None


def read_npz(
    path: Path, names: Sequence[str], remedy: str = "free some of it"
) -> dict[str, NDArray[Any]]:
    """Return the arrays called ``names``; anything else than a complete file is a UserError.

    Args:
        path: of the file.
        names: of the arrays.
        remedy: what to do if they do not fit into the memory, for the error.
    """
    if path.is_file():
        check_written(path)
    with Archive(path) as archive:
        archive.check_names(names)
        return {name: archive.read(name, remedy) for name in names}


def write_npz(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays by name to an ``.npz`` file, atomically."""
    write_bytes(path, npz_bytes(arrays))


def npz_bytes(arrays: Mapping[str, ArrayLike], *, compressed: bool = False) -> bytes:
    """Return the content of an ``.npz`` file of arrays by name."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    save = np.savez_compressed if compressed else np.savez
    try:
        save(buffer, **named)
    except ValueError as error:
        # A Ctrl-C within an array leaves it open, and closing the file then fails.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    return buffer.getvalue()


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a data file whose content makes no sense."""
    return UserError(f"{path} cannot be read; it may be truncated or damaged: {_first_line(error)}")


def _is_single(path: Path) -> bool:
    """Return whether a file is a single array, as ``numpy.save`` writes it."""
    with path.open("rb") as file:
        try:
            _read_header(file)
        except Exception:  # NumPy's parser raises many types
            return False
    return True


def _read_header(stream: IO[bytes]) -> tuple[int, Header]:
    """Return the number of bytes before an array, and what they say."""
    begin = stream.read(8)
    if begin[:6] != _MAGIC or len(begin) < 8 or begin[6] not in (1, 2, 3):
        raise ValueError("it has no header")
    old = begin[6] == 1
    size = stream.read(2 if old else 4)
    length = int.from_bytes(size, "little")
    if length > _MOST_HEADER:
        raise ValueError(f"its header has {length} bytes")
    parse = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():  # that it is slow to read what Python 2 wrote
        warnings.simplefilter("ignore")
        shape, fortran, dtype = parse(cast(Any, io.BytesIO(size + stream.read(length))))
    _check_usable(shape, dtype)
    return len(begin) + len(size) + length, Header(shape, dtype, fortran)


class _UnusableError(ValueError):
    """An array that is none for this program."""


def _check_usable(shape: tuple[Any, ...], dtype: np.dtype[Any]) -> None:
    named = reprlib.repr(shape)
    if len(shape) > _MOST_SIDES or any(type(side) is not int or side < 0 for side in shape):
        raise _UnusableError(f"has the shape {named}, which makes no sense")
    if dtype.hasobject:
        raise _UnusableError("holds pickled Python objects, which are not loaded; save numbers")
    if dtype.names or dtype.subdtype:
        raise _UnusableError(f"has items of {reprlib.repr(dtype)}; save single numbers")
    if math.prod(max(side, 1) for side in shape) * max(dtype.itemsize, 1) >= _MOST_BYTES:
        raise _UnusableError(f"has the shape {named}, which is larger than any memory")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return textwrap.shorten(lines[0], 200) if lines else type(error).__name__
