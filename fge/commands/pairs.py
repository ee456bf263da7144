"""A curve between two networks: fitting it and measuring along it, with results in a folder."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from fge.commands.build import Setup
from fge.commands.endpoints import Network
from fge.commands.figures import ENSEMBLE, with_figures
from fge.commands.fit_plan import FitPlan, StudyData
from fge.curves import (
    BASELINES,
    AnyCurve,
    Curve,
    CurveRecords,
    Ends,
    InterpolatedWarning,
    Probabilities,
    Record,
    angle,
    distance,
    evaluate_curve,
    fit_curve,
    make_baseline,
    make_family,
    straight_points,
)
from fge.data import EvalBatches
from fge.ensemble import MemberPredictions
from fge.errors import DivergenceError, UserError
from fge.files import append_record, read_bytes, read_records, remove, sha256, write_records
from fge.networks import Weights, estimated_layers, flatten
from fge.observer import Observer, counted
from fge.report import MethodResult, PairResult, method_result, pair_result
from fge.schemas import NotNegative, Share
from fge.tasks import Task
from fge.train import EpochEnd, Speed

_BASELINE_STEP = 3
"""Baselines are measured at every third point: each costs a refresh and a test pass."""
MIDDLE = 0.5


class _PathPoint(TypedDict):
    """Where a point on a path is; its other keys are figures."""

    t: Share
    distance: NotNegative
    arc: NotNegative


class CurveStudy:
    """Fits a curve between two networks, and measures curve, segment and baselines.

    All results are saved, so that nothing is done twice: the fitted curve (with a checkpoint after
    each epoch of the fit), a record per point, and the predictions of ensemble members.

    Args:
        folder: of the study.
        name: of the pair, in predictions and messages.
        model: the architecture, on its device; it is not changed.
        ends: the two networks, with their buffers.
        data: batches.
        plan: how to fit and to measure.
        seed: of the fit and the baselines.
        speed: how to run the model.
        predictions: of the members of all studies of the run.
        observer: called after each epoch and point.

    Raises:
        UserError: the folder holds a curve between other networks.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        model: nn.Module,
        ends: Ends,
        data: StudyData,
        plan: FitPlan,
        seed: int,
        speed: Speed,
        predictions: MemberPredictions,
        observer: Observer,
    ) -> None:
        self.folder = folder
        self.name = name
        self.model = model
        self.states: Ends | None = ends  # until the curve is fitted, which holds them
        self.ends = flatten(ends[0], model), flatten(ends[1], model)
        self.data = data
        self.plan = plan
        self.seed = seed
        self.speed = speed
        self.predictions = predictions
        self.observer = observer
        self._file = folder / "curve.safetensors"
        self._key = ""
        if self.fitted:
            self._load()

    @property
    def fitted(self) -> bool:
        """Whether the fitted curve is saved."""
        return self._file.exists()

    @property
    def refresh_images(self) -> int:
        """Images passed forward for the batch-norm statistics of one point on a path."""
        return len(self.data.measured.split) if estimated_layers(self.model) else 0

    @property
    def point_images(self) -> int:
        """Images passed forward for one point on curve or segment, on training and test data."""
        return self.refresh_images + len(self.data.measured.split) + len(self.data.test.split)

    @property
    def validation_images(self) -> int:
        """Images passed forward for the noise of a regression at one point on a path."""
        held_out = self.predictions.held_out
        return len(held_out.split) if self.task.uses_noise and held_out else 0

    @property
    def task(self) -> Task:
        """What the networks predict."""
        return self.predictions.test.task

    def fit(self) -> Curve:
        """Return the curve; fit it unless it is saved."""
        if not self.fitted:
            assert self.states is not None
            self._fit(*self.states).save(self._file)
        self.states = None
        remove(self.folder / "fit.safetensors")
        self._key = sha256(read_bytes(self._file))
        return self._load()

    def _load(self) -> Curve:
        curve = Curve.load(self._file)
        device = self.ends[0].device
        curve = Curve(curve.family, curve.points.to(device), curve.layout, curve.buffers)
        if not all(torch.equal(curve.points[i], self.ends[i]) for i in (0, -1)):
            raise UserError(
                f"{self._file} connects other networks; give another --out, or replace it with "
                "--overwrite"
            )
        return curve

    def _fit(self, start: Weights, end: Weights) -> Curve:
        self.folder.mkdir(parents=True, exist_ok=True)
        return fit_curve(
            self.model,
            start,
            end,
            self.data.train,
            family=self.plan.family,
            num_points=self.plan.num_points,
            objective=self.plan.objective,
            epochs=self.plan.epochs,
            lr=self.plan.lr,
            momentum=self.plan.momentum,
            weight_decay=self.plan.weight_decay,
            seed=self.seed,
            loss_fn=self.task.path_loss(self.ends[0].device),
            forward_fn=self.task.forward_fn,
            speed=self.speed,
            on_epoch=self._end_epoch,
            checkpoint=self.folder / "fit.safetensors",
        )

    def _end_epoch(self, end: EpochEnd) -> None:
        file = self.folder / "fit.jsonl"
        record = {"event": "epoch", "stage": "curve", "epoch": end.epoch}
        record["train_loss"] = end.train_loss
        # An epoch repeated after an interruption replaces its first record.
        write_records(file, [*read_records(file)[: end.epoch], record])
        self.observer.epoch(record, end.epoch + 1, self.plan.epochs)

    def segment(self) -> Curve:
        """Return the segment between the networks as a curve of two points.

        Its ends have the buffers that the ends of the fitted curve have.
        """
        curve = self.fit()
        points = straight_points(*self.ends, 2)
        return Curve(make_family("polychain", 2), points, curve.layout, curve.buffers)

    def measure(self, path: str, curve: AnyCurve, members: Sequence[float] = ()) -> CurveRecords:
        """Return records along a path, on training and test data; measure only missing points.

        In addition to the keys of :func:`evaluate_curve`, ``ensemble_error`` (percent; the measure
        of another task) and ``ensemble_nll`` (nats) are those of the two networks {w(0), w(t)} on
        the test set.

        Args:
            path: its name; measure ``"curve"`` first.
            curve: the path.
            members: values of t whose test predictions are stored. That of the curve at 0 always
                is. At 0 and 1 all paths have the networks of the curve.
        """
        grid = [k / (self.plan.eval_points - 1) for k in range(self.plan.eval_points)]
        batches = {"train": self.data.measured, "test": self.data.test}
        return self._measure(path, curve, sorted({*grid, *members}), members, batches)

    def measure_baselines(self, curve: Curve) -> dict[str, CurveRecords]:
        """Return the records along the baselines of a curve, by name, on test data only."""
        count = max(2, (self.plan.eval_points - 1) // _BASELINE_STEP + 1)
        ts = [k / (count - 1) for k in range(count)]
        records = {}
        for name in BASELINES:
            baseline = make_baseline(name, curve, seed=self.seed)
            records[name] = self._measure(
                f"baseline-{name}", baseline, ts, (), {"test": self.data.test}
            )
        return records

    def _measure(
        self,
        path: str,
        curve: AnyCurve,
        ts: Sequence[float],
        members: Sequence[float],
        batches: dict[str, EvalBatches],
    ) -> CurveRecords:
        file = self.folder / f"{path}.jsonl"
        kept = {0.0, *members} if path == "curve" else set(members) - {0.0, 1.0}
        splits = ("test", ENSEMBLE, *(["train"] if "train" in batches else []))
        done = read_records(file, with_figures(_PathPoint, self.task, splits))
        finished = itertools.count(len(done) + 1)
        self._predict_lost(path, curve, kept, done)
        probs: list[Tensor] = []

        def on_point(t: float, probabilities: Probabilities) -> None:
            probs[:] = [probabilities["test"]]
            if t in kept:
                self.predictions.test.add(self.member(path, t), self._key, probs[0])

        def on_record(record: Record) -> None:
            self._check_finite(path, record)
            record |= self._with_start(probs[0])
            append_record(file, record)
            self.observer.point(f"{self.name}: {path}", next(finished), len(ts))

        records = self._evaluate(curve, batches, ts, on_point, on_record, done)
        self._predict_others(path, curve, kept)
        return records

    def _predict_lost(
        self, path: str, curve: AnyCurve, kept: Iterable[float], done: Sequence[Record]
    ) -> None:
        """Predict the test images again by members that were measured and have no predictions."""
        test = self.predictions.test
        known = [record["t"] for record in done]
        lost = [
            t
            for t in sorted(kept)
            if test.get(self.member(path, t), self._key) is None
            and any(math.isclose(t, other, abs_tol=1e-9) for other in known)
        ]

        def on_point(t: float, probabilities: Probabilities) -> None:
            test.add(self.member(path, t), self._key, probabilities["test"])

        if lost:
            self._evaluate(curve, {"test": self.data.test}, lost, on_point)

    def _evaluate(
        self,
        curve: AnyCurve,
        batches: Mapping[str, EvalBatches],
        ts: Sequence[float],
        on_point: Callable[[float, Probabilities], None],
        on_record: Callable[[Record], None] | None = None,
        done: Sequence[Record] = (),
    ) -> CurveRecords:
        """Evaluate networks on a path, with the statistics that all points on it have."""
        # The report says which buffers the networks have.
        with warnings.catch_warnings(action="ignore", category=InterpolatedWarning):
            return evaluate_curve(
                self.model,
                curve,
                batches,
                ts=ts,
                refresh=self.data.refresh,
                num_images=None,
                speed=self.speed,
                task=self.task,
                on_point=on_point,
                on_record=on_record,
                done=done,
            )

    def _predict_others(self, path: str, curve: AnyCurve, kept: Iterable[float]) -> None:
        """Store missing predictions by the members on a path of all but the test images.

        Those are OOD images, and the data that say the noise of a regression. This is a separate
        pass, with the same statistics as for the test predictions, so OOD images can be added after
        a path was measured.
        """
        files = {file.path.stem: file for file, _ in self.predictions.others}
        complete = self.predictions.complete
        left = [t for t in kept if not complete(self.member(path, t), self._key)]

        def on_point(t: float, probabilities: Probabilities) -> None:
            for name, probs in probabilities.items():
                self._check_finite(path, {"t": t, name: float(probs.sum())})
                files[name].add(self.member(path, t), self._key, probs)

        if files and left:
            batches = {file.path.stem: found for file, found in self.predictions.others}
            self._evaluate(curve, batches, left, on_point)

    def _check_finite(self, path: str, record: Record) -> None:
        if not all(math.isfinite(value) for value in record.values()):
            raise DivergenceError(
                f"{self.name}: the loss on the path {path} is not finite at t = {record['t']:g}; "
                "try --amp off in another --out"
            )

    def member(self, path: str, t: float) -> str:
        """Return the name, in prediction files, of the network at t on a path."""
        return f"{self.name}/{path}/{t:.4f}"

    def _with_start(self, probs: Tensor) -> dict[str, float]:
        test = self.predictions.test
        start = test.probabilities(self.member("curve", 0.0))
        mean, spread = (start + probs) / 2, ((start - probs) / 2).square()
        tested, nll = self.task.scores(mean.numpy(), test.targets, spread.numpy())
        return {f"{ENSEMBLE}_{self.task.measure.key}": tested, f"{ENSEMBLE}_nll": nll}

    def geometry(self, curve: Curve) -> dict[str, float]:
        """Return distance and angle (degrees, seen from the origin) of the ends, and length."""
        return {
            "distance": distance(*self.ends),
            "angle": angle(*self.ends),
            "length": curve.length(),
        }


@dataclass(frozen=True)
class Measured:
    """A pair of networks with the records along its paths, ``segment`` and ``curve``."""

    pair: PairResult
    paths: Mapping[str, Sequence[Record]]
    study: CurveStudy


def make_study(
    plan: FitPlan,
    setup: Setup,
    model: nn.Module,
    *,
    folder: Path,
    name: str,
    ends: Ends,
    predictions: MemberPredictions,
    observer: Observer,
) -> CurveStudy:
    """Return the study of the curve between two networks.

    Args:
        plan: how to fit and to measure.
        setup: of the run.
        model: the architecture, on the run's device; it is not changed.
        folder: of the curves of the run.
        name: of the pair, and of its folder in ``folder``.
        ends: the two networks, with their buffers.
        predictions: of the members of all studies of the run.
        observer: called after each epoch and point.
    """
    measured = setup.dataset.train.first(plan.eval_images)
    return CurveStudy(
        folder / name,
        name,
        model=model,
        ends=ends,
        data=StudyData(
            setup.shuffled(plan.batch_size),
            setup.eval_batches(measured),
            setup.refresh_batches(measured),
            setup.eval_batches(setup.dataset.test),
            setup.dataset.example,
        ),
        plan=plan,
        seed=setup.seed,
        speed=setup.speed,
        predictions=predictions,
        observer=observer,
    )


def measure_pair(study: CurveStudy, members: Sequence[float]) -> Measured:
    """Fit the curve of a pair and measure curve and segment; reuse saved results.

    The test predictions at the ts ``members`` are stored.
    """
    epochs = study.plan.epochs
    if not study.fitted:
        study.observer.note(f"curve {study.name}: {counted(epochs, 'epoch')}")
    try:
        curve = study.fit()
    except (UserError, DivergenceError) as error:
        raise type(error)(f"curve {study.name}: {error}") from None
    along = study.measure("curve", curve, members)
    paths = {"segment": study.measure("segment", study.segment(), members), "curve": along}
    pair = pair_result(
        study.name,
        study.geometry(curve),
        paths,
        fit_epochs=epochs,
        probe_images=sum(map(len, paths.values())) * study.point_images,
        statistics=along.statistics,
        task=study.task,
        example=study.data.example,
    )
    return Measured(pair, paths, study)


def member_ts(count: int) -> list[float]:
    """Return ``count`` values of t, evenly spaced from 0 to 1.

    >>> member_ts(3)
    [0.0, 0.5, 1.0]
    """
    return [k / (count - 1) for k in range(count)]


def ensemble_results(
    study: CurveStudy, networks: tuple[Network, Network], *, points: int, weight_bytes: int
) -> list[MethodResult]:
    """Return a pair's results: each network, both, with the middle, and along the paths.

    Args:
        study: measured, with the predictions of all members.
        networks: the two trained networks, with stored predictions.
        points: number of members along each path, ends included.
        weight_bytes: size of one network.
    """
    first, second = networks
    epochs = first.train_epochs + second.train_epochs
    fitted = epochs + study.plan.epochs

    def line(
        name: str,
        members: Sequence[str],
        used: int,
        refreshed: int = 0,
        of: Sequence[Network] = networks,
    ) -> MethodResult:
        validated = sum(n.validation_images for n in of)
        return method_result(
            name,
            study.predictions.test,
            members,
            train_epochs=used,
            weight_bytes=weight_bytes,
            refresh_images=refreshed * study.refresh_images + sum(n.refresh_images for n in of),
            validation_images=validated + refreshed * study.validation_images,
        )

    def along(path: str, ts: Sequence[float]) -> list[str]:
        # The ends of the segment are those of the curve.
        return [study.member("curve" if t in (0, 1) else path, t) for t in ts]

    ts = member_ts(points)
    return [
        *(
            line(name, [n.name], n.train_epochs, of=[n])
            for name, n in (("network-1", first), ("network-2", second))
        ),
        line("ends", [first.name, second.name], epochs),
        line("ends+segment-middle", along("segment", [0, MIDDLE, 1]), epochs, 3),
        line("segment", along("segment", ts), epochs, points),
        line("ends+curve-middle", along("curve", [0, MIDDLE, 1]), fitted, 3),
        line("curve", along("curve", ts), fitted, points),
    ]
