"""The same command with the same seed ends the same, whatever else the machine does meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from conftest import ROOT
from promised import promised_anywhere

SIZES = ["--train-size", "120", "--test-size", "60", "--batch-size", "32"]
LINE = re.compile(
    r"^speed: channels_last (on|off), amp (off|bf16)(, compile off, cuda_graphs off)? "
    r"\(measured (now and kept in \S+|on \S+ \S+ UTC; --speed-cache refresh measures again)\)$",
    re.MULTILINE,
)
AUTO = ["--channels-last", "auto", "--amp", "auto"]
COMMANDS = {
    "fge": ["--single", "--baseline", "auto"],
    "train": ["--method", "auto"],
    "curve-ensemble": ["--curve-epochs", "2", "--eval-points", "3"],
    "compare": ["--methods", "single", "fge", "sse", "--sse-cycles", "2", "--seeds", "2"],
}


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with work of others."""
    cores = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(command: str, arguments: list[str], out: Path, hash_seed: int) -> str:
    words = [sys.executable, str(ROOT / "cli.py"), command, *arguments, "--out", str(out)]
    environment = {**os.environ, "COLUMNS": "400"}  # the line is not wrapped
    done = forked.run(words, cwd=out.parent, env=environment, hash_seed=hash_seed)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def twice(command: str, arguments: list[str], folder: Path) -> tuple[Path, list[str]]:
    """Run a command alone and beside other work; return a folder and the lines on speed.

    Sets have another order in the second run. Each choice is one line, at first measured and then
    taken.
    """
    for name in ("alone", "beside"):
        (folder / name).mkdir()
    said = [run(command, arguments, folder / "alone" / "run", hash_seed=0)]
    with busy_cores():
        said.append(run(command, arguments, folder / "beside" / "run", hash_seed=1))
    lines = [[match.group(0) for match in LINE.finditer(text)] for text in said]
    assert [len(found) for found in lines] == [1, 1]
    before, after = (promised_anywhere(folder / name / "run") for name in ("alone", "beside"))
    assert set(before) == set(after)
    assert [name for name in before if before[name] != after[name]] == []
    assert any(name.endswith(".safetensors") for name in before) or command == "plane"
    return folder / "alone" / "run", [found[0] for found in lines]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_busy_machine_changes_nothing(command: str, tmp_path: Path) -> None:
    folder, (first, second) = twice(
        command, [*SIZES, "--epochs", "4", *COMMANDS[command]], tmp_path
    )
    assert "(measured now and kept in " in first
    assert "(measured on " in second
    assert first.partition(" (measured")[0] == second.partition(" (measured")[0]
    if command != "fge":
        return
    weights = [str(folder / kind / "0001.safetensors") for kind in ("snapshots", "single")]
    fit = ["--epochs", "2", "--eval-points", "3", "--weights", *weights]
    studies = {
        "connect": [*SIZES, *fit],
        "plane": ["--run", str(folder), "--random", "--resolution", "3", *AUTO],
    }
    for study, options in studies.items():
        (tmp_path / study).mkdir()
        twice(study, options, tmp_path / study)
