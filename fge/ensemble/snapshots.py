"""Snapshots of a model on disk, one ``.safetensors`` file each, with an index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.files import json_text, read_bytes, read_json, remove, sha256, write_bytes, write_json
from fge.networks import Weights, canonical_state, decode_weights, encode_weights, unwrap
from fge.observer import counted

SCHEMA_VERSION = 1
_REMEDY = "restore it from a copy, or give another folder"


class _Entry(TypedDict):
    file: str
    sha256: str


class _Index(TypedDict):
    schema_version: NotRequired[int]
    snapshots: list[_Entry]


def _file_name(position: int) -> str:
    return f"{position + 1:04d}.safetensors"


def index_bytes(folder: Path, facts: Iterable[dict[str, Any]]) -> bytes:
    """Return the content of the index of the snapshots in a folder, which have these facts.

    Raises:
        OSError: a snapshot cannot be read.
    """
    entries = []
    for position, known in enumerate(facts):
        name = _file_name(position)
        entries.append({"file": name, "sha256": sha256(read_bytes(folder / name)), **known})
    return json_text({"schema_version": SCHEMA_VERSION, "snapshots": entries}).encode()


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Return the difference in double precision: 0 of equal infinities, too (an attention mask)."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    return torch.where(one == other, 0, one.to(wide) - other.to(wide))


class SnapshotStore:
    """A folder of snapshots: ``0001.safetensors``, ... and ``index.json``.

    A snapshot exists once the index names it. Files are written completely or not at all, so an
    interruption does not harm earlier snapshots. For each snapshot the index records its file,
    the SHA-256 of that file and the facts given to :meth:`append`.

    Args:
        path: the folder; made at the first :meth:`append`.

    Raises:
        UserError: the index cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._index = self._read_index()

    def _read_index(self) -> list[dict[str, Any]]:
        file = self.path / "index.json"
        if not os.path.lexists(file):
            if (self.path / _file_name(0)).exists():
                raise UserError(
                    f"{self.path} holds snapshots but no index.json; restore it, or give another "
                    "folder"
                )
            return []
        index = read_json(
            file, _Index, what="snapshot index", damaged="is not a snapshot index", remedy=_REMEDY
        )
        if (version := index.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
            raise UserError(
                f"{file} has schema_version {version}; this program reads {SCHEMA_VERSION}"
            )
        snapshots: list[dict[str, Any]] = [dict(entry) for entry in index["snapshots"]]
        for position, entry in enumerate(snapshots):
            if entry["file"] != _file_name(position):
                raise UserError(
                    f"{file} is not a snapshot index: it names {entry['file']!r} where "
                    f"{_file_name(position)} belongs; {_REMEDY}"
                )
        return snapshots

    def _write_index(self, index: list[dict[str, Any]]) -> None:
        write_json(self.path / "index.json", {"schema_version": SCHEMA_VERSION, "snapshots": index})
        self._index = index

    def append(self, model: Weights, **facts: Any) -> Path:
        """Save the model's parameters and buffers, and ``facts`` in the index.

        Args:
            model: a module (compilation and data-parallel wrappers are bypassed), a state dict or
                a path.
            facts: JSON values to record: step, epoch, learning rate, validation scores.

        Returns:
            The new file.

        Raises:
            UserError: a fact is called ``file`` or ``sha256``, names that the index uses.
            OSError: the file could not be written; the store is unchanged.
        """
        if taken := {"file", "sha256"} & set(facts):
            raise UserError(f"the index uses {taken.pop()!r} itself; give the fact another name")
        data = encode_weights(canonical_state(model))
        if not self._index:  # a missing index then never means an interrupted first snapshot
            self._write_index([])
        name = _file_name(len(self))
        write_bytes(self.path / name, data)
        self._write_index([*self._index, {"file": name, "sha256": sha256(data), **facts}])
        return self.path / name

    def facts(self, position: int) -> dict[str, Any]:
        """Return the index entry of a snapshot: ``file``, ``sha256`` and its facts."""
        return dict(self._index[position])

    def distance(self, model: nn.Module) -> float | None:
        """Return |w - w_last| over a model's parameters, or None before the first snapshot."""
        if len(self) == 0:
            return None
        last = self[len(self) - 1]
        squares: list[Tensor] = [
            _difference(parameter.detach().cpu(), last[name]).abs().square().sum()
            for name, parameter in unwrap(model).named_parameters()
        ]
        return float(torch.stack(squares).sum().sqrt())

    def truncate(self, length: int) -> None:
        """Keep only the first ``length`` snapshots, and remove the files of the others.

        The file of a snapshot whose writing was interrupted is removed too; other files stay.
        """
        dropped = [_file_name(k) for k in range(min(length, len(self)), len(self) + 1)]
        if length < len(self):
            self._write_index(self._index[:length])
        for name in dropped:
            if os.path.lexists(self.path / name):
                remove(self.path / name)

    def __repr__(self) -> str:
        """Return the number of snapshots and the folder."""
        return f"SnapshotStore({counted(len(self), 'snapshot')} in {str(self.path)!r})"

    def __len__(self) -> int:
        """Return the number of snapshots."""
        return len(self._index)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Load the snapshots one by one."""
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Load a snapshot as a state dict on the CPU.

        Raises:
            IndexError: no such snapshot.
            UserError: its file is missing or does not match its checksum.
        """
        entry = self._index[position]
        file = self.path / entry["file"]
        if not file.exists():
            raise UserError(f"snapshot {file} is missing, but index.json names it")
        data = read_bytes(file, "snapshot")
        if sha256(data) != entry["sha256"]:
            raise UserError(
                f"snapshot {file} does not match its checksum in index.json: "
                "the file was changed or damaged after it was written; restore it from a copy"
            )
        return decode_weights(data, file)
