"""From options to images: reading them, and checking that batches and memory suffice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fge.config import (
    REFRESH_IMAGES,
    CommandConfig,
    DoctorConfig,
    FitConfig,
    PointOptions,
    RunConfig,
    TrainingConfig,
    VariedConfig,
    is_loader,
    is_table,
)
from fge.data import (
    FEWER,
    Dataset,
    Reading,
    check_policy,
    default_padding,
    load_dataset,
    load_ood,
    load_table,
)
from fge.devices import choose_device, free_memory
from fge.errors import UserError
from fge.memory import check_fits
from fge.networks import import_named, input_statistics


def read_dataset(config: CommandConfig | DoctorConfig) -> Dataset:
    """Load the data that the options name.

    Raises:
        UserError: what :func:`fge.data.load_dataset` raises, or the user's own data set cannot be
            imported.
    """
    if is_table(config.data):
        return load_table(
            Path(config.data),
            config.target,
            config.task,
            train_size=config.train_size,
            test_size=config.test_size,
            val_fraction=config.val_fraction,
        )
    own = import_named(config.data, "data set") if is_loader(config.data) else None
    return load_dataset(
        config.data,
        data_dir=config.data_dir,
        train_size=config.train_size,
        test_size=config.test_size,
        val_fraction=config.val_fraction,
        normalize=(
            input_statistics(config.model) if config.normalize == "model" else config.normalize
        ),
        reading=Reading(
            config.image_size,
            stream=config.stream,
            workers=config.workers,
            skip_unreadable=config.skip_unreadable,
            labels=config.labels,
            task=config.task,
            own=own,
        ),
    )


def load_data(config: CommandConfig) -> Dataset:
    """Load the data that the options name, with the OOD images that they name.

    Raises:
        UserError: what :func:`fge.data.load_dataset` and :func:`fge.data.load_ood` raise, or
            batches or a crop padding larger than the data, or than the memory.
    """
    dataset = read_dataset(config)
    if isinstance(config, VariedConfig):
        _check_crops(config, dataset)
    if isinstance(config, FitConfig):
        _check_fits(config, dataset)
    _check_memory(config, dataset)
    names = config.ood if isinstance(config, TrainingConfig) else ()
    ood = load_ood(names, dataset, data=config.data, data_dir=config.data_dir)
    return replace(dataset, ood=ood)


def _check_crops(config: VariedConfig, dataset: Dataset) -> None:
    check_policy(config.augment, dataset.in_channels)
    side = min(dataset.image_size)
    if config.crop_padding is not None and config.crop_padding > side:
        raise UserError(f"crop_padding {config.crop_padding} is more than the images' side, {side}")


def _check_fits(config: FitConfig, dataset: Dataset) -> None:
    accumulate = config.accumulate if isinstance(config, RunConfig) else 1
    if config.batch_size * accumulate > len(dataset.train):
        what, remedy = f"batch_size {config.batch_size} is", "lower it"
        examples = f"{len(dataset.train)} training {dataset.example}s"
        if accumulate > 1:
            what, remedy = f"{what[:-3]} x accumulate {accumulate} is", "lower one of them"
        raise UserError(f"{what} larger than the {examples}; {remedy}")


def _check_memory(config: CommandConfig, dataset: Dataset) -> None:
    """Check that what is made of the images fits: a copy on a GPU, and a padded one for crops."""
    device, needed, what = choose_device(config.device), 0, "the data needs"
    if device.type != "cpu":
        splits = (dataset.train, dataset.val, dataset.test)
        needed = sum(split.nbytes for split in splits)
    if isinstance(config, VariedConfig) and not (dataset.streamed or config.resized):
        padding, (height, width) = config.crop_padding, dataset.image_size
        around = 2 * (default_padding(dataset.image_size) if padding is None else padding)
        pixels = (height + around) * (width + around)
        refreshing = config.eval_images if isinstance(config, PointOptions) else REFRESH_IMAGES
        padded = min(len(dataset.train), refreshing or len(dataset.train))  # 0 takes all
        padded += len(dataset.train) if isinstance(config, FitConfig) else 0
        needed += padded * dataset.in_channels * pixels
        what = "a padded copy of the training images needs" if device.type == "cpu" else what
    remedy = f"{FEWER}, or read them when they are needed with --stream on"
    remedy = remedy if dataset.streamable else FEWER
    check_fits(needed, f"on {device}, {what}", remedy, free=free_memory(device))
