"""Which runs a comparison needs, and that they cost what their budget says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fge.compare_config import CompareConfig
from fge.curve_config import CurveEnsembleConfig
from fge.cycle_config import FGEConfig
from fge.method_config import TrainConfig
from fge.plan import Job, Plan, PlannedCell

EVERY = (
    "single",
    "fge",
    "fge+refit",
    "swa",
    "fold",
    "sse",
    "csgld",
    "ema",
    "deep-ensemble",
    "curve-ensemble",
    "curve-ensemble-2B",
)


def make_plan(runs: Path, **options: Any) -> Plan:
    return Plan(CompareConfig(**{"methods": EVERY, "seeds": 3, "epochs": 100, **options}), runs)


def cell_of(plan: Plan, method: str, budget: int = 1, seed: int = 0) -> PlannedCell:
    (found,) = (c for c in plan.cells if (c.method, c.budget, c.seed) == (method, budget, seed))
    return found


def job_names(cell: PlannedCell) -> list[str]:
    return [part.job.name for part in cell.parts]


def trained(jobs: list[Job]) -> int:
    return sum(job.epochs for job in jobs)


def test_every_method_has_a_cell_per_budget_and_seed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budgets=(1, 2))
    found = {(cell.method, cell.budget, cell.seed) for cell in plan.cells}
    places = {(m, b) for m in EVERY for b in (1, 2)} - {("curve-ensemble-2B", 2)}
    assert {(*place, seed) for place in places for seed in range(3)} <= found
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)


def test_deep_ensembles_of_the_singles_are_there_for_the_equivalent(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("fge",), seeds=4)
    sizes = {cell.budget for cell in plan.cells if cell.method == "deep-ensemble"}
    assert sizes == {2, 3, 4}
    reference = [cell for cell in plan.cells if cell.method == "deep-ensemble"]
    assert {job.name for job in plan.jobs(reference)} == {f"fge-e100-s{s}" for s in range(4)}


def test_single_at_one_budget_is_always_there_and_nothing_twice(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("fge", "sse", "fge"), budgets=(1, 2))
    places = {(c.method, c.budget) for c in plan.cells if c.method != "deep-ensemble"}
    assert places == {("single", 1), ("fge", 1), ("fge", 2), ("sse", 1), ("sse", 2)}
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)


def test_lines_of_one_fge_run_share_it(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    cells = [cell_of(plan, m) for m in ("single", "fge", "fge+refit", "swa", "fold")]
    (job,) = plan.jobs(cells)
    assert isinstance(job.config, FGEConfig)
    assert (job.config.single, job.config.refit) == (True, "bezier")
    assert set(job.lines) == {"single", "fge", "fge+refit", "swa", "fold"}
    assert job.epochs == 100 + (100 - job.config.first_cycle_epoch)


def test_without_fge_the_single_network_is_trained_alone(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("sse",))
    (job,) = plan.jobs([cell_of(plan, "single")])
    assert (job.name, job.epochs) == ("single-e100-s0", 100)


def test_a_single_network_that_is_there_is_not_trained_again(tmp_path: Path) -> None:
    (tmp_path / "single-e100-s0").mkdir()
    (tmp_path / "single-e100-s0" / "report.json").write_text("{}")
    plan = make_plan(tmp_path)
    assert job_names(cell_of(plan, "single")) == ["single-e100-s0"]
    assert job_names(cell_of(plan, "single", seed=1)) == ["fge-e100-s1"]


@pytest.mark.parametrize("method", ["single", "sse", "csgld", "ema", "curve-ensemble"])
def test_a_budget_is_used_up_and_not_exceeded(method: str, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=(method,), budgets=(1, 2))
    assert trained(plan.jobs([cell_of(plan, method)])) == 100
    assert trained(plan.jobs([cell_of(plan, method, 2)])) == 200


def test_a_deep_ensemble_splits_one_budget(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, split=3)
    cell = cell_of(plan, "deep-ensemble")
    jobs = plan.jobs([cell])
    assert [job.epochs for job in jobs] == [33, 33, 33]
    assert len({job.config.seed for job in jobs}) == 3
    assert "split among 3" in cell.note


def test_more_budgets_pool_runs_of_other_seeds(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budgets=(1, 2))
    assert job_names(cell_of(plan, "sse", 2, seed=2)) == ["sse-e100-s2", "sse-e100-s0"]
    assert job_names(cell_of(plan, "fge", 2, seed=0)) == ["fge-e100-s0", "fge-e100-s1"]
    assert job_names(cell_of(plan, "deep-ensemble", 2)) == ["fge-e100-s0", "fge-e100-s1"]
    assert job_names(cell_of(plan, "single", 2)) == ["single-e200-s0"]
    assert [cell_of(plan, m, 2).pooled for m in ("sse", "deep-ensemble", "single")] == [2, 2, 1]
    assert [cell_of(plan, m, 1).pooled for m in ("sse", "deep-ensemble", "single")] == [1, 1, 1]


def test_a_curve_ensemble_has_two_parts_in_five_for_each_network(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    (job,) = plan.jobs([cell_of(plan, "curve-ensemble")])
    assert isinstance(job.config, CurveEnsembleConfig)
    assert (job.config.epochs, job.config.fit_epochs) == (40, 20)
    assert (job.config.first, job.config.second) == ("endpoint", "endpoint")


def test_the_curve_of_two_whole_networks_takes_singles_and_counts_them(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    cell = cell_of(plan, "curve-ensemble-2B", seed=2)
    (part,) = cell.parts
    assert [job.name for job in part.job.needs] == ["fge-e100-s2", "fge-e100-s0"]
    assert part.given_epochs == 200
    config = part.job.config
    assert isinstance(config, CurveEnsembleConfig)
    assert config.first_weights == tmp_path / "fge-e100-s2" / "single" / "0001.safetensors"
    assert config.fit_epochs == 50
    names = [job.name for job in plan.jobs([cell])]
    assert names[-1] == "curve-2B-e100-s2"


def test_a_method_of_one_s_own_is_one_job_more(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("mine.module:method",))
    cell = cell_of(plan, "mine.module:method")
    (job,) = plan.jobs([cell])
    assert isinstance(job.config, TrainConfig)
    assert job.config.method == "mine.module:method"
    assert (job.name, job.lines) == ("method-e100-s0", ("method",))
