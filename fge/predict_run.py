"""The command ``predict``: wiring, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fge.averaged_run import FILES as AVERAGE_FILES
from fge.batches import EvalBatches, Normaliser
from fge.config import PredictConfig, RunConfig, check_import
from fge.configfile import read_config
from fge.console import ConsoleObserver
from fge.cycle_config import FGEConfig
from fge.data import Split
from fge.devices import choose_device, set_threads
from fge.distributed import check_command
from fge.ensemble import Ensemble
from fge.errors import UserError
from fge.method_config import TrainConfig
from fge.models import build_model
from fge.predict import read_inputs, write_predictions
from fge.snapshots import SnapshotStore
from fge.tensors import read_weights


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions.

    Raises:
        UserError: no run there, no snapshots, or images that do not fit.
    """
    check_command("predict")
    device = torch.device(choose_device(config.device))
    set_threads(config.threads)
    run_config, content = _read_ensemble_run(config.run)
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
    averaged = isinstance(run_config, TrainConfig) and run_config.method == "swa"
    members = [read_weights(config.run / AVERAGE_FILES["swa"])] if averaged else store
    probs = Ensemble(model.to(device), members).predict_proba(batches)
    out = config.out or config.run / f"predict-{config.images.stem}"
    write_predictions(out, files, probs, facts["classes"])
    what = "the average of" if averaged else "by"
    ConsoleObserver().note(f"{len(files)} predictions {what} {len(store)} snapshots are in {out}")
    return out


def _read_ensemble_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return the options of an fge or train run, and the whole ``config.json``."""
    file = folder / "config.json"
    try:
        return read_config(file, "train", TrainConfig)
    except UserError:
        return read_config(file, "fge", FGEConfig)
