"""Methods at equal budgets: plan, runner, statistics, tables, verdict."""

from fge.compare.cells import Cell, Cost, load_cells, make_cell
from fge.compare.classes import ClassErrors
from fge.compare.comparison import Best, Comparison, compare_cells
from fge.compare.figures import CAPTIONS, caption_of, comparison_charts
from fge.compare.measure import measure_cell, wall_seconds
from fge.compare.plan import Job, Plan, PlannedCell
from fge.compare.runner import POLL_SECONDS, Runner
from fge.compare.tables import as_csv, as_json, comparison_tables
from fge.compare.verdict import comparison_verdict

__all__ = [
    "CAPTIONS",
    "POLL_SECONDS",
    "Best",
    "Cell",
    "ClassErrors",
    "Comparison",
    "Cost",
    "Job",
    "Plan",
    "PlannedCell",
    "Runner",
    "as_csv",
    "as_json",
    "caption_of",
    "compare_cells",
    "comparison_charts",
    "comparison_tables",
    "comparison_verdict",
    "load_cells",
    "make_cell",
    "measure_cell",
    "wall_seconds",
]
