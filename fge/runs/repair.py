"""Checking every file of a run against its manifest, and mending what follows from the rest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fge import manifest as manifests
from fge.disk import kind_of, read_whole, write_whole
from fge.ensemble import index_bytes
from fge.errors import UserError
from fge.files import parse_json, read_records
from fge.manifest import Manifest, shown
from fge.networks import decode_state
from fge.runs.adopting import TIMES, is_derived, is_exported
from fge.runs.opening import forget_times, locked, manifest_of, remove_temporaries
from fge.runs.staged import CHECKPOINTS, snapshot_facts

_AGAIN = re.compile(
    r"curves/[^/]+/[^/]+|state/grid\.jsonl|(plane|line)\.npz|cells/[^/]+|(swa|folded)\.safetensors"
    r"|predictions/val\.npz|state/average-[^/]+\.safetensors|predictions\.(csv|npz)"
)
"""Files, other than pages, figures and predictions, that resuming makes again from the others."""
_FIT = re.compile(r"curves/[^/]+/(fit\.jsonl|(fit|curve)\.safetensors)")
_PART = re.compile(r"(?P<part>(networks/[^/]+/|distilled/)?)(?P<name>.*)")
_CHECKPOINT = re.compile(rf"state/({'|'.join(CHECKPOINTS)})\.safetensors")
_EXPORT = "export writes it again"
_SNAPSHOT = re.compile(r"(?P<store>[a-z]+)/(?P<number>\d{4,})\.safetensors")


@dataclass(frozen=True)
class Fault:
    """A file that is not as it was written.

    ``run``: the folder of its run; ``name``: the file's in there; ``what``: is wrong, in words;
    ``remedy``: what can be done; ``lost``: whether ``--repair`` cannot do it.
    """

    run: Path
    name: str
    what: str
    remedy: str
    lost: bool = False


@dataclass(frozen=True)
class Findings:
    """What a check found: the number of ``files``, the ``faults``, and ``others``.

    ``others`` are the files in the folder that the run did not write.
    """

    files: int
    faults: list[Fault]
    others: list[Path]


def check_run(root: Path) -> Findings:
    """Compare every file of a run, and of the runs within it, with the manifests.

    Raises:
        UserError: the folder has no manifest, or a damaged one.
    """
    manifest = Manifest.read(root)
    if manifest is None:
        there = kind_of(root / manifests.NAME) is not None
        raise UserError(
            f"{root} has no manifest.json{' of this program' if there else ''}: it is no run, or "
            "an older one with nothing to compare with; --repair takes the files of an older run "
            "in as they are"
        )
    faults = [
        Fault(root, name, what, *_remedy(manifest, name))
        for name in _checked(manifest)
        if (what := _fault(manifest, name)) is not None
    ]
    faults += _blocked(manifest)
    count, others = len(manifest.files), []
    inner = []
    for folder in manifest.folders:
        if Manifest.read(root / folder) is not None:
            inner.append(root / folder)
        elif kind_of(root / folder / "config.json") == "":
            name = f"{folder}/{manifests.NAME}"
            what = f"{shown(root / name)} is {kind_of(root / name) or 'missing'}"
            faults.append(Fault(root, name, what, "--repair writes it again, unchecked"))
    for run in inner:
        found = check_run(run)
        count, faults = count + found.files, [*faults, *found.faults]
        others += found.others
    return Findings(count, faults, [*_others(manifest, inner), *others])


def repair_run(root: Path) -> Iterator[str]:
    """Mend what can be mended of a run, without the runs within it; yield what was done, in words.

    Files that resuming makes again are removed. A damaged checkpoint or log goes back to the
    checkpoint before. A damaged manifest is written again from the files that are there. A folder
    or pipe in the place of a file is left, and the file stays damaged. Where something is lost,
    nothing is removed: the run cannot make it again.

    Raises:
        UserError: another process writes there.
    """
    lock = locked(root)
    try:
        manifest = yield from _readable_manifest(root)
        remove_temporaries(manifest)  # before a write that did not take place is forgotten
        manifest.settle()
        for name in forget_times(manifest):
            yield f"{shown(root / name)} is gone; it held times and no results"
        damaged = [name for name in _checked(manifest) if _fault(manifest, name) is not None]
        if not any(_remedy_of(manifest, name)[1] for name in damaged):
            for name in damaged:
                if name in _checked(manifest):  # not mended with another
                    yield from _mend(manifest, name)
        manifest.save()
    finally:
        lock.release()


def inner_runs(root: Path) -> list[Path]:
    """Return the folders of the runs within a run: those of a comparison's jobs, a baseline."""
    manifest = Manifest.read(root)
    folders = [root / name for name in manifest.folders] if manifest is not None else []
    return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]


def _checked(manifest: Manifest) -> list[str]:
    """Return the names of the files that are compared, and of times, which have to be readable."""
    times = kind_of(manifest.root / TIMES) == "" and TIMES not in manifest.files
    return [*manifest.files, *([TIMES] if times else [])]


def _blocked(manifest: Manifest) -> list[Fault]:
    """Return the faults of files that are not compared in whose place something else stands."""
    root = manifest.root
    names = [name for name in manifest.stream_names() if name not in manifest.files]
    return [
        Fault(root, name, f"{shown(root / name)} is {kind}, not a file", "move it away", lost=True)
        for name in names
        if (kind := kind_of(root / name))
    ]


def _fault(manifest: Manifest, name: str) -> str | None:
    try:
        if name.endswith(TIMES) and kind_of(manifest.root / name) == "":
            read_records(manifest.root / name)  # its lines are not compared, but have to be JSON
        return manifest.fault(name) if name in manifest.files else None
    except UserError as error:
        return str(error).partition(";")[0]
    except OSError as error:
        return f"{shown(manifest.root / name)} cannot be read: {error.strerror}"


def _others(manifest: Manifest, inner: list[Path]) -> Iterator[Path]:
    """Yield the files in the folder that no manifest names, hidden ones and runs aside."""
    for folder, folders, files in os.walk(manifest.root):
        path = Path(folder)
        folders[:] = [
            f
            for f in sorted(folders)
            if not f.startswith(".") and path / f not in inner and not Manifest.read(path / f)
        ]
        for file in sorted(files):
            name = (path / file).relative_to(manifest.root).as_posix()
            ours = name in manifest.files or name == manifests.NAME or manifest.is_stream(name)
            if not ours and not file.startswith("."):
                yield path / file


def _remedy(manifest: Manifest, name: str) -> tuple[str, bool]:
    """Return what can be done about a damaged file, and whether that is nothing."""
    remedy, lost = _remedy_of(manifest, name)
    if _in_the_way(manifest.root / name):
        return f"move it away; {remedy if lost else f'then {remedy}'}", True
    return remedy, lost


def _remedy_of(manifest: Manifest, name: str) -> tuple[str, bool]:
    """Return it for what a file can be rid of."""
    if name.endswith("/index.json"):
        if _index_of(manifest, name) is not None:
            return "--repair makes it again from the log", False
        return "it does not follow from the log: restore it from a copy, or run again", True
    if is_derived(name) or _AGAIN.fullmatch(name):
        return "--repair makes it again", False
    if is_exported(name):
        return f"--repair forgets it, and {_EXPORT}", False
    if name.endswith(TIMES):
        gone = kind_of(manifest.root / name) is None
        return f"--repair {'forgets it' if gone else 'drops its damaged lines'}", False
    if _fallback(manifest, name) is not None:
        return "--repair goes back to the checkpoint before", False
    return "nothing follows it from the rest: restore it from a copy, or run again", True


def _readable_manifest(root: Path) -> Generator[str, None, Manifest]:
    """Return the manifest of a folder; make it again if it is damaged or missing."""
    try:
        found = Manifest.read(root)
    except UserError:
        (root / manifests.NAME).unlink()
        found = None
        yield f"{root / manifests.NAME} was damaged"
    if found is None:
        found = manifest_of(root, "")
        if not found.command:
            raise UserError(
                f"{shown(root)} has no manifest.json of this program, and no file says what made "
                "it; run the command again in another folder"
            )
        found.save()
        yield f"{root / manifests.NAME} now has the {len(found.files)} files that are there"
    return found


def _mend(manifest: Manifest, name: str) -> Iterator[str]:
    path, match = manifest.root / name, _PART.fullmatch(name)
    part, inner = (match["part"], match["name"]) if match else ("", name)
    if inner.endswith("/index.json"):
        yield from _rebuild_index(manifest, name)
    elif is_derived(inner) or _AGAIN.fullmatch(inner):
        yield from _drop(manifest, name, "will be made again")
        if _FIT.fullmatch(inner):  # one follows from the other, and both from the networks
            for file in ("fit.jsonl", "fit.safetensors", "curve.safetensors"):
                yield from _drop(manifest, f"{name.rpartition('/')[0]}/{file}", "goes with it")
        if inner.startswith("cells/"):
            other = path.with_suffix(".npz" if path.suffix == ".json" else ".json")
            yield from _drop(manifest, other.relative_to(manifest.root).as_posix(), "goes with it")
    elif is_exported(name):
        yield from _drop(manifest, name, f"is no file of the run any more; {_EXPORT}")
    elif inner == TIMES:
        yield from _sound_lines(manifest, name)
    elif (back := _fallback(manifest, name)) is not None:
        if kind := _in_the_way(path):
            yield f"{shown(path)} is {kind}: move it away"
            return
        yield from _go_back(manifest, part, back)


def _in_the_way(path: Path) -> str | None:
    """Return what stands at a path if it is neither a file nor a link, which can be removed."""
    kind = kind_of(path)
    return kind if kind and kind != "a link" else None


def _drop(manifest: Manifest, name: str, why: str) -> Iterator[str]:
    """Remove a file of the run; what stands there and is no file is left."""
    path = manifest.root / name
    if name not in manifest.files:
        return
    if kind := _in_the_way(path):
        yield f"{shown(path)} is {kind}: move it away"
        return
    manifest.remove(name)
    yield f"{shown(path)} {why}"


def _rebuild_index(manifest: Manifest, name: str) -> Iterator[str]:
    """Write the index of a store again from the log and the snapshots."""
    path = manifest.root / name
    if kind := _in_the_way(path):
        yield f"{shown(path)} is {kind}: move it away"
        return
    data = _index_of(manifest, name)
    assert data is not None, "otherwise it is lost, and nothing is mended"
    path.unlink(missing_ok=True)  # a link, and not what it points to
    write_whole(path, data)
    yield f"{shown(path)} was written again from the log"


def _index_of(manifest: Manifest, name: str) -> bytes | None:
    """Return the index of a store from the log and the snapshots, if it is then as it was."""
    store = manifest.root / name.removesuffix("/index.json")
    log = store.parent / "log.jsonl"
    if kind_of(log) != "" or _fault(manifest, log.relative_to(manifest.root).as_posix()):
        return None
    records: dict[str, list[dict[str, Any]]] = {}
    for line in read_whole(log).splitlines():
        record = parse_json(line, dict[str, Any], "log.jsonl")
        if record.get("event") == "snapshot":
            records.setdefault(str(record["stage"]), []).append(record)
    for of_stage in ([], *records.values()):
        with contextlib.suppress(OSError, UserError):
            data = index_bytes(store, [snapshot_facts(record) for record in of_stage])
            if manifest.fault_of(name, data) is None:
                return data
    return None


def _sound_lines(manifest: Manifest, name: str) -> Iterator[str]:
    """Keep the lines of a file of times that are JSON."""
    path, kept = manifest.root / name, []
    for line in read_whole(path).splitlines(keepends=True):
        with contextlib.suppress(UserError):
            parse_json(line, dict[str, Any], name)
            kept.append(line)
    write_whole(path, b"".join(kept))
    if name in manifest.files:
        manifest.adopt([name])
    yield f"{shown(path)} has its {len(kept)} sound lines"


def _fallback(manifest: Manifest, name: str) -> dict[str, Any] | None:
    """Return the latest checkpoint that does not need a damaged file, or None."""
    match = _PART.fullmatch(name)
    part, inner = (match["part"], match["name"]) if match else ("", name)
    snapshot = _SNAPSHOT.fullmatch(inner)
    if not (_CHECKPOINT.fullmatch(inner) or snapshot or inner == "log.jsonl"):
        return None
    found = []
    for checkpoint in CHECKPOINTS:
        file = f"{part}state/{checkpoint}.safetensors"
        if file in manifest.files and file != name and _fault(manifest, file) is None:
            path = manifest.root / file
            with contextlib.suppress(UserError, OSError):
                state = decode_state(read_whole(path), path)
                if _stands(manifest, part, state, snapshot):
                    found.append(state)
    return max(found, key=lambda state: int(state.get("number", 0)), default=None)


def _stands(
    manifest: Manifest,
    part: str,
    state: dict[str, Any],
    snapshot: re.Match[str] | None,
) -> bool:
    """Return whether a checkpoint's part of the log is sound, and does without a snapshot."""
    if snapshot and int(snapshot["number"]) <= max(dict(state["snapshots"]).values(), default=0):
        return False
    path = manifest.root / part / "log.jsonl"
    if kind_of(path) != "":
        return False
    lines = read_whole(path).splitlines(keepends=True)[: int(state["records"])]
    return hashlib.sha256(b"".join(lines)).hexdigest() == state.get("log_sha256")


def _go_back(manifest: Manifest, part: str, state: dict[str, Any]) -> Iterator[str]:
    """Keep a checkpoint, and drop what came after it."""
    folder = manifest.root / part
    for checkpoint in CHECKPOINTS:
        name = f"{part}state/{checkpoint}.safetensors"
        if name not in manifest.files:
            continue
        sound = _fault(manifest, name) is None
        known = decode_state(read_whole(manifest.root / name), name) if sound else None
        if known is None or int(known.get("number", 0)) > int(state.get("number", 0)):
            manifest.remove(name)
    log = folder / "log.jsonl"
    lines = read_whole(log).splitlines(keepends=True)[: int(state["records"])]
    write_whole(log, b"".join(lines))
    manifest.adopt([f"{part}log.jsonl"])
    where = f"epoch {state['epoch']} of {state['stage']}"
    yield f"{shown(folder)} goes on from {where} when it is resumed"
