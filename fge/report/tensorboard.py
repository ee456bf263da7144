"""TensorBoard scalars of a run, made from its logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from fge.errors import UserError, missing_package
from fge.files import printable, read_records
from fge.observer import Observer

FOLDER = "tensorboard"
"""The folder of event files in the run folder. They contain times, so they are not reproducible."""
_LOGS = ("log.jsonl", "networks/*/log.jsonl", "curves/*/fit.jsonl")
_SCALARS = {
    "epoch": ("train_loss", "next_lr"),
    "snapshot": (
        "val_error",
        "val_rmse",
        "val_nll",
        "ensemble_val_error",
        "ensemble_val_rmse",
        "ensemble_val_nll",
        "distance",
    ),
    "sharpness": ("eigenvalue",),
}
"""What is shown of each kind of record. Epochs count from 0 in records of epochs, and are complete
ones in the others."""


def check_tensorboard(out: Path | None = None) -> None:
    """Check that scalars can be written.

    Args:
        out: the run folder, if its name is given.

    Raises:
        UserError: TensorBoard is not installed, or cannot write there.
    """
    if out is not None and printable(str(out)) != str(out):
        raise UserError(
            f"--tensorboard cannot write to --out {printable(str(out))}, whose name is not UTF-8; "
            "give another --out"
        )
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise missing_package("--tensorboard", "tensorboard", error, extra="tensorboard") from None


class TensorBoardObserver(Observer):
    """Writes the log of a run as scalars, into ``tensorboard`` in its folder.

    All scalars come from the logs, so a resumed run has each epoch once: if a log no longer begins
    with the records already written, everything is written again. A context manager.

    Args:
        path: of the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[Path, list[dict[str, Any]]] = {}
        self._writer: Any = None

    def __enter__(self) -> TensorBoardObserver:
        """Return itself; files are opened at the first record."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what a finished run has left, and close the files."""
        if kind is None:
            self.write()
        if self._writer is not None:
            self._writer.close()

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:  # noqa: ARG002
        """Write what is new in the logs."""
        self.write()

    def snapshot(self, record: dict[str, Any]) -> None:  # noqa: ARG002
        """Write what is new in the logs."""
        self.write()

    def write(self) -> None:
        """Write the records that the logs have gained; all of them at first."""
        logs = {path: read_records(path) for pattern in _LOGS for path in self._paths(pattern)}
        kept = all(
            logs.get(path, [])[: len(before)] == before for path, before in self._written.items()
        )
        if self._writer is None or not kept:
            self._begin()
        for path, records in logs.items():
            for record in records[len(self._written.get(path, [])) :]:
                for tag, value, step in scalars(self._group(path), record):
                    self._writer.add_scalar(tag, value, step)
        self._written = logs
        self._writer.flush()

    def _paths(self, pattern: str) -> list[Path]:
        return sorted(self.path.glob(pattern))

    def _group(self, path: Path) -> str:
        """Return the group of the scalars of a log, in addition to their stage."""
        folder = path.parent.relative_to(self.path).as_posix()
        return "" if folder == "." else folder

    def _begin(self) -> None:
        """Remove everything written before."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        for events in sorted((self.path / FOLDER).glob("events.out.tfevents.*")):
            events.unlink()
        self._writer = SummaryWriter(str(self.path / FOLDER))
        self._written = {}


def scalars(group: str, record: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield tag, value and step, the number of complete epochs, of what a record shows.

    Args:
        group: goes before the name of a scalar; the record's stage by default.
        record: of a log.
    """
    event = str(record.get("event"))
    for key in _SCALARS.get(event, ()):
        if key in record:
            step = int(record["epoch"]) + (event == "epoch")
            name = "lr" if key == "next_lr" else key
            yield f"{group or record.get('stage', event)}/{name}", float(record[key]), step
