"""A run killed anywhere and resumed leaves, bit for bit, what an uninterrupted run leaves."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAIN, ROOT
from promised import promised

from fge.commands.train import fge
from fge.config import FGEConfig

pytestmark = pytest.mark.usefixtures("fixed_pictures")
RANDOM_POINTS = 14


class KillServer:
    def __init__(self) -> None:
        script = ROOT / "tests" / "kill_server.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, options: dict[str, Any], **kill: float) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"options": options, **kill}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    server = KillServer()
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait(timeout=30)


def options(tiny_npz: Path, out: Path) -> dict[str, Any]:
    return {
        "data": str(tiny_npz),
        "out": str(out),
        "epochs": 5,
        "start_epoch": 1,
        "cycle_epochs": 2,
        **PLAIN,
        "single": True,
        "val_fraction": 0.25,
    }


def resume(arguments: dict[str, Any], out: Path) -> None:
    fge(FGEConfig(**{**arguments, "out": out, "resume": True}))


def assert_same(folder: Path, reference: Path) -> None:
    ours, theirs = promised(folder), promised(reference)
    assert sorted(ours) == sorted(theirs)
    for name in theirs:
        assert ours[name] == theirs[name], f"{name} differs"


@pytest.mark.slow
def test_killed_at_any_write_and_resumed_ends_as_if_uninterrupted(
    server: KillServer, tiny_npz: Path, tmp_path: Path
) -> None:
    reference = tmp_path / "reference"
    finished = server.run(options(tiny_npz, reference))
    assert finished["code"] == 0
    points = random.Random(0).sample(range(1, finished["calls"] + 1), RANDOM_POINTS)
    for point in {1, finished["calls"], *points}:
        out = tmp_path / f"killed-{point}"
        arguments = options(tiny_npz, out)
        assert server.run(arguments, kill_at=point)["code"] == -signal.SIGKILL
        resume(arguments, out)
        assert_same(out, reference)
        shutil.rmtree(out)


@pytest.mark.slow
def test_half_precision_and_channels_last_resume_as_exactly(
    server: KillServer, tiny_npz: Path, tmp_path: Path
) -> None:
    fast = {"amp": "bf16", "channels_last": "on"}
    reference, out = tmp_path / "reference", tmp_path / "killed"
    finished = server.run({**options(tiny_npz, reference), **fast})
    arguments = {**options(tiny_npz, out), **fast}
    killed = server.run(arguments, kill_at=finished["calls"] // 2)
    assert killed["code"] == -signal.SIGKILL
    resume(arguments, out)
    assert_same(out, reference)


@pytest.mark.slow
def test_with_the_sharpness_measured_it_resumes_as_exactly(
    server: KillServer, tiny_npz: Path, tmp_path: Path
) -> None:
    measuring = {"sharpness_every": 2}
    reference = tmp_path / "reference"
    finished = server.run({**options(tiny_npz, reference), **measuring})
    assert finished["code"] == 0
    for part in (0.3, 0.6, 0.9):
        out = tmp_path / f"killed-{part}"
        arguments = {**options(tiny_npz, out), **measuring}
        killed = server.run(arguments, kill_at=int(part * finished["calls"]))
        assert killed["code"] == -signal.SIGKILL
        resume(options(tiny_npz, out), out)  # the option is that of the run
        assert_same(out, reference)


@pytest.mark.slow
def test_killed_by_the_clock_again_and_again(
    server: KillServer, tiny_npz: Path, tmp_path: Path
) -> None:
    reference, out = tmp_path / "reference", tmp_path / "killed"
    assert server.run(options(tiny_npz, reference))["code"] == 0
    arguments = options(tiny_npz, out)
    for attempt in range(4):
        again = {**arguments, "resume": attempt > 0 and out.exists()}
        server.run(again, kill_after=0.15 + 0.1 * attempt)
    resume(arguments, out) if out.exists() else fge(FGEConfig(**{**arguments, "out": out}))
    assert_same(out, reference)


def test_resuming_a_finished_run_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = {**options(tiny_npz, out), "out": out}
    fge(FGEConfig(**arguments))
    before = promised(out)
    resume(arguments, out)
    assert promised(out) == before


def test_leftovers_of_interrupted_writes_are_removed(tiny_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = {**options(tiny_npz, out), "out": out}
    fge(FGEConfig(**arguments))
    leftover = out / "snapshots" / ".0001.safetensors.abcdefgh.tmp"
    leftover.write_bytes(b"half")
    resume(arguments, out)
    assert not leftover.exists()
