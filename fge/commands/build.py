"""From a configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import nn

from fge.config import CurveConfig, CycleConfig, FGEConfig, Precision, RunConfig, TrainingConfig
from fge.data import (
    EVAL_BATCH_SIZES,
    Dataset,
    EvalBatches,
    Normaliser,
    Split,
    TrainBatches,
    default_padding,
    load_dataset,
    load_ood,
)
from fge.devices import choose_device, set_threads
from fge.ensemble import MemberPredictions
from fge.errors import UserError
from fge.landscape import CHUNK, PROBE_IMAGES, SharpnessProbe
from fge.networks import build_model, load_weights, read_weights
from fge.observer import Observer
from fge.parallel import Ranks
from fge.runs import RunFolder, StagedTraining
from fge.seeds import derive_seed
from fge.train import (
    EmaLearner,
    Learner,
    Recipe,
    Speed,
    Stage,
    batch_size,
    check_speed,
    choose_speed,
    endpoint_recipe,
    is_open,
    make_optimizer,
)

C = TypeVar("C", bound=RunConfig)


def settle_machine(config: C, ranks: Ranks | None = None) -> C:
    """Settle device and threads, and set what depends on them in PyTorch.

    Args:
        config: the options.
        ranks: the processes of the run, each with a GPU of its own if it runs on one; this one
            alone by default.

    Raises:
        UserError: a device or a compiler that is not there.
    """
    device = choose_device(config.device)
    (ranks or Ranks()).take_device(device)
    check_speed(config, device)
    torch.backends.cudnn.benchmark = True
    return replace(
        config,
        device=str(device),
        threads=set_threads(config.threads),
        eval_batch_size=config.eval_batch_size or EVAL_BATCH_SIZES[device.type],
    )


def settle_options(config: C, dataset: Dataset) -> C:
    """Put in the place of options left open what they come to for this model and data."""
    padding = default_padding(dataset.image_size)
    settled = replace(
        config,
        crop_padding=padding if config.crop_padding is None else config.crop_padding,
        lr=config.base_lr,
    )
    if isinstance(settled, CurveConfig):
        settled = replace(settled, curve_lr=settled.curve_base_lr)
    if isinstance(settled, CycleConfig):
        rates = settled.cycle_lrs
        cycle = settled.cycle_length
        settled = replace(settled, max_lr=rates.max_lr, min_lr=rates.min_lr, cycle_epochs=cycle)
    return settled


def load_data(config: RunConfig) -> Dataset:
    """Load the data that the options name, with the OOD images that they name.

    Raises:
        UserError: what :func:`fge.data.load_dataset` and :func:`fge.data.load_ood` raise, or
            batches or a crop padding larger than the data.
    """
    dataset = load_dataset(
        config.data,
        data_dir=config.data_dir,
        train_size=config.train_size,
        test_size=config.test_size,
        val_fraction=config.val_fraction,
    )
    side = min(dataset.image_size)
    if config.crop_padding is not None and config.crop_padding > side:
        raise UserError(f"crop_padding {config.crop_padding} is more than the images' side, {side}")
    if config.batch_size > len(dataset.train):
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {len(dataset.train)} training "
            "images; lower it"
        )
    names = config.ood if isinstance(config, TrainingConfig) else ()
    ood = load_ood(names, dataset, data=config.data, data_dir=config.data_dir)
    return replace(dataset, ood=ood)


def new_model(config: RunConfig, dataset: Dataset, seed: int | None = None) -> nn.Module:
    """Build the model with the initial weights that the seed, the run's by default, gives it.

    Raises:
        UserError: a model that does not fit the data.
    """
    torch.manual_seed(derive_seed(config.seed if seed is None else seed, "initialisation"))
    return build_model(
        config.model,
        in_channels=dataset.in_channels,
        num_classes=len(dataset.classes),
        image_size=dataset.image_size,
    )


def initial_model(config: FGEConfig, dataset: Dataset) -> nn.Module:
    """Build the model with the weights that the seed, or ``pretrained``, gives it.

    Raises:
        UserError: a model or weights that do not fit the data.
    """
    model = new_model(config, dataset)
    if config.pretrained is not None:
        load_weights(model, read_weights(config.pretrained), config.pretrained)
    return model


def settle_speed(
    config: C,
    dataset: Dataset,
    model: nn.Module,
    observer: Observer,
    *,
    epochs: int,
    ranks: Ranks | None = None,
) -> C:
    """Settle memory format, precision, compilation and CUDA graphs; say what was chosen.

    Args:
        config: the options, of which those left at ``auto`` are measured.
        dataset: a batch of it is trained on, on its device.
        model: copied, not changed.
        observer: is told the reasons.
        epochs: of training that lie ahead, against which compile time is weighed.
        ranks: the processes of the run: what is measured is a step on the share of one.
    """
    if not is_open(config, torch.device(config.device)):
        return replace(config, cuda_graphs="on" if config.cuda_graphs == "on" else "off")
    observer.note("measuring memory formats and precisions ...")
    batches = train_batches(config, dataset, endpoint_recipe(config), ranks=ranks)
    inputs, targets = next(iter(batches))
    choice = choose_speed(config, model, inputs, targets, steps=epochs * len(batches))
    for reason in choice.reasons:
        observer.note(f"  {reason}")
    return replace(
        config,
        channels_last="on" if choice.speed.channels_last else "off",
        compile="on" if choice.speed.compile else "off",
        amp=cast(Precision, choice.speed.amp),
        cuda_graphs="on" if choice.speed.cuda_graphs else "off",
    )


def speed_of(config: RunConfig) -> Speed:
    """Return how models are run under settled options."""
    return Speed(
        config.channels_last == "on", config.compile == "on", config.amp, config.cuda_graphs == "on"
    )


def normaliser(config: RunConfig, dataset: Dataset) -> Normaliser:
    """Return the normalisation of the data set's images, in the run's memory format."""
    return Normaliser(
        dataset.mean,
        dataset.std,
        dataset.train.labels.device,
        channels_last=config.channels_last == "on",
    )


def train_batches(
    config: RunConfig,
    dataset: Dataset,
    recipe: Recipe,
    seed: int | None = None,
    *,
    ranks: Ranks | None = None,
) -> TrainBatches:
    """Return the shuffled, augmented training batches of a recipe, or a process's share of them."""
    return TrainBatches(
        dataset.train,
        normaliser(config, dataset),
        batch_size(recipe, len(dataset.train)),
        seed=config.seed if seed is None else seed,
        crop_padding=(config.crop_padding or 0) if recipe.augment else 0,
        flip=config.flip and recipe.augment,
        ranks=ranks,
    )


def eval_batches(config: RunConfig, dataset: Dataset, split: Split) -> EvalBatches:
    """Return a split in order, normalised, in evaluation batches."""
    size = config.eval_batch_size or EVAL_BATCH_SIZES[dataset.train.labels.device.type]
    return EvalBatches(split, normaliser(config, dataset), size)


def member_predictions(config: RunConfig, dataset: Dataset, folder: RunFolder) -> MemberPredictions:
    """Return what a run predicts of its test and OOD images, and has predicted before."""
    return MemberPredictions(
        folder.predictions,
        eval_batches(config, dataset, dataset.test),
        {n: eval_batches(config, dataset, other.split) for n, other in dataset.ood.items()},
    )


def make_training(
    config: RunConfig,
    dataset: Dataset,
    model: nn.Module,
    folder: RunFolder,
    observer: Observer,
    *,
    recipe: Recipe,
    stages: Sequence[Stage],
    seed: int | None = None,
    ema_decay: float | None = None,
    ranks: Ranks | None = None,
) -> StagedTraining:
    """Return the training of ``model`` by a recipe through ``stages``.

    Of several processes, the first one alone validates and measures.

    Args:
        config: settled options.
        dataset: on the run's device.
        model: with its initial weights, on the run's device.
        folder: where everything is kept.
        observer: is told of epochs and snapshots.
        recipe: optimizer, batch size and augmentation.
        stages: schedules and snapshots.
        seed: of shuffling and augmentation; the run's by default.
        ema_decay: snapshots keep the exponential average of the weights with this decay.
        ranks: the processes that train the model together; this one alone by default.
    """
    batches = train_batches(config, dataset, recipe, seed, ranks=ranks)
    optimizer = make_optimizer(recipe, model.parameters(), examples=len(dataset.train))
    make: Callable[..., Learner] = Learner
    if ema_decay is not None:
        measured = eval_batches(config, dataset, dataset.train)
        make = partial(EmaLearner, decay=ema_decay, refresh=measured)
    learner = make(
        model,
        optimizer,
        speed_of(config),
        batch_size=batches.share_size,
        ranks=batches.ranks,
    )
    leads = batches.ranks.leads
    return StagedTraining(
        folder,
        learner,
        stages,
        batches=batches,
        validation=(
            eval_batches(config, dataset, dataset.val) if leads and len(dataset.val) else None
        ),
        seed=batches.seed,
        observer=observer,
        probe=_probe(config, dataset, batches.seed) if leads else None,
    )


def _probe(config: RunConfig, dataset: Dataset, seed: int) -> SharpnessProbe | None:
    """Return what measures the sharpness of the training loss, where that is asked for."""
    if not (isinstance(config, CycleConfig) and config.sharpness_every):
        return None
    # Batches of another size than the chunks would be cut into smaller ones.
    images = dataset.train.first(PROBE_IMAGES)
    part = EvalBatches(images, normaliser(config, dataset), CHUNK)
    return SharpnessProbe(part, config.sharpness_every, seed=seed)
