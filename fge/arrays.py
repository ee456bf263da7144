"""Arrays in ``.npz`` files, read without unpickling."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError
from fge.files import write_bytes


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays called ``names``.

    Raises:
        UserError: no such file, it is damaged or no ``.npz``, or it lacks an array.
    """
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
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(buffer, **named)
    write_bytes(path, buffer.getvalue())
