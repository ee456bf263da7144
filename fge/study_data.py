"""What studies of networks take from their run: training images, and what was measured before."""

from __future__ import annotations

from typing import Any

from fge.data import Split
from fge.open_run import Run
from fge.study_config import StudyConfig


def training_part(run: Run[StudyConfig], count: int) -> Split:
    """Return the first ``count`` training images, or all for 0; any number is balanced."""
    train = run.dataset.train
    count = min(count or len(train), len(train))
    return Split(train.images[:count], train.labels[:count])


def recorded(run: Run[StudyConfig], event: str) -> dict[str, dict[str, Any]]:
    """Return what was logged of networks before an interruption, by their names."""
    return {r["name"]: r for r in run.folder.records() if r["event"] == event}
