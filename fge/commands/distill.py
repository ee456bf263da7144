"""Distilling the ensemble of a run into one network, with its epochs booked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fge.commands.build import make_training
from fge.commands.run import Run
from fge.config import CycleConfig
from fge.ensemble import MemberPredictions, Scores
from fge.errors import DivergenceError
from fge.networks import load_weights, state_bytes
from fge.observer import counted
from fge.report import MethodResult, ReportBuilder, comparison, method_result
from fge.runs import RunFolder, StagedTraining, member_name
from fge.train import (
    ClosedFormLR,
    LinearTailLR,
    Recipe,
    Stage,
    TaughtBatches,
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


@dataclass(frozen=True)
class Distilled:
    """A distilled network: its weights, scores on validation, its line and what it cost."""

    state: dict[str, Tensor]
    sha256: str
    scores: Scores | None
    result: MethodResult
    ensemble: MethodResult
    facts: dict[str, Any]

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
            f"{comparison(self.result, self.ensemble)} than the ensemble, which needs "
            f"{self.ensemble.forward_passes} passes per prediction."
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
    store, learner = training.stores[kind], training.learner
    facts = [store.facts(position) for position in members]
    best = min(range(len(members)), key=lambda k: (facts[k].get("val_nll", 0.0), -k))

    def predict(state: Any, batches: Iterable[Any]) -> Tensor:
        load_weights(learner.model, state, store.path)
        return learner.predict(batches)

    folder = RunFolder(run.folder.path / NAME)
    folder.path.mkdir(exist_ok=True)
    run.observer.note(f"distilling {counted(len(members), 'network')} into one")
    batches = run.setup.train_batches(recipe)
    views = VIEWS if recipe.augment else 1
    taught = TaughtBatches(
        batches, views, mean_prediction([store[position] for position in members], predict)
    )
    load_weights(learner.model, store[members[best]], store.path)
    student = make_training(
        run.setup,
        learner.model,
        folder,
        run.observer,
        recipe=replace(recipe, lr=_PART * recipe.lr),
        stages=[_stage(run.config)],
        batches=taught,
    )
    try:
        student.run()
        weights, entry = student.stores[NAME][0], student.stores[NAME].facts(0)
        load_weights(learner.model, weights, folder.path)
        member = member_name(NAME, 0)
        predictions.predict(member, entry["sha256"], student.learner.predict)
    except DivergenceError as error:
        raise DivergenceError(f"{NAME}: {error}") from None
    images = len(members) * taught.images
    validated = len(run.dataset.val) if "val_nll" in entry else 0
    result = method_result(
        NAME,
        predictions.test,
        [member],
        train_epochs=ensemble.train_epochs + run.config.distill_epochs,
        weight_bytes=state_bytes(learner.model),
        refresh_images=ensemble.refresh_images + entry.get("refresh_images", 0),
        validation_images=ensemble.validation_images + validated,
    )
    scores = Scores(entry["val_error"], entry["val_nll"]) if "val_nll" in entry else None
    cost = {"epochs": run.config.distill_epochs, "views": views, "teacher_images": images}
    return Distilled(weights, entry["sha256"], scores, result, ensemble, cost)


def _stage(config: CycleConfig) -> Stage:
    epochs = config.distill_epochs
    schedule = partial(_linear, epochs, config.final_factor)
    return Stage(NAME, 0, epochs, schedule, store="snapshots", keep="end", average=_AVERAGE)


def _linear(epochs: int, final: float, optimizer: Optimizer, steps_per_epoch: int) -> ClosedFormLR:
    return LinearTailLR(optimizer, steps=epochs * steps_per_epoch, final=final)
