"""How a planner spent a budget, and whether one network would gain from more of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from fge.files import AGAIN, checked
from fge.metrics import FITS, Regime, find_regime
from fge.report.builder import ReportBuilder
from fge.report.methods import MethodResult
from fge.report.page import Table
from fge.runs import StagedTraining, member_name
from fge.schemas import Loss, extended
from fge.tasks import NLL_OF_PLANS, PlanLoss
from fge.train import Planner

_NOTHING = "-"
_NOTE = (
    "Each stage was decided from the log of those before it. The {word} is that of the validation "
    "{example}s, in {unit}, {how}. Forecast and measured are those of the ensemble of the networks "
    "so far, which of one network is the network itself. The difference is measured minus "
    "forecast: below 0, the stage did better than its forecast."
)
Next = Literal["continue", "others", "stop"]
_NEXT = {
    "continue": "continue this network",
    "others": "start fresh networks",
    "stop": "stop, because another network is forecast to gain too little",
}


class _Snapshot(TypedDict):
    """A snapshot in the log of a plan, whose keys depend on the task."""


@dataclass(frozen=True)
class Measured:
    """A network after ``epochs``: losses (N,) of validation examples, the mean of training ones.

    Both are those that a planner compares; the latter is None if it was not measured.
    """

    epochs: int
    losses: NDArray[np.float64]
    train: float | None = None


@dataclass(frozen=True)
class PlanSection:
    """A section of a report: the plan of a run, if it has one, and the regime of its network.

    ``results``: lines of the method table, of which it has none.
    """

    tables: Sequence[Table]
    sentences: Sequence[str]
    content: dict[str, Any] = field(default_factory=dict)
    results: Sequence[MethodResult] = ()

    def add_to(self, report: ReportBuilder) -> None:
        """Add the section to a report."""
        report.table(*self.tables)
        report.say(*self.sentences)
        report.facts(**self.content)


def plan_section(training: StagedTraining, longer: Planner, example: str = "image") -> PlanSection:
    """Return the section of a run with a planner: each stage beside its forecast, and the regime.

    Args:
        training: the finished training.
        longer: the planner of a larger budget, which is asked for the next stage.
        example: what the network is trained on, image or row.
    """
    records = training.folder.records()
    loss = training.task.plan
    stages = plan_stages(records, loss)
    regime = _regime_of(_first_network(training, stages))
    step = next_step(longer, records)
    content: dict[str, Any] = {"plan": stages, "next": step}
    table = plan_table(stages, example, loss)
    if regime is None:
        return PlanSection([table], [_next_sentence(step)], content)
    sentence = regime_sentence(regime, step, loss.word)
    return PlanSection([table], [sentence], content | {"regime": asdict(regime)})


def regime_section(training: StagedTraining, kind: str) -> PlanSection | None:
    """Return the section of a run whose snapshots are of one network; None without validation.

    Args:
        training: the finished training.
        kind: of the snapshots.
    """
    store = training.stores[kind]
    epochs = [store.facts(position)["epoch"] for position in range(len(store))]
    regime = _regime_of(_measured(training, kind, range(len(store)), epochs))
    if regime is None:
        return None
    step: Next = "continue" if regime.gains else "others"
    sentence = regime_sentence(regime, step, training.task.plan.word)
    return PlanSection([], [sentence], {"regime": asdict(regime)})


def plan_stages(
    records: Sequence[dict[str, Any]], loss: PlanLoss = NLL_OF_PLANS
) -> list[dict[str, Any]]:
    """Return the stages of a plan from the records of a log, each with what it was to reach.

    Args:
        records: ``plan`` and ``snapshot`` records in order, one snapshot per stage.
        loss: what was planned with.

    Returns:
        Per stage: ``stage``, ``network``, ``first_epoch``, ``epochs``, ``forecast`` (None for the
        first), ``measured`` (of the ensemble so far), ``network_nll`` and ``train_nll``, all NLL in
        nats per image; of a regression ``network_scaled_mse`` and ``train_scaled_mse``.
    """
    more = {loss.val: Loss, loss.joint: NotRequired[Loss], loss.train: NotRequired[Loss]}
    judged = extended(_Snapshot, more)
    plans = [record for record in records if record["event"] == "plan"]
    snapshots = [
        checked(record, judged, "log.jsonl is damaged", AGAIN)
        for record in records
        if record["event"] == "snapshot"
    ]
    return [
        {
            **{key: plan[key] for key in ("stage", "network", "first_epoch", "epochs")},
            "forecast": plan.get("forecast"),
            "measured": kept.get(loss.joint, kept[loss.val]),
            f"network_{loss.now}": kept[loss.val],
            loss.train: kept.get(loss.train),
        }
        for plan, kept in zip(plans, snapshots, strict=False)
    ]


def plan_table(
    stages: Sequence[dict[str, Any]], example: str = "image", loss: PlanLoss = NLL_OF_PLANS
) -> Table:
    """Return the table of a plan.

    Args:
        stages: as :func:`plan_stages` returns them.
        example: what the network is trained on, image or row.
        loss: what was planned with.
    """
    headings = ["stage", "network", "epochs", f"forecast {loss.word}", f"measured {loss.word}"]
    headings += ["difference", "network alone", f"training {loss.word}"]
    rows = [
        [
            stage["stage"],
            str(stage["network"]),
            f"{stage['first_epoch']} to {stage['first_epoch'] + stage['epochs']}",
            _number(stage["forecast"]),
            _number(stage["measured"]),
            _number(_miss(stage), sign="+"),
            _number(stage[f"network_{loss.now}"]),
            _number(stage[loss.train]),
        ]
        for stage in stages
    ]
    misses = [abs(miss) for stage in stages if (miss := _miss(stage)) is not None]
    unit, how = (text.format(example=example) for text in (loss.unit, loss.how))
    note = _NOTE.format(example=example, word=loss.word, unit=unit, how=how)
    if misses:
        note += f" On average a forecast missed by {sum(misses) / len(misses):.4f}."
    return Table("Plan", headings, rows, note)


def _miss(stage: dict[str, Any]) -> float | None:
    return None if stage["forecast"] is None else stage["measured"] - stage["forecast"]


def _number(value: float | None, sign: str = "") -> str:
    return _NOTHING if value is None else f"{value:{sign}.4f}"


def next_step(planner: Planner, records: Sequence[dict[str, Any]]) -> Next:
    """Return what a planner does after the records of a log that has a plan.

    Args:
        planner: of a larger budget than the one that was spent.
        records: of the log.
    """
    decided = planner.decide(records)
    if decided is None:
        return "stop"
    network = next(r["network"] for r in reversed(records) if r["event"] == "plan")
    return "continue" if decided["network"] == network else "others"


def regime_sentence(regime: Regime, step: Next, word: str = NLL_OF_PLANS.word) -> str:
    """Say whether one network still gains from epochs, and what comes next.

    Args:
        regime: of the network.
        step: what ``train --method auto`` would do with more epochs.
        word: for the loss by which it was found.
    """
    text = "One network is still gaining from epochs"
    if not regime.gains:
        text = f"One network is saturated since epoch {regime.saturated_since}"
    reasons = [] if regime.first == regime.last else [_gain_text(regime, word)]
    if regime.fit is not None:
        side = "above" if regime.fit > FITS else "not above"
        reasons.append(
            f"its training {word} is {regime.fit:.2f} of its validation {word}, {side} {FITS:g}"
        )
    text = f"{text}: {'; '.join(reasons)}."
    if regime.fit is None:
        text += f" The log has no training {word}, so the validation {word} alone decides this."
    return f"{text} {_next_sentence(step)}"


def _gain_text(regime: Regime, word: str) -> str:
    way = "fell" if regime.gain >= 0 else "rose"
    significant = "significant" if regime.significant else "not significant"
    less = ", less than a doubling" if 2 * regime.first > regime.last else ""
    return (
        f"from epoch {regime.first} to {regime.last}{less}, its validation {word} {way} by "
        f"{abs(regime.gain):.4f} ± {regime.standard_error:.4f} (paired standard error; "
        f"{significant})"
    )


def _next_sentence(step: Next) -> str:
    return f"With more epochs, `train --method auto` would {_NEXT[step]}."


def _regime_of(points: Sequence[Measured]) -> Regime | None:
    """Return the regime; None where there are too few measurements."""
    train = points[-1].train if points else None
    if len(points) < (2 if train is None else 1):
        return None
    epochs, losses = [point.epochs for point in points], [point.losses for point in points]
    return find_regime(epochs, losses, train_nll=train)


def _first_network(training: StagedTraining, stages: Sequence[dict[str, Any]]) -> list[Measured]:
    """Return the measurements of the first network of a plan."""
    first = [k for k, stage in enumerate(stages) if stage["network"] == 1]
    epochs = np.cumsum([stages[k]["epochs"] for k in first]).tolist()
    assert training.planner is not None
    return _measured(training, training.planner.members, first, epochs)


def _measured(
    training: StagedTraining, kind: str, positions: Sequence[int], epochs: Sequence[int]
) -> list[Measured]:
    """Return snapshots by their stored predictions."""
    stored, store = training.val_predictions, training.stores[kind]
    found = []
    for position, epoch in zip(positions, epochs, strict=True):
        facts = store.facts(position)
        probs = stored.get(member_name(kind, position), facts["sha256"]) if stored else None
        if probs is not None and stored is not None:
            losses = training.task.plan_losses(probs, stored.targets)
            found.append(Measured(epoch, losses, facts.get(training.task.plan.train)))
    return found
