"""What every training command does around its work: resume, settle, open, and say how to go on."""

from __future__ import annotations

import errno
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from fge import report
from fge.config import RunConfig, is_factory
from fge.configfile import check_unchanged, keep_settled, read_config, to_options, write_config
from fge.console import ConsoleObserver
from fge.data import Dataset
from fge.errors import UserError
from fge.runfolder import RunFolder, open_run_folder
from fge.setup import load_data, settle_machine, settle_options, settle_speed

C = TypeVar("C", bound=RunConfig)
C_co = TypeVar("C_co", bound=RunConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[C_co]):
    """A run under way: settled options, data on the device, its folder, who is told of it."""

    command: str
    config: C_co
    dataset: Dataset
    folder: RunFolder
    observer: ConsoleObserver
    environment: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        return torch.device(self.config.device)

    def finish(self, page: report.Page, content: dict[str, Any]) -> None:
        """Write the report and show its tables and verdict.

        Args:
            page: what the report shows.
            content: of ``report.json``, beside what it says of every run.
        """
        options = to_options(self.config)
        facts = report.run_facts(self.command, self.config, options, self.dataset, self.environment)
        report.write_report(self.folder, page, {**facts, **content})
        for table in page.tables:
            self.observer.table(table.title, table.headings, table.rows)
        self.observer.note(page.verdict)


def prepare(config: C, command: str) -> tuple[C, Dataset]:
    """Return settled options, those of the run to resume where there is one, and the data.

    Raises:
        UserError: something in options, data or the run to resume that the user can mend.
    """
    config, fingerprint = _resumed(config, command)
    config = settle_machine(config)
    dataset = load_data(config)
    if fingerprint not in (None, dataset.fingerprint):
        raise UserError(f"cannot resume: the images of {config.data} are not those of the run")
    return settle_options(config, dataset), dataset


def _resumed(config: C, command: str) -> tuple[C, str | None]:
    """Return the configuration of the run to resume and the fingerprint of its data."""
    file = config.out / "config.json" if config.out else None
    if not (config.resume and file and file.is_file()):
        return config, None
    saved, content = read_config(file, command, type(config))
    check_unchanged(saved, config)
    return keep_settled(saved, config), str(content.get("dataset", {}).get("sha256"))


def check_kept(config: RunConfig, inputs: Iterable[Path | None]) -> None:
    """Refuse inputs that lie in the run which ``--overwrite`` would remove.

    Raises:
        UserError: naming the first.
    """
    if not (config.overwrite and config.out):
        return
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(config.out.resolve()):
            raise UserError(
                f"{path} lies in {config.out}, which --overwrite removes; copy it elsewhere first"
            )


@contextmanager
def open_run(
    config: C, command: str, dataset: Dataset, model: nn.Module, *, epochs: int
) -> Iterator[Run[C]]:
    """Open the run folder, settle what is measured, and see the run to its end.

    Args:
        config: from :func:`prepare`.
        command: its name.
        dataset: from :func:`prepare`.
        model: moved to the run's device.
        epochs: of training with one model, against which compile time is weighed.

    Raises:
        UserError: the folder is in use, or the disk is full.
        KeyboardInterrupt: after saying how to go on.
    """
    folder = open_run_folder(config.out, command, resume=config.resume, overwrite=config.overwrite)
    started = time.perf_counter()
    with ConsoleObserver() as observer:
        observer.note(f"run folder: {folder.path}")
        try:
            yield _begin(config, command, dataset, model, folder, observer, epochs)
        except KeyboardInterrupt:
            observer.note(f"interrupted; {_how_to_go_on(config, command, folder)}")
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of {folder.path} is full; free some space, then "
                f"{_how_to_go_on(config, command, folder)}"
            ) from error
        seconds = time.perf_counter() - started
        folder.timing({"event": "end", "seconds": round(seconds, 2)})
        observer.note(f"{seconds:.0f} s; report: {folder.path / 'report.html'}")


def _begin(
    config: C,
    command: str,
    dataset: Dataset,
    model: nn.Module,
    folder: RunFolder,
    observer: ConsoleObserver,
    epochs: int,
) -> Run[C]:
    device = torch.device(config.device)
    dataset = dataset.to(device)
    facts = report.dataset_facts(dataset)
    # Written before the measurement too: an interruption there is resumed with these options.
    write_config(folder.config, command, config, dataset=facts)
    config = settle_speed(config, dataset, model.to(device), observer, epochs=epochs)
    write_config(folder.config, command, config, dataset=facts)
    environment = report.environment_facts(device, torch.get_num_threads())
    folder.timing({"event": "begin", "environment": environment})
    return Run(command, config, dataset, folder, observer, environment)


def _how_to_go_on(config: RunConfig, command: str, folder: RunFolder) -> str:
    if not folder.config.exists():
        return "run the command again"
    words = ["python", "cli.py", command, "--out", str(folder.path), "--resume"]
    words += ["--model", config.model] if is_factory(config.model) else []
    return f"go on with: {shlex.join(words)}"
