"""The command ``verify``: whether every file of a run is as it was written, and mending it."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

from fge.config import RUN_COMMANDS, VerifyConfig, program
from fge.errors import UserError
from fge.manifest import Manifest
from fge.observer import counted
from fge.parallel import check_command
from fge.report import ConsoleObserver
from fge.runs import Findings, check_run, inner_runs, repair_run

_SHOWN = 5
"""Files that the run did not write which are named."""


def verify(config: VerifyConfig) -> Findings:
    """Compare every file of a run, and of the runs within it, with its manifest; print the faults.

    With ``--repair``, mend what follows from the rest; a finished run then makes its pages, figures
    and predictions again.

    Raises:
        UserError: there is no run, or files are damaged and were not mended.
    """
    check_command("verify")
    run, observer = config.run, ConsoleObserver()
    if not run.is_dir():
        raise UserError(f"no folder {run}")
    if config.repair:
        _repair(run, observer)
    found = check_run(run)
    for fault in found.faults:
        observer.note(f"{fault.what}; {fault.remedy}")
    if found.others:
        names = ", ".join(os.path.relpath(path, run) for path in found.others[:_SHOWN])
        more = ", ..." if len(found.others) > _SHOWN else ""
        observer.note(f"not of the run, and left alone: {names}{more}")
    if found.faults:
        lost = sum(fault.lost for fault in found.faults)
        mended = len(found.faults) - lost
        hint = f"; --repair mends {mended}" if mended and not config.repair else ""
        raise UserError(
            f"{len(found.faults)} of {counted(found.files, 'file')} of {run} "
            f"{'is' if len(found.faults) == 1 else 'are'} not as written{hint}"
        )
    observer.note(f"{run}: {counted(found.files, 'file')} as written")
    return found


def _repair(run: Path, observer: ConsoleObserver) -> None:
    """Mend a run and the runs within it; those that were finished make again what is missing."""
    finished = _is_finished(run)
    done = list(repair_run(run))
    for line in done:
        observer.note(line)
    for inner in inner_runs(run):
        _repair(inner, observer)
    if done and finished and not check_run(run).faults:
        _make_again(run)


def _is_finished(run: Path) -> bool:
    """Return whether a run had a report, which may be damaged or gone."""
    with contextlib.suppress(UserError):  # a damaged manifest does not say
        manifest = Manifest.read(run)
        if manifest is not None and "report.json" in manifest.files:
            return True
    return os.path.lexists(run / "report.json")


def _make_again(run: Path) -> None:
    """Let the command of a finished run make again what is missing.

    Raises:
        UserError: it could not; the message has its command line.
    """
    manifest = Manifest.read(run)
    command = manifest.command if manifest else ""
    if command not in RUN_COMMANDS:
        return
    from fge.commands.cli import call  # which imports the modules of commands by name

    words = ["--out", str(run), *([] if command == "compare" else ["--resume"])]
    try:
        call(command, words)
    except UserError as error:
        again = shlex.join([*program(), command, *words])
        raise UserError(f"what is missing is not made again by `{again}`: {error}") from None
