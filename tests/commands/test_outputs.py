"""Outputs that are closed, full or that nobody reads: no traceback, and the exit codes promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from conftest import ROOT
from curve_runs import curve_job, done, flags, job

from fge.commands import COMMANDS

FULL = Path("/dev/full")
START = sys.executable, str(ROOT / "cli.py")
NO_SPACE = "standard output cannot be written: No space left on device"
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def shell(arguments: list[str], redirection: str, folder: Path = ROOT) -> tuple[int, str, str]:
    """Run the command line in bash with a redirection; return exit code, output and errors."""
    result = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *START, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (">&-", 0, ""),
        ("<&- >&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (">/dev/full", 2, f"error: {NO_SPACE}\n"),
        (">/dev/full 2>&1", 2, ""),
        (">/dev/full 2>&-", 2, ""),
    ],
)
def test_help_that_cannot_be_written(redirection: str, code: int, error: str) -> None:
    found, _, complaint = shell(["fge", "--help"], redirection)
    assert (found, complaint) == (code, error)


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_of_every_command_ends_well(command: list[str]) -> None:
    asked = command or ["--help"]
    assert shell(asked, ">&-") == (0, "", "")
    assert shell(asked, ">/dev/full") == (2, "", f"error: {NO_SPACE}\n")
    code, out, err = shell(asked, "| head -1")
    assert code in (0, 141)  # by whether the reader was gone before the end
    assert (out.count("\n"), err) == (1, "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>/dev/full >&-", "2>&1 >&-"])
def test_errors_that_cannot_be_written_keep_their_exit_code(redirection: str) -> None:
    code, _, complaint = shell(["fge", "--epochs", "0"], redirection)
    assert (code, complaint) == (2, "")


# ------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    return done("fge", job(data, out, epochs=3, start_epoch=0, cycle_epochs=2))


def arguments(command: str, data: Path, trained: Path, out: Path) -> list[str]:
    """A short run of each command, with its output in ``out`` if it has one."""
    snapshots = [str(trained / "snapshots" / f"000{k}.safetensors") for k in (1, 2)]
    options: dict[str, dict[str, Any]] = {
        "fge": job(data, out, epochs=3, start_epoch=0, cycle_epochs=2),
        "train": job(data, out, epochs=2),
        "compare": {
            **job(data, out, epochs=2, methods=["split"], seeds=2, ood=["noise"]),
        },
        "curve-ensemble": curve_job(data, out),
        "connect": curve_job(data, out, epochs=1, weights=snapshots),
        "plane": {"run": str(trained), "out": str(out), "line": True, "line_points": 3},
        "sharpness": {
            "run": str(trained),
            "out": str(out),
            "k": 1,
            "examples": 32,
            "trace_samples": 2,
            "spectrum_vectors": 1,
            "spectrum_steps": 4,
        },
        "export": {"run": str(trained), "format": "pt2", "out": f"{out}.pt2"},
        "predict": {"run": str(trained), "images": str(out.parent / "new.npz"), "out": str(out)},
        "doctor": {"data": str(data), "compile": False},
    }
    if command == "verify":
        return ["verify", str(trained)]
    if command == "report":
        return ["report", str(trained), "--out", str(out)]
    return flags(command, options[command])


def made(command: str, out: Path) -> bool:
    if command == "export":
        return out.with_suffix(".pt2").is_file()
    return command in ("doctor", "verify") or (out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_goes_on_with_a_full_output_and_says_so(
    command: str, data: Path, trained: Path, tmp_path: Path
) -> None:
    import numpy as np

    with np.load(data) as arrays:
        np.savez(tmp_path / "new.npz", images=arrays["test_images"])
    out = tmp_path / "out"
    words = arguments(command, data, trained, out)
    if command == "fge":  # in a new interpreter
        found = shell(words, ">/dev/full", tmp_path)
    else:
        with FULL.open("wb") as full:
            done = forked.run([*START, *words], stdout=full, cwd=tmp_path)
        found = done.returncode, done.stdout, done.stderr
    assert found == (0, "", f"note: {NO_SPACE}\n")
    assert made(command, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "redirection"),
    [
        *(("fge", redirection) for redirection in (">&-", "<&- >&- 2>&-", "| head -1")),
        *((command, "<&- >&- 2>&-") for command in ("report", "doctor")),
    ],
)
def test_a_run_goes_on_without_an_output_and_is_silent(
    command: str, redirection: str, data: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, complaint = shell(arguments(command, data, trained, out), redirection, tmp_path)
    assert (code, complaint) == (0, "")
    assert made(command, out)
    if command == "fge":  # no file has what was meant for the output
        kept = [p for p in out.rglob("*") if p.suffix in (".jsonl", ".json", ".md")]
        assert all("run folder:" not in path.read_text() for path in kept)
