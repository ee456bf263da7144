"""What a run shows while it goes: a live bar on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fge.staged import Observer


class ConsoleObserver(Observer):
    """Tells of epochs, snapshots and notes; a context manager, for the live bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("training", total=None)

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
        """Take the live bar away."""
        self._progress.stop()

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """Move the bar, or print a line."""
        text = f"{record['stage']}: train loss {record['train_loss']:.4f}"
        self._progress.update(self._task, completed=done, total=total, description=text)
        if not self._live:
            self.console.print(f"epoch {done}/{total}  {text}")

    def snapshot(self, record: dict[str, Any]) -> None:
        """Print the figures of a snapshot and of the ensemble with it."""
        if record["stage"] == "single":
            text = f"single network, epoch {record['epoch']}"
        else:
            text = f"snapshot {record['member']}, epoch {record['epoch']}, lr {record['lr']:g}"
        if "val_error" in record:
            text += f": validation error {record['val_error']:.2f} %, NLL {record['val_nll']:.4f}"
        if record.get("member", 1) > 1 and "ensemble_val_error" in record:
            text += (
                f"; ensemble of {record['member']}: {record['ensemble_val_error']:.2f} %, "
                f"NLL {record['ensemble_val_nll']:.4f}"
            )
        self.console.print(text)

    def note(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text)

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, the first column left and the others right aligned."""
        table = Table(title=title, title_justify="left")
        for position, heading in enumerate(headings):
            table.add_column(heading, justify="left" if position == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
