"""Which runs a comparison needs, and that they cost what their budget says."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tiny_npz
from made_cells import cell

from fge.commands.build import settle_options
from fge.commands.refit import fit_plan
from fge.compare import Cell, Job, Plan, PlannedCell
from fge.config import (
    METHOD_NAMES,
    CompareConfig,
    CurveEnsembleConfig,
    FGEConfig,
    TrainConfig,
    check_used,
)
from fge.config.compare import COMPARED
from fge.data import load_dataset
from fge.errors import UserError
from fge.train import METHODS, Method

PAPERS = (
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
"""Methods of which one run has several lines where nothing is averaged."""


def make_plan(runs: Path, **options: Any) -> Plan:
    values = {"methods": PAPERS, "seeds": 3, "epochs": 100, "average": 0.0, **options}
    return Plan(CompareConfig(**values), runs)


def averaged_plan(runs: Path, **options: Any) -> Plan:
    return make_plan(runs, **{"methods": COMPARED, "average": None, **options})


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
    places = {(m, b) for m in PAPERS for b in (1, 2)} - {("curve-ensemble-2B", 2)}
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
    plan = averaged_plan(tmp_path)
    (job,) = plan.jobs([cell_of(plan, "curve-ensemble")])
    assert isinstance(job.config, CurveEnsembleConfig)
    assert (job.config.epochs, job.config.fit_epochs) == (40, 20)
    assert (job.config.first, job.config.second) == ("average", "average")
    plan = make_plan(tmp_path, average=0.0)
    (job,) = plan.jobs([cell_of(plan, "curve-ensemble")])
    assert isinstance(job.config, CurveEnsembleConfig)


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
    assert names[-1] == "curve-2B-e100-s2-s0"
    more = cell_of(make_plan(tmp_path, seeds=4), "curve-ensemble-2B", seed=2)
    assert job_names(more) == ["curve-2B-e100-s2-s3"]


@pytest.fixture
def own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, attribute in (("mine.module", "method"), ("a", "fge"), ("b", "fge")):
        made = types.ModuleType(module)
        method = Method("called-mine", "conventional training", METHODS["single"].stages)
        setattr(made, attribute, method)
        monkeypatch.setitem(sys.modules, module, made)


@pytest.mark.usefixtures("own_methods")
def test_a_method_of_one_s_own_is_one_job_more(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("mine.module:method",))
    cell = cell_of(plan, "mine.module:method")
    (job,) = plan.jobs([cell])
    assert isinstance(job.config, TrainConfig)
    assert job.config.method == "mine.module:method"
    assert (job.name, job.lines) == ("mine.module%3Amethod-e100-s0", ("called-mine",))
    assert [part.line for part in cell.parts] == ["called-mine"]


@pytest.mark.usefixtures("own_methods")
def test_methods_of_one_name_in_several_modules_share_no_run(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("fge", "a:fge", "b:fge"))
    cells = [cell_of(plan, method) for method in ("fge", "a:fge", "b:fge")]
    names = ["fge-e100-s0", "a%3Afge-e100-s0", "b%3Afge-e100-s0"]
    assert [job.name for job in plan.jobs(cells)] == names
    assert len({cell.name for cell in cells}) == 3


def made_of(planned: PlannedCell, **changes: Any) -> Cell:
    made = cell(planned.method, planned.seed, 1, budget=planned.budget)
    return replace(made, parts=planned.part_names, pooled=planned.pooled, **changes)


@pytest.mark.parametrize("place", [("deep-ensemble", 2), ("sse", 2), ("curve-ensemble-2B", 1)])
def test_a_pool_that_went_round_fewer_seeds_is_measured_anew(
    place: tuple[str, int], tmp_path: Path
) -> None:
    two, three = (make_plan(tmp_path, seeds=n, budgets=(1, 2)) for n in (2, 3))
    cells = [made_of(cell_of(two, *place, seed=seed)) for seed in (0, 1)]
    assert set(two.measured(cells)) == {one.name for one in cells}
    assert set(three.measured(cells)) == {cells[0].name}  # that of seed 1 went on with seed 0


def test_cells_without_their_parts_are_known_where_they_pool_nothing(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budgets=(1, 2))
    alone = [cell_of(plan, method) for method in ("single", "fge", "deep-ensemble")]
    pooled = [cell_of(plan, "sse", 2), cell_of(plan, "curve-ensemble-2B")]
    cells = [made_of(planned) for planned in (*alone, *pooled)]
    assert len(plan.measured(cells)) == 5
    older = [replace(one, parts=()) for one in cells]
    assert set(plan.measured(older)) == {planned.name for planned in alone}


def test_a_single_network_is_the_same_part_wherever_it_was_trained(tmp_path: Path) -> None:
    alone, beside = (make_plan(tmp_path, methods=(method,)) for method in ("sse", "fge"))
    jobs = [job_names(cell_of(plan, "single")) for plan in (alone, beside)]
    assert jobs == [["single-e100-s0"], ["fge-e100-s0"]]
    for place in (("single", 1), ("deep-ensemble", 2)):
        names = [cell_of(plan, *place).part_names for plan in (alone, beside)]
        assert names[0] == names[1]
    assert cell_of(beside, "fge").part_names == ("fge-e100-s0",)


@pytest.mark.parametrize("options", [{}, {"start_epoch": 0, "cycle_epochs": 2}])
def test_the_least_budget_of_fge_refit_has_a_line_within_it(
    options: dict[str, int], tmp_path: Path
) -> None:
    """As a run counts: two snapshots and the fit between them (see ``fge.commands.refit``)."""
    with pytest.raises(UserError, match="needs epochs >= ") as caught:
        make_plan(tmp_path, methods=("fge+refit",), epochs=1, **options)
    least = int(re.findall(r">= (\d+)", str(caught.value))[0])
    plan = make_plan(tmp_path, methods=("fge+refit",), epochs=least, **options)
    (part,) = cell_of(plan, "fge+refit").parts
    config = part.job.config
    assert isinstance(config, FGEConfig)
    second = config.first_cycle_epoch + config.cycle_length // 2 + config.cycle_length
    assert second + fit_plan(config).epochs <= least


def test_from_given_weights_each_method_is_trained_from_them(tmp_path: Path) -> None:
    methods = ("single", "fge", "fge-paper", "swa", "split", "curve-ensemble")
    plan = averaged_plan(tmp_path, methods=methods, freeze="^0", pretrained=Path("w.safetensors"))
    jobs = {job.name: job for job in plan.jobs(plan.cells) if job.name.endswith("s0")}
    assert set(jobs) == {
        *("single-e100-s0", "fge-avg-e100-s0", "fge-e100-s0", "split-e100-s0"),
        "curve-e100-s0",
    }
    assert {getattr(job.config, "freeze", None) for job in jobs.values()} == {"^0"}
    assert {getattr(job.config, "pretrained", None) for job in jobs.values()} == {
        Path("w.safetensors")
    }
    paper = jobs["fge-e100-s0"]
    assert isinstance(paper.config, FGEConfig)
    assert (paper.config.single, paper.config.first_cycle_epoch) == (False, 0)
    assert set(paper.lines) == {"fge", "swa"}


@pytest.mark.parametrize(
    ("options", "penalty"),
    [
        ({}, 5e-4),
        ({"optimizer": "adamw", "weight_decay": 0.1}, 5e-4),
        ({"optimizer": "adam", "weight_decay": 0.1, "lr": 1e-3}, 0.1),
        ({"weight_decay": 0.1, "mixup": 0.2, "class_weights": "balanced", "clip_norm": 1.0}, 0.1),
        ({"backbone_lr": 0.01, "warmup_epochs": 1.0, "accumulate": 2}, 5e-4),
    ],
)
def test_a_curve_between_single_networks_has_no_options_of_their_training(
    tmp_path: Path, options: dict[str, Any], penalty: float
) -> None:
    """The command would refuse them; what the fit uses stays."""
    given: dict[str, Any] = {"pretrained": Path("w.safetensors"), "freeze": "^0"}
    plan = averaged_plan(tmp_path, methods=("curve-ensemble-2B",), **given, **options)
    (part,) = cell_of(plan, "curve-ensemble-2B").parts
    config = part.job.config
    assert isinstance(config, CurveEnsembleConfig)
    check_used(config)
    assert (config.l2_penalty, config.pretrained, config.freeze) == (penalty, None, "^0")
    assert {needed.config.pretrained for needed in part.job.needs} == {given["pretrained"]}  # type: ignore[attr-defined]


# ----------------------------------------------------------------------- test-time augmentation

VIEWED = ("single", "single+tta", "fge+tta", "swa", "sse", "sse+tta", "deep-ensemble+tta", "ema")


def test_a_method_with_views_is_another_line_of_the_same_run(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=VIEWED, budgets=(1, 2), tta=3)
    for place in (("single", 1), ("sse", 1), ("sse", 2), ("deep-ensemble", 2), ("single", 2)):
        plain, viewed = (cell_of(plan, f"{place[0]}{end}", place[1]) for end in ("", "+tta"))
        assert job_names(viewed) == job_names(plain)
        assert [part.line for part in viewed.parts] == [f"{part.line}+tta" for part in plain.parts]
        assert (viewed.part_names, viewed.pooled) == (plain.part_names, plain.pooled)
        assert viewed.note.endswith("3 views of each image")
    names = {cell.method for cell in plan.cells}
    assert names == {*VIEWED, "deep-ensemble"}


def test_only_runs_with_such_a_line_predict_views(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=VIEWED, seeds=2, tta=3)
    jobs = {job.name: job for job in plan.jobs(plan.cells)}
    views = {name: getattr(job.config, "tta", None) for name, job in jobs.items()}
    assert {views[f"{run}-e100-s{seed}"] for run in ("fge", "sse") for seed in (0, 1)} == {3}
    assert {views[f"ema-e100-s{seed}"] for seed in (0, 1)} == {None}
    assert views["single-e50-s1.1"] == 3
    assert set(jobs["fge-e100-s0"].lines) == {"single", "fge", "swa", "single+tta", "fge+tta"}
    assert jobs["sse-e100-s0"].lines == ("sse", "sse+tta")
    assert len(jobs) == len({job.name for job in plan.jobs(plan.cells)})
    reverse = {job.name: job for job in plan.jobs(plan.cells[::-1])}
    assert {name: (job.config, set(job.lines)) for name, job in reverse.items()} == {
        name: (job.config, set(job.lines)) for name, job in jobs.items()
    }


@pytest.mark.usefixtures("own_methods")
def test_a_method_of_one_s_own_can_have_views(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("mine.module:method+tta",), tta=2)
    (part,) = cell_of(plan, "mine.module:method+tta").parts
    assert (part.line, part.job.lines) == ("called-mine+tta", ("called-mine+tta",))
    assert isinstance(part.job.config, TrainConfig)
    assert (part.job.config.method, part.job.config.tta) == ("mine.module:method", 2)


def test_averages_come_from_a_run_of_their_own(tmp_path: Path) -> None:
    plan = averaged_plan(tmp_path)
    averaged = [cell_of(plan, method) for method in ("fge", "fold", "fge+refit")]
    (job,) = plan.jobs(averaged)
    config = job.config
    assert isinstance(config, FGEConfig)
    assert (job.name, job.command) == ("fge-avg-e100-s0", "fge")
    assert (config.average, config.average_part, config.single) == (None, 0.2, False)
    assert (config.refit, config.val_fraction) == ("bezier", CompareConfig().val_fraction)
    assert set(job.lines) == {"fge", "fold", "fge+refit"}
    assert job.epochs == config.last_cycle_epoch <= 100
    assert [cell.part_names for cell in averaged] == [
        ("fge-avg-e100-s0",),
        ("fold-avg-e100-s0",),
        ("fge+refit-avg-e100-s0",),
    ]


def test_the_papers_methods_come_from_a_run_as_published(tmp_path: Path) -> None:
    plan = averaged_plan(tmp_path)
    cells = [cell_of(plan, method) for method in ("single", "fge-paper", "swa")]
    (job,) = plan.jobs(cells)
    config = job.config
    assert isinstance(config, FGEConfig)
    assert (job.name, config.average, config.single, config.refit) == (
        "fge-e100-s0",
        0.0,
        True,
        None,
    )
    assert set(job.lines) == {"single", "fge", "swa"}
    assert [part.line for cell in cells for part in cell.parts] == ["single", "fge", "swa"]
    assert cells[1].part_names == ("fge-e100-s0",)
    assert job.epochs == 100 + (100 - config.first_cycle_epoch)


def test_the_cycles_of_averages_are_not_the_papers(tmp_path: Path) -> None:
    """What a comparison settles leaves rates and lengths of the cycles to its runs."""
    dataset = load_dataset(str(write_tiny_npz(tmp_path / "tiny.npz")))
    settled = settle_options(CompareConfig(methods=COMPARED, seeds=2, epochs=100), dataset)
    plan = Plan(settled, tmp_path)
    paper, averaged = (cell_of(plan, m).parts[0].job.config for m in ("fge-paper", "fge"))
    assert isinstance(paper, FGEConfig)
    assert isinstance(averaged, FGEConfig)
    assert (paper.cycle_lrs.max_lr, paper.cycle_lrs.min_lr) == (0.05, 0.001)
    assert (averaged.cycle_lrs.max_lr, averaged.cycle_lrs.min_lr) == pytest.approx((0.1, 0.01))
    assert (paper.cycle_length, paper.first_cycle_epoch) == (10, 75)
    assert (averaged.cycle_length, averaged.first_cycle_epoch) == (20, 50)
    given = replace(settled, cycle_epochs=4)
    for method in ("fge-paper", "fge"):
        config = cell_of(Plan(given, tmp_path), method).parts[0].job.config
        assert isinstance(config, FGEConfig)
        assert config.cycle_length == 4


def test_without_averages_the_paper_s_run_is_that_of_fge(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, methods=("fge", "fge-paper", "swa"))
    (job,) = plan.jobs([cell_of(plan, m) for m in ("single", "fge", "fge-paper", "swa")])
    assert (job.name, set(job.lines)) == ("fge-e100-s0", {"single", "fge", "swa"})
    assert cell_of(plan, "fge-paper").parts == cell_of(plan, "fge").parts


@pytest.mark.parametrize(
    "method", sorted(set(METHOD_NAMES) - {"single", "fge", "fge-paper", "swa"})
)
def test_the_other_methods_are_trained_each_by_itself(method: str, tmp_path: Path) -> None:
    plan = averaged_plan(tmp_path, budgets=(1, 2))
    (job,) = plan.jobs([cell_of(plan, method)])
    assert isinstance(job.config, TrainConfig)
    assert (job.config.method, job.config.average) == (method, None)
    assert (job.name, job.lines, job.epochs) == (f"{method}-e100-s0", (method,), 100)
    more = job_names(cell_of(plan, method, 2))
    longer = method in ("average", "auto")
    assert more == ([f"{method}-e200-s0"] if longer else [f"{method}-e100-s{s}" for s in (0, 1)])


def test_averages_need_no_single_network_of_the_paper_s_run(tmp_path: Path) -> None:
    plan = averaged_plan(tmp_path, methods=("fge",))
    assert job_names(cell_of(plan, "single")) == ["single-e100-s0"]
    plan = averaged_plan(tmp_path, methods=("fge", "swa"))
    assert job_names(cell_of(plan, "single")) == ["fge-e100-s0"]


def test_averages_are_pooled_beside_single_networks(tmp_path: Path) -> None:
    plan = averaged_plan(tmp_path, methods=("fge", "average"), seeds=3)
    pools = {(c.method, c.budget) for c in plan.cells if c.method.startswith("deep-ensemble")}
    assert pools == {(m, k) for m in ("deep-ensemble", "deep-ensemble-averaged") for k in (2, 3)}
    pool = cell_of(plan, "deep-ensemble-averaged", 2, seed=2)
    assert job_names(pool) == ["average-e100-s2", "average-e100-s0"]
    assert (pool.pooled, pool.note) == (
        2,
        "the averages again; 2 runs pooled; each is in 2 pools",
    )
    without = averaged_plan(tmp_path, methods=("fge",))
    assert not any(c.method == "deep-ensemble-averaged" for c in without.cells)


def test_averages_that_are_only_pooled_are_measured_alone_too(tmp_path: Path) -> None:
    plan = averaged_plan(tmp_path, methods=("deep-ensemble-averaged",), budgets=(1, 2))
    places = {(c.method, c.budget) for c in plan.cells}
    assert ("average", 1) in places
    assert ("deep-ensemble-averaged", 1) not in places  # that is the method split
    assert ("deep-ensemble-averaged", 2) in places
