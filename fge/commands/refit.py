"""Curves through the snapshots of a run: loss between them, and more members from the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fge.commands.fit_plan import FitPlan
from fge.commands.pairs import Measured, make_study, measure_pair
from fge.commands.run import Run
from fge.config import FGEConfig, curve_rate_of
from fge.curves import Record, turning_angles
from fge.ensemble import MemberPredictions, PredictionFile
from fge.networks import flatten, load_weights, state_bytes
from fge.report import (
    MethodResult,
    PairResult,
    ReportBuilder,
    curve_chart,
    method_result,
    pairs_table,
)
from fge.runs import StagedTraining, member_name

_EVAL_POINTS = 11
"""Points per path: few are enough, because barriers between neighbours are wide."""


@dataclass(frozen=True)
class Refit:
    """The results of the curves through a run's snapshots.

    ``measured``: per pair; ``turns``: the angles between consecutive steps from snapshot to
    snapshot, in degrees; ``results``: the ensembles of the first two, three, ... snapshots and of
    points on the curves between them.
    """

    measured: list[Measured]
    turns: list[float]
    results: list[MethodResult]

    @property
    def pairs(self) -> list[PairResult]:
        """The result of each pair."""
        return [measured.pair for measured in self.measured]

    def joined(self, path: str) -> list[Record]:
        """Return the records along all pairs; t of the second pair starts at 1, and so on."""
        return [
            {**record, "t": record["t"] + position}
            for position, measured in enumerate(self.measured)
            for record in measured.paths[path]
        ]

    def add_to(self, report: ReportBuilder) -> None:
        """Add the section to a report."""
        report.table(pairs_table(self.pairs, "Between consecutive snapshots"))
        report.facts(pairs=[pair.as_json() for pair in self.pairs], turning_angles=self.turns)
        task = self.pairs[0].task
        chart = curve_chart(
            self.joined("curve"), self.joined("segment"), place="snapshots passed", task=task
        )
        caption = f"Loss and {task.measure.word} along curves and segments, snapshot to snapshot"
        report.chart("refit.png", chart, caption)


def refit(run: Run[FGEConfig], training: StagedTraining, predictions: MemberPredictions) -> Refit:
    """Connect consecutive snapshots by curves, measure them and ensemble points on them.

    The training is finished and has at least two snapshots. The predictions of the points on curves
    are added to ``predictions``.
    """
    predictions = predictions.with_held_out()
    store, model = training.stores["fge"], training.learner.model
    load_weights(model, store[0], store.path)
    vectors = [flatten(state, model) for state in store]
    inner = [k / (run.config.refit_points + 1) for k in range(1, run.config.refit_points + 1)]
    measured: list[Measured] = []
    for first in range(len(vectors) - 1):
        study = make_study(
            fit_plan(run.config),
            run.setup,
            model,
            folder=run.folder.path / "curves",
            name=f"{first + 1:04d}--{first + 2:04d}",
            ends=(store[first], store[first + 1]),
            predictions=predictions,
            observer=run.observer,
        )
        measured.append(measure_pair(study, inner))
    snapshots = training.snapshot_costs("fge")
    turns = turning_angles(vectors).tolist() if len(vectors) > 2 else []
    results = [
        _result(predictions.test, snapshots[:size], measured[: size - 1], inner, state_bytes(model))
        for size in range(2, len(store) + 1)
    ]
    return Refit(measured, turns, results)


def _result(
    test: PredictionFile,
    snapshots: Sequence[dict[str, Any]],
    measured: Sequence[Measured],
    inner: Sequence[float],
    weight_bytes: int,
) -> MethodResult:
    """Return the result of the first snapshots with points on the curves between them."""
    last = len(measured)
    points = [m.study.member("curve", t) for m in measured for t in inner]
    fitted = sum(m.pair.fit_epochs for m in measured)
    return method_result(
        "fge+refit",
        test,
        [*(member_name("fge", position) for position in range(last + 1)), *points],
        train_epochs=snapshots[-1]["train_epochs"] + fitted,
        weight_bytes=weight_bytes,
        refresh_images=sum(m.study.refresh_images for m in measured) * len(inner),
        validation_images=sum(facts["validation_images"] for facts in snapshots)
        + sum(m.study.validation_images for m in measured) * len(inner),
    )


def fit_plan(config: FGEConfig) -> FitPlan:
    """Return how curves between a run's snapshots are fitted."""
    return FitPlan(
        config.refit_epochs or config.cycle_length // 2,
        curve_rate_of(config.model, config.task),
        config.batch_size,
        config.momentum,
        config.l2_penalty,
        config.refit or "bezier",
        eval_points=_EVAL_POINTS,
    )
