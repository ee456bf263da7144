"""A run as a process of its own: what it is told, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tiny_npz

from fge.compare.job import COMMANDS, main


def options(file: Path, **changes: Any) -> dict[str, Any]:
    values = {"data": str(file), "epochs": 1, "batch_size": 32, "threads": 1, "val_fraction": 0.0}
    return {**values, "channels_last": "off", "compile": "off", "amp": "off", **changes}


def job(command: str, values: dict[str, Any]) -> str:
    return json.dumps({"command": command, "options": values})


def test_a_job_is_run_and_gone_on_with(tmp_path: Path, tiny_npz: Path) -> None:
    folder, text = tmp_path / "run", job("train", options(tiny_npz, method="single"))
    assert main(str(folder), text) == 0
    report = (folder / "report.json").read_bytes()
    assert [m["name"] for m in json.loads(report)["methods"]] == ["single"]
    assert main(str(folder), text) == 0
    assert (folder / "report.json").read_bytes() == report


@pytest.mark.parametrize(
    ("command", "changes", "code", "message"),
    [
        ("train", {"data": "nowhere.npz"}, 2, "nowhere.npz"),
        ("train", {"method": "ssee"}, 2, "unknown method 'ssee'"),
        ("fge", {"epochz": 3}, 2, "the comparison: unknown option 'epochz'"),
        ("train", {"method": "single", "lr": 1e30}, 3, "learning rate"),
    ],
)
def test_what_went_wrong_is_one_line_and_an_exit_code(
    command: str,
    changes: dict[str, Any],
    code: int,
    message: str,
    tmp_path: Path,
    tiny_npz: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(str(tmp_path / "run"), job(command, options(tiny_npz, **changes))) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_jobs_are_commands_of_the_command_line() -> None:
    import cli

    assert {name: cli.COMMANDS[name] for name in COMMANDS} == COMMANDS


def test_a_job_goes_on_with_the_threads_that_it_was_begun_with(
    tmp_path: Path, tiny_npz: Path
) -> None:
    values = options(tiny_npz, epochs=4, start_epoch=0, cycle_epochs=2)
    assert main(str(tmp_path / "run"), job("fge", values)) == 0
    added = job("fge", {**values, "threads": 2, "refit": "bezier"})
    assert main(str(tmp_path / "run"), added) == 0
    assert saved(tmp_path / "run")["options"]["threads"] == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "fge+refit" in {method["name"] for method in report["methods"]}


@pytest.mark.parametrize("leftovers", [[], [".config.json.x1.tmp"]])
def test_a_job_cut_off_at_its_first_file_is_begun(
    leftovers: list[str], tmp_path: Path, tiny_npz: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name in leftovers:
        (tmp_path / "run" / name).write_text("half")
    assert main(str(tmp_path / "run"), job("train", options(tiny_npz))) == 0
    assert saved(tmp_path / "run")["options"]["threads"] == 1
    assert not list((tmp_path / "run").glob(".*.tmp"))


def saved(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_a_method_is_trained_on_the_data_that_are_given(tmp_path: Path) -> None:
    data = write_tiny_npz(tmp_path / "other.npz")
    assert main(str(tmp_path / "run"), job("train", options(data))) == 0
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert content["data"] == "other"
