"""The display of a running command: a live bar on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fge.observer import Observer, visible

_POINTS_PER_LINE = 10
_UNLIMITED = 1000


class ConsoleObserver(Observer):
    """Prints epochs, snapshots, notes and tables; a context manager for the live bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(
            highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("training", total=None, unit="epochs")

    def __enter__(self) -> ConsoleObserver:
        """Start the live bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the live bar."""
        self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the live bar during a ``with`` block."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """Move the bar, or print a line."""
        text = visible(f"{record['stage']}: train loss {record['train_loss']:.4f}", one_line=True)
        self._advance(text, done, total, "epochs")
        if not self._live:
            self.console.print(f"epoch {done}/{total}  {text}")

    def point(self, what: str, done: int, total: int) -> None:
        """Move the bar, or print a line for every tenth point."""
        what = visible(what, one_line=True)
        self._advance(what, done, total, "points")
        if not self._live and (done == total or done % _POINTS_PER_LINE == 0):
            self.console.print(f"point {done}/{total}  {what}")

    def _advance(self, text: str, done: int, total: int, unit: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=text, unit=unit)

    def snapshot(self, record: dict[str, Any]) -> None:
        """Print the validation figures of a snapshot and of the ensemble so far."""
        if record["stage"] in ("single", "network"):
            kind = "single network" if record["stage"] == "single" else "network"
            text = f"{kind}, epoch {record['epoch']}"
        else:
            text = f"snapshot {record['member']}, epoch {record['epoch']}, lr {record['lr']:g}"
        key, word, form = ("error", "error", "{:.2f} %")
        if "val_rmse" in record:
            key, word, form = "rmse", "RMSE", "{:.4g}"
        if f"val_{key}" in record:
            value = form.format(record[f"val_{key}"])
            text += f": validation {word} {value}, NLL {record['val_nll']:.4f}"
        members = record.get("ensemble_members", record.get("member", 1))
        if members > 1 and f"ensemble_val_{key}" in record:
            value = form.format(record[f"ensemble_val_{key}"])
            text += f"; ensemble of {members}: {value}, NLL {record['ensemble_val_nll']:.4f}"
        self.console.print(visible(text, one_line=True))

    def note(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(visible(text))

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, the first column left and the others right aligned."""
        table = Table(title=visible(title, one_line=True), title_justify="left")
        for position, heading in enumerate(headings):
            justify: Literal["left", "right"] = "left" if position == 0 else "right"
            table.add_column(visible(heading, one_line=True), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(visible(cell, one_line=True) for cell in row))
        # A file or pipe has no width; on a terminal, cells that do not fit are folded.
        console = (
            self.console
            if self._live
            else Console(
                file=self.console.file, width=_UNLIMITED, markup=False, emoji=False, highlight=False
            )
        )
        console.print(table)
