"""Options of the command that makes report pages anew; see ``fge.config.base`` for the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fge.errors import UserError


@dataclass(frozen=True)
class ReportConfig:
    """Make the report page of a finished run anew, or join those of several on one page."""

    runs: tuple[Path, ...]
    """Run folders."""
    out: Path | None = None
    """Folder of the page; by default that of the run, or for several the next free
    runs/report-NNN."""
    overwrite: bool = False
    """Replace the page in --out."""

    def __post_init__(self) -> None:
        """Check that there are run folders, each once.

        Raises:
            UserError: there are none, or one is given twice.
        """
        if not self.runs:
            raise UserError("give the folder of a finished run, or several: report DIR [DIR ...]")
        places = [run.resolve() for run in self.runs]
        for run, place in zip(self.runs, places, strict=True):
            if places.count(place) > 1:
                raise UserError(f"the run folder {run} is given twice")
