"""Averaging a run's snapshots into one network, for every command that saves snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from fge.commands.distill import Distilled
from fge.commands.run import Run
from fge.config import RunConfig
from fge.data import EvalBatches
from fge.ensemble import (
    NOT_FINITE,
    Candidate,
    Fold,
    MemberPredictions,
    Members,
    Scores,
    Trial,
    fold_greedily,
    scores_of,
)
from fge.errors import DivergenceError, UserError
from fge.files import AGAIN, checked, read_bytes, sha256, write_bytes
from fge.networks import (
    average_weights,
    canonical_state,
    decode_weights,
    encode_weights,
    load_weights,
    refresh_batch_norm,
    state_bytes,
    unwrap,
)
from fge.report import (
    MethodResult,
    ReportBuilder,
    Swa,
    Table,
    average_sentences,
    average_table,
    averages_json,
    method_result,
)
from fge.runs import RunFolder, StagedTraining, member_name
from fge.schemas import Count, NotNegative, Percent
from fge.tasks import Task
from fge.train import Recipe

FILES = {"swa": "swa.safetensors", "fold": "folded.safetensors"}
"""The files of the averages in the run folder, by method."""


class _Ensemble(TypedDict):
    """The last snapshot in the log."""

    ensemble_val_error: NotRequired[Percent]
    ensemble_val_rmse: NotRequired[NotNegative]
    ensemble_val_nll: float


class _Record(TypedDict):
    """The saved record of an average: the snapshots, its file, and its scores."""

    snapshots: list[str]
    sha256: str
    refresh_images: Count
    error: float
    nll: float


class _Trial(TypedDict):
    member: Count
    kept: bool
    error: float
    nll: float


class _FoldRecord(_Record):
    """The saved record of a fold."""

    best: Count
    trials: list[_Trial]


@dataclass(frozen=True)
class Averages:
    """The report's part about averaging the weights of a run's snapshots.

    ``results``: the rows ``swa`` and, with validation data, ``fold``; ``content``: of
    ``report.json``; ``files``: the weights, in the run folder.
    """

    results: list[MethodResult] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def add_to(self, report: ReportBuilder) -> None:
        """Add the section to a report."""
        report.table(*self.tables)
        report.say(*self.sentences)
        report.facts(**self.content)
        report.files += self.files


def average_snapshots(
    run: Run[RunConfig],
    training: StagedTraining,
    stage: str,
    recipe: Recipe,
    predictions: MemberPredictions,
    *,
    all_of_them: bool = True,
    distilled: Distilled | None = None,
    kept: Sequence[int] | None = None,
) -> Averages:
    """Average the weights of a stage's snapshots: all of them, and those that are safe to average.

    The first (``swa``: Izmailov et al. 2018, arXiv 1803.05407) needs two snapshots, the second
    (``fold``: :func:`fge.ensemble.fold`) also validation data. Each is saved in the run folder and
    evaluated once as a member of the stored predictions; a resumed run uses what is already there.
    With several processes only the first one does this. Batch norm sees images as in training.
    Networks that were trained apart are not averaged ``all_of_them``: their mean is no network. A
    ``distilled`` network is one more that the fold may start from or keep. What the fold lost is
    told against the ensemble of the snapshots ``kept``, by default all.
    """
    if len(training.stores[stage]) < 2:
        return Averages()
    work = _Averaging(run, training, stage, recipe, predictions)
    made = work.swa() if all_of_them else None
    swa = Swa(made.figures, work.members, work.ensemble) if made and work.ensemble else None
    if distilled and distilled.scores:
        work.add(distilled)
    fold = work.fold(work.ensemble) if work.ensemble else None
    lines = [work.line("swa", made.refresh_images, 1)] if made else []
    lines += [work.line("fold", fold.refresh_images, len(fold.trials))] if fold else []
    results = [line for line in lines if line is not None]
    members, shown = range(work.snapshots) if kept is None else kept, _shown(run)
    ensemble = method_result(
        stage,
        predictions.test,
        [work.names[position] for position in members],
        train_epochs=work.epochs,
        weight_bytes=work.weight_bytes,
    )
    return Averages(
        results,
        [average_table(swa, fold, work.names, len(members), *shown)] if fold else [],
        average_sentences(swa, fold, work.names, results, ensemble, all_of_them=all_of_them),
        {
            "averages": averages_json(
                swa, fold, work.names, all_of_them=all_of_them, task=training.task
            )
        },
        tuple(FILES[name] for name, part in (("swa", made), ("fold", fold)) if part),
    )


def _shown(run: Run[RunConfig]) -> tuple[Task, str]:
    """Return what is predicted, and what an example is called."""
    return run.setup.task, run.dataset.example


class _Averaging:
    """Makes the averages of a stage's snapshots that the run folder does not have yet."""

    def __init__(
        self,
        run: Run[RunConfig],
        training: StagedTraining,
        stage: str,
        recipe: Recipe,
        predictions: MemberPredictions,
    ) -> None:
        self.folder, self.observer = run.folder, run.observer
        self.learner, self.store = training.learner, training.stores[stage]
        self.val, self.val_batches = training.val_predictions, training.validation
        self.predictions = predictions
        self.refresh = run.setup.refresh_batches(augment=recipe.augment, mixup=recipe.mixup)
        self.taken = set(training.stores)
        facts = training.snapshot_costs(stage)
        self.keys = [entry["sha256"] for entry in facts]
        self.names = [member_name(stage, position) for position in range(len(facts))]
        self.epochs = int(facts[-1]["train_epochs"])
        self.validated = sum(int(entry["validation_images"]) for entry in facts)
        self.weight_bytes = state_bytes(self.learner.model)
        self.snapshots = len(facts)
        self.candidates: Members = self.store
        self.members: tuple[Scores, ...] = ()
        self.ensemble: Scores | None = None
        if self.val is not None:
            key = f"val_{training.task.measure.key}"
            self.members = tuple(Scores(entry[key], entry["val_nll"]) for entry in facts)
            self.ensemble = _last_ensemble(run.folder, stage, f"ensemble_{key}")

    def add(self, distilled: Distilled) -> None:
        """Let the fold choose a distilled network too."""
        assert distilled.scores is not None
        self.candidates = [*self.store, distilled.state]
        self.members = (*self.members, distilled.scores)
        self.names = [*self.names, *distilled.result.member_names]
        self.keys = [*self.keys, distilled.entry["sha256"]]
        self.epochs = distilled.result.train_epochs

    def swa(self) -> Candidate:
        """Return the average of all snapshots."""
        record = self._known("swa", _Record)
        if record is None:
            self.observer.note(f"averaging the weights of {len(self.names)} snapshots")
            record = self._keep("swa", self._measure(average_weights(self.store)), {})
        return self._candidate("swa", record)

    def fold(self, ensemble: Scores) -> Fold:
        """Return the snapshots folded into one network; ``ensemble``: their ensemble's scores."""
        record = self._known("fold", _FoldRecord)
        if record is None:
            self.observer.note("folding the snapshots into one network")
            found = fold_greedily(self.candidates, self.members, ensemble, self._measure)
            network = replace(found.network, refresh_images=found.refresh_images)
            tried = [{"member": t.member, "kept": t.kept, **_json(t.figures)} for t in found.trials]
            record = self._keep("fold", network, {"best": found.best, "trials": tried})
        network = self._candidate("fold", record)
        if max(record["best"], *(t["member"] for t in record["trials"])) >= len(self.names):
            raise UserError(f"{self.folder.state_path('average-fold')} is damaged; {AGAIN}")
        trials = tuple(Trial(t["member"], _figures(t), t["kept"]) for t in record["trials"])
        images = network.refresh_images
        return Fold(network, record["best"], self.members, ensemble, trials, images)

    def line(self, method: str, refresh_images: int, tried: int) -> MethodResult | None:
        """Return the result of an average on the test set, or None if it is not finite.

        ``tried`` is the number of averages validated for it, in addition to the snapshots.
        """
        member, key = self._member(method), self._key(method)
        # Without a finite prediction of a view there is only no line with test-time augmentation.
        with contextlib.suppress(DivergenceError):
            self.predictions.predict(member, key, partial(self._forward, method), self.names)
        if not self.predictions.plain.complete(member, key):
            return None
        return method_result(
            method,
            self.predictions.test,
            [member],
            train_epochs=self.epochs,
            weight_bytes=self.weight_bytes,
            refresh_images=refresh_images,
            validation_images=self.validated
            + tried * (0 if self.val is None else len(self.val.targets)),
        )

    def _member(self, method: str) -> str:
        """Return the name of an average in prediction files, different from all stages' names."""
        return member_name(f"{method}-average" if method in self.taken else method, 0)

    def _measure(self, state: dict[str, Tensor]) -> Candidate:
        """Return the candidate of averaged weights, with their own batch-norm statistics."""
        model = unwrap(self.learner.model)
        model.load_state_dict(state)
        images = refresh_batch_norm(model, self.refresh)
        state = canonical_state(model)
        if self.val is None or self.val_batches is None:
            return Candidate(state, NOT_FINITE, None, images)
        try:
            probs = self.learner.predict(self.val_batches)
        except DivergenceError:
            return Candidate(state, NOT_FINITE, None, images)
        return Candidate(
            state,
            scores_of(probs, torch.from_numpy(self.val.targets), self.val.task),
            probs,
            images,
        )

    def _known(self, method: str, kind: type[Any]) -> dict[str, Any] | None:
        """Return the record of an average already made from exactly these snapshots, or None."""
        found, path = self.folder.read_state(f"average-{method}"), self._path(method)
        if found is None:
            return None
        damaged = f"{self.folder.state_path(f'average-{method}')} is damaged"
        record: dict[str, Any] = checked(found, kind, damaged, AGAIN)
        if record["snapshots"] != self.keys or not path.exists():
            return None
        return record if record["sha256"] == sha256(read_bytes(path)) else None

    def _keep(self, method: str, network: Candidate, facts: dict[str, Any]) -> dict[str, Any]:
        """Save an average, its validation prediction and then its record; return the record."""
        data = encode_weights(network.state)
        write_bytes(self._path(method), data)
        if self.val is not None and network.probs is not None:
            self.val.add(self._member(method), sha256(data), network.probs)
        record = {
            "snapshots": self.keys,
            "sha256": sha256(data),
            "refresh_images": network.refresh_images,
            **_json(network.figures),
            **facts,
        }
        self.folder.write_state(f"average-{method}", record)
        return record

    def _candidate(self, method: str, record: dict[str, Any]) -> Candidate:
        """Return the saved average of a record, with its validation prediction stored."""
        if self.val is not None and self.val_batches is not None:
            predict = partial(self._forward, method, self.val_batches)
            with contextlib.suppress(DivergenceError):
                self.val.fill(self._member(method), self._key(method), predict, self.names)
        return Candidate(self._read(method), _figures(record), None, record["refresh_images"])

    def _forward(self, method: str, batches: EvalBatches) -> Tensor:
        """Return the probabilities (N, C) of an average."""
        load_weights(self.learner.model, self._read(method), self._path(method))
        return self.learner.predict(batches)

    def _key(self, method: str) -> str:
        return sha256(read_bytes(self._path(method)))

    def _path(self, method: str) -> Path:
        return self.folder.path / FILES[method]

    def _read(self, method: str) -> dict[str, Tensor]:
        return decode_weights(read_bytes(self._path(method)), self._path(method))


def _last_ensemble(folder: RunFolder, stage: str, key: str) -> Scores:
    """Return the logged validation scores of the ensemble of all snapshots of a stage."""
    last: dict[str, Any] = {}
    for record in folder.records():
        if record["event"] == "snapshot" and record["stage"] == stage:
            last = record
    damaged = f"{folder.log_file} is damaged: the last snapshot"
    scores: dict[str, Any] = dict(checked(last, _Ensemble, damaged, AGAIN))
    if key not in scores:
        raise UserError(f"{damaged} has no {key!r}; {AGAIN}")
    return Scores(scores[key], scores["ensemble_val_nll"])


def _json(figures: Scores) -> dict[str, float]:
    return {"error": figures.error, "nll": figures.nll}


def _figures(record: dict[str, Any]) -> Scores:
    return Scores(record["error"], record["nll"])
