"""A run killed anywhere and resumed leaves, bit for bit, what an uninterrupted run leaves."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAIN
from curve_runs import kill_server
from promised import promised

from fge.commands.train import fge
from fge.config import FGEConfig

pytestmark = pytest.mark.usefixtures("fixed_pictures")
RANDOM_POINTS = 14


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
    tiny_npz: Path, tmp_path: Path
) -> None:
    reference = tmp_path / "reference"
    finished = kill_server().run("fge", options(tiny_npz, reference))
    assert finished["code"] == 0
    points = random.Random(0).sample(range(1, finished["calls"] + 1), RANDOM_POINTS)
    for point in {1, finished["calls"], *points}:
        out = tmp_path / f"killed-{point}"
        arguments = options(tiny_npz, out)
        assert kill_server().run("fge", arguments, kill_at=point)["code"] == -signal.SIGKILL
        resume(arguments, out)
        assert_same(out, reference)
        shutil.rmtree(out)


@pytest.mark.slow
def test_half_precision_and_channels_last_resume_as_exactly(tiny_npz: Path, tmp_path: Path) -> None:
    fast = {"amp": "bf16", "channels_last": "on"}
    reference, out = tmp_path / "reference", tmp_path / "killed"
    finished = kill_server().run("fge", {**options(tiny_npz, reference), **fast})
    arguments = {**options(tiny_npz, out), **fast}
    killed = kill_server().run("fge", arguments, kill_at=finished["calls"] // 2)
    assert killed["code"] == -signal.SIGKILL
    resume(arguments, out)
    assert_same(out, reference)


@pytest.mark.slow
def test_with_the_sharpness_measured_it_resumes_as_exactly(tiny_npz: Path, tmp_path: Path) -> None:
    measuring = {"sharpness_every": 2}
    reference = tmp_path / "reference"
    finished = kill_server().run("fge", {**options(tiny_npz, reference), **measuring})
    assert finished["code"] == 0
    for part in (0.3, 0.6, 0.9):
        out = tmp_path / f"killed-{part}"
        arguments = {**options(tiny_npz, out), **measuring}
        killed = kill_server().run("fge", arguments, kill_at=int(part * finished["calls"]))
        assert killed["code"] == -signal.SIGKILL
        resume(options(tiny_npz, out), out)  # the option is that of the run
        assert_same(out, reference)


@pytest.mark.slow
def test_killed_by_the_clock_again_and_again(tiny_npz: Path, tmp_path: Path) -> None:
    reference, out = tmp_path / "reference", tmp_path / "killed"
    assert kill_server().run("fge", options(tiny_npz, reference))["code"] == 0
    arguments = options(tiny_npz, out)
    for attempt in range(4):
        again = {**arguments, "resume": attempt > 0 and out.exists()}
        kill_server().run("fge", again, kill_after=0.15 + 0.1 * attempt)
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
