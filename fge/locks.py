"""One writer: a lock on a file, which names the process that holds it and ends with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TypedDict

from fge.disk import kind_of, read_whole
from fge.errors import UserError
from fge.files import parse_json

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class _Holder(TypedDict):
    """What the file of a held lock says."""

    pid: int
    host: str
    command: str
    since: str


class Lock:
    """An exclusive lock on a file, by ``flock``: it ends with the process, whatever ends that.

    Args:
        path: of the file, which is there while the lock is held and names the holder. A link there
            is not followed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> first, second = Lock(folder / "lock"), Lock(folder / "lock")
        >>> first.take(), second.take()
        (True, False)
        >>> first.release()
        >>> second.take()
        True
        >>> second.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self, note: str = "") -> bool:
        """Take the lock if nobody holds it; return whether this process has it now.

        Args:
            note: what holds it, for others to read; the command line by default.

        Raises:
            OSError: the file cannot be opened. A file system without locks is no error.
            UserError: what is there is no file.
        """
        handle = self._locked()
        if handle is None:
            return False
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "command": note or " ".join(os.path.basename(word) for word in sys.argv[:2]),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)
        self._handle = handle
        return True

    def _locked(self) -> int | None:
        """Return a descriptor of the file, locked, or None if somebody else has the lock."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                handle = os.open(self.path, flags, 0o666)
            except OSError:
                if kind := kind_of(self.path):
                    raise UserError(f"{self.path} is {kind} and no file; move it away") from None
                raise
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    os.close(handle)
                    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        return None
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                    return handle
            os.close(handle)  # the holder before has just removed this file

    def release(self) -> None:
        """Give the lock back and remove its file, if it is held."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            os.close(self._handle)
            self._handle = None

    def fileno(self) -> int:
        """Return the descriptor of the held lock, for a child process that shares it."""
        assert self._handle is not None, "the lock is not held"
        return self._handle

    def holder(self) -> str:
        """Return who holds the lock, in words."""
        try:
            found = parse_json(read_whole(self.path), _Holder, f"{self.path} is damaged")
        except (OSError, UserError):
            return "another process"
        return (
            f"process {found['pid']} on {found['host']} ({found['command']}), since "
            f"{found['since']}"
        )


def is_held(path: Path) -> bool:
    """Return whether somebody holds the lock on a file; nobody holds what is no file."""
    if kind_of(path) != "":
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    finally:
        os.close(handle)
    return False
