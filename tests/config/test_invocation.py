"""The command line is printed as it was called."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from fge.config import invocation, program

TORCHRUN = ["torchrun", "--nproc-per-node", "2"]


def called(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, "fge"])


@pytest.mark.parametrize("name", ["cli.py", "../fge/cli.py", "/a b/cli.py"])
def test_the_path_of_the_script_is_as_it_was_given(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    called(monkeypatch, name)
    assert program() == ["python", name]
    assert program(TORCHRUN) == [*TORCHRUN, name]
    assert program(seen_from=ROOT / "runs" / "fge-001") == ["python", "../../cli.py"]


def test_the_installed_command_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, "/a b/bin/fge")
    assert program() == program(seen_from=ROOT / "runs") == ["fge"]
    assert program(TORCHRUN) == [*TORCHRUN, "-m", "fge"]


def test_the_module_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, str(ROOT / "fge" / "__main__.py"))
    assert program() == program(seen_from=ROOT / "runs") == ["python", "-m", "fge"]
    assert program(TORCHRUN) == [*TORCHRUN, "-m", "fge"]


@pytest.mark.parametrize("name", ["-c", "", "/bin/pytest", "/other/__main__.py"])
def test_within_another_program_it_is_that_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    called(monkeypatch, name)
    assert program() == ["python", "cli.py"]
    monkeypatch.setattr(invocation, "_in_checkout", lambda: False)
    assert program() == program(seen_from=ROOT) == ["fge"]


def test_help_shows_the_command_as_it_was_called(tmp_path: Path) -> None:
    script = tmp_path / "my bin" / "fge"
    script.parent.mkdir()
    script.write_text("import sys\nfrom fge.commands.cli import main\nsys.exit(main())\n")
    (tmp_path / "an odd place").mkdir()
    shim = tmp_path / "an odd place" / "cli.py"
    shutil.copy(ROOT / "cli.py", shim)
    for start, shown in (
        ([str(script)], "fge"),
        (["-m", "fge"], "python -m fge"),
        ([str(ROOT / "cli.py")], shlex.join(["python", str(ROOT / "cli.py")])),
        ([str(shim)], f"python '{shim}'"),
    ):
        done = subprocess.run(
            [sys.executable, *start, "--help"],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
            check=True,
        )
        assert done.stdout.startswith(f"usage: {shown} COMMAND [OPTIONS]\n")
        assert done.stdout.endswith(f"\n{shown} COMMAND --help lists the options of a command.\n")
