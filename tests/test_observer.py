"""Observers: the base class keeps silent, several hear the same in their order."""

from __future__ import annotations

from typing import Any

from fge.observer import Observer, Observers


class Ear(Observer):
    def __init__(self, name: str, heard: list[tuple[Any, ...]]) -> None:
        self.name, self.heard = name, heard

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        self.heard.append((self.name, "epoch", record, done, total))

    def snapshot(self, record: dict[str, Any]) -> None:
        self.heard.append((self.name, "snapshot", record))

    def point(self, what: str, done: int, total: int) -> None:
        self.heard.append((self.name, "point", what, done, total))

    def note(self, text: str) -> None:
        self.heard.append((self.name, "note", text))

    def table(self, title: str, headings: Any, rows: Any) -> None:
        self.heard.append((self.name, "table", title, headings, rows))


def tell(observer: Observer) -> list[tuple[Any, ...]]:
    observer.epoch({"epoch": 0}, 1, 2)
    observer.snapshot({"member": 1})
    observer.point("plane", 3, 4)
    observer.note("a sentence")
    observer.table("title", ["a"], [["1"]])
    return [
        ("epoch", {"epoch": 0}, 1, 2),
        ("snapshot", {"member": 1}),
        ("point", "plane", 3, 4),
        ("note", "a sentence"),
        ("table", "title", ["a"], [["1"]]),
    ]


def test_every_observer_hears_everything_in_its_order() -> None:
    heard: list[tuple[Any, ...]] = []
    told = tell(Observers(Ear("one", heard), Ear("two", heard)))
    assert heard == [(name, *what) for what in told for name in ("one", "two")]


def test_nobody_needs_to_listen() -> None:
    tell(Observers())
    tell(Observer())
