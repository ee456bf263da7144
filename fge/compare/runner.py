"""Running the jobs of a comparison: several at a time, each once, by any number of processes.

The process that runs a job holds its lock until it ends. So several comparisons can work in one
folder and divide the jobs: the ranks of ``torchrun``, or a second shell. Jobs end with the
comparison that started them, however it ends: they read from a pipe that it alone can write to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from fge.compare.plan import Job
from fge.config import (
    PARENT_PIPE,
    RunConfig,
    own_code,
    read_config,
    read_report,
    to_options,
    write_config,
)
from fge.disk import open_to_append
from fge.errors import DIVERGED, INTERRUPTED, UserError
from fge.files import append_record, read_bytes
from fge.locks import Lock, is_held
from fge.manifest import NAME as MANIFEST
from fge.manifest import Manifest

POLL_SECONDS = 0.5
_GRACE_SECONDS = 30
_LITTLE_BYTES = 2**20
"""Space on a disk that may have been too little for what a job wrote."""
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class _Method(TypedDict):
    name: str


class _Report(TypedDict):
    methods: list[_Method]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    lock: Lock
    started: float
    overlapped: bool = False


class Runner:
    """Runs jobs in a comparison folder.

    Args:
        folder: of the comparison; it contains ``runs``, ``logs`` and ``locks``.
        workers: number of jobs to run at a time.
        machine: the device, threads and workers of this process's jobs.
        on_change: called with the names of the running jobs whenever they may have changed.
        on_done: called with each finished job, whichever process ran it.
        command: the command line that runs a job with the options in ``logs/JOB.json``.

    Attributes:
        diverged: by name of a diverged job, the reason.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        machine: dict[str, Any],
        on_change: Callable[[Sequence[str]], None],
        on_done: Callable[[Job], None],
        command: Sequence[str] = (sys.executable, "-m", "fge"),
    ) -> None:
        self.folder = folder
        self.workers = workers
        self.machine = machine
        self.on_change = on_change
        self.on_done = on_done
        self.command = command
        self.diverged: dict[str, str] = {}
        self._running: dict[str, _Running] = {}
        self._pipe = (-1, -1)  # the jobs read from it; its end is that of this process
        for name in ("runs", "logs", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the unfinished jobs, and wait for those that other processes run.

        If a job diverges, :attr:`diverged` records the reason. The other jobs continue, except
        those that need its result.

        Raises:
            UserError: a job failed with an error that the user can fix; the message names the job.
            KeyboardInterrupt: after the jobs have been stopped; they can be resumed.
        """
        waiting = list(jobs)
        self._pipe = os.pipe()
        try:
            while waiting or self._running:
                self._collect()
                for job in [job for job in waiting if self.is_done(job)]:
                    waiting.remove(job)
                    self.on_done(job)
                waiting = [job for job in waiting if not self._is_lost(job)]
                for job in waiting:
                    if len(self._running) < self.workers and self._is_ready(job):
                        self._start(job)
                self.on_change(list(self._running))
                if waiting:
                    time.sleep(POLL_SECONDS)
        finally:
            self._stop()

    def is_done(self, job: Job) -> bool:
        """Return whether a job has ended, and its report has the lines that are needed."""
        report = self.folder / "runs" / job.name / "report.json"
        if job.name in self._running or not report.is_file():
            return False
        manifest = Manifest.read(report.parent)
        if manifest is None:  # a run of an older program has none
            if os.path.lexists(report.parent / MANIFEST):
                return False
        elif report.name not in manifest.files or manifest.is_open():
            return False  # killed between its report and its end
        methods = read_report(report, _Report)["methods"]
        return set(job.lines) <= {method["name"] for method in methods}

    def _is_lost(self, job: Job) -> bool:
        return job.name in self.diverged or any(self._is_lost(other) for other in job.needs)

    def _is_ready(self, job: Job) -> bool:
        return job.name not in self._running and all(self.is_done(other) for other in job.needs)

    def _start(self, job: Job) -> None:
        lock = Lock(self.folder / "locks" / job.name)
        if not lock.take(f"the job {job.name}"):  # another process is running it
            return
        if self.is_done(job):  # another process has just finished it
            lock.release()
            return
        # A job is not a rank of torchrun. It can import whatever this process can import.
        environment = {k: v for k, v in os.environ.items() if k not in _OF_TORCHRUN}
        environment[PARENT_PIPE] = str(self._pipe[0])
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with open_to_append(self.folder / "logs" / f"{job.name}.log") as log:
            process = subprocess.Popen(
                [*self.command, *self._arguments(job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock.fileno(), self._pipe[0]),
                start_new_session=True,  # only this process gets Ctrl-C, and it stops the jobs
            )
        append_record(self.folder / "timing.jsonl", {"event": "job begun", "job": job.name})
        self._running[job.name] = _Running(job, process, lock, time.perf_counter())
        self._mark_overlaps()

    def _arguments(self, job: Job) -> list[str]:
        """Return the arguments that start a job, or resume a started one.

        A started run keeps its options, so only those that this comparison changes are given.
        """
        out, config = self.folder / "runs" / job.name, replace(job.config, **self.machine)
        arguments = [job.command, "--out", str(out), *(["--resume"] if out.is_dir() else [])]
        arguments += own_code(to_options(config))
        if os.path.lexists(out / "config.json"):
            return [*arguments, *_changes(out / "config.json", job.command, config)]
        file = self.folder / "logs" / f"{job.name}.json"
        write_config(file, job.command, config)
        return [*arguments, "--config", str(file)]

    def _collect(self) -> None:
        """Handle the jobs that have ended."""
        self._mark_overlaps()
        for name, running in list(self._running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self._running[name]
            running.lock.release()
            if code == DIVERGED:
                self.diverged[name] = f"run {name} failed: {self._reason(name, code)}"
                continue
            if code:
                raise self._failure(name, code)
            if not self.is_done(running.job):
                raise UserError(
                    f"run {name} ended without {' and '.join(running.job.lines)} in its report; "
                    f"remove {self.folder / 'runs' / name} to run it again"
                )
            record = {
                "job": name,
                "seconds": round(time.perf_counter() - running.started, 2),
                "overlapped": running.overlapped,
            }
            append_record(self.folder / "timing.jsonl", {"event": "job", **record})

    def _mark_overlaps(self) -> None:
        """Mark running jobs if other jobs run too, here or in another process that holds a lock."""
        locks = (self.folder / "locks").iterdir()
        others = (is_held(path) for path in locks if path.name not in self._running)
        if len(self._running) > 1 or (self._running and any(others)):
            for running in self._running.values():
                running.overlapped = True

    def _failure(self, name: str, code: int) -> UserError:
        if code < 0 or code == INTERRUPTED:
            return UserError(
                f"run {name} was stopped from outside; run the same command again to continue"
            )
        return UserError(f"run {name} failed: {self._reason(name, code)}")

    def _reason(self, name: str, code: int) -> str:
        """Return the last line of a job's log, and the path to the log."""
        log = self.folder / "logs" / f"{name}.log"
        lines = read_bytes(log).decode(errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1].removeprefix('error: ')} (see {log})"
        full = shutil.disk_usage(log.parent).free < _LITTLE_BYTES
        why = "its disk is full, or nearly; free some space, then run it again"
        why = why if full else f"see {log}"
        return f"exit code {code} without a word; {why}"

    def _stop(self) -> None:
        """Interrupt the running jobs; they can be resumed. A second Ctrl-C kills them."""
        try:
            for running in self._running.values():
                running.process.send_signal(signal.SIGINT)
            until = time.monotonic() + _GRACE_SECONDS
            for running in self._running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.process.wait(max(0.0, until - time.monotonic()))
        finally:
            for running in self._running.values():
                running.process.kill()
                running.process.wait()
                running.lock.release()
            self._running.clear()
            for end in self._pipe:
                os.close(end)


def _changes(file: Path, command: str, config: RunConfig) -> list[str]:
    """Return, as arguments, the options of ``config`` that differ from those of a started run.

    The number of threads is not changed, because results depend on it; nor is an option that is
    ``auto`` or None in ``config``.
    """
    try:
        started = to_options(read_config(file, command, type(config))[0])
    except UserError:  # the run itself will report the error
        return []
    words: list[str] = []
    for name, value in to_options(config).items():
        if value in (started[name], "auto", None) or name == "threads":
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return words
