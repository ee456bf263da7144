"""What a training that is resumed says of its snapshots, in its log and in the indices of stores.

Both say the same. An index is written first, so after an interruption it may know more snapshots
than the log.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from fge.errors import UserError
from fge.files import AGAIN, checked
from fge.runs import StagedTraining
from fge.schemas import Count, Loss, NotNegative, Percent


class _Facts(TypedDict):
    """What an index says of a snapshot."""

    step: Count
    epoch: Count
    lr: NotNegative
    refresh_images: NotRequired[Count]
    fitted_images: NotRequired[Count]
    train_nll: NotRequired[Loss]
    train_scaled_mse: NotRequired[NotNegative]


class _ValidatedFacts(_Facts):
    """What it says of one that was validated."""

    val_error: Percent
    val_nll: Loss


class _RegressionFacts(_Facts):
    """What it says of one that was validated, of a regression."""

    val_rmse: NotNegative
    val_nll: float


_NAMES = tuple({**_ValidatedFacts.__annotations__, **_RegressionFacts.__annotations__})


def check_index(training: StagedTraining) -> None:
    """Check what the indices say of the snapshots before a training goes on.

    Raises:
        UserError: naming the first snapshot that is not one of such a training.
    """
    _check_stages(training)
    validated = _RegressionFacts if training.task.uses_noise else _ValidatedFacts
    kind = validated if training.validation else _Facts
    logged = _logged(training)
    for name, store in training.stores.items():
        index = f"{store.path / 'index.json'} is damaged: "
        last = max((member for stage, member in logged if stage == name), default=0)
        if last > len(store):
            raise UserError(f"{index}it has no snapshot {last}, which the log has; {AGAIN}")
        stages = [stage for stage in training.stages if stage.kind == name]
        for member in range(1, len(store) + 1):
            facts = store.facts(member - 1)
            epoch = checked(facts, kind, f"{index}snapshot {member}", AGAIN)["epoch"]
            record = logged.get((name, member), facts)
            if other := [key for key in _NAMES if facts.get(key) != record.get(key)]:
                raise UserError(
                    f"{index}snapshot {member} has another {other[0]} than in log.jsonl; {AGAIN}"
                )
            if stages and not any(s.first_epoch <= epoch <= s.last_epoch for s in stages):
                raise UserError(f"{index}snapshot {member} is of epoch {epoch}; {AGAIN}")


def _check_stages(training: StagedTraining) -> None:
    """Check that the log is of the stages of the options, which a planner decides from the log."""
    names = [stage.name for stage in training.stages]
    for record in [] if training.planner else _records(training, "epoch"):
        if record["stage"] not in names:
            raise UserError(
                f"{training.folder.log_file} has the stage {record['stage']!r}, which is not one "
                f"of the options in {training.folder.config}; restore both from a copy"
            )


def run_whole(training: StagedTraining) -> bool:
    """Train the rest of the stages; return whether this process continues after training.

    Raises:
        UserError: the log does not have all snapshots, or there are none; the message names it.
        DivergenceError: the loss is not finite.
    """
    continues = training.run()
    if continues:
        _check_whole(training)
    return continues


def _check_whole(training: StagedTraining) -> None:
    logged = _logged(training)
    for name, store in training.stores.items():
        found = sorted(member for stage, member in logged if stage == name)
        if not found or found != list(range(1, len(store) + 1)):
            raise UserError(
                f"{training.folder.log_file} is damaged: it has {len(found)} snapshots of "
                f"{name!r}, of which there are {len(store)}; {AGAIN}"
            )


def _logged(training: StagedTraining) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the records of snapshots in the log, by stage and number."""
    found = _records(training, "snapshot")
    return {(record["stage"], record["member"]): record for record in found}


def _records(training: StagedTraining, event: str) -> list[dict[str, Any]]:
    records = training.folder.records() if training.learner.ranks.leads else []
    return [record for record in records if record["event"] == event]
