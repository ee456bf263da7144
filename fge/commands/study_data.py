"""What studies of networks take from their run: training images, and what was measured before."""

from __future__ import annotations

from typing import Any

from fge.commands.build import eval_batches
from fge.commands.run import Run
from fge.config.studies import PlaneConfig, StudyConfig
from fge.data.batches import EvalBatches
from fge.data.splits import Split


def training_part(run: Run[StudyConfig], count: int) -> Split:
    """Return the first ``count`` training images, or all for 0; any number is balanced."""
    return run.dataset.train.first(count)


def measured_batches(run: Run[PlaneConfig]) -> dict[str, EvalBatches]:
    """Return what losses and errors of a plane or a line are measured on, by split."""
    splits = {"train": training_part(run, run.config.eval_images), "test": run.dataset.test}
    return {name: eval_batches(run.config, run.dataset, split) for name, split in splits.items()}


def recorded(run: Run[StudyConfig], event: str) -> dict[str, dict[str, Any]]:
    """Return what was logged of networks before an interruption, by their names."""
    return {r["name"]: r for r in run.folder.records() if r["event"] == event}
