"""What was measured on a grid of a plane: arrays in a file, and points one at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.curves.evaluate import Record
from fge.errors import UserError
from fge.files import append_record, read_npz, read_records, write_npz

Array = NDArray[np.float64]
_AXES = ("xs", "ys", "anchors", "gram")


@dataclass(frozen=True, eq=False)
class PlaneGrid:
    """What was measured on a grid of points of a plane.

    Attributes:
        xs: (X,) float64, ascending; distances in weight space where the axes are orthonormal.
        ys: (Y,) float64, likewise.
        values: arrays (Y, X) by key: ``loss``, ``error`` (percent), ``nll`` (nats per example),
            each behind the split's name and ``_`` where there is one.
        anchors: coordinates (K, 2) of the weights that the plane was made from.
        gram: dot products (2, 2) of the plane's axes; the distance between points that lie (dx, dy)
            apart is sqrt((dx, dy) G (dx, dy)ᵀ).

    Raises:
        UserError: an array is not of these shapes.
    """

    xs: Array
    ys: Array
    values: dict[str, Array]
    anchors: Array
    gram: Array

    def __post_init__(self) -> None:
        expected = {key: (len(self.ys), len(self.xs)) for key in self.values}
        found = {key: value.shape for key, value in self.values.items()}
        expected |= {"anchors": (len(self.anchors), 2), "gram": (2, 2)}
        found |= {"anchors": self.anchors.shape, "gram": self.gram.shape}
        for name, shape in expected.items():
            if found[name] != shape:
                raise UserError(f"{name!r} of a plane must have shape {shape}, got {found[name]}")

    def save(self, path: str | Path) -> None:
        """Write the arrays to an ``.npz`` file, atomically.

        It holds ``xs``, ``ys``, ``anchors``, ``gram``, each of ``values`` under its key, and the
        list of these ``keys``.

        Raises:
            OSError: it could not be written; the file is as it was.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _AXES} | self.values
        write_npz(Path(path), {"keys": list(self.values), **arrays})

    @classmethod
    def load(cls, path: str | Path) -> PlaneGrid:
        """Return the grid in a file that :meth:`save` wrote, bitwise and without unpickling.

        Raises:
            UserError: no such file, or it is damaged or holds no grid.
        """
        keys = [str(key) for key in np.atleast_1d(read_npz(Path(path), ["keys"])["keys"])]
        arrays = read_npz(Path(path), [*_AXES, *keys])
        return cls(values={key: arrays.pop(key) for key in keys}, **arrays)


class GridStore:
    """The records of a grid's points, kept in a JSON-lines file while they come in.

    The first line says which grid it is; a line of each point follows.

    Args:
        path: the file, made where it does not exist; None keeps records in memory alone.
        header: what tells the grid from others, as JSON takes it. Lists of numbers are compared to
            1e-9 of their largest, for they are computed.

    Attributes:
        records: by row and column.

    Raises:
        UserError: the file holds another grid, or is damaged.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[int, int], Record] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _read_lines(path)
        if not found:
            append_record(path, dict(header))
            return
        for key, value in header.items():
            if not _agree(found[0].get(key), value):
                raise UserError(
                    f"{path} holds another grid, its {key!r} differ; give another file, or remove "
                    "it to measure anew"
                )
        try:
            for line in found[1:]:
                place = int(line.pop("row")), int(line.pop("column"))
                self.records[place] = {key: float(value) for key, value in line.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None
        if len({frozenset(record) for record in self.records.values()}) > 1:
            raise _damaged(path, "its points have different figures")

    def add(self, place: tuple[int, int], record: Record) -> None:
        """Keep the record of a row and column."""
        self.records[place] = record
        if self.path is not None:
            # JSON has no infinity, which losses far away do reach.
            figures = {k: v if math.isfinite(v) else str(v) for k, v in record.items()}
            append_record(self.path, {"row": place[0], "column": place[1], **figures})

    def arrays(self) -> dict[str, Array]:
        """Return the records of a complete grid as arrays (rows, columns) by key."""
        places = sorted(self.records)
        rows, columns = np.array(places[-1]) + 1
        return {
            key: np.array([self.records[place][key] for place in places]).reshape(rows, columns)
            for key in self.records[places[0]]
        }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = read_records(path)
    except ValueError as error:
        raise _damaged(path, error) from None
    if not all(isinstance(line, dict) for line in lines):
        raise _damaged(path, "a line is no record")
    return lines


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged and holds no grid: {reason}; give another file")


def _agree(found: Any, wanted: Any) -> bool:
    if not (isinstance(wanted, list) and all(isinstance(v, float) for v in wanted)):
        return bool(found == wanted)
    if not isinstance(found, list) or len(found) != len(wanted):
        return False
    if not all(isinstance(v, int | float) for v in found):
        return False
    largest = max(map(abs, wanted))
    return bool(np.allclose(found, wanted, rtol=0, atol=1e-9 * largest))
