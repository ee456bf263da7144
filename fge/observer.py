"""What a run tells while it goes."""

from __future__ import annotations

from typing import Any


class Observer:
    """Hears of a run's progress; the base class keeps silent."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """Hear of a finished epoch: ``done`` of ``total`` that the training has."""

    def snapshot(self, record: dict[str, Any]) -> None:
        """Hear of a snapshot, with its validation figures and those of the ensemble so far."""

    def point(self, what: str, done: int, total: int) -> None:
        """Hear that ``done`` of ``total`` points were evaluated; ``what`` says of what."""

    def note(self, text: str) -> None:
        """Hear a sentence."""
