"""The command that checks and measures everything on a GPU: its smoke run, its clock, its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
ENVIRONMENT = {
    "hardware": "NVIDIA X1",
    "cpu_count": 2,
    "python": "3",
    "torch": "2",
    "torchvision": "0",
}
FAILING = """
import time

def good(plan, report):
    report("answer", plan["number"])

def bad(plan, report):
    report("half", 1)
    raise ValueError("broken here")

def dead(plan, report):
    import os
    os._exit(3)

def slow(plan, report):
    report("begun", True)
    time.sleep(60)
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu as module

    return module


@pytest.fixture
def steps(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs steps of a module made here, and what they left."""
    (tmp_path / "made_steps.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    results = gpu.Results(tmp_path, ENVIRONMENT)

    def run(name: str, seconds: float = 30.0) -> dict[str, Any]:
        step = gpu.Step(name, f"made_steps:{name}", 60, {"number": 7})
        gpu.run_step(step, {"environment": ENVIRONMENT}, results, seconds)
        content = json.loads((tmp_path / "gpu-x1.json").read_text())
        assert (tmp_path / "gpu-x1.md").is_file()
        return dict(content["steps"][name])

    return run


def test_a_step_leaves_what_it_reports(steps: Any) -> None:
    found = steps("good")
    assert (found["status"], found["results"], found["error"]) == ("done", {"answer": 7}, "")


def test_a_step_that_fails_is_reported_with_its_error(steps: Any, tmp_path: Path) -> None:
    found = steps("bad")
    assert (found["status"], found["error"]) == ("failed", "ValueError: broken here")
    assert found["results"] == {"half": 1}
    assert "| bad | failed |" in (tmp_path / "gpu-x1.md").read_text()
    assert "Traceback" in (tmp_path / "gpu-x1.log").read_text()


def test_a_process_that_dies_is_reported(steps: Any) -> None:
    found = steps("dead")
    assert (found["status"], found["error"]) == ("failed", "the process died (exit code 3)")


@pytest.mark.slow
def test_a_step_over_its_time_is_stopped_and_keeps_what_it_found(steps: Any) -> None:
    found = steps("slow", seconds=8.0)
    assert found["status"] == "stopped after 8 s"
    assert found["results"] == {"begun": True}
    assert found["seconds"] < 20


def test_steps_without_time_are_named(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = gpu.argparse.Namespace(minutes=0.01, out=tmp_path)
    plan = {"smoke": True, "environment": ENVIRONMENT}
    assert gpu.run_all(arguments, plan, tmp_path) == 0
    names = ", ".join(step.name for step in gpu.STEPS)
    assert f"no time left for: {names}" in capsys.readouterr().out
    assert f"No time was left for: {names}." in (tmp_path / "gpu-x1.md").read_text()


def test_results_of_an_earlier_call_are_kept(gpu: ModuleType, tmp_path: Path) -> None:
    gpu.Results(tmp_path, ENVIRONMENT).set("paper vgg16", results={"runs": []}, status="done")
    again = gpu.Results(tmp_path, ENVIRONMENT)
    again.set("right", status="done")
    content = json.loads((tmp_path / "gpu-x1.json").read_text())
    assert set(content["steps"]) == {"paper vgg16", "right"}


def test_an_archive_of_jpeg_files_becomes_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_paper

    arrays = gpu_paper.read_archive(gpu_paper.smoke_archive(tmp_path))
    assert arrays["train_images"].shape == (64, 32, 32, 3)
    assert arrays["test_images"].shape == (16, 32, 32, 3)
    assert arrays["train_images"].dtype == np.uint8
    assert arrays["classes"].tolist() == ["class0", "class1"]
    assert np.bincount(arrays["train_labels"]).tolist() == [32, 32]
    # The bright half tells the class: left for class0.
    left = arrays["train_images"][..., :16, :].mean(axis=(1, 2, 3))
    right = arrays["train_images"][..., 16:, :].mean(axis=(1, 2, 3))
    assert ((right > left) == (arrays["train_labels"] == 1)).all()


@pytest.mark.parametrize(
    ("rate", "seconds", "epochs"),
    [(None, 10, 200), (100_000, 200, 200), (50_000, 200, 100), (1_000, 10, None)],
)
def test_the_budget_is_the_largest_part_that_fits(
    monkeypatch: pytest.MonkeyPatch, rate: float | None, seconds: float, epochs: int | None
) -> None:
    """25 s beside 1.2 x 50,000 images an epoch: 145 s for 200 epochs at 100,000 images/s."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_paper

    fast = {} if rate is None else {"results": {"train": {"ours": {"median": rate}}}}
    plan = {"model": "vgg16", "before": {"fast vgg16": fast}, "seconds": seconds}
    assert gpu_paper.affordable_epochs(plan) == epochs


def test_the_share_of_the_time_that_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_steps import busy_share

    assert busy_share([(0, 10)]) == 1.0
    assert busy_share([(8, 10), (0, 4), (2, 5), (3, 4)]) == 0.7


@pytest.mark.slow
def test_the_smoke_run_reaches_every_step(tmp_path: Path) -> None:
    out = tmp_path / "new" / "results"
    command = [sys.executable, "benchmarks/gpu.py", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    (file,) = out.glob("gpu-*.json")
    log = file.with_suffix(".log").read_text()[-3000:]
    assert done.returncode == 0, done.stdout + done.stderr + log
    found = json.loads(file.read_text())["steps"]
    assert {name: step["status"] for name, step in found.items()} == dict.fromkeys(found, "done")
    assert found["right"]["results"]["counts"]["passed"] > 50
    assert set(found["right"]["results"]["counts"]) <= {"passed", "skipped"}
    assert found["fast convnet"]["results"]["train"]["ratio"] > 0
    assert [m["name"] for m in found["paper vgg16"]["results"]["runs"][0]["methods"]] == [
        "single",
        "last-snapshot",
        "fge",
        "swa",
    ]
    page = file.with_suffix(".md").read_text()
    for heading in ("Training", "Evaluation", "Curves", "Top Hessian eigenvalue", "CIFAR-10"):
        assert f"## {heading}" in page
