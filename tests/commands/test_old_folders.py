"""Folders of runs from before members were averages: what was begun then ends as it would have."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from curve_runs import done, flags, job, kill_server, run
from promised import promised

from fge.compare import Plan
from fge.config import CompareConfig, CurveEnsembleConfig, FGEConfig, TrainConfig, read_config

NEWER = (
    *("image_size", "normalize", "stream", "workers", "skip_unreadable", "labels"),
    *("average", "hold", "final_factor", "star_trunk", "star_branches", "split", "pretrained"),
)
"""Options that there were not (of ``fge`` there was the last one)."""


def make_old(file: Path) -> dict[str, Any]:
    """Rewrite a config file as the first version had it; return its options."""
    content = json.loads(file.read_text())
    newer = NEWER[:-1] if content["command"] == "fge" else NEWER
    options = {name: v for name, v in content["options"].items() if name not in newer}
    file.write_text(json.dumps({**content, "schema_version": 1, "options": options}))
    return options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fge", {"epochs": 6, "cycle_epochs": 2, "start_epoch": 1, "single": True}),
        ("train", {"method": "sse", "epochs": 6, "sse_cycles": 3}),
    ],
)
def test_a_half_finished_run_goes_on_by_the_papers_rule(
    data: Path, tmp_path: Path, command: str, options: dict[str, Any]
) -> None:
    options = {"average": 0.0, "hold": 0.0, **options}
    reference = done(command, job(data, tmp_path / "new", **options))
    half = job(data, tmp_path / "old", **options)
    if command == "fge":
        killed = kill_server().run(command, half, kill_at=25)
        assert killed["code"] == -signal.SIGKILL
    else:
        done(command, half)
        (tmp_path / "old" / "report.json").unlink()
    old = tmp_path / "old" / "config.json"
    assert "average" not in make_old(old)
    (old.parent / "manifest.json").unlink()
    result = run([command, "--out", str(old.parent), "--resume"])
    assert (result.code, result.err) == (0, "")
    ours, theirs = promised(old.parent), promised(reference)
    assert sorted(ours) == sorted(theirs)
    # Its options now say what was meant, whatever the defaults of today are.
    assert {name for name in ours if ours[name] != theirs[name]} <= {"report.html"}
    assert json.loads(old.read_text())["options"]["average"] == 0.0
    assert json.loads(old.read_text())["schema_version"] == 3


def test_an_old_run_is_not_resumed_with_averages(data: Path, tmp_path: Path) -> None:
    folder = done("fge", job(data, tmp_path / "old", epochs=2, average=0.0))
    make_old(folder / "config.json")
    (folder / "manifest.json").unlink()
    result = run(["fge", "--out", str(folder), "--resume", "--average", "0.2"])
    assert result.code == 2
    assert result.message.startswith(
        "cannot resume with average 0.2: the run was started with 0.0;"
    )


def test_the_jobs_of_an_old_comparison_are_the_papers(tmp_path: Path) -> None:
    content = {"schema_version": 1, "command": "compare", "options": {"seeds": 2, "epochs": 20}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config, _ = read_config(tmp_path / "config.json", "compare", CompareConfig)
    jobs = Plan(config, tmp_path).jobs(Plan(config, tmp_path).cells)
    for config in (one.config for one in jobs):
        if isinstance(config, FGEConfig | TrainConfig):
            assert config.average == 0.0
        else:
            assert isinstance(config, CurveEnsembleConfig)
            assert config.recipes == ("endpoint", "endpoint")
    assert {one.command for one in jobs} == {"fge", "train", "curve-ensemble"}


@pytest.mark.slow
def test_an_old_file_repeats_an_old_run(data: Path, tmp_path: Path) -> None:
    folder = done("fge", job(data, tmp_path / "old", epochs=2, average=0.0))
    make_old(folder / "config.json")
    (folder / "manifest.json").unlink()
    repeat = {"config": str(folder / "config.json"), "out": str(tmp_path / "again")}
    assert run(flags("fge", repeat)).code == 0
    options = json.loads((tmp_path / "again" / "config.json").read_text())["options"]
    assert options["average"] == 0.0
