"""Runs a command line that kills itself before its n-th write: ``cut_short.py N fge --data ...``.

Every file that the library writes is synced, so calls of fsync lie before and after every change
on disk.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(kill_at: int, arguments: list[str]) -> int:
    """Run the command line; return its exit code, where it comes to one."""
    import cli

    calls, sync = 0, os.fsync

    def counting_fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = counting_fsync  # type: ignore[assignment]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
