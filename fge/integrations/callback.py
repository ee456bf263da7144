"""What the callbacks share: an ``FGE`` that begins in the middle of somebody else's training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fge.ensemble import FGE, Ensemble
from fge.errors import UserError, check_at_least
from fge.integrations.rates import Rates

_FRESH = {"scheduler": {"last_epoch": 0}, "snapshots": 0, "mean": None}
"""The state of an ``FGE`` before its first step."""


@dataclass(frozen=True)
class Progress:
    """Where a training is, and how long it goes on, in optimizer steps.

    Args:
        step: the steps taken.
        epoch: the epoch of the next step, from 0.
        steps: the steps at the end of the training, None if nobody knows.
        steps_per_epoch: None if nobody knows.
    """

    step: int
    epoch: int
    steps: int | None = None
    steps_per_epoch: int | None = None


class CycleCallback:
    """Fast Geometric Ensembling from an epoch or a step of a training on.

    The base of the callbacks: what they do apart from the library whose training they join. Steps
    are optimizer steps, so with gradient accumulation one takes several batches.

    Args:
        cycle_steps: optimizer steps per cycle, even.
        max_lr: rate at the start of a cycle; one number, or one per parameter group.
        min_lr: rate in the middle of a cycle; one number, or one per parameter group.
        out: folder of the snapshots.
        start_epoch: the epoch, from 0, with whose first step the cycles begin.
        start_step: the step, from 0, with which they begin. By default they begin at once; give one
            of the two. Before, the learning rates are those of the training.
        average: as of :class:`fge.FGE`.
        refresh: as of :class:`fge.FGE`.
        overwrite: drop the snapshots that the folder holds, unless a checkpoint is resumed.
        forward_fn: as of :class:`fge.FGE`.
        write: as of :class:`fge.FGE`.

    Attributes:
        cycle: the :class:`fge.FGE`, from the start of the training on.

    Raises:
        UserError: both starts are given, or one below 0.
    """

    _forward_fn: Callable[[nn.Module, Any], Tensor] | None = None
    """The default of a subclass."""

    def __init__(
        self,
        *,
        cycle_steps: int,
        max_lr: float | Sequence[float],
        min_lr: float | Sequence[float],
        out: str | Path,
        start_epoch: int | None = None,
        start_step: int | None = None,
        average: float | None = None,
        refresh: Iterable[Any] | None = None,
        overwrite: bool = False,
        forward_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        write: bool | None = None,
    ) -> None:
        super().__init__()
        if start_epoch is not None and start_step is not None:
            raise UserError(
                f"give start_epoch={start_epoch} or start_step={start_step}, and not both"
            )
        check_at_least(0, start_epoch=start_epoch, start_step=start_step)
        self.start_epoch = start_epoch
        self.start_step = start_step if start_epoch is not None or start_step is not None else 0
        self.cycle: FGE | None = None
        self._options: dict[str, Any] = {
            "cycle_steps": cycle_steps,
            "max_lr": max_lr,
            "min_lr": min_lr,
            "out": out,
            "average": average,
            "refresh": refresh,
            "forward_fn": self._forward_fn if forward_fn is None else forward_fn,
            "write": write,
        }
        self._overwrite = overwrite
        self._begun_at: int | None = None  # the step at which the cycles began
        self._rates: Rates | None = None

    def ensemble(self, model: nn.Module | None = None, **options: Any) -> Ensemble:
        """Return the ensemble of the snapshots so far.

        Args:
            model: the architecture, by default that of the trained model.
            options: ``output``, ``output_dim``, ``combine`` and ``in_memory``, as of
                :meth:`fge.FGE.ensemble`.

        Raises:
            UserError: no training has been started, or there is no snapshot yet.
        """
        if self.cycle is None:
            raise UserError(
                "the callback has not been in a training yet; give it to a trainer and train first"
            )
        return self.cycle.ensemble(model, **options)

    # ------------------------------------------------------------------------- for subclasses

    def _prepare(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        *,
        schedulers: Sequence[Any] = (),
        saved: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Make the ``FGE`` at the start of a training; begin its cycles if it is time.

        Args:
            model: what is trained.
            optimizer: its only one.
            progress: of the training.
            schedulers: of the training, which set rates that do not change once cycles begin.
            saved: what :meth:`_state` returned, if the training continues a checkpoint.
            options: of ``FGE``, in addition to the user's.

        Raises:
            UserError: what ``FGE`` refuses, cycles that do not fit into the training, or a folder
                with snapshots of another training.
        """
        self._check_time(progress, resumed=saved is not None)
        rates = Rates(optimizer, schedulers)
        overwrite = self._overwrite and saved is None
        cycle = FGE(model, optimizer, **(self._options | options), overwrite=overwrite)
        self.cycle, self._rates, self._begun_at = cycle, rates, None
        if saved is None:
            _check_empty(cycle)
        if saved is not None and saved["begun_at"] is not None:
            cycle.load_state_dict(saved["cycle"])
            self._begun_at = saved["begun_at"]
            self._catch_up(cycle, progress.step)
            rates.tell(cycle)
            return
        if saved is not None:
            cycle.load_state_dict(_FRESH)  # snapshots in the folder are later than the checkpoint
        rates.restore()  # those of the training, until the cycles begin
        self._advance(progress, stepped=False)

    def _catch_up(self, cycle: FGE, step: int) -> None:
        """Follow the last step before a checkpoint that was written before the callback saw it.

        Libraries may write one when a training fails, in the middle of what follows a step.

        Raises:
            UserError: the state is of another step than the checkpoint.
        """
        seen = (self._begun_at or 0) + cycle.scheduler.last_epoch
        if seen == step - 1:
            cycle.step()
        elif seen != step:
            raise UserError(
                f"the checkpoint is of step {step}, but the state of FGECallback in it of step "
                f"{seen}: resume from another checkpoint"
            )

    def _advance(self, progress: Progress, *, stepped: bool = True) -> bool:
        """Follow the training to the step that it has reached; say whether a snapshot was kept.

        Args:
            progress: of the training.
            stepped: whether an optimizer step has been taken since the last call.
        """
        cycle, rates = self.cycle, self._rates
        if cycle is None or rates is None:
            return False
        kept = False
        if self._begun_at is not None:
            if not stepped:
                return False
            rates.take_back(cycle)
            kept = cycle.step()
        elif self._due(progress):
            cycle.load_state_dict(_FRESH)
            self._begun_at = progress.step
        else:
            return False
        rates.tell(cycle)
        return kept

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint needs in addition to model and optimizer."""
        begun = self._begun_at is not None and self.cycle is not None
        state = self.cycle.state_dict() if begun and self.cycle is not None else None
        return {"begun_at": self._begun_at, "cycle": state}

    def _due(self, progress: Progress) -> bool:
        """Return whether the next step is to be one of a cycle."""
        if self.start_epoch is not None:
            return progress.epoch >= self.start_epoch
        return self.start_step is not None and progress.step >= self.start_step

    def _start(self, progress: Progress) -> int | None:
        """Return the step with which the cycles begin, None if nobody knows."""
        if self.start_epoch is None:
            return self.start_step
        if progress.steps_per_epoch is None:
            return None if self.start_epoch else 0
        return self.start_epoch * progress.steps_per_epoch

    def _check_time(self, progress: Progress, *, resumed: bool) -> None:
        """Check that the training reaches a snapshot, and warn of steps after the last one.

        Raises:
            UserError: it does not, or it is past the start already.
        """
        start = self._start(progress)
        if start is None or resumed:
            return
        if progress.step > start:
            raise UserError(
                f"the training continues at step {progress.step}, after the start of the cycles at "
                f"step {start}, without a saved state of FGECallback; give it from the beginning "
                f"of the training, or start_step={progress.step}"
            )
        cycle_steps = self._options["cycle_steps"]
        if progress.steps is not None and cycle_steps > 0:
            _check_fit(start, cycle_steps, progress.steps)


def _check_fit(start: int, cycle_steps: int, steps: int) -> None:
    """Check that snapshots, half a cycle after the start and then every cycle, are reached."""
    first = start + cycle_steps // 2
    if steps < first:
        shorter = 2 * (steps - start)
        remedy = f", or give cycle_steps={shorter}" if shorter >= 2 else ""
        raise UserError(
            f"the training ends after {steps} optimizer steps, but cycles of {cycle_steps} steps "
            f"from step {start} on keep their first snapshot after {first}: start earlier, train "
            f"longer{remedy}"
        )
    rest = (steps - first) % cycle_steps
    if rest:
        warnings.warn(
            f"the last {rest} of {steps} optimizer steps come after the last snapshot, so they are "
            f"not in the ensemble: train for {steps - rest} or {steps - rest + cycle_steps} steps",
            stacklevel=2,
        )


def _check_empty(cycle: FGE) -> None:
    """Check, before any training, that the folder holds no snapshots.

    Raises:
        UserError: it does.
    """
    with cycle.ranks.together():
        if cycle.writes and len(cycle.store):
            raise UserError(
                f"{cycle.store.path} already holds {len(cycle.store)} snapshots; resume the "
                "training from a checkpoint, give another folder, or overwrite=True to drop them"
            )
