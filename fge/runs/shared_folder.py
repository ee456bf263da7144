"""The run folder of several processes, which the first one alone writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fge.ensemble.snapshots import SnapshotStore
from fge.networks.state import decode_state
from fge.parallel import Ranks
from fge.runs.folder import RunFolder


class SharedFolder(RunFolder):
    """A run folder as one of several processes sees it.

    States are read by the first process, which tells the others; what others write is dropped.

    Args:
        path: the folder.
        ranks: the processes.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        super().__init__(path)
        self._ranks = ranks

    def log(self, record: dict[str, Any]) -> None:
        """Append a record of the run."""
        if self._ranks.leads:
            super().log(record)

    def timing(self, record: dict[str, Any]) -> None:
        """Append a record of times and memory."""
        if self._ranks.leads:
            super().timing(record)

    def cut_log(self, length: int) -> None:
        """Drop all but the first ``length`` records."""
        if self._ranks.leads:
            super().cut_log(length)

    def write_state(self, name: str, state: dict[str, Any]) -> None:
        """Save a training state atomically."""
        if self._ranks.leads:
            super().write_state(name, state)

    def read_state(self, name: str) -> dict[str, Any] | None:
        """Return a saved training state, or None; all processes call it together."""
        path = self.state_path(name)
        with self._ranks.together():
            mine = path.read_bytes() if self._ranks.leads and path.exists() else b""
        data = self._ranks.tell(mine)
        return decode_state(data, path) if data else None

    def clear_states(self) -> None:
        """Remove all saved training states."""
        if self._ranks.leads:
            super().clear_states()

    def store(self, name: str) -> SnapshotStore:
        """Return the snapshots in a folder of the run."""
        return super().store(name) if self._ranks.leads else _NoSnapshots(self.path / name)


class _NoSnapshots(SnapshotStore):
    """What a process that keeps no snapshots has of them."""

    def _read_index(self) -> list[dict[str, Any]]:
        return []

    def truncate(self, length: int) -> None:
        pass
