"""Trainings that are interrupted after a checkpoint, as by Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fge.runs import StagedTraining


@contextmanager
def interrupted(checkpoint: int) -> Iterator[None]:
    """Interrupt a run after so many checkpoints."""
    written, original = [0], StagedTraining._checkpoint

    def stop(self: StagedTraining, *arguments: Any) -> None:
        original(self, *arguments)
        written[0] += 1
        if written[0] == checkpoint:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedTraining, "_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            yield
