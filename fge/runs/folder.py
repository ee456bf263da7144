"""The folder of a run: its files, and opening, resuming and replacing it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

from fge.ensemble import SnapshotStore
from fge.errors import UserError, no_run
from fge.files import (
    append_record,
    read_bytes,
    read_records,
    remove_temporaries,
    write_records,
)
from fge.networks import decode_state, read_state, write_state
from fge.parallel import Ranks

RUNS = Path("runs")
_ENTRIES = (  # config.json is removed last, so that after an interruption the folder is still a run
    "state",
    "log.jsonl",
    "timing.jsonl",
    "snapshots",
    "single",
    "networks",
    "distilled",
    "curves",
    "baseline",
    "swa.safetensors",
    "folded.safetensors",
    "predictions",
    "plane.npz",
    "line.npz",
    "cells",
    "runs",
    "logs",
    "locks",
    "compare.json",
    "compare.csv",
    "compare.md",
    "timing.csv",
    "tensorboard",
    "report.json",
    "page.json",
    "report.md",
    "report.html",
    "figures",
    "config.json",
)


class RunFolder:
    """Paths and records of one run; see :func:`open_run_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
        shutil.rmtree(self._state, ignore_errors=True)


class SharedFolder(RunFolder):
    """A run folder shared by several processes.

    Only the first process writes. It also reads states and sends them to the others.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        super().__init__(path)
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


def open_run_folder(out: Path | None, command: str, *, resume: bool, overwrite: bool) -> RunFolder:
    """Make a run folder, or open the folder of a run to resume.

    Args:
        out: the folder; the next free ``runs/COMMAND-NNN`` by default.
        command: names the default folder.
        resume: continue the run in the folder.
        overwrite: remove the run in the folder.

    Raises:
        UserError: the folder is not empty and neither option is given, it does not hold a run, or
            there is no run to resume.
    """
    if out is None:
        if resume or overwrite:
            raise UserError("--resume and --overwrite need --out, the folder of the run")
        return RunFolder(_next_free(command))
    if resume:
        if not out.is_dir() or not _is_run(out):
            raise no_run(out)
        _remove_leftovers(out)
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    elif out.exists() and any(out.iterdir()):
        if not overwrite:
            raise UserError(
                f"{out} is not empty; continue the run there with --resume, replace it with "
                "--overwrite, or give another --out"
            )
        _remove_run(out)
    out.mkdir(parents=True, exist_ok=True)
    return RunFolder(out)


def _next_free(command: str) -> Path:
    for number in itertools.count(1):
        path = RUNS / f"{command}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _is_run(path: Path) -> bool:
    """Return whether the folder holds a run, perhaps interrupted before its first file."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".config.json.")}
    return "config.json" in names or not names


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files, except in the runs of a comparison, which may still be running."""
    for leftover in path.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    for entry in path.iterdir():
        if entry.is_dir() and entry.name != RUNS.name:
            remove_temporaries(entry)


def _remove_run(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} does not hold a run (no config.json), so it is not overwritten; give another "
            "--out"
        )
    remove_temporaries(path)
    for name in _ENTRIES:
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


class _NoSnapshots(SnapshotStore):
    """An empty store, for a process that saves no snapshots."""

    def _read_index(self) -> list[dict[str, Any]]:
        return []

    def truncate(self, length: int) -> None:
        pass
