"""Runs training jobs in forked children and kills them where it is told to.

Started as a script by the tests of resuming. Each line on standard input is a JSON job:
``command``; the ``options`` of its configuration; and ``kill_at``, the number
of the fsync call before which the child kills itself with SIGKILL, or ``kill_after``, seconds
after which it is killed from outside. Each answer is a JSON line: the child's exit status and the
number of fsync calls it made. Every file that the library writes is synced, so fsync calls lie
before and after every change on disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked

import fge.commands.curves
import fge.commands.train
import fge.disk
from fge.config import ConnectConfig, CurveEnsembleConfig, FGEConfig, RunConfig, from_options
from fge.config.base import saved_fields

COMMANDS: dict[str, tuple[type[RunConfig], Callable[[Any], Path]]] = {
    "fge": (FGEConfig, fge.commands.train.fge),
    "curve-ensemble": (CurveEnsembleConfig, fge.commands.curves.curve_ensemble),
    "connect": (ConnectConfig, fge.commands.curves.connect),
}


def run_command(command: str, options: dict[str, Any]) -> None:
    """Run a command with options as JSON holds them."""
    kind, function = COMMANDS[command]
    saved = {name: value for name, value in options.items() if name in saved_fields(kind)}
    own = {name: value for name, value in options.items() if name not in saved}
    own["out"] = Path(own["out"])
    function(replace(from_options(kind, saved, "job"), **own))


def child(job: dict[str, Any], counter: int) -> None:
    calls = 0
    sync = os.fsync

    def counting_fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    fge.disk.os.fsync = counting_fsync  # type: ignore[attr-defined]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run_command(job["command"], job["options"])
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
    forked.prepare_children()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
