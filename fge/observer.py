"""What a run tells while it goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
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

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Hear of a table of results."""


class Observers(Observer):
    """Passes on what it hears to several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.epoch(record, done, total)

    def snapshot(self, record: dict[str, Any]) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.snapshot(record)

    def point(self, what: str, done: int, total: int) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.point(what, done, total)

    def note(self, text: str) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.note(text)

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.table(title, headings, rows)


def silence_output() -> None:
    """Send what is written to standard output from here on nowhere: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
