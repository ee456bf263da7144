"""Training in stages, from checkpoint to checkpoint, with snapshots and predictions on disk."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from fge.data import EvalBatches
from fge.devices import peak_memory_mib
from fge.ensemble import (
    MemberPredictions,
    PredictionFile,
    SnapshotStore,
    without_harmful,
)
from fge.errors import DivergenceError
from fge.networks import RunningMean, load_weights, train_mode
from fge.observer import Observer
from fge.runs.folder import RunFolder
from fge.tasks import Task
from fge.train import (
    Batches,
    ClosedFormLR,
    EpochEnd,
    Learner,
    Planner,
    Stage,
    diverged,
    not_finite_part,
    train,
    warmed_up,
)

CHECKPOINTS = ("checkpoint", "checkpoint-2")
"""The last two are kept, written in turn, so that a damaged one does not end the run."""
_FACTS = (
    *("step", "epoch", "lr", "refresh_images", "train_nll", "train_scaled_mse", "fitted_images"),
    *("val_error", "val_rmse", "val_nll"),
)
"""What the index of a store says of a snapshot."""
_CHEAP_SECONDS = 0.2
_MOST_OF_THE_TIME = 0.05
"""On a GPU an epoch may take no longer than writing a checkpoint. There, a checkpoint that takes
longer than ``_CHEAP_SECONDS`` is written less often: at most this fraction of the time."""


class Probe(Protocol):
    """Measures a network while it trains, at the ends of epochs and at snapshots."""

    def measure(
        self, learner: Learner, stage: str, epoch: int, lr: float, snapshot: bool
    ) -> list[dict[str, Any]]:
        """Return the records to log, if a measurement is due here."""


class StagedTraining:
    """Runs the stages of a method in a run folder, from checkpoint to checkpoint.

    Each epoch ends with a checkpoint, except on a GPU if the last one was slow to write and is
    recent.

    Args:
        folder: of all files; training continues from a checkpoint there.
        learner: with initial (or pretrained) weights.
        stages: of the method, in order, or what decides them one by one.
        batches: of the training split.
        validation: batches of the validation split, or None without validation data.
        seed: of the run.
        observer: is told of epochs and snapshots.
        probe: of the sharpness, where it is measured.
        initial: returns the weights of a fresh start: 0 the run's own, k > 0 the k-th draw.
        fitted: batches of training images without augmentation, whose loss a planner asks for.
        warmup_epochs: in which the learning rate rises wherever a network starts.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        stages: Sequence[Stage] | Planner,
        *,
        batches: Batches,
        validation: EvalBatches | None,
        seed: int,
        observer: Observer,
        probe: Probe | None = None,
        initial: Callable[[int], dict[str, Tensor]] | None = None,
        fitted: EvalBatches | None = None,
        warmup_epochs: float = 0.0,
    ) -> None:
        self.folder = folder
        self.learner = learner
        self.planner = None if isinstance(stages, Sequence) else stages
        self.warmup_epochs = warmup_epochs
        self.stages: list[Stage] = []
        for stage in stages if isinstance(stages, Sequence) else ():
            self._add(stage)
        self.batches = batches
        self.validation = validation
        self.seed = seed
        self.observer = observer
        self.probe = probe
        self.initial = initial
        self.fitted = fitted if self.planner else None
        kinds = {s.kind: s.store for s in self.stages if s.store}
        if self.planner:
            kinds = {self.planner.members: self.planner.store}
        self.stores = {kind: folder.store(store) for kind, store in kinds.items()}
        self.val_predictions = (
            PredictionFile(folder.predictions / "val.npz", validation.split.labels, self.task)
            if validation is not None
            else None
        )
        self.records = 0
        self._clock = self._checkpointed = time.perf_counter()
        self._checkpoint_seconds = 0.0
        self._written = 0

    @property
    def task(self) -> Task:
        """What the network predicts."""
        return self.learner.task

    def run(self) -> bool:
        """Train the rest of the stages.

        Returns:
            Whether this process continues after training: only the first process does.

        Raises:
            DivergenceError: the loss is not finite.
        """
        checkpoint = self._last_checkpoint()
        reached = self._restore(checkpoint) if checkpoint else self._begin()
        for position in itertools.count(reached):
            stage = self._stage(position)
            if stage is None:
                break
            resumed = checkpoint if checkpoint and checkpoint["stage"] == stage.name else None
            if resumed is None:
                self._start(stage)
            self._run_stage(stage, resumed)
        continues = self.learner.disband()
        if continues and self.val_predictions:
            self.val_predictions.keep(self._kept(self.val_predictions))
        return continues

    def is_finished(self) -> bool:
        """Return whether the folder has the end of the last of given stages."""
        checkpoint, last = self._last_checkpoint(), self.stages[-1]
        reached = checkpoint and (checkpoint["stage"], checkpoint["epoch"])
        return bool(reached == (last.name, last.last_epoch))

    def _stage(self, position: int) -> Stage | None:
        """Return a stage by its position; of a planner, let it decide the one after the last."""
        if position < len(self.stages) or self.planner is None:
            return self.stages[position] if position < len(self.stages) else None
        planner = self.planner
        record = self.learner.ranks.first(lambda: planner.decide(self.folder.records()))
        if record is None:
            return None
        self._log(record)
        self.observer.note(planner.describe(record))
        self._add(planner.stage(record))
        return self.stages[-1]

    def _add(self, stage: Stage) -> None:
        """Append a stage, with what is left of the warm-up."""
        self.stages.append(warmed_up(stage, self.stages, self.warmup_epochs))

    def _start(self, stage: Stage) -> None:
        """Bring the learner to where a stage starts."""
        if stage.fresh is not None:
            assert self.initial is not None, f"stage {stage.name} needs initial weights"
            self.learner.restart(self.initial(stage.fresh))
        elif stage.after is not None:
            start = self.folder.read_state(stage.after)
            assert start is not None, f"stage {stage.after} left no state"
            self.learner.load_state_dict(start)
        self.learner.forget_average()

    def members(self) -> list[tuple[str, SnapshotStore, int]]:
        """Return name, store and position of every snapshot, in the order of the stages."""
        return [
            (member_name(name, position), store, position)
            for name, store in self.stores.items()
            for position in range(len(store))
        ]

    def ensemble_of(self, kind: str, more: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Return the positions of the snapshots that are averaged: all, or those a planner kept.

        Args:
            kind: of the snapshots.
            more: records that are not in the log yet.
        """
        if self.planner:
            return self.planner.kept([*self.folder.records(), *more])
        return list(range(len(self.stores[kind])))

    def trusted(self, kind: str) -> list[int]:
        """Return the positions of :meth:`ensemble_of`; of a planner, without harmful networks."""
        positions, names = self.ensemble_of(kind), [name for name, _, _ in self.members()]
        if not self.planner or self.val_predictions is None:
            return positions
        stored = self.val_predictions
        probs = [stored.probabilities(names[k]).numpy() for k in positions]
        return [positions[k] for k in without_harmful(probs, stored.targets, self.task)]

    def predict_members(self, predictions: MemberPredictions) -> None:
        """Store the missing predictions of each snapshot.

        Other predictions (of points on paths and averages) are kept, after those of the snapshots.
        """
        for name, store, position in self.members():
            facts = store.facts(position)
            if not predictions.complete(name, facts["sha256"]):
                load_weights(self.learner.model, store[position], store.path)
                predict = functools.partial(self._predict_member, facts)
                predictions.predict(name, facts["sha256"], predict)
        predictions.keep(self._kept(predictions.test))

    def _kept(self, predictions: PredictionFile) -> list[str]:
        """Return the names of the snapshots, followed by the other stored members."""
        stages = [name.rpartition("-")[0] for name in predictions.members]
        stored = zip(predictions.members, stages, strict=True)
        others = [name for name, stage in stored if "/" in name or stage not in self.stores]
        return [*(name for name, _, _ in self.members()), *others]

    def _predict_member(self, facts: dict[str, Any], batches: EvalBatches) -> Tensor:
        try:
            return self.learner.predict(batches)
        except DivergenceError as error:
            raise diverged(f"{error}", facts["step"] - 1, facts["lr"]) from None

    def _begin(self) -> int:
        """Remove the remains of an attempt that ended before its first checkpoint."""
        self.folder.clear_states()
        self.folder.cut_log(0)
        for store in self.stores.values():
            store.truncate(0)
        return 0

    def _last_checkpoint(self) -> dict[str, Any] | None:
        """Return the later of the two checkpoints, or None."""
        found = [c for c in map(self.folder.read_state, CHECKPOINTS) if c is not None]
        return max(found, key=lambda c: int(c.get("number", 0)), default=None)

    def _restore(self, checkpoint: dict[str, Any]) -> int:
        """Restore a checkpoint and drop everything after it; return the position of its stage."""
        self._written = int(checkpoint.get("number", 0)) + 1
        self.records = checkpoint["records"]
        self.folder.cut_log(self.records)
        for name, store in self.stores.items():
            store.truncate(checkpoint["snapshots"][name])
        self._predict_missing()
        self.learner.load_state_dict(checkpoint["learner"])
        if self.planner:
            records = self.learner.ranks.first(self.folder.records)
            self.stages = []
            for record in records:
                if record["event"] == "plan":
                    self._add(self.planner.stage(record))
        return [stage.name for stage in self.stages].index(checkpoint["stage"])

    def _predict_missing(self) -> None:
        """Predict the validation images again by snapshots whose predictions are lost."""
        if self.validation is None or not self.learner.ranks.leads:
            return
        assert self.val_predictions is not None
        for name, store, position in self.members():
            key = store.facts(position)["sha256"]
            if self.val_predictions.get(name, key) is None:
                load_weights(self.learner.model, store[position], store.path)
                self.val_predictions.add(name, key, self.learner.predict(self.validation))

    def _run_stage(self, stage: Stage, resumed: dict[str, Any] | None) -> None:
        schedule = stage.schedule(self.learner.optimizer, len(self.batches))
        first = stage.first_epoch
        if resumed is not None:
            schedule.load_state_dict(resumed["schedule"])
            first = resumed["epoch"]
        self._clock = time.perf_counter()
        train(
            self.learner,
            schedule,
            self.batches,
            first_epoch=first,
            last_epoch=stage.last_epoch,
            seed=self.seed,
            average=stage.average,
            on_minimum=lambda epoch: self._keep(stage, schedule, epoch),
            on_epoch=lambda end: self._end_epoch(stage, schedule, end),
        )
        if any(later.after == stage.name for later in self.stages):
            self.folder.write_state(stage.name, self.learner.state_dict())

    def _end_epoch(self, stage: Stage, schedule: ClosedFormLR, end: EpochEnd) -> None:
        seconds = time.perf_counter() - self._clock
        finished = end.epoch + 1
        if stage.keep == "end" and finished == stage.last_epoch:
            self._keep(stage, schedule, finished)
        record = {
            "event": "epoch",
            "stage": stage.name,
            "epoch": end.epoch,
            "next_lr": float(schedule.get_last_lr()[0]),
            "train_loss": end.train_loss,
        }
        self._log(record)
        self.folder.timing(
            {
                "event": "epoch",
                "stage": stage.name,
                "epoch": end.epoch,
                "seconds": round(seconds, 4),
                "images_per_second": round(end.images / seconds, 1),
                **peak_memory_mib(self.learner.device),
            }
        )
        self._measure(stage, schedule, finished, snapshot=False)
        if finished == stage.last_epoch or self._checkpoint_is_due():
            self._checkpoint(stage, schedule, finished)
        total = self.planner.epochs if self.planner else self.epochs_done()
        self.observer.epoch(record, self.epochs_done(stage, finished), total)
        self._clock = time.perf_counter()

    def epochs_done(self, stage: Stage | None = None, epoch: int = 0) -> int:
        """Return the epochs trained when ``stage`` reaches ``epoch``; of all stages by default."""
        done = 0
        for other in self.stages:
            if other is stage:
                return done + epoch - other.first_epoch
            done += other.last_epoch - other.first_epoch
        return done

    def snapshot_costs(self, kind: str) -> list[dict[str, Any]]:
        """Return the facts of finished snapshots of one kind in order, each with what it cost.

        Args:
            kind: of the snapshots, which is the name of their stage unless that says otherwise.

        Returns:
            Per snapshot its entry in the index; ``train_epochs``, trained in all stages until
            then; ``refresh_images`` and ``validation_images``, passed forward for this snapshot,
            the latter with the training images that a planner measures.
        """
        store, stages = self.stores[kind], [s for s in self.stages if s.kind == kind]
        validation = len(self.validation.split) if self.validation else 0
        costs = []
        for facts in map(store.facts, range(len(store))):
            epoch = facts["epoch"]
            trained = next(s for s in stages if s.first_epoch <= epoch <= s.last_epoch)
            passed = validation if "val_nll" in facts else 0
            costs.append(
                {
                    "refresh_images": 0,
                    **facts,
                    "train_epochs": self.epochs_done(trained, epoch),
                    "validation_images": passed + facts.get("fitted_images", 0),
                }
            )
        return costs

    def _checkpoint_is_due(self) -> bool:
        if self.learner.device.type != "cuda":
            return True
        took = self._checkpoint_seconds
        since = time.perf_counter() - self._checkpointed
        return took < _CHEAP_SECONDS or took < _MOST_OF_THE_TIME * since

    def _checkpoint(self, stage: Stage, schedule: ClosedFormLR, epoch: int) -> None:
        began = time.perf_counter()
        self.folder.write_state(
            CHECKPOINTS[self._written % len(CHECKPOINTS)],
            {
                "number": self._written,
                "stage": stage.name,
                "epoch": epoch,
                "learner": self.learner.state_dict(),
                "schedule": schedule.state_dict(),
                "snapshots": {name: len(store) for name, store in self.stores.items()},
                "records": self.records,
                "log_sha256": self.folder.log_digest(),
            },
        )
        self._written += 1
        self._checkpointed = time.perf_counter()
        self._checkpoint_seconds = self._checkpointed - began

    def _keep(self, stage: Stage, schedule: ClosedFormLR, epoch: int) -> None:
        """Save a snapshot, with its validation figures and those of the ensemble so far."""
        if not self.learner.ranks.leads:
            return
        with self.learner.kept() as refreshed:
            if refreshed and (name := not_finite_part(self.learner.model)) is not None:
                what = f"the averaged weights are not finite in {name!r}"
                raise diverged(what, epoch * len(self.batches) - 1, schedule.rate_kept)
            self._keep_weights(stage, schedule, epoch, refreshed)

    def _keep_weights(
        self, stage: Stage, schedule: ClosedFormLR, epoch: int, refreshed: int
    ) -> None:
        store = self.stores[stage.kind]
        facts: dict[str, Any] = {
            "step": epoch * len(self.batches),
            "epoch": epoch,
            "lr": schedule.rate_kept,
        }
        if refreshed:
            facts["refresh_images"] = refreshed
        training = self.learner.model.training
        probs = self.learner.predict(self.validation) if self.validation else None
        if self.fitted:
            fitted = self.learner.predict(self.fitted)
            labels = self.fitted.split.labels.cpu()
            facts |= {self.task.plan.train: self.task.fitted_loss(fitted, labels)}
            facts |= {"fitted_images": len(labels)}
        train_mode(self.learner.model, training=training)
        if probs is not None and self.validation:
            targets = self.validation.split.labels.cpu()
            first, nll = self.task.scores(probs, targets)
            facts |= {f"val_{self.task.measure.key}": first, "val_nll": nll}
        distance = store.distance(self.learner.model)
        store.append(self.learner.model, **facts)
        position = len(store) - 1
        record = {"event": "snapshot", "stage": stage.kind, "member": position + 1, **facts}
        if distance is not None:
            record["distance"] = distance
        if probs is not None and self.val_predictions:
            key = store.facts(position)["sha256"]
            self.val_predictions.add(member_name(stage.kind, position), key, probs)
            record |= self._ensemble_figures(stage.kind)
        self._log(record)
        self.observer.snapshot(record)
        self._measure(stage, schedule, epoch, snapshot=True)

    def _measure(self, stage: Stage, schedule: ClosedFormLR, epoch: int, snapshot: bool) -> None:
        if self.probe and self.learner.ranks.leads:
            began, lr = time.perf_counter(), schedule.rate_kept
            for record in self.probe.measure(self.learner, stage.name, epoch, lr, snapshot):
                self._log(record)
            self._clock += time.perf_counter() - began  # an epoch's seconds are those of training

    def _ensemble_figures(self, kind: str) -> dict[str, float]:
        """Return the validation figures of the snapshots of a kind so far, averaged.

        A planner gets what it compares too, such as the NLL with a temperature of these images.
        """
        assert self.val_predictions is not None
        figures = self._planner_figures(kind) if self.planner else {}
        mean, kept = RunningMean(), self.ensemble_of(kind, [{"event": "snapshot", **figures}])
        for name, store, position in self.members():
            probs = self.val_predictions.get(name, store.facts(position)["sha256"])
            if store is self.stores[kind] and position in kept and probs is not None:
                mean.update(probs)
        targets = self.val_predictions.targets
        first, nll = self.task.scores(mean.value, targets)
        figures |= {f"ensemble_val_{self.task.measure.key}": first, "ensemble_val_nll": nll}
        if self.planner:
            figures["ensemble_members"] = mean.count
            joint = self.task.plan_losses(mean.value, targets)
            figures[self.task.plan.joint] = float(joint.mean())
        return figures

    def _planner_figures(self, kind: str) -> dict[str, float]:
        """Return what a planner compares, of the last snapshot of a kind."""
        assert self.val_predictions is not None
        names = [name for name, store, _ in self.members() if store is self.stores[kind]][-2:]
        targets = self.val_predictions.targets
        probs = [self.val_predictions.probabilities(name) for name in names]
        losses = [self.task.plan_losses(each, targets) for each in probs]
        change = losses[-1] - losses[0]
        last = self.val_predictions.probabilities(names[-1]).numpy()
        return {
            self.task.plan.count: self.task.decisive(last, targets),
            self.task.plan.val: float(losses[-1].mean()),
            "val_change_error": float(change.std() / math.sqrt(len(targets))),
        }

    def _log(self, record: dict[str, Any]) -> None:
        self.folder.log(record)
        self.records += 1


def snapshot_facts(record: dict[str, Any]) -> dict[str, Any]:
    """Return, of a snapshot's record in the log, the facts that the index of its store has too."""
    return {key: value for key, value in record.items() if key in _FACTS}


def member_name(stage: str, position: int) -> str:
    """Return the name of a snapshot in prediction files: ``fge-0001``, ..."""
    return f"{stage}-{position + 1:04d}"
