"""Runs training jobs in forked children and kills them where it is told to.

Started as a script by ``test_resume.py``. Each line on standard input is a JSON job: the options
of an ``FGEConfig`` and ``kill_at``, the number of the fsync call before which the child kills
itself with SIGKILL, or ``kill_after``, seconds after which it is killed from outside. Each answer
is a JSON line: the child's exit status and the number of fsync calls it made. Every file that the
library writes is synced, so fsync calls lie before and after every change on disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import fge.files
import fge.run
from fge.config import FGEConfig


def child(job: dict[str, Any], counter: int) -> None:
    calls = 0
    sync = os.fsync

    def counting_fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    fge.files.os.fsync = counting_fsync  # type: ignore[attr-defined]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    options = job["options"]
    options["out"] = Path(options["out"])
    fge.run.fge(FGEConfig(**options))
    os.write(counter, str(calls).encode())


def run(job: dict[str, Any]) -> dict[str, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(job, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    if "kill_after" in job:
        time.sleep(job["kill_after"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading) as pipe:
        calls = pipe.read()
    return {"code": os.waitstatus_to_exitcode(status), "calls": int(calls or 0)}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
