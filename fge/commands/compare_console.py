"""What a comparison shows while it goes: a live table on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.live import Live
from rich.table import Table

from fge.compare.cells import Cell
from fge.compare.plan import Job, Plan
from fge.observer import Observer, Observers
from fge.report.console import ConsoleObserver


class ComparisonView:
    """Tells which runs are under way and what the cells that are done came to.

    Args:
        observer: of the comparison.
        plan: of the comparison.
        runs: the folder of the runs, whose logs are counted.
    """

    def __init__(self, observer: Observer, plan: Plan, runs: Path) -> None:
        self.observer = observer
        self.plan = plan
        self.runs = runs
        self.cells: dict[str, Cell] = {}
        self.jobs: dict[str, Job] = {}
        self.done: set[str] = set()
        self._running: list[str] = []
        self._live: Live | None = None

    @contextmanager
    def shown(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Show the table, on a terminal, while the block runs."""
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
        """Hear which jobs run in this process."""
        begun = [name for name in names if name not in self._running]
        self._running = list(names)
        if self._live is not None:
            self._live.update(self._table())
            return
        for name in begun:
            self.observer.note(f"run {name}: {self.jobs[name].epochs} epochs")

    def job_done(self, job: Job) -> None:
        """Hear that a job is done."""
        self.done.add(job.name)
        if self._live is None:
            self.observer.note(f"run {job.name} done ({len(self.done)} of {len(self.jobs)})")

    def cell_done(self, cell: Cell) -> None:
        """Hear that a cell is measured."""
        self.cells[cell.name] = cell
        if self._live is None:
            self.observer.note(
                f"{cell.method}, budget {cell.budget}, seed {cell.seed}: error "
                f"{cell.figures['error']:.2f} %, NLL {cell.figures['nll']:.4f}"
            )

    def _table(self) -> Table:
        table = Table(title="Comparison, so far", title_justify="left", caption_justify="left")
        table.add_column("method")
        for heading in ("budget", "seeds", "error", "NLL"):
            table.add_column(heading, justify="right")
        for method, budget in dict.fromkeys((c.method, c.budget) for c in self.plan.cells):
            table.add_row(method, *self._row(method, budget))
        runs = [f"{len(self.done)} of {len(self.jobs)} runs done"]
        runs += [self._progress(name) for name in self._running]
        table.caption = "\n".join(runs)
        return table

    def _row(self, method: str, budget: int) -> list[str]:
        found = [c for c in self.cells.values() if (c.method, c.budget) == (method, budget)]
        row = [f"{budget} B", f"{len(found)}/{self.plan.config.seeds}"]
        for figure, form in (("error", "{:.2f}"), ("nll", "{:.4f}")):
            values = [cell.figures[figure] for cell in found]
            row.append(form.format(sum(values) / len(values)) if values else "")
        return row

    def _progress(self, name: str) -> str:
        return f"{name}: {self._epochs(name)} of {self.jobs[name].epochs} epochs"

    def _epochs(self, name: str) -> int:
        """Return the epochs that a run has logged so far, its networks and fits included."""
        folder = self.runs / name
        logs = [*folder.glob("log.jsonl"), *folder.glob("networks/*/log.jsonl")]
        logs += folder.glob("curves/*/fit.jsonl")
        return sum(log.read_text(encoding="utf-8").count('"event": "epoch"') for log in logs)


def _console_of(observer: Observer) -> ConsoleObserver | None:
    """Return the console among those who are told."""
    told = observer.observers if isinstance(observer, Observers) else (observer,)
    return next((one for one in told if isinstance(one, ConsoleObserver)), None)
