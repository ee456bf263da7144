"""One function per command: wiring, and nothing else."""

from __future__ import annotations

import errno
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fge import plots, report
from fge.batches import EvalBatches, Normaliser
from fge.config import FGEConfig, PredictConfig, check_import, is_factory
from fge.configfile import check_unchanged, keep_settled, read_config, to_options, write_config
from fge.console import ConsoleObserver
from fge.data import Dataset, Split
from fge.devices import choose_device, set_threads
from fge.ensemble import Ensemble
from fge.errors import DivergenceError, UserError
from fge.figures import training_curves
from fge.models import build_model
from fge.predict import read_inputs, write_predictions
from fge.predictions import PredictionFile
from fge.runfolder import RunFolder, open_run_folder
from fge.setup import (
    initial_model,
    load_data,
    make_training,
    settle_machine,
    settle_options,
    settle_speed,
)
from fge.snapshots import SnapshotStore
from fge.staged import StagedTraining


def fge(config: FGEConfig) -> Path:
    """Train with a cyclic learning rate, ensemble the snapshots, report; return the run folder.

    Raises:
        UserError: something the user can mend; no file was lost.
        DivergenceError: the loss stopped being finite; earlier snapshots are usable.
        KeyboardInterrupt: after saying how to resume.
    """
    config, resumed_data = _resumed(config)
    config = settle_machine(config)
    dataset = load_data(config)
    config = settle_options(config, dataset)
    if resumed_data not in (None, dataset.fingerprint):
        raise UserError(f"cannot resume: the images of {config.data} are not those of the run")
    model = initial_model(config, dataset)
    folder = open_run_folder(config.out, "fge", resume=config.resume, overwrite=config.overwrite)
    with ConsoleObserver() as observer:
        observer.note(f"run folder: {folder.path}")
        try:
            _train_and_report(config, dataset, model, folder, observer)
        except KeyboardInterrupt:
            observer.note(f"interrupted; {_how_to_go_on(config, folder)}")
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of {folder.path} is full; free some space, then "
                f"{_how_to_go_on(config, folder)}"
            ) from error
    return folder.path


def _how_to_go_on(config: FGEConfig, folder: RunFolder) -> str:
    if not folder.config.exists():
        return "run the command again"
    words = ["python", "cli.py", "fge", "--out", str(folder.path), "--resume"]
    words += ["--model", config.model] if is_factory(config.model) else []
    return f"go on with: {shlex.join(words)}"


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions.

    Raises:
        UserError: no run there, no snapshots, or images that do not fit.
    """
    device = torch.device(choose_device(config.device))
    set_threads(config.threads)
    run_config, content = read_config(config.run / "config.json", "fge", FGEConfig)
    facts = content.get("dataset")
    if not isinstance(facts, dict):
        raise UserError(f"{config.run} is no run folder: its config.json says nothing of the data")
    check_import(run_config.model, config.model, config.run / "config.json")
    files, images = read_inputs(config.images, facts["channels"], tuple(facts["image_size"]))
    model = build_model(
        run_config.model,
        in_channels=facts["channels"],
        num_classes=len(facts["classes"]),
        image_size=tuple(facts["image_size"]),
    )
    store = SnapshotStore(config.run / "snapshots")
    if len(store) == 0:
        raise UserError(f"{config.run} holds no snapshots; finish the run with --resume first")
    normaliser = Normaliser(facts["mean"], facts["std"], device)
    unlabelled = Split(images.to(device), torch.zeros(len(images), dtype=torch.int64))
    batches = EvalBatches(unlabelled, normaliser, config.batch_size)
    probs = Ensemble(model.to(device), store).predict_proba(batches)
    out = config.out or config.run / f"predict-{config.images.stem}"
    write_predictions(out, files, probs, facts["classes"])
    ConsoleObserver().note(f"{len(files)} predictions by {len(store)} snapshots are in {out}")
    return out


def _train_and_report(
    config: FGEConfig,
    dataset: Dataset,
    model: nn.Module,
    folder: RunFolder,
    observer: ConsoleObserver,
) -> None:
    started = time.perf_counter()
    device = torch.device(config.device)
    dataset, model = dataset.to(device), model.to(device)
    facts = report.dataset_facts(dataset)
    write_config(folder.config, "fge", config, dataset=facts)
    config = settle_speed(config, dataset, model, observer)
    write_config(folder.config, "fge", config, dataset=facts)
    environment = report.environment_facts(device, torch.get_num_threads())
    folder.timing({"event": "begin", "environment": environment})
    training, test_batches = make_training(config, dataset, model, folder, observer)
    try:
        training.run()
        test = training.predict_members(folder.predictions / "test.npz", test_batches)
    except DivergenceError as error:
        kept = len(training.stores["fge"])
        raise DivergenceError(f"{error}; {kept} snapshots are kept in {folder.path}") from None
    content = report.run_facts("fge", config, to_options(config), dataset, environment)
    _report(config, training, test, content, observer)
    seconds = time.perf_counter() - started
    folder.timing({"event": "end", "seconds": round(seconds, 2)})
    observer.note(f"{seconds:.0f} s; report: {folder.path / 'report.html'}")


def _report(
    config: FGEConfig,
    training: StagedTraining,
    test: PredictionFile,
    content: dict[str, Any],
    observer: ConsoleObserver,
) -> None:
    """Draw the figure, write the report and show its table."""
    folder, store = training.folder, training.stores["fge"]
    weights = training.learner.model.state_dict().values()
    results = report.fge_results(
        test,
        [store.facts(position) for position in range(len(store))],
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        budget=config.epochs,
    )
    curves = training_curves(config, folder.records())
    plots.save_figure(plots.training_figure(curves), folder.figures / "training.png")
    report.write_report(folder, results, content)
    title = f"{config.model} on {content['data']}: test set, error in percent"
    observer.table(title, *report.table_rows(results))
    observer.note(report.verdict(results))


def _resumed(config: FGEConfig) -> tuple[FGEConfig, str | None]:
    """Return the configuration of the run to resume and the fingerprint of its data."""
    file = config.out / "config.json" if config.out else None
    if not (config.resume and file and file.is_file()):
        return config, None
    saved, content = read_config(file, "fge", FGEConfig)
    check_unchanged(saved, config)
    return keep_settled(saved, config), str(content.get("dataset", {}).get("sha256"))
