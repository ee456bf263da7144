"""From options to the objects of a run: data, model, batches and training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fge.config import (
    REFRESH_IMAGES,
    CommandConfig,
    CompareConfig,
    CurveConfig,
    CycleConfig,
    FitConfig,
    MethodConfig,
    RunConfig,
    SpeedOptions,
    StartOptions,
    StudyConfig,
    VariedConfig,
    is_factory,
    read_run,
)
from fge.data import (
    EVAL_BATCH_SIZES,
    POLICIES,
    Dataset,
    EvalBatches,
    Mixup,
    Normaliser,
    Policy,
    Split,
    TrainBatches,
    ViewBatches,
    crops_of,
    default_padding,
)
from fge.devices import choose_device, set_threads
from fge.ensemble import NOISE_EXAMPLES, MemberPredictions
from fge.landscape import CHUNK, PROBE_IMAGES, SharpnessProbe
from fge.networks import build_model, canonical_state, check_estimable, freeze
from fge.observer import Observer
from fge.parallel import Ranks
from fge.runs import RunFolder
from fge.seeds import derive_seed
from fge.tasks import Task, task_of
from fge.train import (
    Choice,
    Recipe,
    Speed,
    SpeedCache,
    batch_size,
    check_speed,
    choose_speed,
    is_open,
    options_of,
    speed_of,
    speed_setting,
    typical_steps,
)

_MEASURED_IMAGES = 128
"""Images of the batch on which memory formats are measured where nothing is trained."""
C = TypeVar("C", bound=CommandConfig)


@dataclass(frozen=True)
class Setup:
    """What a run works with, made of settled options: data, network, speed and seed.

    ``model``: the name of the architecture; ``augment``, ``crop_padding`` and ``flip``: how
    training images are varied, if ``resized`` by random resized crops instead of padded ones;
    ``sharpness_every``: epochs between measurements of the sharpness, 0 for none; ``views``: of
    each test image, with test-time augmentation; ``freeze``: which parameters are not trained.
    """

    dataset: Dataset
    model: str
    seed: int
    speed: Speed
    eval_batch_size: int
    augment: str = "crop-flip"
    crop_padding: int = 0
    flip: bool = False
    resized: bool = False
    sharpness_every: int = 0
    views: int = 1
    freeze: str | None = None

    @classmethod
    def of(cls, config: CommandConfig, dataset: Dataset) -> Setup:
        """Return the setup of settled options; what is still ``auto`` is taken as off."""
        augmented = config if isinstance(config, VariedConfig) else None
        return cls(
            dataset,
            config.model,
            config.seed,
            speed_of(speed_options(config)),
            config.eval_batch_size or EVAL_BATCH_SIZES[dataset.train.labels.device.type],
            augment=augmented.augment if augmented else "none",
            crop_padding=(augmented.crop_padding or 0) if augmented else 0,
            flip=augmented is not None and augmented.flip and augmented.varies,
            resized=augmented is not None and augmented.resized and augmented.augment != "none",
            sharpness_every=(
                (config.sharpness_every or 0) if isinstance(config, CycleConfig) else 0
            ),
            views=(config.tta or 1) if isinstance(config, CycleConfig) else 1,
            freeze=_freeze_of(config),
        )

    @property
    def device(self) -> torch.device:
        """The device of the data."""
        return self.dataset.train.labels.device

    @property
    def task(self) -> Task:
        """What is predicted."""
        return task_of(self.dataset)

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
            UserError: a model that does not fit the data or the parameters to freeze, or whose
                averages could have no statistics.
        """
        torch.manual_seed(derive_seed(self.seed if seed is None else seed, "initialisation"))
        model = build_model(
            self.model,
            in_channels=self.dataset.in_channels,
            num_classes=self.dataset.outputs,
            image_size=self.dataset.model_size,
            task=self.dataset.target.task,
        )
        check_estimable(model)
        if self.freeze is not None:
            freeze(model, self.freeze)
        return model

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
        mixup: float = 0.0,
    ) -> TrainBatches:
        """Return shuffled training batches of a size, or a process's share of them.

        They are augmented as the options say, or not at all; with ``mixup`` above 0 also mixed.
        """
        seed = self.seed if seed is None else seed
        split = self.dataset.train
        return self._varied(split, size, seed, augment=augment, mixup=mixup, ranks=ranks)

    def _varied(
        self,
        split: Split,
        size: int,
        seed: int,
        *,
        augment: bool,
        mixup: float,
        ranks: Ranks | None = None,
    ) -> TrainBatches:
        """Return shuffled batches of a split, varied as in training or not at all."""
        policy = augment and self.augment in POLICIES
        return TrainBatches(
            split,
            self.normaliser,
            size,
            seed=seed,
            crop_padding=self.crop_padding if augment else 0,
            flip=self.flip and augment,
            resized=self.resized and augment,
            ranks=ranks,
            policy=Policy(self.augment, self.dataset.in_channels) if policy else None,
            mixup=Mixup(mixup, len(self.dataset.classes), seed) if mixup else None,
        )

    def train_batches(
        self, recipe: Recipe, seed: int | None = None, *, ranks: Ranks | None = None
    ) -> TrainBatches:
        """Return the shuffled, augmented training batches of a recipe."""
        size = batch_size(recipe, len(self.dataset.train))
        augment, mixup = recipe.augment, recipe.mixup
        return self.shuffled(size, augment=augment, seed=seed, ranks=ranks, mixup=mixup)

    def refresh_batches(
        self, images: Split | None = None, *, augment: bool = True, mixup: float = 0.0
    ) -> EvalBatches | TrainBatches:
        """Return what batch-norm statistics are estimated from: images varied as in training.

        A network is trained with the statistics of such images; those of images as they are differ
        (3 points of error on CIFAR-10 with padded crops). The batches are the same every time.

        Args:
            images: training images; by default as many as an estimate needs.
            augment: whether they were varied in training.
            mixup: with which they were mixed.
        """
        varied = augment and (self.crop_padding > 0 or self.flip or self.resized)
        policy = augment and self.augment in POLICIES
        if not (varied or policy or mixup):
            return self.eval_batches(self.dataset.train if images is None else images)
        part = self.dataset.train.first(REFRESH_IMAGES) if images is None else images
        size = min(self.eval_batch_size, len(part))
        seed = derive_seed(self.seed, "refresh")
        return self._varied(part, size, seed, augment=augment, mixup=mixup)

    def eval_batches(self, split: Split) -> EvalBatches:
        """Return a split in order, normalised, in evaluation batches."""
        return EvalBatches(split, self.normaliser, self.eval_batch_size)

    def predictions(self, folder: RunFolder) -> MemberPredictions:
        """Return what a run predicts of its test and OOD images, and has predicted before."""
        ood = {name: self.eval_batches(o.split) for name, o in self.dataset.ood.items()}
        test = self.eval_batches(self.dataset.test)
        val, train = self.dataset.val, self.dataset.train.first(NOISE_EXAMPLES)
        return MemberPredictions(
            folder.predictions,
            test,
            ood,
            self.view_batches(),
            task=self.task,
            held_out=self.eval_batches(val) if len(val) else None,
            fitted=self.eval_batches(train),
        )

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


def _freeze_of(config: CommandConfig) -> str | None:
    """Return which parameters are not trained: of a study, as in the run."""
    if isinstance(config, StudyConfig):
        config = read_run(config.run)[1] if config.run else config
    return config.freeze if isinstance(config, StartOptions) else None


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
    if isinstance(settled, VariedConfig) and settled.crop_padding is None and not settled.resized:
        padding = 0 if settled.augment == "none" else default_padding(dataset.image_size)
        settled = replace(settled, crop_padding=padding)
    if isinstance(settled, FitConfig):
        settled = replace(settled, weight_decay=settled.decay)
    if isinstance(settled, RunConfig):
        settled = replace(settled, lr=settled.base_lr)
        if settled.accumulate > 1 and settled.cuda_graphs == "auto":
            settled = replace(settled, cuda_graphs="off")
    if isinstance(settled, MethodConfig):
        settled = replace(settled, csgld_lr=settled.csgld_base_lr)
    if isinstance(settled, CurveConfig):
        settled = replace(settled, curve_lr=settled.curve_base_lr)
    # The runs of a comparison have cycles of their own: those of averages are not the papers'.
    if isinstance(settled, CycleConfig) and not isinstance(settled, CompareConfig):
        rates, length = settled.cycle_lrs, settled.cycle_length
        settled = replace(settled, cycle_epochs=length, max_lr=rates.max_lr, min_lr=rates.min_lr)
    return settled


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
            loss_fn=task_of(dataset).loss(device),
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
