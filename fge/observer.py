"""Reporting the progress of a run, and words for it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO


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
    return _UNSEEN.sub(_escape, found)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()


class LastingOutput:
    """A standard stream that becomes silent when it cannot be written; the program goes on.

    Attributes:
        error: of the first write that failed; None before.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    @property
    def failed(self) -> str:
        """Why it cannot be written; empty where it can, or where its reader is gone."""
        quiet = self.error is None or isinstance(self.error, BrokenPipeError)
        return "" if quiet else str(self.error and self.error.strerror)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            act()
        except OSError as error:
            self.error = error
            # What is buffered would be written again at the exit of the interpreter.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Open those of the standard streams that are closed, onto nothing.

    The next file that is opened would take their place, and be written what is meant for them.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


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
