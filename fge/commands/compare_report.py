"""The report of a comparison: tables, figures, verdict, and files for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fge.commands.run import Run
from fge.compare.comparison import Comparison
from fge.compare.figures import CAPTIONS, comparison_figures, comparison_plots
from fge.compare.measure import wall_seconds
from fge.compare.plan import Plan
from fge.compare.tables import as_csv, as_json, tables
from fge.compare.verdict import verdict
from fge.config.compare import CompareConfig
from fge.files import read_records, write_json, write_text
from fge.report.page import (
    FigureSet,
    Page,
    Table,
    markdown_table,
)

FILES = ("compare.json", "compare.csv", "compare.md", "timing.csv", "config.json")


def report_comparison(
    run: Run[CompareConfig], comparison: Comparison, plan: Plan, *, diverged: Sequence[str] = ()
) -> None:
    """Write ``compare.md``, ``.csv`` and ``.json``, the figures and the report page.

    Wall times go into ``timing.csv``, which is outside the reproducibility promise.

    Args:
        run: of the comparison.
        comparison: of all its cells.
        plan: of the cells.
        diverged: names of runs, which are missing; they are named under the first table.
    """
    folder, found, words = run.folder.path, tables(comparison), verdict(comparison)
    content = as_json(comparison)
    if diverged:
        note = f"{found[0].note} Runs that diverged, not in the tables: {', '.join(diverged)}."
        found[0] = replace(found[0], note=note.strip())
        content["diverged"] = list(diverged)
    title = (
        f"{len(comparison.methods)} methods with {run.config.model} on {run.dataset.name}, "
        f"{run.config.seeds} seeds"
    )
    write_json(folder / "compare.json", {**content, "verdict": words})
    write_text(folder / "compare.csv", as_csv(comparison))
    write_text(folder / "compare.md", _markdown(title, words, found))
    write_text(folder / "timing.csv", _times(plan, folder))
    drawn, plots = FigureSet(run.folder.figures), comparison_plots(comparison)
    for name, figure in comparison_figures(comparison).items():
        drawn.add(name, figure, CAPTIONS[name], plots.get(name))
    page = Page(title, words, found, drawn.captions, files=FILES, plots=drawn.plots)
    run.finish(page, content)


def _markdown(title: str, words: str, found: Sequence[Table]) -> str:
    parts = [f"# {title}", words]
    for table in found:
        parts += [f"## {table.title}", markdown_table(table.headings, table.rows), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def _times(plan: Plan, folder: Path) -> str:
    """Return the seconds of training per cell, empty where its runs overlapped with others."""
    records = read_records(folder / "timing.jsonl")
    jobs = [record for record in records if "job" in record]
    lines = ["method,budget,seed,seconds"]
    for cell in plan.cells:
        seconds = wall_seconds(cell, plan.runs, jobs)
        shown = "" if seconds is None else f"{seconds:.1f}"
        lines.append(f"{cell.method},{cell.budget},{cell.seed},{shown}")
    return "\n".join(lines) + "\n"
