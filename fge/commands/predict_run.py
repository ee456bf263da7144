"""The command ``predict``: wiring, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fge.commands.averages import FILES as AVERAGE_FILES
from fge.commands.predict import read_inputs, write_predictions
from fge.config.base import RunConfig, as_stored, check_import, is_factory
from fge.config.saved import KEEP_SNAPSHOTS, read_run
from fge.config.studies import PredictConfig
from fge.config.training import TrainConfig
from fge.data.batches import EvalBatches, Normaliser
from fge.data.splits import Split
from fge.devices import choose_device, enough_memory, set_threads
from fge.ensemble.ensemble import Ensemble
from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.networks.build import build_model
from fge.networks.state import read_weights
from fge.parallel import check_command
from fge.report.console import ConsoleObserver
from fge.report.page import (
    FigureSet,
    Page,
    environment_facts,
    write_report,
)
from fge.report.predictions import (
    class_table,
    confidence_figure,
    confidence_plot,
    predictions_verdict,
    uncertain_table,
)
from fge.runs.folder import RunFolder
from fge.train.methods import find_method

_FILES = ("predictions.csv", "predictions.npz")


@dataclass(frozen=True)
class _Facts:
    """What a ``config.json`` says of the data that a run was trained on."""

    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions.

    Raises:
        UserError: no run there, no snapshots, or images that do not fit.
    """
    check_command("predict")
    device = torch.device(choose_device(config.device))
    threads = set_threads(config.threads)
    out = _folder(config)
    run_config, content = _read_ensemble_run(config.run)
    facts = _data_facts(config.run, content)
    check_import(run_config.model, config.model, config.run / "config.json")
    files, images = read_inputs(config.images, facts.channels, facts.image_size)
    store = SnapshotStore(config.run / "snapshots")
    if len(store) == 0:
        raise UserError(f"{config.run} holds no snapshots; finish the run with --resume first")
    averaged = _combines_weights(config.run, run_config, content) and len(store) > 1
    members = [read_weights(config.run / AVERAGE_FILES["swa"])] if averaged else store
    with enough_memory(device, "use a smaller --batch-size"):
        probs = _apply(config, run_config.model, members, facts, images, device)
    write_predictions(out, files, probs, facts.classes)
    what = f"{'the average of ' if averaged else ''}{len(store)} snapshots"
    environment = environment_facts(device, threads)
    _report(config, out, what, files, probs, facts, environment)
    observer = ConsoleObserver()
    observer.note(f"{len(files)} predictions by {what} are in {out}")
    observer.note(f"report: {out / 'report.html'}")
    return out


def _folder(config: PredictConfig) -> Path:
    """Return the folder of the predictions, which is that of no run."""
    out = config.out or config.run / f"predict-{config.images.absolute().stem}"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if (out / "config.json").exists():
        raise UserError(f"--out {out} is the folder of a run, whose page is kept; give another")
    return out


def _read_ensemble_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return the options of an fge or train run, and the whole ``config.json``."""
    command, options, content = read_run(folder)
    if command not in KEEP_SNAPSHOTS:
        raise UserError(f"{folder} is a run of {command!r}; give one of fge or train")
    return options, content


def _data_facts(folder: Path, content: dict[str, Any]) -> _Facts:
    found = content.get("dataset")
    if not isinstance(found, dict):
        raise UserError(f"{folder} is no run folder: its config.json says nothing of the data")
    try:
        return _Facts(
            classes=tuple(map(str, found["classes"])),
            channels=int(found["channels"]),
            image_size=tuple(map(int, found["image_size"])),
            mean=tuple(map(float, found["mean"])),
            std=tuple(map(float, found["std"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        file = folder / "config.json"
        raise UserError(f"what {file} says of the data is damaged: {what}") from None


def _combines_weights(folder: Path, config: RunConfig, content: dict[str, Any]) -> bool:
    """Say whether the run's method averages weights, by what the run says of it.

    The method itself is not imported for this: it may be the user's own code.
    """
    if not isinstance(config, TrainConfig):
        return False
    if "combine" not in content and is_factory(config.method):
        raise UserError(
            f"{folder / 'config.json'} does not say whether {config.method} averages weights or "
            "probabilities; go on with that run once, by --resume, which adds it"
        )
    return bool((content.get("combine") or find_method(config.method).combine) == "weights")


def _apply(
    config: PredictConfig,
    name: str,
    members: Sequence[dict[str, Tensor]] | SnapshotStore,
    facts: _Facts,
    images: Tensor,
    device: torch.device,
) -> Tensor:
    height, width = facts.image_size
    model = build_model(
        name,
        in_channels=facts.channels,
        num_classes=len(facts.classes),
        image_size=(height, width),
    )
    unlabelled = Split(images.to(device), torch.zeros(len(images), dtype=torch.int64))
    normaliser = Normaliser(facts.mean, facts.std, device)
    batches = EvalBatches(unlabelled, normaliser, config.batch_size)
    return Ensemble(model.to(device), members).predict_proba(batches)


def _report(
    config: PredictConfig,
    out: Path,
    what: str,
    names: Sequence[str],
    probs: Tensor,
    facts: _Facts,
    environment: dict[str, Any],
) -> None:
    values = probs.cpu().numpy().astype(np.float64)
    drawn = FigureSet(out / "figures")
    caption = "How many images have which largest probability"
    drawn.add("confidence.png", confidence_figure(values), caption, confidence_plot(values))
    tables = [class_table(values, facts.classes), uncertain_table(values, names, facts.classes)]
    title = f"Predictions of {config.images.absolute().name}"
    verdict = predictions_verdict(values, f"{what} of the run {config.run.resolve().name}")
    page = Page(title, verdict, tables, drawn.captions, _FILES, drawn.plots)
    content = {
        "command": "predict",
        "config": {name: as_stored(name, value) for name, value in vars(config).items()},
        "environment": environment,
        "methods": [],
    }
    write_report(RunFolder(out), page, content)
