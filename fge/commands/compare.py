"""The command ``compare``: wiring, and nothing else."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fge.commands.build import new_model
from fge.commands.compare_console import ComparisonView
from fge.commands.compare_report import report_comparison
from fge.commands.run import Run, open_run, prepare
from fge.compare.cells import Cell, load_cells
from fge.compare.comparison import compare_cells
from fge.compare.measure import measure_cell
from fge.compare.plan import Job, Plan, PlannedCell
from fge.compare.runner import POLL_SECONDS, Runner
from fge.config.base import is_factory
from fge.config.compare import CompareConfig
from fge.config.saved import read_config
from fge.errors import DivergenceError, UserError
from fge.train.methods import find_method


def compare(config: CompareConfig) -> Path:
    """Run what a comparison lacks, measure it and report; return its folder.

    Under ``torchrun`` the runs are shared out over its ranks, each with a GPU of its own where
    there are any; rank 0 reports.

    Raises:
        UserError: something the user can mend; no file was lost.
        DivergenceError: runs diverged; the report is of the others.
        KeyboardInterrupt: after saying how to go on.
    """
    for method in config.methods:
        if is_factory(method):
            find_method(method)
    rank, ranks = _rank()
    if ranks > 1 and config.out is None:
        raise UserError("under torchrun, compare needs --out, the folder that its ranks share")
    if ranks > 1 and config.overwrite:
        raise UserError("under torchrun, compare takes no --overwrite; remove the folder before")
    exists = config.out is not None and (config.out / "config.json").is_file()
    config = replace(config, resume=exists and not config.overwrite)
    if rank > 0:
        return _take_part(config)
    config, dataset = prepare(config, "compare")
    model = new_model(config, dataset)
    with open_run(config, "compare", dataset, model, epochs=config.epochs) as run:
        plan = Plan(run.config, run.folder.path / "runs")
        cells, diverged = _measure(run, plan)
        if cells:
            found = compare_cells(cells, budget_epochs=run.config.epochs)
            report_comparison(run, found, plan, diverged=list(diverged))
    if diverged:
        first, *others = diverged
        also = f"; {', '.join(others)} diverged too" if others else ""
        raise DivergenceError(f"{diverged[first]}{also}")
    return run.folder.path


def _rank() -> tuple[int, int]:
    """Return this process's rank under torchrun, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _machine(config: CompareConfig) -> dict[str, Any]:
    """Return how this process's jobs run: where, and on how many threads each."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = config.device
    if torch.device(device).type == "cuda" and beside > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    threads = config.threads or 1
    share = max(1, threads // (config.jobs * beside))
    return {"device": device, "threads": share}


def _measure(run: Run[CompareConfig], plan: Plan) -> tuple[list[Cell], dict[str, str]]:
    """Run the jobs behind the cells that are missing.

    Returns:
        the cells of the plan, and by job what diverged: cells that need it are left out.
    """
    folder = run.folder.path / "cells"
    view = ComparisonView(run.observer, plan, run.folder.path / "runs")
    view.cells = plan.measured(load_cells(folder))
    missing = [planned for planned in plan.cells if planned.name not in view.cells]
    jobs = plan.jobs(missing)
    done: set[str] = set()

    def on_done(job: Job) -> None:
        done.add(job.name)
        view.job_done(job)
        for planned in list(missing):
            if {part.job.name for part in planned.parts} <= done:
                missing.remove(planned)
                _measure_cell(run, planned, folder, view)

    with view.shown(jobs):
        runner = Runner(
            run.folder.path,
            workers=run.config.jobs,
            machine=_machine(run.config),
            on_change=view.running,
            on_done=on_done,
        )
        runner.run(jobs)
    cells = [view.cells[cell.name] for cell in plan.cells if cell.name in view.cells]
    return cells, runner.diverged


def _measure_cell(
    run: Run[CompareConfig], planned: PlannedCell, folder: Path, view: ComparisonView
) -> None:
    epochs = run.config.epochs
    cell = measure_cell(planned, run.folder.path, run.dataset, budget_epochs=epochs)
    cell.save(folder)
    view.cell_done(cell)


def _take_part(config: CompareConfig) -> Path:
    """Run jobs of the comparison that rank 0 leads, until none is left; return its folder."""
    assert config.out is not None
    file = config.out / "config.json"
    while not file.is_file():
        time.sleep(POLL_SECONDS)
    while True:
        saved, _ = read_config(file, "compare", CompareConfig)
        if "auto" not in (saved.channels_last, saved.compile, saved.amp):
            break
        time.sleep(POLL_SECONDS)
    saved = replace(
        saved,
        methods=config.methods,
        seeds=config.seeds,
        budgets=config.budgets,
        jobs=config.jobs,
        out=config.out,
    )
    plan = Plan(saved, config.out / "runs")
    runner = Runner(
        config.out,
        workers=config.jobs,
        machine=_machine(saved),
        on_change=lambda _: None,
        on_done=lambda _: None,
    )
    finished = plan.measured(load_cells(config.out / "cells"))
    runner.run(plan.jobs([planned for planned in plan.cells if planned.name not in finished]))
    return config.out
