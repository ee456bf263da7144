"""Distilling the ensemble of a run into one network, with its epochs booked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fge.commands.resumed import run_whole
from fge.commands.run import Run
from fge.commands.training import make_training
from fge.config import CycleConfig
from fge.ensemble import MemberPredictions, Scores, SnapshotStore
from fge.errors import DivergenceError
from fge.networks import Weights, load_weights, state_bytes, state_of
from fge.observer import counted
from fge.report import MethodResult, ReportBuilder, comparison, method_result
from fge.runs import RunFolder, StagedTraining, member_name
from fge.train import (
    Learner,
    Recipe,
    Stage,
    TaughtBatches,
    linear_tail,
    mean_prediction,
)

VIEWS = 4
"""Views of each training image that the teacher predicts: its own augmentations, or the image alone
where there are none."""
_PART = 0.5
"""The highest learning rate, as a part of the base rate: the student starts from a member."""
_AVERAGE = 0.5
"""The last part of the descent that is averaged."""
NAME = "distilled"
_MEMBER = member_name(NAME, 0)


@dataclass(frozen=True)
class Distilled:
    """A distilled network: its weights, their entry in the index, its line and what it cost."""

    state: dict[str, Tensor]
    entry: dict[str, Any]
    result: MethodResult
    ensemble: MethodResult
    facts: dict[str, Any]
    measure: str = "error"

    @property
    def scores(self) -> Scores | None:
        """Its scores on the validation images, where there are any."""
        if "val_nll" not in self.entry:
            return None
        return Scores(self.entry[f"val_{self.measure}"], self.entry["val_nll"])

    @property
    def results(self) -> list[MethodResult]:
        """Its line of the method table."""
        return [self.result]

    def add_to(self, report: ReportBuilder) -> None:
        """Add the sentence and the facts."""
        epochs = counted(self.facts["epochs"], "epoch")
        report.facts(distilled=self.facts)
        report.say(
            f"`{NAME}` is the ensemble distilled into one network in {epochs}: it has "
            f"{comparison(self.result, self.ensemble)} the ensemble, which needs "
            f"{counted(self.ensemble.forward_passes, 'pass', 'passes')} per prediction."
        )


def distill(
    run: Run[CycleConfig],
    training: StagedTraining,
    kind: str,
    members: Sequence[int],
    recipe: Recipe,
    predictions: MemberPredictions,
    ensemble: MethodResult,
) -> Distilled | None:
    """Distil members of a finished training into one network; None where there is one member.

    The student starts from the member of lowest validation NLL (the last one without validation
    data) and learns the mean of the members' probabilities on fixed views of the training images. A
    run folder of its own, ``distilled``, holds the training, which can be resumed.
    """
    if not run.config.distill_epochs or len(members) < 2:
        return None
    run.observer.note(f"distilling {counted(len(members), 'network')} into one")
    store, learner = training.stores[kind], training.learner
    taught = _taught(run, recipe)
    folder = RunFolder(run.folder.path / NAME)
    folder.path.mkdir(exist_ok=True)
    student = make_training(
        run.setup,
        learner.model,
        folder,
        run.observer,
        recipe=_recipe(recipe),
        stages=[_stage(run.config)],
        batches=taught,
    )
    if not student.is_finished():
        _prepare(learner, taught, store, members)
    try:
        run_whole(student)
        weights, entry = student.stores[NAME][0], student.stores[NAME].facts(0)
        load_weights(learner.model, weights, folder.path)
        predictions.predict(_MEMBER, entry["sha256"], student.learner.predict)
    except DivergenceError as error:
        raise DivergenceError(f"{NAME}: {error}") from None
    cost = {
        "epochs": run.config.distill_epochs,
        "views": taught.views,
        "teacher_images": len(members) * taught.images,
    }
    line = method_result(
        NAME,
        predictions.test,
        [_MEMBER],
        train_epochs=ensemble.train_epochs + run.config.distill_epochs,
        weight_bytes=state_bytes(learner.model),
        refresh_images=ensemble.refresh_images + entry.get("refresh_images", 0),
        validation_images=ensemble.validation_images + len(run.dataset.val),
    )
    return Distilled(weights, entry, line, ensemble, cost, training.task.measure.key)


def _taught(run: Run[CycleConfig], recipe: Recipe) -> TaughtBatches:
    """Return the batches of the student."""
    views = VIEWS if recipe.augment else 1
    dtype = torch.float64 if run.setup.task.uses_noise else torch.float32
    return TaughtBatches(run.setup.train_batches(recipe), views, dtype)


def _prepare(
    learner: Learner, taught: TaughtBatches, store: SnapshotStore, members: Sequence[int]
) -> None:
    """Let the members predict the views, and start from the best of them."""
    taught.learn_from(_teacher(learner, [store[position] for position in members], store.path))
    facts = [store.facts(position) for position in members]
    best = min(range(len(members)), key=lambda k: (facts[k].get("val_nll", 0.0), -k))
    load_weights(learner.model, store[members[best]], store.path)


def _teacher(
    learner: Learner, members: Sequence[Weights], path: Path
) -> Callable[[Iterable[Any]], Tensor]:
    """Return what predicts the mean of the members' probabilities, with the learner's model."""

    def predict(weights: Weights, batches: Iterable[Any]) -> Tensor:
        load_weights(learner.model, state_of(weights), path)
        return learner.predict(batches)

    return mean_prediction(members, predict)


def _recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the student, whose targets are the teacher's probabilities alone."""
    return replace(
        recipe, lr=_PART * recipe.lr, class_weights="none", label_smoothing=0.0, mixup=0.0
    )


def _stage(config: CycleConfig) -> Stage:
    epochs = config.distill_epochs
    schedule = partial(linear_tail, epochs, config.final_factor)
    return Stage(NAME, 0, epochs, schedule, store="snapshots", keep="end", average=_AVERAGE)
