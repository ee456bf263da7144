"""One function per command: wiring, and nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from fge import plots, report
from fge.autotune import choose_speed
from fge.batches import DEFAULT_PADDING_DIVISOR, EvalBatches, Normaliser, TrainBatches
from fge.config import FGEConfig, Precision, PredictConfig, RunConfig, check_import
from fge.configfile import check_unchanged, keep_settled, read_config, to_options, write_config
from fge.console import ConsoleObserver
from fge.data import Dataset, Split, load_dataset
from fge.devices import choose_device, set_threads
from fge.ensemble import Ensemble
from fge.errors import DivergenceError, UserError
from fge.figures import training_curves
from fge.learner import Learner, Speed
from fge.methods import fge_stages
from fge.models import build_model
from fge.predict import read_inputs, write_predictions
from fge.runfolder import RunFolder, open_run_folder
from fge.seeds import derive_seed
from fge.snapshots import SnapshotStore
from fge.staged import StagedTraining
from fge.tensors import load_weights, read_weights


def fge(config: FGEConfig) -> Path:
    """Train with a cyclic learning rate, ensemble the snapshots, report; return the run folder.

    Raises:
        UserError: something the user can mend; no file was lost.
        DivergenceError: the loss stopped being finite; earlier snapshots are usable.
        KeyboardInterrupt: after saying how to resume.
    """
    config, resumed_data = _resumed(config)
    config = _settle_machine(config)
    dataset = _load(config)
    if resumed_data not in (None, dataset.fingerprint):
        raise UserError(f"cannot resume: the images of {config.data} are not those of the run")
    model = _initial_model(config, dataset)
    folder = open_run_folder(config.out, "fge", resume=config.resume, overwrite=config.overwrite)
    with ConsoleObserver() as observer:
        observer.note(f"run folder: {folder.path}")
        try:
            _train_and_report(config, dataset, model, folder, observer)
        except KeyboardInterrupt:
            observer.note(
                f"interrupted; go on with: python cli.py fge --out {folder.path} --resume"
            )
            raise
    return folder.path


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions.

    Raises:
        UserError: no run there, no snapshots, or images that do not fit.
    """
    device = torch.device(choose_device(config.device))
    set_threads(config.threads)
    run_config, content = read_config(config.run / "config.json", "fge", FGEConfig)
    facts = content["dataset"]
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
    config = _settle_speed(config, dataset, model, observer)
    write_config(folder.config, "fge", config, dataset=report.dataset_facts(dataset))
    environment = report.environment_facts(device, torch.get_num_threads())
    folder.timing({"event": "begin", "environment": environment})
    training, test_batches = _wire(config, dataset, model, folder, observer)
    try:
        training.run()
    except DivergenceError as error:
        kept = len(training.stores["fge"])
        raise DivergenceError(f"{error}; {kept} snapshots are kept in {folder.path}") from None
    test = training.predict_members(folder.predictions / "test.npz", test_batches)
    store = training.stores["fge"]
    results = report.fge_results(
        test,
        [store.facts(position) for position in range(len(store))],
        weight_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        budget=config.epochs,
    )
    curves = training_curves(config, folder.records())
    plots.save_figure(plots.training_figure(curves), folder.figures / "training.png")
    content = report.run_facts("fge", config, to_options(config), dataset, environment)
    report.write_report(folder, results, content)
    seconds = time.perf_counter() - started
    folder.timing({"event": "end", "seconds": round(seconds, 2)})
    observer.table(f"{config.model} on {dataset.name}, test set", *report.table_rows(results))
    observer.note(report.verdict(results))
    observer.note(f"{seconds:.0f} s; report: {folder.path / 'report.html'}")


def _resumed(config: FGEConfig) -> tuple[FGEConfig, str | None]:
    """Return the configuration of the run to resume and the fingerprint of its data."""
    file = config.out / "config.json" if config.out else None
    if not (config.resume and file and file.is_file()):
        return config, None
    saved, content = read_config(file, "fge", FGEConfig)
    check_unchanged(saved, config)
    return keep_settled(saved, config), str(content.get("dataset", {}).get("sha256"))


def _settle_machine(config: FGEConfig) -> FGEConfig:
    """Settle device and threads, and set what depends on them in PyTorch."""
    device = choose_device(config.device)
    torch.backends.cudnn.benchmark = True
    return replace(config, device=str(device), threads=set_threads(config.threads))


def _load(config: RunConfig) -> Dataset:
    dataset = load_dataset(
        config.data,
        data_dir=config.data_dir,
        train_size=config.train_size,
        test_size=config.test_size,
        val_fraction=config.val_fraction,
    )
    if config.batch_size > len(dataset.train):
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {len(dataset.train)} training "
            "images; lower it"
        )
    return dataset


def _initial_model(config: FGEConfig, dataset: Dataset) -> nn.Module:
    torch.manual_seed(derive_seed(config.seed, "initialisation"))
    model = build_model(
        config.model,
        in_channels=dataset.in_channels,
        num_classes=len(dataset.classes),
        image_size=dataset.image_size,
    )
    if config.pretrained is not None:
        load_weights(model, read_weights(config.pretrained), config.pretrained)
    return model


def _settle_speed(
    config: FGEConfig, dataset: Dataset, model: nn.Module, observer: ConsoleObserver
) -> FGEConfig:
    """Settle memory format, precision and compilation; say what was chosen."""
    if "auto" not in (config.channels_last, config.compile, config.amp):
        return config
    observer.note("measuring memory formats and precisions ...")
    batches = _train_batches(config, dataset, _normaliser(dataset))
    inputs, targets = next(iter(batches))
    epochs = sum(stage.last_epoch - stage.first_epoch for stage in fge_stages(config))
    choice = choose_speed(config, model, inputs, targets, steps=epochs * len(batches))
    for reason in choice.reasons:
        observer.note(f"  {reason}")
    return replace(
        config,
        channels_last="on" if choice.speed.channels_last else "off",
        compile="on" if choice.speed.compile else "off",
        amp=cast(Precision, choice.speed.amp),
    )


def _normaliser(dataset: Dataset, *, channels_last: bool = False) -> Normaliser:
    device = dataset.train.labels.device
    return Normaliser(dataset.mean, dataset.std, device, channels_last=channels_last)


def _train_batches(config: FGEConfig, dataset: Dataset, normaliser: Normaliser) -> TrainBatches:
    padding = config.crop_padding
    if padding is None:
        padding = min(dataset.image_size) // DEFAULT_PADDING_DIVISOR
    return TrainBatches(
        dataset.train,
        normaliser,
        config.batch_size,
        seed=config.seed,
        crop_padding=padding,
        flip=config.flip,
    )


def _wire(
    config: FGEConfig,
    dataset: Dataset,
    model: nn.Module,
    folder: RunFolder,
    observer: ConsoleObserver,
) -> tuple[StagedTraining, EvalBatches]:
    """Return the training and the batches of the test set."""
    speed = Speed(config.channels_last == "on", config.compile == "on", config.amp)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    normaliser = _normaliser(dataset, channels_last=speed.channels_last)
    val, test = (
        EvalBatches(split, normaliser, config.eval_batch_size)
        for split in (dataset.val, dataset.test)
    )
    training = StagedTraining(
        folder,
        Learner(model, optimizer, speed, batch_size=config.batch_size),
        fge_stages(config),
        batches=_train_batches(config, dataset, normaliser),
        validation=val if len(dataset.val) else None,
        seed=config.seed,
        observer=observer,
    )
    return training, test
