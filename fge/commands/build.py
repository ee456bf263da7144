"""From options to the objects of a run: data, model, batches and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from fge.config import (
    CommandConfig,
    CompareConfig,
    CurveConfig,
    CycleConfig,
    FitConfig,
    PretrainedConfig,
    RunConfig,
    SpeedOptions,
    is_factory,
)
from fge.data import (
    EVAL_BATCH_SIZES,
    Dataset,
    EvalBatches,
    Normaliser,
    Split,
    TrainBatches,
    ViewBatches,
    crops_of,
    default_padding,
)
from fge.devices import choose_device, set_threads
from fge.ensemble import MemberPredictions
from fge.errors import UserError
from fge.files import AGAIN, checked
from fge.landscape import CHUNK, PROBE_IMAGES, SharpnessProbe
from fge.networks import build_model, canonical_state, load_weights, read_weights
from fge.observer import Observer
from fge.parallel import Ranks
from fge.runs import RunFolder, StagedTraining
from fge.schemas import Count, NotNegative, Percent
from fge.seeds import derive_seed
from fge.train import (
    Choice,
    EmaLearner,
    Learner,
    Planner,
    Recipe,
    Speed,
    SpeedCache,
    Stage,
    TailLearner,
    TaughtBatches,
    batch_size,
    check_speed,
    choose_speed,
    is_open,
    make_optimizer,
    options_of,
    speed_of,
    speed_setting,
    typical_steps,
)

_MEASURED_IMAGES = 128
"""Images of the batch on which memory formats are measured where nothing is trained."""
FITTED_IMAGES = 5000
"""Training images whose loss a planner is told, to see whether they are memorised."""
C = TypeVar("C", bound=CommandConfig)


@dataclass(frozen=True)
class Setup:
    """What a run works with, made of settled options: data, network, speed and seed.

    ``model``: the name of the architecture; ``crop_padding`` and ``flip``: how training images
    are varied, if ``resized`` by random resized crops instead of padded ones;
    ``sharpness_every``: epochs between measurements of the sharpness, 0 for none; ``views``: of
    each test image, with test-time augmentation.
    """

    dataset: Dataset
    model: str
    seed: int
    speed: Speed
    eval_batch_size: int
    crop_padding: int = 0
    flip: bool = False
    resized: bool = False
    sharpness_every: int = 0
    views: int = 1

    @classmethod
    def of(cls, config: CommandConfig, dataset: Dataset) -> Setup:
        """Return the setup of settled options; what is still ``auto`` is taken as off."""
        return cls(
            dataset,
            config.model,
            config.seed,
            speed_of(speed_options(config)),
            config.eval_batch_size or EVAL_BATCH_SIZES[dataset.train.labels.device.type],
            crop_padding=(config.crop_padding or 0) if isinstance(config, FitConfig) else 0,
            flip=isinstance(config, FitConfig) and config.flip,
            resized=isinstance(config, FitConfig) and config.resized,
            sharpness_every=(
                (config.sharpness_every or 0) if isinstance(config, CycleConfig) else 0
            ),
            views=(config.tta or 1) if isinstance(config, CycleConfig) else 1,
        )

    @property
    def device(self) -> torch.device:
        """The device of the data."""
        return self.dataset.train.labels.device

    @property
    def normaliser(self) -> Normaliser:
        """The normalisation of the data set's images, in the run's memory format."""
        return Normaliser(
            self.dataset.mean,
            self.dataset.std,
            self.device,
            channels_last=self.speed.channels_last,
        )

    def new_model(self, seed: int | None = None) -> nn.Module:
        """Build the model with the initial weights that the seed, the run's by default, gives it.

        Raises:
            UserError: a model that does not fit the data.
        """
        torch.manual_seed(derive_seed(self.seed if seed is None else seed, "initialisation"))
        return build_model(
            self.model,
            in_channels=self.dataset.in_channels,
            num_classes=len(self.dataset.classes),
            image_size=self.dataset.image_size,
        )

    def initial_weights(self, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the initial weights that a seed gives the model; those of other draws differ."""
        own = seed if draw == 0 else derive_seed(seed, "network", draw)
        return canonical_state(self.new_model(own))

    def shuffled(
        self,
        size: int,
        *,
        augment: bool = True,
        seed: int | None = None,
        ranks: Ranks | None = None,
    ) -> TrainBatches:
        """Return shuffled training batches of a size, or a process's share of them.

        They are augmented as the options say, or not at all.
        """
        return TrainBatches(
            self.dataset.train,
            self.normaliser,
            size,
            seed=self.seed if seed is None else seed,
            crop_padding=self.crop_padding if augment else 0,
            flip=self.flip and augment,
            resized=self.resized and augment,
            ranks=ranks,
        )

    def train_batches(
        self, recipe: Recipe, seed: int | None = None, *, ranks: Ranks | None = None
    ) -> TrainBatches:
        """Return the shuffled, augmented training batches of a recipe."""
        size = batch_size(recipe, len(self.dataset.train))
        return self.shuffled(size, augment=recipe.augment, seed=seed, ranks=ranks)

    def eval_batches(self, split: Split) -> EvalBatches:
        """Return a split in order, normalised, in evaluation batches."""
        return EvalBatches(split, self.normaliser, self.eval_batch_size)

    def predictions(self, folder: RunFolder) -> MemberPredictions:
        """Return what a run predicts of its test and OOD images, and has predicted before."""
        ood = {name: self.eval_batches(o.split) for name, o in self.dataset.ood.items()}
        test = self.eval_batches(self.dataset.test)
        return MemberPredictions(folder.predictions, test, ood, self.view_batches())

    def view_batches(self) -> list[ViewBatches]:
        """Return the further views of the test images, which vary as training images do."""
        if self.views == 1:
            return []
        test = self.dataset.test
        crops = crops_of(test, self.crop_padding, flip=self.flip, resized=self.resized)
        make = partial(ViewBatches, test, self.normaliser, self.eval_batch_size, crops=crops)
        return [make(seed=self.seed, view=view) for view in range(1, self.views)]

    def probe(self, seed: int) -> SharpnessProbe | None:
        """Return what measures the sharpness of the training loss, or None if the run does not."""
        if not self.sharpness_every:
            return None
        # Batches of another size than the chunks would be cut into smaller ones.
        images = self.dataset.train.first(PROBE_IMAGES)
        part = EvalBatches(images, self.normaliser, CHUNK)
        return SharpnessProbe(part, self.sharpness_every, seed=seed)


def speed_options(config: CommandConfig) -> SpeedOptions:
    """Return the options of speed; those that a command does not have are off."""
    given: dict[str, Any] = {f.name: getattr(config, f.name, "off") for f in fields(SpeedOptions)}
    return SpeedOptions(**given)


def settle_machine(config: C, ranks: Ranks | None = None) -> C:
    """Settle device and threads, and set what depends on them in PyTorch.

    Args:
        config: the options.
        ranks: the processes of the run, each with a GPU of its own if it runs on one; this one
            alone by default.

    Raises:
        UserError: the device or a compiler is missing, or an option does not suit the device or
            the number of processes.
    """
    device = choose_device(config.device)
    ranks = ranks or Ranks()
    ranks.take_device(device)
    check_speed(speed_options(config), device, processes=ranks.size)
    torch.backends.cudnn.benchmark = True
    return replace(
        config,
        device=str(device),
        threads=set_threads(config.threads),
        eval_batch_size=config.eval_batch_size or EVAL_BATCH_SIZES[device.type],
    )


def settle_options(config: C, dataset: Dataset) -> C:
    """Replace options that were not given by the defaults for this model and data."""
    settled = replace(config, stream="on" if dataset.streamed else "off")
    if isinstance(settled, FitConfig) and settled.crop_padding is None and not settled.resized:
        settled = replace(settled, crop_padding=default_padding(dataset.image_size))
    if isinstance(settled, RunConfig):
        settled = replace(settled, lr=settled.base_lr)
    if isinstance(settled, CurveConfig):
        settled = replace(settled, curve_lr=settled.curve_base_lr)
    # The runs of a comparison have cycles of their own: those of averages are not the papers'.
    if isinstance(settled, CycleConfig) and not isinstance(settled, CompareConfig):
        rates, length = settled.cycle_lrs, settled.cycle_length
        settled = replace(settled, cycle_epochs=length, max_lr=rates.max_lr, min_lr=rates.min_lr)
    return settled


def initial_model(config: PretrainedConfig, setup: Setup) -> nn.Module:
    """Build the model with the weights that the seed, or ``pretrained``, gives it.

    Raises:
        UserError: a model or weights that do not fit the data.
    """
    model = setup.new_model()
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
    """Settle memory format, precision, compilation and CUDA graphs; say in a line what is chosen.

    What was chosen for the same setting before is chosen again, without measuring.

    Args:
        config: the options, of which those left at ``auto`` are chosen.
        dataset: a batch of it is trained on, on its device.
        model: copied, not changed.
        observer: gets the reasons as notes.
        epochs: of training, which decide whether the time to compile pays.
        ranks: the processes of the run: what is measured is a step on the share of one.
    """
    options, device = speed_options(config), torch.device(config.device)
    processes = ranks.size if ranks else 1
    if not is_open(options, device, processes=processes):
        graphs = "on" if options.cuda_graphs == "on" else "off"
        return _with_speed(config, {"cuda_graphs": graphs})
    (inputs, targets), steps = _measured_batch(config, dataset, epochs, ranks)
    own = is_factory(config.model)

    def measure() -> Choice:
        observer.note("measuring memory formats and precisions ...")
        choice = choose_speed(
            options,
            model,
            inputs,
            targets,
            steps=typical_steps(steps),
            own_model=own,
            processes=processes,
        )
        for reason in choice.reasons:
            observer.note(f"  {reason}")
        return choice

    setting = speed_setting(options, model, inputs, steps=steps, own_model=own, processes=processes)
    kept = SpeedCache(options.speed_cache, observer.note).choice(setting, measure)
    chosen = options_of(kept.choice.speed)
    shown = ", ".join(f"{name} {v}" for name, v in chosen.items() if hasattr(config, name))
    observer.note(f"speed: {shown} ({kept.source})")
    return _with_speed(config, chosen)


def _measured_batch(
    config: CommandConfig, dataset: Dataset, epochs: int, ranks: Ranks | None
) -> tuple[tuple[Tensor, Tensor], int]:
    """Return the batch that is measured, images and labels, and the number of training steps."""
    setup = Setup.of(config, dataset)
    if isinstance(config, FitConfig):
        batches = setup.shuffled(config.batch_size, ranks=ranks)
        return next(iter(batches)), epochs * len(batches)
    part = dataset.train.first(_MEASURED_IMAGES)
    return next(iter(EvalBatches(part, setup.normaliser, _MEASURED_IMAGES))), epochs


def _with_speed(config: C, chosen: dict[str, Any]) -> C:
    """Return the options with what was chosen for those that the command has."""
    return replace(config, **{name: v for name, v in chosen.items() if hasattr(config, name)})


def make_training(
    setup: Setup,
    model: nn.Module,
    folder: RunFolder,
    observer: Observer,
    *,
    recipe: Recipe,
    stages: Sequence[Stage] | Planner,
    seed: int | None = None,
    ema_decay: float | None = None,
    given: bool = False,
    batches: TaughtBatches | None = None,
    ranks: Ranks | None = None,
) -> StagedTraining:
    """Return the training of ``model`` by a recipe through ``stages``.

    With several processes, only the first one validates and measures.

    Args:
        setup: of the run.
        model: with its initial weights, on the run's device.
        folder: where everything is kept.
        observer: called after each epoch and snapshot.
        recipe: optimizer, batch size and augmentation.
        stages: schedules and snapshots, or what decides them.
        seed: of shuffling and augmentation; the run's by default.
        ema_decay: snapshots keep the exponential average of the weights with this decay.
        given: whether the model has given weights, from which fresh starts begin too.
        batches: of the training split; by default those of the recipe.
        ranks: the processes that train the model together; this one alone by default.
    """
    dataset = setup.dataset
    usual = batches.batches if batches else setup.train_batches(recipe, seed, ranks=ranks)
    optimizer = make_optimizer(recipe, model.parameters(), examples=len(dataset.train))
    make: Callable[..., Learner] = Learner
    measured = setup.eval_batches(dataset.train)
    if ema_decay is not None:
        make = partial(EmaLearner, decay=ema_decay, refresh=measured)
    elif not isinstance(stages, Sequence) or any(stage.average for stage in stages):
        make = partial(TailLearner, refresh=measured)
    start = canonical_state(model) if given else None
    learner = make(
        model,
        optimizer,
        setup.speed,
        batch_size=usual.share_size,
        ranks=usual.ranks,
    )
    leads = usual.ranks.leads
    training = StagedTraining(
        folder,
        learner,
        stages,
        batches=batches or usual,
        validation=(setup.eval_batches(dataset.val) if leads and len(dataset.val) else None),
        seed=usual.seed,
        observer=observer,
        probe=setup.probe(usual.seed) if leads else None,
        initial=lambda draw: start or setup.initial_weights(usual.seed, draw),
        fitted=setup.eval_batches(dataset.train.first(FITTED_IMAGES)) if leads else None,
    )
    _check_facts(training)
    return training


class _Facts(TypedDict):
    """What the index of a run says of a snapshot."""

    step: Count
    epoch: Count
    lr: NotNegative
    refresh_images: NotRequired[Count]
    fitted_images: NotRequired[Count]
    train_nll: NotRequired[float]


class _ValidatedFacts(_Facts):
    """What it says of one that was validated."""

    val_error: Percent
    val_nll: float


def _check_facts(training: StagedTraining) -> None:
    """Check what the indices of a resumed training say of its snapshots.

    Raises:
        UserError: naming the first that was not kept by such a training.
    """
    kind = _ValidatedFacts if training.validation else _Facts
    for name, store in training.stores.items():
        stages = [stage for stage in training.stages if stage.kind == name]
        for position in range(len(store)):
            damaged = f"{store.path / 'index.json'} is damaged: snapshot {position + 1}"
            epoch = checked(store.facts(position), kind, damaged, AGAIN)["epoch"]
            if stages and not any(s.first_epoch <= epoch <= s.last_epoch for s in stages):
                raise UserError(f"{damaged} is of epoch {epoch}, in which there is none; {AGAIN}")
