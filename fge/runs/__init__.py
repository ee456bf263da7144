"""The run folder, and training in stages with checkpoints."""

from fge.runs.adopting import STREAMS, is_derived, is_exported
from fge.runs.folder import RunFolder, SharedFolder
from fge.runs.opening import RUNS, check_pages, folder_of, is_run, open_pages, open_run_folder
from fge.runs.repair import Fault, Findings, check_run, inner_runs, repair_run
from fge.runs.staged import Probe, StagedTraining, member_name

__all__ = [
    "RUNS",
    "STREAMS",
    "Fault",
    "Findings",
    "Probe",
    "RunFolder",
    "SharedFolder",
    "StagedTraining",
    "check_pages",
    "check_run",
    "folder_of",
    "inner_runs",
    "is_derived",
    "is_exported",
    "is_run",
    "member_name",
    "open_pages",
    "open_run_folder",
    "repair_run",
]
