"""The checkpoint of a curve fit: a file with its state after an epoch, and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from fge.errors import UserError
from fge.files import checked
from fge.networks import read_state, write_state
from fge.schemas import Count
from fge.train import ClosedFormLR, Learner


class _Saved(TypedDict):
    """A checkpoint of a fit."""

    fit: dict[str, Any]
    epoch: Count
    rates: list[float]
    learner: dict[str, Any]
    schedule: dict[str, Any]


class FitCheckpoint:
    """A file with the state of the fit after an epoch, and the options of the fit.

    Args:
        path: of the file.
        learner: of the fit, with its first state.
        facts: what identifies the fit, as plain values.
    """

    def __init__(self, path: Path, learner: Learner, facts: dict[str, Any]) -> None:
        self.path = path
        self.learner = learner
        self.facts = facts

    def write(self, epoch: int, rates: ClosedFormLR) -> None:
        """Write the state after so many epochs, atomically."""
        state = {"fit": self.facts, "epoch": epoch, "rates": current(rates)}
        state |= {"learner": self.learner.state_dict(), "schedule": rates.state_dict()}
        write_state(self.path, state)

    def restore(self, rates: ClosedFormLR) -> int:
        """Resume from the file if it exists; return the number of finished epochs.

        Raises:
            UserError: it is damaged, or belongs to another fit.
        """
        if not self.path.exists():
            return 0
        found = read_state(self.path)
        if "fit" not in found:
            raise UserError(f"{self.path} is not a checkpoint of a curve fit; give another file")
        state = checked(found, _Saved, f"{self.path} is damaged")
        for name, value in self.facts.items():
            self._compare(name, state["fit"].get(name), value)
        try:
            rates.load_state_dict(state["schedule"])
            self.learner.load_state_dict(state["learner"])
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        self._compare("the schedule's lr", state["rates"], current(rates))
        return state["epoch"]

    def _compare(self, name: str, saved: Any, value: Any) -> None:
        if isinstance(saved, Tensor) or saved != value:
            raise UserError(
                f"{self.path} belongs to another fit: {name} was {saved!r}, is now {value!r}; "
                "give the same options or another checkpoint file"
            )


def current(rates: ClosedFormLR) -> list[float]:
    """Return the learning rates of the next step."""
    return [float(rate) for rate in rates.get_last_lr()]
