"""Opening run folders: a new one, one to resume, one to replace; only its own files are touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fge import manifest as manifests
from fge.config import command_of
from fge.disk import kind_of
from fge.errors import UserError, no_run
from fge.files import read_json
from fge.locks import Lock
from fge.manifest import Manifest
from fge.runs.adopting import PAGES, STREAMS, TIMES, files_of_old_run, is_derived, is_exported
from fge.runs.folder import RunFolder

RUNS = Path("runs")
_OURS = (manifests.NAME, manifests.LOCK)
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")
"""Names of the temporary files of :func:`fge.disk.write_whole`."""


def open_run_folder(
    out: Path | None,
    command: str,
    *,
    resume: bool,
    overwrite: bool,
    streams: Iterable[str] = STREAMS,
) -> RunFolder:
    """Make a run folder, or open the folder of a run to resume; this process alone may write there.

    Args:
        out: the folder; the next free ``runs/COMMAND-NNN`` by default.
        command: names the default folder.
        resume: continue the run in the folder.
        overwrite: remove the run in the folder: the files that it wrote, and no others.
        streams: patterns of files that the manifest does not compare.

    Raises:
        UserError: the folder is not empty and neither option is given, it does not hold a run, it
            is damaged, another process writes there, or there is no run to resume.
    """
    if out is None:
        if resume or overwrite:
            raise UserError("--resume and --overwrite need --out, the folder of the run")
        return _begin(_next_free(command), command, streams)
    if resume:
        if not out.is_dir() or not is_run(out):
            raise no_run(out)
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    elif out.exists() and not _is_bare(out):
        if not overwrite:
            raise UserError(
                f"{out} is not empty; continue the run there with --resume, replace it with "
                "--overwrite, or give another --out"
            )
        if not is_run(out):
            raise UserError(
                f"{out} does not hold a run (no manifest.json or config.json of this program), so "
                "it is not overwritten; give another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    return _begin(out, command, streams, overwrite=overwrite, resume=resume)


def open_pages(out: Path, command: str, *, overwrite: bool, files: Sequence[str] = ()) -> RunFolder:
    """Make a folder of pages or predictions, or open one to replace what ``command`` wrote there.

    Files of others may be there and stay.

    Args:
        out: the folder.
        command: that writes there.
        overwrite: replace what it wrote before.
        files: that it writes beside the page.

    Raises:
        UserError: ``out`` is a file or the folder of a run, a file of somebody else is in the way,
            or there are pages already and ``overwrite`` is not given.
    """
    check_pages(out, command, overwrite=overwrite, files=files)
    out.mkdir(parents=True, exist_ok=True)
    return _begin(out, command, ())


def check_pages(out: Path, command: str, *, overwrite: bool, files: Sequence[str] = ()) -> None:
    """Check what :func:`open_pages` checks, before anything is made.

    Raises:
        UserError: as :func:`open_pages`.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    found = Manifest.read(out)
    if (out / "config.json").exists() or (found and found.files and found.command != command):
        raise UserError(
            f"--out {out} is the folder of a run, and its page would be lost; give another --out"
        )
    older = "report.json" if _command_of_pages(out) == command else None
    present = next(iter(found.files), None) if found else older
    if present and not overwrite:
        raise UserError(f"{out} already holds {present}; replace it with --overwrite")
    own = found.files if found else files_of_old_run(out) if older else ()
    for name in (*PAGES, *files):
        if name not in own and os.path.lexists(out / name):
            raise UserError(
                f"{out / name} is a file that this run did not write, and is in the way; move it "
                "away"
            )


def is_run(path: Path) -> bool:
    """Return whether a folder holds a run, perhaps interrupted before its first file."""
    if Manifest.read(path) is not None:
        return True
    if command_of(path / "config.json") is not None:
        if os.path.lexists(path / manifests.NAME):
            raise UserError(
                f"{path / manifests.NAME} is no manifest of this program, and is in the way; move "
                "it away"
            )
        return True
    return _is_bare(path)


def folder_of(path: Path) -> Path | None:
    """Return the nearest folder above a path that holds a run or pages of this program, or None.

    Raises:
        UserError: its manifest is damaged.
    """
    for parent in Path(os.path.abspath(path)).parents:
        known = parent.is_dir() and command_of(parent / "config.json") is not None
        if known or (parent.is_dir() and Manifest.read(parent) is not None):
            return parent
    return None


def _is_bare(path: Path) -> bool:
    """Return whether a folder holds no more than the beginning of a run, or nothing."""
    for entry in path.iterdir():
        match = _TEMPORARY.fullmatch(entry.name)
        if entry.name not in _OURS and not (match and match[1] in ("config.json", manifests.NAME)):
            return False
    manifest = Manifest.read(path)
    return manifest is None or not manifest.files


def _begin(
    out: Path,
    command: str,
    streams: Iterable[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> RunFolder:
    """Lock a folder, replace what is there if asked, and record what this process writes there."""
    lock = locked(out)
    try:
        if overwrite:
            remove_run(out)
        begun = Manifest.read(out) is not None
        manifest = manifest_of(out, command)
        adopted = 0 if begun else len(manifest.files)
        remove_temporaries(manifest)  # before a write that did not take place is forgotten
        manifest.settle()
        if resume:
            forget_times(manifest)
            _check(manifest)
        manifest.note(streams=streams)
        manifest.save()
        manifests.begin(manifest)
    except BaseException:
        lock.release()
        raise
    return RunFolder(out, manifest, lock, adopted=adopted)


def locked(out: Path) -> Lock:
    """Return the lock of a folder, taken.

    Raises:
        UserError: another process has it.
    """
    lock = Lock(out / manifests.LOCK)
    if not lock.take():
        raise UserError(
            f"{out} is being written by {lock.holder()}; wait until it has ended, or stop it"
        )
    return lock


def manifest_of(out: Path, command: str) -> Manifest:
    """Return the manifest of a folder; a new one takes in the files of an older run.

    Raises:
        UserError: the manifest is damaged.
    """
    manifest = Manifest.read(out)
    if manifest is None:
        of_run = command_of(out / "config.json")
        known = of_run or _command_of_pages(out)
        manifest = Manifest(out, known or command)
        if known is not None:
            manifest.adopt(files_of_old_run(out))
            manifest.folders = _runs_in(out)
            manifest.adopt(_configs_of_jobs(out, manifest.folders))
            manifest.streams = list(STREAMS) if of_run else []
    manifest.command = manifest.command or command
    return manifest


def _command_of_pages(out: Path) -> str | None:
    """Return the command of a folder of predictions that has no manifest, else None."""
    if kind_of(out / "report.json") != "":
        return None
    with contextlib.suppress(UserError, OSError):
        if read_json(out / "report.json", dict[str, Any]).get("command") == "predict":
            return "predict"
    return None


def remove_run(out: Path) -> None:
    """Remove the files of a run, those of runs within it too, and the folders that are then empty.

    ``config.json`` and the manifest go last, so that after an interruption this is still a run.

    Raises:
        UserError: another process writes into a run within it.
    """
    manifest = manifest_of(out, "")
    for name in manifest.folders:
        inner = out / name
        if inner.is_dir() and manifest.link_in(name) is None and is_run(inner):
            lock = locked(inner)
            try:
                remove_run(inner)
            finally:
                lock.release()
            with contextlib.suppress(OSError):  # a file that is not the run's stays
                inner.rmdir()
    remove_temporaries(manifest)
    parents: set[Path] = set()
    for name in sorted(manifest.files, key=lambda name: name == "config.json"):
        manifest.remove(name)
        parents |= set((out / name).parents)
    for name in manifest.stream_names():
        if kind_of(out / name) == "" and manifest.link_in(name) is None:
            (out / name).unlink(missing_ok=True)
            parents |= set((out / name).parents)
    for name in (*manifest.folders, "runs/x", "logs/x", "locks/x", "tensorboard/x", "state/x"):
        parents |= set((out / name).parents)
    for folder in sorted(parents, key=lambda path: -len(path.parts)):
        if folder.is_relative_to(out) and folder != out:
            with contextlib.suppress(OSError):  # what is not the run's stays
                folder.rmdir()
    (out / manifests.NAME).unlink(missing_ok=True)


def _runs_in(out: Path) -> list[str]:
    """Return the folders of the runs of an older comparison, and of an older baseline."""
    folders = [out / "baseline", *(out / RUNS.name).glob("*")]
    return sorted(
        path.relative_to(out).as_posix()
        for path in folders
        if path.is_dir() and not path.is_symlink() and command_of(path / "config.json") is not None
    )


def _configs_of_jobs(out: Path, folders: Sequence[str]) -> list[str]:
    """Return the names of the files with the options of a comparison's jobs."""
    jobs = [name.partition("/")[2] for name in folders if name.startswith(f"{RUNS.name}/")]
    names = [f"logs/{job}.json" for job in jobs]
    return [name for name in names if kind_of(out / name) == ""]


def forget_times(manifest: Manifest) -> list[str]:
    """Drop files of times that are gone: no result needs them; return their names."""
    names = [name for name in manifest.missing() if name.rpartition("/")[2] == TIMES]
    gone = [name for name in names if kind_of(manifest.root / name) is None]
    manifest.forget(gone)
    return gone


def _check(manifest: Manifest) -> None:
    """Check that what resuming needs is there; its content is compared when it is read."""
    missing = manifest.missing()
    needed = [name for name in missing if not (is_derived(name) or is_exported(name))]
    if needed:
        fault = manifest.fault(needed[0]) or f"{manifest.root / needed[0]} is missing"
        more = f" (and {len(needed) - 1} more)" if len(needed) > 1 else ""
        raise manifests.damaged(fault + more, manifest.root)


def remove_temporaries(manifest: Manifest) -> None:
    """Remove the temporary files of interrupted writes of the run's files, through no link."""
    names = [*manifest.files, manifests.NAME, "config.json"]
    folders: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, set()).add(file)
    for folder, files in folders.items():
        path = manifest.root / folder
        if not path.is_dir() or (folder and manifest.link_in(folder)):
            continue
        for entry in os.scandir(path):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and match[1] in files and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def _next_free(command: str) -> Path:
    for number in itertools.count(1):
        path = RUNS / f"{command}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")
