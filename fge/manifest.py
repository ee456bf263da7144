"""``manifest.json``: every file that a command wrote into a folder, with its SHA-256 and size.

A folder with a manifest was made by this program. Only files of the manifest are replaced or
removed. The manifest says what a file will hold before the file is written, so that an interruption
leaves a file that is either the old or the new one, and anything else is damage:

- before a write, the entry of the file gets ``next``, the SHA-256 and size of the new content;
- after it, the entry is the new content; this goes to disk with the next change, or at the end.

Whoever reads a file of such a folder through :mod:`fge.files` has it compared with the manifest.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import shlex
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fge import __version__
from fge.disk import append_line, complete_lines, kind_of, read_whole, write_whole
from fge.errors import UserError

NAME = "manifest.json"
LOCK = ".lock"
"""The file in the folder whose lock the writer holds."""
_FORMAT = "fge run folder"
_VERSION = 1
_program = ["fge"]
_LEVELS = 8
"""Folders above a file in which its manifest is looked for."""
_END = "\n}"
_LATE = ("timing.jsonl",)
"""Files whose new lines are recorded with the next other change: they hold no results."""


@dataclass(frozen=True)
class Content:
    """What a file holds: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Return the content that ``data`` is."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class Entry:
    """A file of the manifest: what it holds, and what it will hold once a write is complete.

    ``now`` is None for a file that is being written for the first time, ``next`` is None for one
    that is not being written. ``removing`` says that it is being removed. ``by`` is the command
    that wrote it.
    """

    now: Content | None
    next: Content | None = None
    removing: bool = False
    by: str = ""

    def allows(self, content: Content | None) -> bool:
        """Return whether the file may hold this; None is for a missing file."""
        if content is None:
            return self.removing or self.now is None
        return content in (self.now, self.next)

    def settled(self, content: Content | None) -> Entry | None:
        """Return the entry once a write has ended so, perhaps by an interruption; None for none.

        A file that holds neither the old nor the new content keeps its entry.
        """
        if not self.allows(content):
            return self
        return None if content is None else Entry(content, by=self.by)


class Manifest:
    """The files of a folder that this program wrote; see the module.

    ``root`` is the folder, ``files`` the entries by path relative to it, ``folders`` those of
    whole runs in it, which have manifests of their own, and ``streams`` patterns of files that
    others than this program's writers fill, such as the output of a process: these are removed
    with the run but not compared.
    """

    def __init__(self, root: Path, command: str = "") -> None:
        self.root = Path(os.path.abspath(root))
        self.command = command
        self.files: dict[str, Entry] = {}
        self.folders: list[str] = []
        self.streams: list[str] = []
        self._hashes: dict[str, Any] = {}
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------- the file

    @classmethod
    def read(cls, root: Path) -> Manifest | None:
        """Return the manifest of a folder, or None if there is none of this program.

        Raises:
            UserError: it is damaged.
        """
        path = Path(os.path.abspath(root)) / NAME
        if kind_of(path) != "":
            return None
        data = read_whole(path)
        try:
            content = json.loads(data)
            if content.get("format") != _FORMAT:
                return None
            checksum = content.pop("sha256")
            if checksum != hashlib.sha256(_encoded(content)).hexdigest():
                raise ValueError("its checksum is another")
            if content["schema_version"] != _VERSION:
                raise UserError(
                    f"{path} has schema_version {content['schema_version']}; this program reads "
                    f"{_VERSION}"
                )
            return cls._of(path.parent, content)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if _FORMAT.encode() not in data and not _looks_like_run(path.parent):
                return None
            raise UserError(
                f"{path} is damaged ({error}); `{_verify(root)} --repair` writes it again from "
                "the files that are there, unchecked"
            ) from None

    @classmethod
    def _of(cls, root: Path, content: dict[str, Any]) -> Manifest:
        manifest = cls(root, str(content["command"]))
        manifest.folders = [_inside(name) for name in content["folders"]]
        manifest.streams = [_inside(name) for name in content["streams"]]
        for name, stored in content["files"].items():
            manifest.files[_inside(name)] = Entry(
                _content(stored.get("now")),
                _content(stored.get("next")),
                bool(stored.get("removing", False)),
                str(stored.get("by", "")),
            )
        return manifest

    def save(self) -> None:
        """Write the file, whole."""
        head: dict[str, Any] = {
            "format": _FORMAT,
            "schema_version": _VERSION,
            "program": f"fast-geometric-ensembling {__version__}",
            "command": self.command,
            "folders": self.folders,
            "streams": self.streams,
        }
        # What `_encoded` gives, faster: the file is saved at each write of another one.
        files = [f"{json.dumps(name)}: {_lines(self.files[name])}" for name in sorted(self.files)]
        listed = "{\n  " + ",\n  ".join(files) + "\n }" if files else "{}"
        text = f'{json.dumps(head, indent=1)[: -len(_END)]},\n "files": {listed}'
        checksum = hashlib.sha256(f"{text}{_END}\n".encode()).hexdigest()
        write_whole(self.root / NAME, f'{text},\n "sha256": "{checksum}"{_END}\n'.encode())

    # ------------------------------------------------------------------------ questions

    def name_of(self, path: Path) -> str | None:
        """Return the name of a path in this manifest, or None for one outside the folder."""
        absolute = Path(os.path.abspath(path))
        for root in (self.root, Path(os.path.realpath(self.root))):
            if absolute.is_relative_to(root):
                return absolute.relative_to(root).as_posix()
        return None

    def fault(self, name: str) -> str | None:
        """Return what is wrong with a file of the manifest, in words; None if nothing is.

        Raises:
            OSError: the file cannot be read.
        """
        entry, path = self.files[name], self.root / name
        if linked := self.link_in(name):
            return f"{shown(linked)} is a link"
        kind = kind_of(path)
        if kind:
            return f"{shown(path)} is {kind}, not a file"
        if kind is None:
            return None if entry.allows(None) else f"{shown(path)} is missing"
        return self.fault_of(name, read_whole(path))

    def fault_of(self, name: str, data: bytes) -> str | None:
        """Return what is wrong with bytes read from a file, in words; None if nothing is."""
        entry = self.files.get(name)
        if entry is None or name in _LATE:
            return None
        if name.endswith(".jsonl"):
            data = complete_lines(data)
        if entry.allows(Content.of(data)):
            return None
        return f"{shown(self.root / name)} was damaged or changed after it was written"

    def missing(self) -> list[str]:
        """Return the names of files that are not there, or are no files, by a glance at each."""
        names = []
        for name, entry in self.files.items():
            kind = kind_of(self.root / name)
            if kind or (kind is None and not entry.allows(None)):
                names.append(name)
        return names

    def is_stream(self, name: str) -> bool:
        """Return whether a file belongs to the run without being compared."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.streams)

    def stream_names(self) -> list[str]:
        """Return the names, in order, of what stands where such a file may be."""
        found = {path for pattern in self.streams for path in self.root.glob(pattern)}
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def is_open(self) -> bool:
        """Return whether a command writes into the folder, or was interrupted there."""
        return any(entry.next or entry.removing for entry in self.files.values())

    # -------------------------------------------------------------------------- changes

    def settle(self) -> None:
        """Decide, for each interrupted write, whether it took place.

        A file in whose place something else stands, such as a link, keeps its entry.
        """
        for name, entry in list(self.files.items()):
            kind = kind_of(self.root / name)
            if kind or (entry.next is None and not entry.removing):
                continue
            data = None if kind is None else read_whole(self.root / name)
            if data is not None and name.endswith(".jsonl"):
                data = complete_lines(data)
            self._set(name, entry.settled(None if data is None else Content.of(data)))

    @contextlib.contextmanager
    def replacing(self, name: str, data: bytes) -> Iterator[None]:
        """Around an atomic write of a file: record what it will hold, then what it holds."""
        with self._lock:
            content = Content.of(data)
            self._announce(name, content)
            yield
            self._hashes.pop(name, None)
            self.files[name] = Entry(content, by=self.command)

    def append(self, name: str, line: bytes) -> None:
        """Append a line to a file, replacing an incomplete last line."""
        with self._lock:
            digest, size = self._hash_of(name)
            digest.update(line)
            content = Content(digest.hexdigest(), size + len(line))
            late = name in _LATE and name in self.files
            if not late:
                self._announce(name, content)
            append_line(self.root / name, line)
            self.files[name] = Entry(content, by=self.command)
            self._hashes[name] = (digest, content.size)

    def remove(self, name: str) -> None:
        """Remove a file of the manifest, if it is there; a link itself, never what it points to."""
        with self._lock:
            entry = self.files[name]
            if not entry.removing:
                self.files[name] = Entry(entry.now, entry.next, removing=True, by=entry.by)
                self.save()
            if self.link_in(name, parents_only=True) is None:
                path = self.root / name
                if kind_of(path) in ("", "a link"):
                    path.unlink(missing_ok=True)
            self._set(name, None)

    def forget(self, names: Iterable[str]) -> None:
        """Drop entries, whatever the files are."""
        for name in names:
            self._set(name, None)

    def note(self, *, folders: Iterable[str] = (), streams: Iterable[str] = ()) -> None:
        """Record whole runs in folders of this one, and patterns of files that are not compared."""
        known = (len(self.folders), len(self.streams))
        self.folders = sorted({*self.folders, *folders})
        self.streams = list(dict.fromkeys([*self.streams, *streams]))
        if known != (len(self.folders), len(self.streams)):
            self.save()

    def adopt(self, names: Iterable[str]) -> None:
        """Take files as they are into the manifest."""
        for name in names:
            data = read_whole(self.root / name)
            kept = complete_lines(data) if name.endswith(".jsonl") else data
            self.files[name] = Entry(Content.of(kept), by=self.command)

    def _announce(self, name: str, content: Content) -> None:
        """Record what a file will hold, after checking that it is this program's to write.

        Raises:
            UserError: a link or a file that is not of the run is in the way.
        """
        if linked := self.link_in(name):
            raise UserError(f"{shown(linked)} is a link and would be written through; move it away")
        path, entry = self.root / name, self.files.get(name)
        kind = kind_of(path)
        if kind or (kind == "" and entry is None):
            what = kind or "a file that this run did not write"
            raise UserError(f"{shown(path)} is {what}, and is in the way; move it away")
        now = entry.now if entry else None
        if entry is not None and entry.next is not None:  # an earlier write of it failed
            settled = entry.settled(Content.of(read_whole(path)) if kind == "" else None)
            now = settled.now if settled else None
        self.files[name] = Entry(now, content, by=self.command)
        self.save()

    def _hash_of(self, name: str) -> tuple[Any, int]:
        """Return a SHA-256 object that has seen the complete lines of a file, and their length."""
        if name in self._hashes:
            digest, size = self._hashes[name]
            return digest.copy(), size
        path = self.root / name
        if kind_of(path) != "":
            return hashlib.sha256(), 0
        data = complete_lines(read_whole(path))
        if (fault := self.fault_of(name, data)) is not None:
            raise damaged(fault, self.root)
        return hashlib.sha256(data), len(data)

    def link_in(self, name: str, parents_only: bool = False) -> Path | None:
        """Return the first link on the way from the folder to a file, or None."""
        parts = Path(name).parts
        paths = [self.root.joinpath(*parts[: k + 1]) for k in range(len(parts) - parents_only)]
        return next((path for path in paths if path.is_symlink()), None)

    def _set(self, name: str, entry: Entry | None) -> None:
        self._hashes.pop(name, None)
        if entry is None:
            self.files.pop(name, None)
        else:
            self.files[name] = entry


# ----------------------------------------------------------------------- which manifest

_open: dict[str, Manifest] = {}
"""The manifests that this process writes, by folder."""
_seen: dict[str, tuple[tuple[int, int, int], Manifest | None]] = {}
"""Manifests that were read for comparison, by folder, with the state of their file."""


def begin(manifest: Manifest) -> None:
    """From now on record what this process writes into the folder."""
    _open[str(manifest.root)] = manifest


def end(manifest: Manifest) -> None:
    """Write the manifest a last time, and stop recording; after a full disk it stays as it is."""
    if _open.pop(str(manifest.root), None) is not None and manifest.root.is_dir():
        with contextlib.suppress(OSError):
            manifest.save()


def writer_of(path: Path) -> tuple[Manifest, str] | None:
    """Return the manifest that records writes to a path, the innermost one, and its name there."""
    if not _open:
        return None
    found = [(m, name) for m in _open.values() if (name := m.name_of(path)) is not None]
    return max(found, key=lambda pair: len(pair[0].root.parts), default=None)


def reader_of(path: Path) -> tuple[Manifest, str] | None:
    """Return the manifest that knows a path, and its name there.

    It is that of the nearest folder above which has one.
    """
    absolute = Path(os.path.abspath(path))
    for parent in absolute.parents[:_LEVELS]:
        manifest = _open.get(str(parent)) or _glance(parent)
        if manifest is not None:
            name = absolute.relative_to(parent).as_posix()
            return (manifest, name) if name in manifest.files else None
    return None


def shown(path: Path) -> Path:
    """Return a path as messages show it: relative to the working folder if it is in there."""
    here = os.getcwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def damaged(fault: str, root: Path) -> UserError:
    """Return the error for a damaged file of a folder."""
    return UserError(f"{fault}; restore it, or see what can be done with: {_verify(shown(root))}")


def name_program(words: Iterable[str]) -> None:
    """Have messages name the program as the user called it, in these words."""
    _program[:] = words


def _verify(root: Path) -> str:
    return shlex.join([*_program, "verify", str(root)])


def _glance(folder: Path) -> Manifest | None:
    """Return a folder's manifest, read again only if its file has changed."""
    try:
        state = os.stat(folder / NAME)
    except OSError:
        return None
    stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
    key = str(folder)
    if key not in _seen or _seen[key][0] != stamp:
        _seen[key] = (stamp, Manifest.read(folder))
    return _seen[key][1]


def _looks_like_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LOCK, "config.json"))


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


@lru_cache(maxsize=4096)
def _lines(entry: Entry) -> str:
    """Return an entry as its lines in the file."""
    stored: dict[str, Any] = {}
    for key, content in (("now", entry.now), ("next", entry.next)):
        if content is not None:
            stored[key] = {"sha256": content.sha256, "size": content.size}
    stored |= ({"removing": True} if entry.removing else {}) | {"by": entry.by}
    return json.dumps(stored, indent=1).replace("\n", "\n  ")


def _content(stored: Any) -> Content | None:
    return None if stored is None else Content(str(stored["sha256"]), int(stored["size"]))


def _inside(name: str) -> str:
    """Return a relative path that stays in the folder, or raise a ValueError."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} leaves the folder")
    return path.as_posix()
