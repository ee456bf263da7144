"""The cost ledger of a training: epochs behind each snapshot, and images passed forward for it."""

from __future__ import annotations

from typing import Any

from fge.runs.staged import StagedTraining


def snapshot_costs(training: StagedTraining, stage: str) -> list[dict[str, Any]]:
    """Return the facts of a stage's snapshots in order, each with what it cost.

    Args:
        training: finished.
        stage: its name.

    Returns:
        Per snapshot its entry in the index; ``train_epochs``, trained in all stages until then;
        ``refresh_images`` and ``validation_images``, passed forward for this snapshot.
    """
    store, trained = training.stores[stage], next(s for s in training.stages if s.name == stage)
    validation = len(training.validation.split) if training.validation else 0
    return [
        {
            "refresh_images": 0,
            **facts,
            "train_epochs": training.epochs_done(trained, facts["epoch"]),
            "validation_images": validation if "val_nll" in facts else 0,
        }
        for facts in map(store.facts, range(len(store)))
    ]
