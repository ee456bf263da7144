"""What a comparison shows: a table on a terminal, plain lines in a file."""

from __future__ import annotations

import io
from pathlib import Path

from made_cells import cell
from rich.console import Console

from fge.commands.compare import ComparisonView
from fge.compare import Plan
from fge.config import CompareConfig
from fge.report import ConsoleObserver


def make_view(folder: Path, *, terminal: bool) -> tuple[ComparisonView, io.StringIO]:
    config = CompareConfig(methods=("sse",), seeds=2, epochs=10)
    plan = Plan(config, folder)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=90, highlight=False, markup=False)
    return ComparisonView(ConsoleObserver(console), plan, folder), out


def test_a_file_gets_a_line_per_run_and_per_cell(tmp_path: Path) -> None:
    view, out = make_view(tmp_path, terminal=False)
    jobs = view.plan.jobs(view.plan.cells)
    with view.shown(jobs):
        view.running([jobs[0].name])
        view.running([jobs[0].name])
        view.job_done(jobs[0])
        view.cell_done(cell("sse", 0, 20, 0.5))
    assert out.getvalue().splitlines()[:2] == [
        f"run {jobs[0].name}: 10 epochs",
        f"run {jobs[0].name} done (1 of 4)",
    ]
    assert out.getvalue().splitlines()[2].startswith("sse, budget 1, seed 0: error ")
    assert len(out.getvalue().splitlines()) == 3


def test_a_terminal_shows_means_so_far_and_how_far_runs_are(tmp_path: Path) -> None:
    view, out = make_view(tmp_path, terminal=True)
    jobs = view.plan.jobs(view.plan.cells)
    network = tmp_path / jobs[0].name / "networks" / "one"
    network.mkdir(parents=True)
    (network / "log.jsonl").write_text('{"event": "epoch", "epoch": 0}\n' * 3)
    (tmp_path / jobs[0].name / "log.jsonl").write_text('{"event": "epoch"}\n{"event": "note"}\n')
    cells = [cell("sse", seed, wrong, 0.5) for seed, wrong in enumerate((10, 12))]
    with view.shown(jobs):
        for one in cells:
            view.cell_done(one)
        view.running([jobs[0].name])
    shown = out.getvalue()
    mean = sum(one.figures["error"] for one in cells) / 2
    assert "Comparison, so far" in shown
    assert f"{mean:.2f}" in shown
    assert "2/2" in shown
    assert "0 of 4 runs done" in shown
    assert f"{jobs[0].name}: 4 of 10 epochs" in shown
