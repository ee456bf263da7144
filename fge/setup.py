"""From a configuration to the objects of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from fge.autotune import check_compile, choose_speed
from fge.batches import EvalBatches, Normaliser, TrainBatches, default_padding
from fge.config import FGEConfig, Precision, RunConfig
from fge.data import Dataset, load_dataset
from fge.devices import choose_device, set_threads
from fge.errors import UserError
from fge.learner import Learner, Speed
from fge.methods import fge_stages
from fge.models import build_model
from fge.runfolder import RunFolder
from fge.seeds import derive_seed
from fge.staged import Observer, StagedTraining
from fge.tensors import load_weights, read_weights


def settle_machine(config: FGEConfig) -> FGEConfig:
    """Settle device and threads, and set what depends on them in PyTorch.

    Raises:
        UserError: a device or a compiler that is not there.
    """
    device = choose_device(config.device)
    check_compile(config, device)
    torch.backends.cudnn.benchmark = True
    return replace(config, device=str(device), threads=set_threads(config.threads))


def settle_options(config: FGEConfig, dataset: Dataset) -> FGEConfig:
    """Put in the place of options left open what they come to for this model and data."""
    padding = default_padding(dataset.image_size)
    rates = config.cycle_lrs
    return replace(
        config,
        crop_padding=padding if config.crop_padding is None else config.crop_padding,
        lr=rates.lr,
        max_lr=rates.max_lr,
        min_lr=rates.min_lr,
    )


def load_data(config: RunConfig) -> Dataset:
    """Load the data that the options name.

    Raises:
        UserError: what :func:`fge.data.load_dataset` raises, or batches larger than the data.
    """
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


def initial_model(config: FGEConfig, dataset: Dataset) -> nn.Module:
    """Build the model with the weights that the seed, or ``pretrained``, gives it.

    Raises:
        UserError: a model or weights that do not fit the data.
    """
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


def settle_speed(
    config: FGEConfig, dataset: Dataset, model: nn.Module, observer: Observer
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
    return TrainBatches(
        dataset.train,
        normaliser,
        config.batch_size,
        seed=config.seed,
        crop_padding=config.crop_padding or 0,
        flip=config.flip,
    )


def make_training(
    config: FGEConfig,
    dataset: Dataset,
    model: nn.Module,
    folder: RunFolder,
    observer: Observer,
) -> tuple[StagedTraining, EvalBatches]:
    """Return the training and the batches of the test set."""
    speed = Speed(config.channels_last == "on", config.compile == "on", config.amp)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.base_lr,
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
