"""Commands in forked children of one process, in which everything is already imported.

A tiny run in a new interpreter spends five sixths of its time on imports and pictures. A server,
which is this file run as a script, forks a child for each command: it has the folder, environment,
descriptors, session and signals of a process of its own. Jobs of ``compare`` are forked as well.
Pictures are a few fixed bytes; what they show is tested where they are drawn. Some tests start
commands the usual way, so that nothing here hides what only a new interpreter does.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURE = b"\x89PNG\r\n\x1a\n: a picture"


_NUMBER = 16
"""Bytes of a number in an answer of the server."""


class Forked:
    """A command in a forked child, with what tests and ``compare`` need of ``subprocess.Popen``.

    Args:
        words: of the command line; the first ones start Python and this program.
        stdin: descriptor or file, as the next two: an inherited one by default.
        stdout: by default that of this process.
        stderr: by default that of this process.
        cwd: the folder to run in.
        env: the environment.
        pass_fds: descriptors to keep, under the same numbers.
        start_new_session: children are always in a session of their own.
        hash_seed: of the interpreter: under another one, sets have another order.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = 1,
        stderr: Any = 2,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = True,
        hash_seed: int = 0,
    ) -> None:
        assert start_new_session
        self.returncode: int | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(_server(hash_seed))
        job = {
            "words": [str(word) for word in words],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "handles": [0, 1, 2, *pass_fds],
        }
        with open(os.devnull, "r+b") as null:
            streams = [stdin, stdout, stdout if stderr == subprocess.STDOUT else stderr]
            streams = [null if stream == subprocess.DEVNULL else stream for stream in streams]
            numbers = [s if isinstance(s, int) else s.fileno() for s in streams]
            socket.send_fds(self._socket, [b"!"], [*numbers, *pass_fds])
        self._socket.sendall(json.dumps(job).encode() + b"\n")
        self.pid = int(self._socket.recv(_NUMBER))

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended."""
        if self.returncode is None:
            self._socket.settimeout(None if timeout is None else max(timeout, 1e-3))
            try:
                self.returncode = int(self._socket.recv(_NUMBER))
            except TimeoutError:
                raise subprocess.TimeoutExpired("fge", timeout or 0) from None
            self._socket.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[str], *, stdout: Any = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return exit code and texts, or no text where ``stdout`` goes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = Forked(words, stdout=stdout or out, stderr=err, **options).wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *texts)


def write_fixed_pictures(replace: Callable[[Any, str, Any], None]) -> None:
    """Have reports write fixed bytes for pictures; ``replace`` is called as ``setattr`` is.

    Pages get a line in place of the 5 MB of plotly.js.
    """
    import fge.report.builder
    import fge.report.page
    from fge.files import write_bytes

    replace(fge.report.page, "plotly_script", lambda: "/**\n* plotly.js v0: left out in tests\n*/")
    replace(fge.report.builder, "draw", lambda chart: chart)
    replace(fge.report.builder, "save_figure", lambda _, path: write_bytes(path, PICTURE))


def prepare_children() -> None:
    """Import what commands import, so that no forked child has to; pictures are fixed bytes."""
    sys.path.insert(0, str(ROOT))
    import PIL.Image

    import fge.report.page

    for module in pkgutil.walk_packages([str(ROOT / "fge")], "fge."):
        if "integrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("matplotlib.figure", "plotly.offline", "scipy.optimize", "torchvision", "tyro"):
        importlib.import_module(name)
    PIL.Image.init()
    fge.report.page.page_template()
    write_fixed_pictures(setattr)
    gc.collect()
    gc.freeze()


def in_place_of_subprocess() -> SimpleNamespace:
    """Return what ``fge.compare.runner`` needs of ``subprocess``, with forked children."""
    names = ("DEVNULL", "STDOUT", "TimeoutExpired")
    return SimpleNamespace(Popen=Forked, **{name: getattr(subprocess, name) for name in names})


_address: str | None = None
"""In a child, the server that forked it."""


def _server(hash_seed: int) -> str:
    return _address or _started(hash_seed)


@cache
def _started(hash_seed: int) -> str:
    """Start a server, which ends with this process; return the path to its socket."""
    folder = tempfile.TemporaryDirectory()
    path = str(Path(folder.name) / "socket")
    server = subprocess.Popen(
        [sys.executable, __file__, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )

    def end() -> None:
        server.kill()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return path


# --------------------------------------------------------------------------------------- the server


def serve(path: str) -> None:
    """Fork a child for each connection, until standard input ends."""
    global _address
    _prepare()
    _address = path
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    os.write(1, b"ready\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    while select.select([listening, 0], [], [])[0] == [listening]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _answer(connection)
            os._exit(0)
        connection.close()


def _prepare() -> None:
    """Import what commands import; jobs are forked as well."""
    prepare_children()
    import fge.compare.runner

    runner: Any = fge.compare.runner
    runner.subprocess = in_place_of_subprocess()
    runner.POLL_SECONDS = 0.05


def _answer(connection: socket.socket) -> None:
    """Run one command in a child; answer with its number, and with its exit code at the end."""
    _, given, _, _ = socket.recv_fds(connection, 1, 64)
    with connection.makefile("rb") as lines:
        job = json.loads(lines.readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        code = 1
        try:
            code = _command(job, given)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    for handle in (0, 1, 2, *given):
        os.close(handle)
    connection.sendall(b"%-16d" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(b"%-16d" % os.waitstatus_to_exitcode(status))


def _command(job: dict[str, Any], given: Sequence[int]) -> int:
    os.setsid()
    free = max(*given, *job["handles"]) + 1
    moved = [fcntl.fcntl(handle, fcntl.F_DUPFD, free) for handle in given]
    for source, number in zip(moved, job["handles"], strict=True):
        os.dup2(source, number)
    for handle in {*given, *moved} - set(job["handles"]):
        os.close(handle)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.path[:0] = [path for path in job["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    for number, name in enumerate(("stdout", "stderr"), start=1):
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and so inherited
    words = job["words"]
    start = next(k for k, word in enumerate(words) if word == "fge" or word.endswith("cli.py"))
    module = str(ROOT / "fge" / "__main__.py")
    sys.argv = [words[start] if words[start].endswith("cli.py") else module, *words[start + 1 :]]
    from fge.commands import main

    try:
        return main()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
