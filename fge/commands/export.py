"""The command ``export``: the ensemble of a run as one file, with a script that uses it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fge.commands.averages import FILES as AVERAGE_FILES
from fge.commands.finished import (
    DataFacts,
    combines_weights,
    data_facts,
    ensemble_of_run,
    noise_of_run,
    read_ensemble_run,
    snapshots_of_run,
)
from fge.commands.members import kept_members, keys_of
from fge.commands.probes import PROBES, image_probes, row_probes
from fge.config import ExportConfig, check_import
from fge.data import Encoder
from fge.devices import enough_memory
from fge.disk import kind_of
from fge.ensemble import DeployedNetworks, Ensemble, Normalise
from fge.errors import UserError
from fge.export import (
    EncodeRows,
    Facts,
    ImageInput,
    RowInput,
    check_packages,
    encoded,
    example_script,
)
from fge.files import read_bytes, remove, sha256, write_bytes, write_text
from fge.manifest import Manifest
from fge.memory import size_text
from fge.networks import read_weights
from fge.observer import counted
from fge.parallel import check_command
from fge.report import ConsoleObserver
from fge.runs import folder_of, is_exported, open_run_folder
from fge.tasks import Regression

_CPU = torch.device("cpu")


def export(config: ExportConfig) -> Path:
    """Write the ensemble of a finished run as one file and a script; return the file."""
    check_command("export")
    script = config.target.with_name(f"{config.target.stem}_{config.format}_example.py")
    run_config, content = read_ensemble_run(config.run)
    data = data_facts(config.run, content)
    check_import(run_config.model, config.model, config.run / "config.json")
    for path in (config.target, script):
        _check_place(path, overwrite=config.overwrite)
    check_packages(config.format)
    store = snapshots_of_run(config.run)
    averaged = combines_weights(config.run, run_config, content) and len(store) > 1
    own = [position + 1 for position in kept_members(config.run, run_config, store)]
    numbers = _numbers(config.members, own, len(store), averaged=averaged)
    average = config.run / AVERAGE_FILES["swa"]
    states = [read_weights(average)] if averaged else [store[n - 1] for n in numbers]
    keys = [sha256(read_bytes(average))] if averaged else [keys_of(store)[n - 1] for n in numbers]
    with enough_memory("this computer", "choose fewer --members"):
        ensemble = ensemble_of_run(config.run, run_config.model, states, data, _CPU)
        facts = Facts(
            task=data.task.name,
            names=data.classes,
            given=_input(data, run_config.image_size),
            members=tuple(numbers),
            averaged=averaged,
            precision="float16" if config.half else _precision(ensemble),
            model=run_config.model,
            noise=noise_of_run(config.run, keys, data.task),
        )
        file = _encoded(config, ensemble, data, facts)
    text = example_script(config.format, config.target.name, script.name, facts)
    with _opened(config.target):
        _write_both(config.target, file, script, text)
    what = f"{'the average of ' if averaged else ''}{counted(len(numbers), 'snapshot')}"
    observer = ConsoleObserver()
    observer.note(f"{what} of {run_config.model} in {config.target} ({size_text(len(file))})")
    observer.note(f"it predicts {PROBES} made-up {data.example}s as the ensemble does")
    observer.note(f"use it: python {script} {'TABLE.csv' if data.table else 'IMAGE ...'}")
    return config.target


def _numbers(asked: Sequence[int], own: Sequence[int], count: int, *, averaged: bool) -> list[int]:
    """Return the numbers of the snapshots to export: by default the run's ``own`` members.

    Raises:
        UserError: one of them is not there, or they are averaged, so that there is no choice.
    """
    if averaged and asked:
        raise UserError(
            f"the run's method averages the weights of all {count} snapshots into one network; "
            "leave out --members"
        )
    if unknown := [number for number in asked if number > count]:
        raise UserError(f"no snapshot {unknown[0]}: the run has those from 1 to {count}")
    return list(asked or own)


def _input(data: DataFacts, resize: int | None) -> ImageInput | RowInput:
    """Return what the file takes."""
    if data.table:
        return RowInput(Encoder.of(data.table).columns)
    height, width = data.image_size
    return ImageInput(data.channels, height, width, data.mean, data.std, resize)


def _precision(ensemble: Ensemble) -> str:
    """Return the name of the dtype in which a network computes."""
    return str(next(ensemble.parameters()).dtype).removeprefix("torch.")


def _encoded(config: ExportConfig, ensemble: Ensemble, data: DataFacts, facts: Facts) -> bytes:
    """Return the bytes of the file, which predicts what the ensemble predicts."""
    given, taken = row_probes(data.table) if data.table else image_probes(data)
    preprocess = EncodeRows(facts.given.columns) if isinstance(facts.given, RowInput) else None
    plain = ensemble.deployable(preprocess=preprocess or Normalise(data.mean, data.std))
    expected, units = [ensemble.predict([taken])], []
    deployed: DeployedNetworks = plain
    if isinstance(data.task, Regression):
        noise = torch.tensor(facts.noise or (0.0,), dtype=torch.float64)
        deployed = plain.with_variance(noise.tolist())
        spread = ensemble.predict_members([taken]).var(dim=0, correction=0)
        std = torch.tensor(data.task.std, dtype=torch.float64)
        expected, units = [*expected, spread + noise], [std, std**2]
    if config.half:
        deployed.half()
    return encoded(
        deployed,
        given,
        config.format,
        facts=facts.text(),
        input_name=facts.given.name,
        output_names=facts.outputs,
        expected=expected,
        units=units,
    )


# ------------------------------------------------------------------------------ where it goes


def _check_place(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written, before the work is done.

    Raises:
        UserError: something is in the way, or it is a place of a run's own files.
    """
    kind = kind_of(path)
    if kind:
        raise UserError(f"{path} is {kind}, and is in the way; give another --out")
    if kind is not None and not overwrite:
        raise UserError(f"{path} exists; replace it with --overwrite, or give another --out")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UserError(f"{above} is no folder, so {path} cannot be written; give another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {above} is read-only; give another --out")
    owner = folder_of(path)
    manifest = None if owner is None else Manifest.read(owner)
    name = None if manifest is None else manifest.name_of(path)
    if manifest is None or name is None:
        return
    folder = name.rpartition("/")[0]
    own = {file.rpartition("/")[0] for file in manifest.files if not is_exported(file)} - {""}
    if any(f"{folder}/".startswith(f"{part}/") for part in own):
        raise UserError(
            f"{path.parent} is a folder of the run's own files; give an --out in {owner} itself, "
            "or elsewhere"
        )
    if kind is not None and name not in manifest.files:
        raise UserError(
            f"{path} is a file that the run did not write, and is in the way; move it away, or "
            "give another --out"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[None]:
    """Within the folder of a run, have its manifest record what is written."""
    owner = folder_of(path)
    if owner is None:
        yield
        return
    folder = open_run_folder(owner, "export", resume=True, overwrite=False)
    try:
        yield
    finally:
        folder.close()


def _write_both(target: Path, data: bytes, script: Path, text: str) -> None:
    """Write the script and then the file; if that fails, a new script is removed."""
    new = kind_of(script) is None
    try:
        write_text(script, text)
        write_bytes(target, data)
    except BaseException:
        if new:
            remove(script)
        raise
