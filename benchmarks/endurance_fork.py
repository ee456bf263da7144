"""Commands in forked children of one process, in which everything is imported.

So a command takes a fraction of a second. Jobs of ``compare`` are forked too instead of started
anew. Pictures are a few fixed bytes: they are no result, and drawing them is most of the time of a
tiny run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import os
import pkgutil
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from endurance_runs import BASE, Job, Workplace, copy, tiny_arrays, tiny_split

import fge
import fge.manifest
from fge.commands import cli
from fge.report.page import page_template

LIMIT_SECONDS = 60.0
"""A command that takes longer hangs: none of these takes more than a few seconds."""
PICTURE = b"\x89PNG\r\n\x1a\n: a picture"
_SUBREAPER = 36
"""Of prctl: children that a killed command leaves become children of this process."""
ONE_LINE = re.compile(r"error: [^\n]+\n")
REMEDY = re.compile(
    r"--resume|--overwrite|--out|restore|fge verify|move it away|give |wait until|delete it|remove "
)
"""Words of a message that say what to do."""


@dataclass(frozen=True)
class Done:
    """How a command ended: ``code`` below 0 for a signal, None for one that had to be stopped."""

    words: Sequence[str]
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def line(self) -> str:
        """The command in one line."""
        return " ".join(self.words)

    def fault(self, allowed: Iterable[int] = (0, 2)) -> str | None:
        """Return what is wrong with this end, in words: a hang, a traceback, or no one line."""
        if self.code is None:
            return "hang"
        if "Traceback (most recent call last)" in self.out + self.err:
            return "traceback"
        if self.code not in allowed:
            return f"exit code {self.code}"
        if self.code and not ONE_LINE.fullmatch(self.err):
            return "not one line"
        return None


@dataclass
class Child:
    """A command that runs in a forked child."""

    words: Sequence[str]
    pid: int
    texts: tuple[Path, Path]
    started: float
    code: int | None = None

    def wait(self, limit: float = LIMIT_SECONDS) -> Done:
        """Return how it ended; stop it after ``limit`` seconds."""
        code = self.poll(limit)
        seconds = time.perf_counter() - self.started
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self.texts)
        return Done(self.words, code, out, err, seconds)

    def poll(self, limit: float = 0.0) -> int | None:
        """Return the exit code once it has ended, or None after ``limit`` seconds."""
        until = time.perf_counter() + limit
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.perf_counter() >= until:
                break
            else:
                time.sleep(0.002)
        return self.code


_numbers = itertools.count()


def start(
    place: Workplace, words: Sequence[str], before: Callable[[], None] | None = None
) -> Child:
    """Start a command in a forked child; ``before`` is called there first."""
    number = next(_numbers) % 8
    texts = (place.texts / f"{number}.out", place.texts / f"{number}.err")
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the command has begun
        _in_child(lambda: _command(place, words, texts, before))
    return Child(words, pid, texts, began)


def run(
    place: Workplace,
    words: Sequence[str],
    before: Callable[[], None] | None = None,
    limit: float = LIMIT_SECONDS,
) -> Done:
    """Run a command to its end."""
    return start(place, words, before).wait(limit)


def reap() -> None:
    """Stop what killed commands have left running."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                for left in children(os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left, signal.SIGKILL)
                time.sleep(0.002)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def prepare() -> None:
    """Import everything, once, and take over the children that killed commands leave."""
    for module in pkgutil.walk_packages(fge.__path__, "fge."):
        if "integrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("matplotlib.figure", "tyro", "msgspec", "scipy.optimize", "torchvision"):
        importlib.import_module(name)
    page_template()
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()


def _in_child(body: Callable[[], int]) -> None:
    code = 1
    try:
        code = body()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(
    place: Workplace,
    words: Sequence[str],
    texts: tuple[Path, Path],
    before: Callable[[], None] | None,
) -> int:
    os.setsid()
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _own_streams()
    os.chdir(place.cwd)
    os.environ.update(place.environment())
    _lighten()
    if before:
        before()
    return _called(words)


def _called(words: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have turned off
    sys.argv = ["fge", *words]
    try:
        return cli.main(list(words))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _own_streams() -> None:
    """Write to the child's descriptors, whatever this process has put in their place."""
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _lighten() -> None:
    """Write fixed bytes for pictures, leave plotly out, and fork the jobs of comparisons."""
    import fge.compare.runner
    import fge.report.builder
    from fge.files import write_bytes

    builder: Any = fge.report.builder
    builder.draw = lambda chart: chart
    builder.save_figure = lambda _, path: write_bytes(path, PICTURE)
    sys.modules["plotly"] = sys.modules["plotly.offline"] = None  # type: ignore[assignment]
    runner: Any = fge.compare.runner
    runner.POLL_SECONDS = 0.02
    runner.subprocess = _Subprocess


class _Forked:
    """What a comparison needs of ``subprocess.Popen``, with a fork in its place."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        stdout: Any,
        env: dict[str, str],
        pass_fds: Sequence[int],
        **_: Any,
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _in_child(lambda: self._body(words, stdout.fileno(), env, pass_fds))

    @staticmethod
    def _body(
        words: Sequence[str], log: int, environment: dict[str, str], kept: Sequence[int]
    ) -> int:
        """Run a job as a new process would: without the locks and manifests of the comparison."""
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        for handle in map(int, os.listdir("/proc/self/fd")):
            if handle > 2 and handle not in kept:
                with contextlib.suppress(OSError):
                    os.close(handle)
        fge.manifest._open.clear()
        fge.manifest._seen.clear()
        _own_streams()
        os.environ.clear()
        os.environ.update(environment)
        return _called(words[3:])  # python -m fge

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and timeout is not None and time.monotonic() > until:
                raise _Subprocess.TimeoutExpired("fge", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class _Subprocess:
    """The names of ``subprocess`` that a comparison uses."""

    import subprocess as _real

    Popen = _Forked
    DEVNULL, STDOUT, TimeoutExpired = _real.DEVNULL, _real.STDOUT, _real.TimeoutExpired


def furnish(place: Workplace) -> None:
    """Write the data, and make the runs that others look at."""
    np.savez(place.cwd / "tiny.npz", **tiny_arrays())
    np.savez(place.cwd / "new.npz", images=tiny_split(8, 2)[0])
    for job in BASE:
        done = run(place, job.start(job.name))
        if done.code:
            raise RuntimeError(f"{job.name}: {done.err}")


# ------------------------------------------------------------------------------- half-finished runs


def finish(place: Workplace, job: Job) -> int:
    """Run a job to its end; return how many calls of fsync it made."""
    out = place.clear()
    if job.in_place:
        copy(place.cwd / "base-fge", out)
    count = place.root / "calls"
    done = run(place, job.start("out"), lambda: _count_calls(count, 0))
    reap()
    if done.code:
        raise RuntimeError(f"{job.name}: {done.err}")
    return int(count.read_bytes() or 0)


def kill_half(place: Workplace, job: Job, calls: int) -> bool:
    """Kill a job half-way; return whether that could be done.

    A comparison is killed with its jobs, once one of them is done.
    """
    out = place.clear()
    if job.in_place:
        copy(place.cwd / "base-fge", out)
    count = place.root / "calls"
    child = start(
        place,
        job.start("out"),
        lambda: _count_calls(count, 0 if job.command == "compare" else calls // 2),
    )
    if job.command == "compare":
        while child.poll(0.01) is None:
            if list(out.glob("runs/*/report.json")):
                for pid in (child.pid, *children(child.pid)):
                    os.kill(pid, signal.SIGKILL)
                child.poll(10)
                reap()
                return True
        return False
    return child.wait().code == -signal.SIGKILL


def _count_calls(file: Path, last: int) -> None:
    """Count the calls of fsync in this process, and kill it at the last one, if that is given."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    process, sync, calls = os.getpid(), os.fsync, 0

    def counting(descriptor: int) -> None:
        nonlocal calls
        if os.getpid() == process:
            calls += 1
            os.pwrite(handle, str(calls).encode(), 0)
            if calls == last:
                os.kill(process, signal.SIGKILL)
        sync(descriptor)

    os.fsync = counting  # type: ignore[assignment]
