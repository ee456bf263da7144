"""The command ``compare``: runs the missing jobs, shows their progress, and reports."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.live import Live
from rich.table import Table as LiveTable

from fge.commands.run import Run, check_kept, open_run, prepare
from fge.compare import (
    POLL_SECONDS,
    Cell,
    ClassErrors,
    Comparison,
    Job,
    Plan,
    PlannedCell,
    Runner,
    as_csv,
    as_json,
    caption_of,
    compare_cells,
    comparison_charts,
    comparison_tables,
    comparison_verdict,
    load_cells,
    measure_cell,
    wall_seconds,
)
from fge.config import (
    DEEP_ENSEMBLE,
    FGE,
    METHOD_NAMES,
    OF_AVERAGED_RUN,
    CompareConfig,
    is_factory,
    read_config,
    without_views,
)
from fge.data import default_workers
from fge.disk import read_whole
from fge.errors import DivergenceError, UserError
from fge.files import read_records, write_json, write_text
from fge.locks import is_held
from fge.manifest import LOCK
from fge.observer import Observer, Observers
from fge.report import (
    ConsoleObserver,
    Table,
    csv_text,
    markdown_name,
    markdown_tables,
    markdown_verdict,
)
from fge.tasks import ERROR, Measure
from fge.train import Unused, find_method, unused_epochs

_JOB_THREADS = "job_threads"
"""In ``config.json`` of a comparison: the CPU threads of each of its runs."""
STREAMS = ("timing.jsonl",)
"""Files that every process that takes part writes."""
FILES = ("compare.json", "compare.csv", "compare.md", "timing.csv", "config.json")


def compare(config: CompareConfig) -> Path:
    """Run the missing jobs of a comparison, measure and report them; return its folder.

    Under ``torchrun`` the ranks divide the jobs, each with its own GPU if there are GPUs, and rank
    0 reports. If runs diverge, the report covers the others.

    Raises:
        UserError: an error that the user can fix.
        DivergenceError: runs diverged; raised after the report is written.
    """
    for method in config.methods:
        if is_factory(method):
            find_method(without_views(method))
    rank, ranks = _rank()
    if ranks > 1 and config.out is None:
        raise UserError("under torchrun, compare needs --out, a folder that all ranks use")
    if ranks > 1 and config.overwrite:
        raise UserError("under torchrun, compare takes no --overwrite; remove the folder first")
    exists = config.out is not None and (config.out / "config.json").exists()
    config = replace(config, resume=exists and not config.overwrite)
    if rank > 0 or (config.resume and _is_at_work(config)):
        return _take_part(config)
    check_kept(config, (config.pretrained,))
    config, setup = prepare(config, "compare")
    model = setup.new_model()
    threads = _job_threads(config)
    facts = {_JOB_THREADS: threads}
    frame: dict[str, Any] = {"epochs": config.epochs, "facts": facts, "streams": STREAMS}
    with open_run(config, "compare", setup, model, **frame) as run:
        plan = Plan(run.config, run.folder.path / "runs")
        unused = _unused(run.config)
        for part in unused:
            run.observer.note(part.sentence())
        cells, diverged = _measure(run, plan, threads)
        if cells:
            task, example = run.setup.task, run.dataset.example
            classes = ClassErrors.of(run.dataset)
            cells = classes.balanced(cells) if classes else cells
            comparison = compare_cells(
                cells, budget_epochs=run.config.epochs, task=task, example=example
            )
            report_comparison(run, comparison, plan, diverged=list(diverged), unused=unused)
    if diverged:
        first, *others = diverged
        also = f"; {', '.join(others)} diverged too" if others else ""
        raise DivergenceError(f"{diverged[first]}{also}")
    return run.folder.path


def _is_at_work(config: CompareConfig) -> bool:
    """Return whether another process works on this comparison, which this one then helps."""
    lock = (config.out or Path()) / LOCK
    if not (lock.is_file() and is_held(lock)):
        return False
    ConsoleObserver().note(f"another process reports {config.out}; this one runs jobs of it")
    return True


def _unused(config: CompareConfig) -> list[Unused]:
    """Return the methods whose runs use a part of one budget."""
    found = []
    for name in dict.fromkeys(map(without_views, config.methods)):
        method = "split" if name == DEEP_ENSEMBLE and 1 in config.budgets else name
        method = FGE if name in OF_AVERAGED_RUN else method
        if method in METHOD_NAMES or is_factory(method):
            found.append(unused_epochs(config, find_method(method), name=name))
    return [unused for unused in found if unused is not None]


def _rank() -> tuple[int, int]:
    """Return this process's rank under torchrun, and the number of ranks."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _machine(config: CompareConfig, threads: int) -> dict[str, Any]:
    """Return the device, threads and workers of this process's jobs, which share the cores."""
    device = config.device
    if torch.device(device).type == "cuda" and _local_processes() > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    workers = config.workers
    if workers is None and config.jobs > 1:
        workers = max(1, default_workers() // config.jobs)
    return {"device": device, "threads": threads, "workers": workers}


def _job_threads(config: CompareConfig) -> int:
    """Return the CPU threads of each run: a share of all, or what earlier runs of the folder had.

    Sums depend on the number, so it must not depend on how the runs were shared out.
    """
    if config.resume and config.out is not None:
        _, content = read_config(config.out / "config.json", "compare", CompareConfig)
        if _JOB_THREADS in content:
            return int(content[_JOB_THREADS])
    return max(1, (config.threads or 1) // (config.jobs * _local_processes()))


def _local_processes() -> int:
    """Return how many processes ``torchrun`` started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _measure(
    run: Run[CompareConfig], plan: Plan, threads: int
) -> tuple[list[Cell], dict[str, str]]:
    """Run the jobs of the missing cells, each with so many threads.

    Return the cells of the plan, except those of diverged jobs, and the reason for each of these,
    in the order of the plan, whichever ended first.
    """
    folder = run.folder.path / "cells"
    view = ComparisonView(run.observer, plan, run.folder.path / "runs", run.setup.task.measure)
    view.cells = plan.measured(load_cells(folder))
    missing = [planned for planned in plan.cells if planned.name not in view.cells]
    jobs = plan.jobs(missing)
    if run.folder.manifest is not None:
        run.folder.manifest.note(folders=[f"runs/{job.name}" for job in jobs])
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
            machine=_machine(run.config, threads),
            on_change=view.running,
            on_done=on_done,
        )
        runner.run(jobs)
    cells = [view.cells[cell.name] for cell in plan.cells if cell.name in view.cells]
    diverged = {j.name: runner.diverged[j.name] for j in jobs if j.name in runner.diverged}
    return cells, diverged


def _measure_cell(
    run: Run[CompareConfig], planned: PlannedCell, folder: Path, view: ComparisonView
) -> None:
    epochs = run.config.epochs
    cell = measure_cell(planned, run.folder.path, run.dataset, budget_epochs=epochs)
    cell.save(folder)
    view.cell_done(cell)


def _take_part(config: CompareConfig) -> Path:
    """Run jobs of the comparison of rank 0 until none is left; return its folder."""
    assert config.out is not None
    file = config.out / "config.json"
    while not file.is_file():
        time.sleep(POLL_SECONDS)
    while True:
        saved, content = read_config(file, "compare", CompareConfig)
        if "auto" not in (saved.channels_last, saved.compile, saved.amp, saved.cuda_graphs):
            break
        time.sleep(POLL_SECONDS)
    saved = replace(
        saved,
        methods=config.methods,
        seeds=config.seeds,
        budgets=config.budgets,
        jobs=config.jobs,
        out=config.out,
        tta=saved.tta or config.tta,
    )
    plan = Plan(saved, config.out / "runs")
    runner = Runner(
        config.out,
        workers=config.jobs,
        machine=_machine(saved, int(content.get(_JOB_THREADS) or _job_threads(saved))),
        on_change=lambda _: None,
        on_done=lambda _: None,
    )
    finished = plan.measured(load_cells(config.out / "cells"))
    runner.run(plan.jobs([planned for planned in plan.cells if planned.name not in finished]))
    return config.out


def report_comparison(
    run: Run[CompareConfig],
    comparison: Comparison,
    plan: Plan,
    *,
    diverged: Sequence[str] = (),
    unused: Sequence[Unused] = (),
) -> None:
    """Write ``compare.md``, ``.csv`` and ``.json``, the figures and the report page.

    Wall times go into ``timing.csv``, which is not reproducible. The note of the first table names
    the diverged runs, and the text the methods that do not use the whole budget.
    """
    folder = run.folder.path
    found, words = comparison_tables(comparison), comparison_verdict(comparison)
    words = [*words, *(part.sentence() for part in unused)]
    content = as_json(comparison)
    if classes := ClassErrors.of(run.dataset):
        found += classes.tables(comparison)
        words += classes.sentences(comparison)
        content["classes"] = classes.facts(comparison)
    if unused:
        content["unused_epochs"] = [part.facts() for part in unused]
    if diverged:
        missing = f"These runs diverged and are not in the tables: {', '.join(diverged)}."
        found[0] = replace(found[0], note=f"{found[0].note} {missing}")
        content["diverged"] = list(diverged)
    title = (
        f"{len(comparison.methods)} methods with {run.config.model} on {run.dataset.name}, "
        f"{run.config.seeds} seeds"
    )
    write_json(folder / "compare.json", {**content, "verdict": "\n\n".join(words)})
    write_text(folder / "compare.csv", as_csv(comparison))
    write_text(folder / "compare.md", _markdown(title, words, found))
    write_text(folder / "timing.csv", _times(plan, folder))
    report = run.report
    report.say(*words)
    report.table(*found)
    for name, chart in comparison_charts(comparison).items():
        report.chart(name, chart, caption_of(name))
    report.files[:] = FILES
    report.facts(**content)
    run.finish(title)


def _markdown(title: str, words: Sequence[str], found: Sequence[Table]) -> str:
    parts = [f"# {markdown_name(title)}", *markdown_verdict(words[0], words[1:])]
    return "\n\n".join([*parts, *markdown_tables(found, "##")]) + "\n"


def _times(plan: Plan, folder: Path) -> str:
    """Return the seconds of training per cell as CSV; unknown ones are empty."""
    records = read_records(folder / "timing.jsonl")
    jobs = [record for record in records if record["event"] in ("job begun", "job")]
    lines: list[list[object]] = [["method", "budget", "seed", "seconds"]]
    for cell in plan.cells:
        seconds = wall_seconds(cell, plan.runs, jobs)
        shown = "" if seconds is None else f"{seconds:.1f}"
        lines.append([cell.method, cell.budget, cell.seed, shown])
    return csv_text(lines)


class ComparisonView:
    """Shows the running jobs, with their progress from the logs, and the finished cells."""

    def __init__(
        self, observer: Observer, plan: Plan, runs: Path, measure: Measure = ERROR
    ) -> None:
        self.observer = observer
        self.plan = plan
        self.runs = runs
        self.measure = measure
        self.cells: dict[str, Cell] = {}
        self.jobs: dict[str, Job] = {}
        self.done: set[str] = set()
        self._running: list[str] = []
        self._live: Live | None = None

    @contextmanager
    def shown(self, jobs: Sequence[Job]) -> Iterator[None]:
        """On a terminal, show the table during a ``with`` block."""
        self.jobs = {job.name: job for job in jobs}
        console = _console_of(self.observer)
        if console is None or not console.console.is_terminal:
            yield
            return
        with console.paused(), Live(console=console.console, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def running(self, names: Sequence[str]) -> None:
        """Called with the names of the jobs that run in this process."""
        started = [name for name in names if name not in self._running]
        self._running = list(names)
        if self._live is not None:
            self._live.update(self._table())
            return
        for name in started:
            self.observer.note(f"run {name}: {self.jobs[name].epochs} epochs")

    def job_done(self, job: Job) -> None:
        """Called after each job."""
        self.done.add(job.name)
        if self._live is None:
            self.observer.note(f"run {job.name} done ({len(self.done)} of {len(self.jobs)})")

    def cell_done(self, cell: Cell) -> None:
        """Called after each measured cell."""
        self.cells[cell.name] = cell
        if self._live is None:
            value = self.measure.value.format(cell.figures[self.measure.key])
            self.observer.note(
                f"{cell.method}, budget {cell.budget}, seed {cell.seed}: {self.measure.word} "
                f"{value}, NLL {cell.figures['nll']:.4f}"
            )

    def _table(self) -> LiveTable:
        table = LiveTable(title="Comparison, so far", title_justify="left", caption_justify="left")
        table.add_column("method")
        for heading in ("budget", "seeds", self.measure.word, "NLL"):
            table.add_column(heading, justify="right")
        for method, budget in dict.fromkeys((c.method, c.budget) for c in self.plan.cells):
            table.add_row(method, *self._row(method, budget))
        runs = [f"{len(self.done)} of {len(self.jobs)} runs done"]
        runs += [self._progress(name) for name in self._running]
        table.caption = "\n".join(runs)
        return table

    def _row(self, method: str, budget: int) -> list[str]:
        cells = [c for c in self.cells.values() if (c.method, c.budget) == (method, budget)]
        row = [f"{budget} B", f"{len(cells)}/{self.plan.config.seeds}"]
        for figure, form in ((self.measure.key, self.measure.form), ("nll", "{:.4f}")):
            values = [cell.figures[figure] for cell in cells]
            row.append(form.format(sum(values) / len(values)) if values else "")
        return row

    def _progress(self, name: str) -> str:
        return f"{name}: {self._epochs(name)} of {self.jobs[name].epochs} epochs"

    def _epochs(self, name: str) -> int:
        """Return the number of epochs that a run has logged, its networks and fits included."""
        folder = self.runs / name
        logs = [*folder.glob("log.jsonl"), *folder.glob("networks/*/log.jsonl")]
        logs += folder.glob("curves/*/fit.jsonl")
        # The run that writes it may be ahead of its manifest: only its data count here.
        return sum(read_whole(log).count(b'"event": "epoch"') for log in logs)


def _console_of(observer: Observer) -> ConsoleObserver | None:
    """Return the console among the observers, or None."""
    observers = observer.observers if isinstance(observer, Observers) else (observer,)
    return next((o for o in observers if isinstance(o, ConsoleObserver)), None)
