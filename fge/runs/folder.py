"""The folder of a run: its files and records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fge.ensemble import SnapshotStore
from fge.files import append_record, read_bytes, read_records, remove, sha256, write_records
from fge.locks import Lock
from fge.manifest import Manifest, end
from fge.networks import decode_state, read_state, write_state
from fge.parallel import Ranks


class RunFolder:
    """Paths and records of one run; see :func:`open_run_folder`.

    Args:
        path: of the folder.
        manifest: of the folder, if this process opened it to write.
        lock: which then is held until :meth:`close`.
        adopted: files that the manifest took in as they are, because there was none before.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest | None = None,
        lock: Lock | None = None,
        adopted: int = 0,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.adopted = adopted
        self._lock = lock
        self.config = path / "config.json"
        self.log_file = path / "log.jsonl"
        self.timing_file = path / "timing.jsonl"
        self.predictions = path / "predictions"
        self.figures = path / "figures"
        self._state = path / "state"

    def log(self, record: dict[str, Any]) -> None:
        """Append a record of the run, without times, because the log has to be reproducible."""
        append_record(self.log_file, record)

    def timing(self, record: dict[str, Any]) -> None:
        """Append a record of times and memory use."""
        append_record(self.timing_file, record)

    def records(self) -> list[dict[str, Any]]:
        """Return the logged records."""
        return read_records(self.log_file)

    def cut_log(self, length: int) -> None:
        """Keep only the first ``length`` records."""
        write_records(self.log_file, self.records()[:length])

    def log_digest(self) -> str:
        """Return the SHA-256 of the log, which a checkpoint records, to know its part of it."""
        return sha256(read_bytes(self.log_file)) if self.log_file.exists() else sha256(b"")

    def state_path(self, name: str) -> Path:
        """Return the file of a saved training state."""
        return self._state / f"{name}.safetensors"

    def write_state(self, name: str, state: dict[str, Any]) -> None:
        """Save a training state atomically."""
        write_state(self.state_path(name), state)

    def read_state(self, name: str) -> dict[str, Any] | None:
        """Return a saved training state, or None."""
        path = self.state_path(name)
        return read_state(path) if path.exists() else None

    def store(self, name: str) -> SnapshotStore:
        """Return the snapshots in a subfolder of the run."""
        return SnapshotStore(self.path / name)

    def clear_states(self) -> None:
        """Remove all saved training states."""
        for file in sorted(self._state.glob("*.safetensors")):
            remove(file)

    def close(self) -> None:
        """Write the manifest a last time and let others write, if this process opened the folder.

        The folder may be closed again.
        """
        if self.manifest is not None:
            end(self.manifest)
        if self._lock is not None:
            self._lock.release()


class SharedFolder(RunFolder):
    """A run folder shared by several processes.

    Only the first process writes. It also reads states and sends them to the others.
    """

    def __init__(self, opened: RunFolder | None, path: Path, ranks: Ranks) -> None:
        super().__init__(path)
        if opened is not None:
            self.manifest, self._lock = opened.manifest, opened._lock
            self.adopted = opened.adopted
        self._ranks = ranks

    def log(self, record: dict[str, Any]) -> None:
        """Append a record of the run, in the first process."""
        if self._ranks.leads:
            super().log(record)

    def timing(self, record: dict[str, Any]) -> None:
        """Append a record of times and memory use, in the first process."""
        if self._ranks.leads:
            super().timing(record)

    def cut_log(self, length: int) -> None:
        """Keep only the first ``length`` records, in the first process."""
        if self._ranks.leads:
            super().cut_log(length)

    def log_digest(self) -> str:
        """Return the SHA-256 of the log, in the first process."""
        return super().log_digest() if self._ranks.leads else ""

    def write_state(self, name: str, state: dict[str, Any]) -> None:
        """Save a training state atomically, in the first process."""
        if self._ranks.leads:
            super().write_state(name, state)

    def read_state(self, name: str) -> dict[str, Any] | None:
        """Return a saved training state, or None; all processes call it together."""
        path = self.state_path(name)
        with self._ranks.together():
            mine = read_bytes(path) if self._ranks.leads and path.exists() else b""
        data = self._ranks.tell(mine)
        return decode_state(data, path) if data else None

    def clear_states(self) -> None:
        """Remove all saved training states, in the first process."""
        if self._ranks.leads:
            super().clear_states()

    def store(self, name: str) -> SnapshotStore:
        """Return the snapshots in a subfolder of the run; none in the other processes."""
        return super().store(name) if self._ranks.leads else _NoSnapshots(self.path / name)


class _NoSnapshots(SnapshotStore):
    """An empty store, for a process that saves no snapshots."""

    def _read_index(self) -> list[dict[str, Any]]:
        return []

    def truncate(self, length: int) -> None:
        pass
