"""The run folder, and training in stages with checkpoints."""

from fge.runs.adopting import STREAMS, is_derived
from fge.runs.folder import RunFolder, SharedFolder
from fge.runs.opening import is_run, open_pages, open_run_folder
from fge.runs.staged import Probe, StagedTraining, member_name

__all__ = [
    "STREAMS",
    "Probe",
    "RunFolder",
    "SharedFolder",
    "StagedTraining",
    "is_derived",
    "is_run",
    "member_name",
    "open_pages",
    "open_run_folder",
]
