"""A process ends with the one that started it: when a pipe that only that one writes to ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from fge.config import PARENT_PIPE, end_with_parent

SCRIPT = """
import signal, sys, time
from fge.config import end_with_parent
{before}
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""


def started(pipe: int, before: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        cwd=ROOT,
        env={**os.environ, PARENT_PIPE: str(pipe)},
        pass_fds=(pipe,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_end_of_the_pipe_is_as_ctrl_c() -> None:
    reads, writes = os.pipe()
    with started(reads) as process:
        os.close(reads)
        time.sleep(0.2)
        assert process.poll() is None
        os.close(writes)  # as at the end of this process
        _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
def test_a_process_that_takes_no_ctrl_c_is_killed() -> None:
    reads, writes = os.pipe()
    with started(reads, "signal.signal(signal.SIGINT, signal.SIG_IGN)") as process:
        os.close(reads)
        os.close(writes)
        process.communicate(timeout=40)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("value", ["", "x", "-1", "987654"])
def test_what_is_no_pipe_is_ignored(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT_PIPE, value)
    end_with_parent()
    assert PARENT_PIPE not in os.environ  # what this process starts does not end with its parent


def test_a_file_is_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setenv(PARENT_PIPE, str(file.fileno()))
        end_with_parent()
