"""Tiny runs of every command that writes a folder, in forked children, and what they must leave.

A child is a copy of this process, in which everything is imported, so that a command takes a
fraction of a second. Jobs of ``compare`` are forked too instead of started anew. Pictures are a few
fixed bytes: they are no result, and drawing them is most of the time of a tiny run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fge
from fge.commands import COMMANDS
from fge.commands.cli import main as run_line

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
_UNPROMISED = ("timing.jsonl", "timing.csv", ".png", ".lock", ".log")
_STREAMS = ("logs", "locks")


# ------------------------------------------------------------------------------------ the commands

PLAIN = "--batch-size 32 --threads 1 --channels-last off --compile off --amp off".split()
MACHINE = "--device cpu --threads 1".split()
_FEW = "--eval-points 4 --val-fraction 0.25".split()
_DATA = ["--data", "tiny.npz"]


@dataclass(frozen=True)
class Job:
    """A command with its options, without ``--out``.

    Without ``again`` the same command continues it. ``in_place``: it writes into a finished run.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ("--resume",)
    in_place: bool = False

    @property
    def command(self) -> str:
        """The command."""
        return self.words[0]

    def start(self, out: str) -> list[str]:
        """Return the arguments that start it."""
        return [*self.words, *self._out(out)]

    def resume(self, out: str) -> list[str]:
        """Return the arguments that continue it in a folder."""
        if self.in_place or not self.again:
            return self.start(out)
        return [self.command, "--out", out, *self.again]

    def go_on(self, cwd: Path, out: str) -> list[str]:
        """Return the arguments with which a user goes on after an interruption, wherever it was."""
        if not (cwd / out).is_dir():
            return self.start(out)
        if self.in_place or not self.again or (cwd / out / "config.json").is_file():
            return self.resume(out)
        return [*self.start(out), *self.again]

    def _out(self, out: str) -> list[str]:
        return [out] if self.in_place else ["--out", out]

    @property
    def reads(self) -> tuple[str, ...]:
        """The finished runs that it looks at."""
        words = " ".join(self.words)
        return tuple(base.name for base in BASE if base.name in words)


def _job(name: str, words: str, *more: str, **options: Any) -> Job:
    return Job(name, (*words.split(), *more), **options)


BASE = (
    _job("base-fge", "fge --epochs 6 --start-epoch 1 --cycle-epochs 2", *_DATA, *PLAIN),
    _job("base-curve", "curve-ensemble --epochs 2", *_DATA, *_FEW, *PLAIN),
)
"""Finished runs that other commands look at."""
JOBS = (
    _job(
        "fge",
        "fge --epochs 6 --start-epoch 1 --cycle-epochs 2 --val-fraction 0.25 --single --ood noise "
        "--tta 2 --refit bezier --refit-epochs 1 --distill-epochs 1",
        *_DATA,
        *PLAIN,
    ),
    _job(
        "fge-baseline",
        "fge --epochs 4 --cycle-epochs 2 --val-fraction 0.25 --baseline auto",
        *_DATA,
        *PLAIN,
    ),
    _job("train", "train --method star --star-branches 2 --epochs 5", *_DATA, *PLAIN),
    _job("train-auto", "train --method auto --epochs 5 --val-fraction 0.25", *_DATA, *PLAIN),
    _job("curve-ensemble", "curve-ensemble --epochs 2", *_DATA, *_FEW, *PLAIN),
    _job(
        "connect",
        "connect --epochs 2 --weights base-fge/snapshots/0001.safetensors "
        "base-fge/snapshots/0002.safetensors",
        *_DATA,
        *_FEW,
        *PLAIN,
    ),
    _job(
        "compare",
        "compare --methods single fge --seeds 2 --epochs 4 --cycle-epochs 2 --ood noise",
        *_DATA,
        *PLAIN,
        again=(),
    ),
    _job("plane", "plane --run base-fge --resolution 3 --eval-images 32", *MACHINE),
    _job("line", "plane --run base-curve --line --line-points 4 --eval-images 32", *MACHINE),
    _job(
        "sharpness",
        "sharpness --run base-fge --k 1 --examples 16 --trace-samples 2 --spectrum-steps 2",
        *MACHINE,
    ),
    _job("predict", "predict --run base-fge --images new.npz --overwrite", *MACHINE, again=()),
    _job("report", "report base-fge base-curve --overwrite", again=()),
    Job("report-again", ("report",), in_place=True),
)
"""What is killed and damaged."""
BY_NAME = {job.name: job for job in JOBS}


# ------------------------------------------------------------------------------------- the workplace


@dataclass
class Workplace:
    """A folder with tiny data and finished runs, in which commands run; outside it are copies.

    ``cwd`` is where the commands run, ``kept`` holds finished runs and half-finished ones.
    """

    root: Path

    def __post_init__(self) -> None:
        self.cwd = self.root / "cwd"
        self.kept = self.root / "kept"
        self.texts = self.root / "texts"
        self.outside = self.root / "outside"
        for folder in (self.cwd, self.kept, self.texts, self.outside, self.root / "home"):
            folder.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Return the variables of the commands: caches of their own, and no user's home."""
        home = str(self.root / "home")
        return {
            "FGE_CACHE": str(self.root / "cache"),
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/.cache",
            "MPLCONFIGDIR": str(self.root / "matplotlib"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def furnish(self) -> None:
        """Write the data, and make the runs that others look at."""
        np.savez(self.cwd / "tiny.npz", **tiny_arrays())
        np.savez(self.cwd / "new.npz", images=tiny_split(8, 2)[0])
        for job in BASE:
            done = run(self, job.start(job.name))
            if done.code:
                raise RuntimeError(f"{job.name}: {done.err}")

    def clear(self, name: str = "out") -> Path:
        """Remove a folder in which a command ran; return its path."""
        path = self.cwd / name
        remove(path)
        return path


def tiny_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise (N, 8, 8) with a bright column band whose place is the class; labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    return images.astype(np.uint8), labels


def tiny_arrays() -> dict[str, Any]:
    """Return the arrays of a data set of 96 training and 48 test images."""
    parts = {"train": tiny_split(96, 0), "test": tiny_split(48, 1)}
    return {
        f"{part}_{kind}": array
        for part, pair in parts.items()
        for kind, array in zip(("images", "labels"), pair, strict=True)
    }


def remove(path: Path) -> None:
    """Remove whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a folder, with links as links, in place of another."""
    remove(target)
    shutil.copytree(source, target, symlinks=True)


# ----------------------------------------------------------------------------------------- children


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


def start(place: Workplace, words: Sequence[str], before: Callable[[], None] | None = None) -> Child:
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
        return run_line(list(words))
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
        self, words: Sequence[str], *, stdout: Any, env: dict[str, str], **_: Any
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _in_child(lambda: self._body(words, stdout.fileno(), env))

    @staticmethod
    def _body(words: Sequence[str], log: int, environment: dict[str, str]) -> int:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
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

    def wait(self, timeout: float) -> int:
        """Return the exit code once it has ended."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
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


# ------------------------------------------------------------------------------- what must be the same


def is_promised(name: str) -> bool:
    """Return whether a file of a run is the same whenever the run is repeated.

    >>> is_promised("snapshots/0001.safetensors"), is_promised("timing.jsonl")
    (True, False)
    """
    return not name.endswith(_UNPROMISED) and name.split("/")[0] not in _STREAMS


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the regular files of a folder, through no link."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def promised(folder: Path) -> dict[str, bytes]:
    """Return the promised files by name; of a manifest, the entries of promised files."""
    return {
        name: manifest_of(data) if name.endswith("manifest.json") else data
        for name, data in sorted(files_of(folder).items())
        if is_promised(name)
    }


def manifest_of(data: bytes) -> bytes:
    """Return a manifest without its checksum and the entries of files that may differ."""
    content = json.loads(data)
    del content["sha256"]
    content["files"] = {n: e for n, e in content["files"].items() if is_promised(n)}
    return json.dumps(content, indent=1).encode()


def differences(folder: Path, reference: dict[str, bytes], ignored: Iterable[str] = ()) -> list[str]:
    """Return the names of promised files that are missing, more, or not the same."""
    try:
        ours = promised(folder)
    except (ValueError, KeyError) as error:
        return [f"manifest.json ({error})"]
    names = sorted({*ours, *reference} - set(ignored))
    return [name for name in names if ours.get(name) != reference.get(name)]


assert set(job.command for job in JOBS) <= set(COMMANDS)
