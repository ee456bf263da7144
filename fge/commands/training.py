"""From a setup and a recipe to a training in stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from fge.commands.build import Setup
from fge.commands.resumed import check_index
from fge.data import TrainBatches
from fge.networks import LossFn
from fge.observer import Observer
from fge.parallel import Ranks
from fge.runs import RunFolder, StagedTraining
from fge.train import (
    EmaLearner,
    Learner,
    Planner,
    Recipe,
    Stage,
    TailLearner,
    TaughtBatches,
    make_optimizer,
    parameter_groups,
    training_loss,
)

FITTED_IMAGES = 5000
"""Training images whose loss a planner is told, to see whether they are memorised."""


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
    given: Mapping[str, Tensor] | None = None,
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
        given: weights that the model has, from which fresh starts begin too.
        batches: of the training split; by default those of the recipe.
        ranks: the processes that train the model together; this one alone by default.
    """
    dataset = setup.dataset
    usual = batches.batches if batches else setup.train_batches(recipe, seed, ranks=ranks)
    groups = parameter_groups(model, recipe)
    optimizer = make_optimizer(recipe, groups, examples=len(dataset.train))
    make, leads = _kind(setup, recipe, stages, ema_decay), usual.ranks.leads
    learner = make(
        model,
        optimizer,
        setup.speed,
        batch_size=_part_size(recipe, usual),
        accumulate=recipe.accumulate > 1,
        clip_norm=recipe.clip_norm,
        loss_fn=_loss(recipe, setup, soft=batches is not None),
        ranks=usual.ranks,
        task=setup.task,
    )
    training = StagedTraining(
        folder,
        learner,
        stages,
        batches=batches or usual,
        validation=(setup.eval_batches(dataset.val) if leads and len(dataset.val) else None),
        seed=usual.seed,
        observer=observer,
        probe=setup.probe(usual.seed) if leads else None,
        initial=lambda draw: {**setup.initial_weights(usual.seed, draw), **(given or {})},
        fitted=setup.eval_batches(dataset.train.first(FITTED_IMAGES)) if leads else None,
        warmup_epochs=recipe.warmup_epochs,
    )
    check_index(training)
    return training


def _kind(
    setup: Setup, recipe: Recipe, stages: Sequence[Stage] | Planner, ema_decay: float | None
) -> Callable[..., Learner]:
    """Return what makes the learner: one whose snapshots are averages, if they are."""
    averages = not isinstance(stages, Sequence) or any(stage.average for stage in stages)
    if ema_decay is None and not averages:
        return Learner
    refresh = setup.refresh_batches(augment=recipe.augment, mixup=recipe.mixup)
    if ema_decay is not None:
        return partial(EmaLearner, decay=ema_decay, refresh=refresh)
    return partial(TailLearner, refresh=refresh)


def _loss(recipe: Recipe, setup: Setup, *, soft: bool) -> LossFn:
    labels, classes = setup.dataset.train.labels, len(setup.dataset.classes)
    return training_loss(recipe, labels, classes, soft=soft, task=setup.task)


def _part_size(recipe: Recipe, batches: TrainBatches) -> int:
    """Return this process's images in a full pass."""
    return min(recipe.batch_size // batches.ranks.size, batches.share_size)
