"""The frame of every training command: resuming, settling options, opening the run folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from fge.commands.build import Setup, settle_machine, settle_options, settle_speed
from fge.commands.loading import load_data
from fge.config import (
    CommandConfig,
    FitConfig,
    TrainingConfig,
    check_unchanged,
    from_options,
    keep_settled,
    own_code,
    program,
    read_config,
    suited,
    to_options,
    write_config,
)
from fge.data import DOWNLOADED, Dataset, download_note
from fge.devices import enough_memory
from fge.errors import UserError
from fge.observer import Observer, Observers, counted
from fge.parallel import Ranks, default_ranks, join, leave, started_processes
from fge.report import (
    ConsoleObserver,
    ReportBuilder,
    TensorBoardObserver,
    check_tensorboard,
    dataset_facts,
    environment_facts,
    run_facts,
)
from fge.runs import RUNS, STREAMS, RunFolder, SharedFolder, open_run_folder

_LESS_MEMORY = (
    "use a smaller --batch-size or --eval-batch-size, with --overwrite or another --out (they "
    "cannot change when a run is resumed)"
)

C = TypeVar("C", bound=CommandConfig)
C_co = TypeVar("C_co", bound=CommandConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[C_co]):
    """The current run: settled options, data, folder, report, observer and processes."""

    command: str
    config: C_co
    setup: Setup
    folder: RunFolder
    observer: Observer
    environment: dict[str, Any]
    ranks: Ranks
    report: ReportBuilder

    @property
    def dataset(self) -> Dataset:
        """The data, on the device of the run."""
        return self.setup.dataset

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        return torch.device(self.config.device)

    def finish(self, title: str) -> None:
        """Write the report under a title, and show its tables and verdict."""
        options = to_options(self.config)
        facts = run_facts(self.command, options, self.dataset, self.environment)
        page = self.report.write(title, facts)
        for table in page.tables:
            self.observer.table(table.title, table.headings, table.rows)
        self.observer.note(page.verdict)


def prepare(config: C, command: str) -> tuple[C, Setup]:
    """Return the settled options and their setup; a resumed run keeps its own options.

    Processes that ``torchrun`` started are joined first.
    """
    ranks = join(command)
    with ranks.together():
        if _wants_tensorboard(config):
            check_tensorboard(config.out)
        config, facts = _resumed(suited(config), command, ranks)
        config = settle_machine(suited(config), ranks)
        if isinstance(config, FitConfig):
            ranks.check_batch_size(config.batch_size)
        config = _with_data_dir(config, ranks)
        dataset = load_data(config)
        if ranks.leads:
            _tell(dataset)
        repaired = _check_images(config, dataset, facts)
        if repaired and ranks.leads:
            ConsoleObserver().note(repaired)
    images = ranks.first(lambda: dataset.fingerprint)
    with ranks.together():
        if images != dataset.fingerprint:
            different = f"different {dataset.example}s"
            raise UserError(f"process {ranks.rank} finds {different} in {config.data}")
    config = settle_options(config, dataset)
    return config, Setup.of(config, dataset)


def _tell(dataset: Dataset) -> None:
    """Print what a user should know of the data: which images validate, which files are skipped."""
    observer = ConsoleObserver()
    for note in dataset.notes:
        observer.note(note)


def _resumed(config: C, command: str, ranks: Ranks) -> tuple[C, dict[str, Any]]:
    """Return the configuration of the run to resume and its facts about the data."""
    file = config.out / "config.json" if config.out else None
    if not (config.resume and file and file.exists()):
        return config, {}
    saved, content = read_config(file, command, type(config))
    check_unchanged(saved, config)
    before, now = content.get("processes", 1), ranks.size
    if before != now:
        raise UserError(
            f"cannot resume with {now} processes: the run was started with {before}; "
            "start the same number (with torchrun if more than one)"
        )
    return keep_settled(saved, config), {"sha256": None, **(content.get("dataset") or {})}


def _with_data_dir(config: C, ranks: Ranks) -> C:
    """Record the folder of downloaded data, so that a run resumed from elsewhere finds it."""
    folder = config.data_dir or Path("data")
    downloaded = False
    for name in (config.data, *(config.ood if isinstance(config, TrainingConfig) else ())):
        downloaded |= name in DOWNLOADED
        note = download_note(name, folder)
        if note and ranks.leads:
            ConsoleObserver().note(note)
    return replace(config, data_dir=folder) if downloaded else config


def _check_images(config: CommandConfig, dataset: Dataset, facts: dict[str, Any]) -> str:
    """Check that the images are those of the run to resume, which its ``facts`` describe.

    Streamed ones may be repaired, which is returned as a line for the user.
    """
    repaired = ""
    if facts and facts["sha256"] != dataset.fingerprint:
        names = facts.get("names_sha256")
        if names is None or names != dataset.names_fingerprint:
            raise _other_images(str(config.data), dataset.example)
        repaired = "data: files have other sizes than at the start; they are taken to be repaired"
    for name, known in facts.get("ood", {}).items():
        if name not in dataset.ood or dataset.ood[name].fingerprint != known["sha256"]:
            raise _other_images(f"--ood {name}")
    return repaired


def _other_images(source: str, example: str = "image") -> UserError:
    return UserError(
        f"cannot resume: the {example}s of {source} are not those of the run; restore them"
    )


def check_kept(config: CommandConfig, inputs: Iterable[Path | str | None]) -> None:
    """Check that no input is in the run that ``--overwrite`` would remove.

    Raises:
        UserError: naming the first such input.
    """
    if not (config.overwrite and config.out):
        return
    for path in inputs:
        if isinstance(path, Path) and path.resolve().is_relative_to(config.out.resolve()):
            raise UserError(
                f"{path} is in {config.out}, which --overwrite removes; copy it elsewhere first"
            )


@contextmanager
def open_run(
    config: C,
    command: str,
    setup: Setup,
    model: nn.Module,
    *,
    epochs: int,
    facts: Mapping[str, Any] | None = None,
    streams: Iterable[str] = (),
) -> Iterator[Run[C]]:
    """Open the run folder, choose measured options, run the ``with`` block and finish the run.

    With several processes only the first prints. The others leave the block after training.

    Args:
        config: from :func:`prepare`.
        command: its name.
        setup: from :func:`prepare`.
        model: moved to the run's device.
        epochs: of training with one model, to decide whether compiling pays.
        facts: for ``config.json``, in addition to the options.
        streams: patterns of files in the folder that other processes write too.

    Raises:
        UserError: the disk or the memory is full; the message says how to continue.
        KeyboardInterrupt: after saying how to resume.
    """
    ranks = default_ranks()
    try:
        folder = _open_folder(config, command, ranks, (*STREAMS, *streams))
    except OSError as error:
        raise _full(error, config.out, "run the command again") from error
    started = time.perf_counter()
    with contextlib.closing(folder), _observed(config, folder, ranks) as observer:
        observer.note(f"run folder: {folder.path}")
        if folder.adopted:
            observer.note(
                f"{folder.path} had no manifest.json: its {counted(folder.adopted, 'file')} are "
                "taken as they are, and were not compared"
            )
        try:
            with enough_memory(config.device, _LESS_MEMORY):
                report = ReportBuilder(folder, figure_format=config.figure_format)
                draft = Run(command, config, setup, folder, observer, {}, ranks, report)
                yield _begin(draft, model, epochs, facts or {})
        except KeyboardInterrupt:
            observer.note(f"interrupted; {_how_to_resume(config, command, folder)}")
            raise
        except OSError as error:
            raise _full(error, folder.path, _how_to_resume(config, command, folder)) from error
        finally:
            leave()
        seconds = time.perf_counter() - started
        folder.timing({"event": "end", "seconds": round(seconds, 2)})
        observer.note(f"{seconds:.0f} s; report: {folder.path / 'report.html'}")


@contextmanager
def open_part(
    run: Run[Any], name: str, config: C, command: str, model: nn.Module
) -> Iterator[Run[C]]:
    """Open a whole run in a folder of another one, or continue the one that was interrupted there.

    It is shown with the other run, and has its data, speed and device.

    Args:
        run: the other run, in one process.
        name: of the folder in that run's.
        config: the options; where they say how to run, they are settled.
        command: its name.
        model: moved to the run's device.
    """
    out = run.folder.path / name
    begun = (out / "config.json").exists()
    config = replace(config, out=out, resume=begun, overwrite=False, config=None)
    config, facts = _resumed(config, command, run.ranks)
    _check_images(config, run.dataset, facts)
    config = settle_options(config, run.dataset)
    folder = open_run_folder(out, command, resume=begun, overwrite=False)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(folder.close)
        if run.folder.manifest is not None:
            run.folder.manifest.note(folders=[name])
        observer = run.observer
        if _wants_tensorboard(config):
            observer = Observers(observer, stack.enter_context(TensorBoardObserver(out)))
        setup = Setup.of(config, run.dataset)
        report = ReportBuilder(folder, figure_format=config.figure_format)
        draft = Run(command, config, setup, folder, observer, {}, run.ranks, report)
        yield _begin(draft, model, 0, {})
        seconds = time.perf_counter() - started
        folder.timing({"event": "end", "seconds": round(seconds, 2)})


def _open_folder(
    config: CommandConfig, command: str, ranks: Ranks, streams: Iterable[str]
) -> RunFolder:
    """Open the run folder of the options in the first process, and send its path to the others."""

    def opened() -> RunFolder:
        options = {"resume": config.resume, "overwrite": config.overwrite}
        return open_run_folder(config.out, command, **options, streams=streams)

    if ranks.size == 1:
        return opened()
    found: list[RunFolder] = []

    def shared() -> Path:
        found.append(opened())
        return found[0].path

    path = ranks.first(shared)
    return SharedFolder(found[0] if found else None, path, ranks)


@contextmanager
def _observed(config: CommandConfig, folder: RunFolder, ranks: Ranks) -> Iterator[Observer]:
    """Yield the observer of the run: the console, and TensorBoard if requested."""
    if not ranks.leads:
        yield Observer()
        return
    with ConsoleObserver() as console:
        if not _wants_tensorboard(config):
            yield console
            return
        with TensorBoardObserver(folder.path) as scalars:
            yield Observers(console, scalars)


def _wants_tensorboard(config: CommandConfig) -> bool:
    return isinstance(config, TrainingConfig) and config.tensorboard


def _begin(run: Run[C], model: nn.Module, epochs: int, more: Mapping[str, Any]) -> Run[C]:
    """Move model and data to the device, settle measured options, and write ``config.json``."""
    folder, ranks = run.folder, run.ranks
    dataset = run.dataset.to(run.device)
    model.to(run.device)
    facts: dict[str, Any] = {"dataset": dataset_facts(dataset), **more}
    environment = environment_facts(run.device, torch.get_num_threads())
    if ranks.size > 1:
        facts["processes"] = environment["processes"] = ranks.size

    def settle() -> dict[str, Any]:
        # Written before the measurement too, so that a run interrupted there can be resumed.
        write_config(folder.config, run.command, run.config, **facts)
        settled = settle_speed(run.config, dataset, model, run.observer, epochs=epochs, ranks=ranks)
        write_config(folder.config, run.command, settled, **facts)
        return to_options(settled)

    options = from_options(type(run.config), ranks.first(settle), folder.config)
    folder.timing({"event": "begin", "environment": environment})
    config = keep_settled(options, run.config)
    setup = Setup.of(config, dataset)
    return replace(run, config=config, setup=setup, environment=environment)


def _full(error: OSError, folder: Path | None, remedy: str) -> Exception:
    """Return the error of a full disk, or the given one if it is another."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(f"the disk of {folder or RUNS} is full; free some space, then {remedy}")


def _how_to_resume(config: CommandConfig, command: str, folder: RunFolder) -> str:
    if not folder.config.exists():
        return "run the command again"
    start = ["python"]
    if (size := started_processes()) > 1:
        start = ["torchrun", "--standalone", "--nproc-per-node", str(size)]
        if (local := os.environ.get("LOCAL_WORLD_SIZE")) not in (None, str(size)):
            start = ["torchrun", "...", "--nproc-per-node", str(local)]  # on several machines
    words = [*program(start), command, "--out", str(folder.path), "--resume"]
    words += own_code(vars(config))
    return f"resume with: {shlex.join(words)}"
