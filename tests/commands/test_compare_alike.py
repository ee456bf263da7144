"""A comparison computes the same however its runs are shared out, and whichever ends first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PLAIN

from fge.commands import compare as compare_module
from fge.commands.baseline import baseline_config
from fge.commands.compare import _job_threads, _measure, _take_part
from fge.compare import Job, Plan
from fge.config import CompareConfig, FGEConfig, write_config
from fge.config.compare import COMPARED
from fge.observer import Observer
from fge.tasks import MANY_CLASSES

CHOSEN: dict[str, Any] = {
    "channels_last": "on",
    "amp": "bf16",
    "compile": "off",
    "cuda_graphs": "off",
}
CONFIG = CompareConfig(
    **{**PLAIN, **CHOSEN, "threads": 4, "device": "cpu"},
    methods=("single", "fge", "swa", "sse"),
    seeds=2,
    epochs=8,
)


class Idle:
    """Runs nothing: remembers what it was to run, and with which threads."""

    made: list[Idle]

    def __init__(self, _folder: Path, *, machine: dict[str, Any], **_: Any) -> None:
        self.machine = machine
        self.jobs: list[Job] = []
        self.diverged: dict[str, str] = {}
        Idle.made.append(self)

    def run(self, jobs: list[Job]) -> None:
        """The last of the jobs diverges first."""
        self.jobs = jobs
        self.diverged = {job.name: "the loss is nan" for job in reversed(jobs)}


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> list[Idle]:
    Idle.made = []
    monkeypatch.setattr(compare_module, "Runner", Idle)
    return Idle.made


def test_diverged_runs_are_named_in_the_order_of_the_plan(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(
        observer=Observer(),
        folder=SimpleNamespace(path=tmp_path, manifest=None),
        config=CONFIG,
        setup=SimpleNamespace(task=MANY_CLASSES),
    )
    plan = Plan(CONFIG, tmp_path / "runs")
    cells, diverged = _measure(run, plan, 1)
    assert cells == []
    assert list(diverged) == [job.name for job in plan.jobs(plan.cells)]
    assert len(diverged) > 3


def test_all_runs_have_the_one_choice_of_the_comparison(tmp_path: Path) -> None:
    plan = Plan(replace(CONFIG, methods=COMPARED, epochs=40), tmp_path / "runs")
    jobs = plan.jobs(plan.cells)
    assert {job.command for job in jobs} == {"fge", "train", "curve-ensemble"}
    for job in jobs:
        assert {name: getattr(job.config, name) for name in CHOSEN} == CHOSEN
    fge = FGEConfig(baseline="auto", **CHOSEN)
    assert {name: getattr(baseline_config(fge), name) for name in CHOSEN} == CHOSEN


def test_another_rank_waits_until_all_four_are_chosen(
    tmp_path: Path, idle: list[Idle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA graphs alone may be open, where the other three are given."""
    file = tmp_path / "config.json"
    write_config(file, "compare", replace(CONFIG, cuda_graphs="auto"), job_threads=3)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        write_config(file, "compare", replace(CONFIG, cuda_graphs="on"), job_threads=3)

    monkeypatch.setattr("time.sleep", sleep)
    _take_part(replace(CONFIG, out=tmp_path, cuda_graphs="auto"))
    (runner,) = idle
    assert len(waited) == 1
    assert {getattr(job.config, "cuda_graphs", None) for job in runner.jobs} == {"on"}
    assert runner.machine == {"device": "cpu", "threads": 3, "workers": None}


def test_runs_keep_their_threads_however_many_run_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = replace(CONFIG, out=tmp_path, jobs=2)
    assert _job_threads(begun) == 2
    write_config(tmp_path / "config.json", "compare", begun, job_threads=2)
    for jobs, processes in ((1, 1), (4, 1), (1, 4)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert _job_threads(replace(begun, jobs=jobs, resume=True)) == 2
    assert _job_threads(begun) == 1  # it begins: 4 processes with 2 jobs each, for 4 threads


def test_a_comparison_begun_before_threads_were_kept_shares_them_out(tmp_path: Path) -> None:
    begun = replace(CONFIG, out=tmp_path, jobs=2, resume=True)
    write_config(tmp_path / "config.json", "compare", begun)
    assert _job_threads(begun) == 2


def test_runs_at_the_same_time_share_the_cores_for_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare_module, "default_workers", lambda: 7)
    for jobs, given, expected in ((1, None, None), (2, None, 3), (9, None, 1), (2, 5, 5)):
        config = replace(CONFIG, jobs=jobs, workers=given)
        assert compare_module._machine(config, 1)["workers"] == expected
