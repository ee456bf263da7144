"""The run folder, and training in stages with checkpoints."""

from fge.runs.folder import RunFolder, SharedFolder, open_run_folder
from fge.runs.staged import Probe, StagedTraining, member_name

__all__ = [
    "Probe",
    "RunFolder",
    "SharedFolder",
    "StagedTraining",
    "member_name",
    "open_run_folder",
]
