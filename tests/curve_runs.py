"""Runs of the curve commands on the tiny data set: what their test files share."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import PLAIN
from kill_server import run_command
from promised import promised

from fge.commands import cli

TRAIN_IMAGES = 86  # 96 less 10 for validation


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What stands behind ``error:``; there is one line and nothing else."""
        assert re.fullmatch(r"error: [^\n]+\n", self.err), self.err
        return self.err.removeprefix("error: ").rstrip("\n")


def run(argv: Iterable[str]) -> Result:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(argv))
    return Result(code, out.getvalue(), err.getvalue())


def flags(command: str, options: dict[str, Any]) -> list[str]:
    """Return the arguments of a command with these options."""
    argv = [command]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            argv += [f"--{flag}", *map(str, values)]
    return argv


def job(data: Path | str, out: Path | str, **more: Any) -> dict[str, Any]:
    """Return options of a run, as JSON holds them."""
    return {"data": str(data), "out": str(out), "device": "cpu", **PLAIN, **more}


def curve_job(data: Path | str, out: Path | str, **more: Any) -> dict[str, Any]:
    """Return options of a short curve-ensemble or connect run."""
    return {**job(data, out, epochs=2, eval_points=4), **more}


def done(command: str, options: dict[str, Any]) -> Path:
    """Run a command that has to succeed; return its folder."""
    result = run(flags(command, options))
    assert (result.code, result.err) == (0, "")
    return Path(options["out"])


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def methods(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the methods of a report by name and members, which are unique together."""
    found = report(folder)["methods"]
    by_key = {f"{m['name']} {m['members']}": m for m in found}
    assert len(by_key) == len(found)
    return by_key


def assert_same(folder: Path, reference: Path) -> None:
    ours, theirs = promised(folder), promised(reference)
    assert sorted(ours) == sorted(theirs)
    for name in theirs:
        assert ours[name] == theirs[name], f"{name} differs"


def member_probabilities(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return probabilities (N, C) by member, and targets (N,), of a run's test predictions."""
    with np.load(folder / "predictions" / "test.npz") as stored:
        rows = zip(stored["members"], stored["probabilities"], strict=True)
        return {str(name): probs.astype(float) for name, probs in rows}, stored["targets"]


class KillServer:
    """Runs jobs in children that are killed before their n-th write or after some seconds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, options: dict[str, Any], **kill: float) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"command": command, "options": options, **kill}) + "\n"
        )
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


@functools.cache
def kill_server() -> KillServer:
    server = KillServer()
    atexit.register(server.close)
    return server


def killed_and_resumed(command: str, options: dict[str, Any], out: Path, point: int) -> Path:
    """Run a command that is killed before its n-th write and resumed; return its folder."""
    again = {**options, "out": str(out)}
    assert kill_server().run(command, again, kill_at=point)["code"] == -signal.SIGKILL
    with contextlib.redirect_stdout(io.StringIO()):
        run_command(command, {**again, "resume": True})
    return out
