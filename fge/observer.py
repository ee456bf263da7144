"""Reporting the progress of a run, and words for it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any


class Observer:
    """Called as a run progresses; this base class does nothing."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """Called after each epoch: ``done`` of the training's ``total`` are finished."""

    def snapshot(self, record: dict[str, Any]) -> None:
        """Called after each snapshot, with validation scores of it and of the ensemble so far."""

    def point(self, what: str, done: int, total: int) -> None:
        """Called after each evaluated point: ``done`` of ``total`` of ``what`` are finished."""

    def note(self, text: str) -> None:
        """Called with a sentence to show."""

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Called with a table of results."""


class Observers(Observer):
    """Passes every call on to several observers, in their order."""

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


_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but tab and line feed, those that change the direction of writing, and what
Python makes of bytes in file names that are no text."""


def visible(text: object, *, one_line: bool = False) -> str:
    r"""Return text whose control characters are written out, so that none reaches a terminal.

    Args:
        text: of a name or a message.
        one_line: spaces instead of line ends, and one instead of several.

    >>> print(visible("name\x1b[31m\r\nnext", one_line=True))
    name\x1b[31m next
    """
    found = str(text).replace("\r\n", "\n")
    if one_line:
        found = " ".join(found.split())
    return _UNSEEN.sub(lambda c: c[0].encode("unicode_escape").decode(), found)


def silence_output() -> None:
    """Discard standard output from now on, because nothing reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def listed(words: Iterable[object], conjunction: str = "and") -> str:
    """Return words as a list within a sentence.

    >>> listed("a"), listed("ab"), listed("abc"), listed("abc", "or")
    ('a', 'a and b', 'a, b and c', 'a, b or c')
    """
    *first, last = map(str, words)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, whose plural ends in s unless it is given.

    >>> counted(1, "snapshot"), counted(1200, "parameter")
    ('1 snapshot', '1,200 parameters')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"
