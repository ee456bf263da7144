"""``FGECallback`` for the Trainer of Lightning (the extra ``lightning``)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fge.errors import UserError, missing_package
from fge.integrations.callback import CycleCallback, Progress
from fge.integrations.rates import at_rest

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
except ImportError as error:
    raise missing_package(
        "fge.integrations.lightning", "lightning", error, extra="lightning"
    ) from None

__all__ = ["FGECallback"]

_MANY = 10_000
"""Steps for which a scheduler is looked at where the training has no end."""


class FGECallback(CycleCallback, Callback):
    """Fast Geometric Ensembling in a training by Lightning's ``Trainer``.

    From ``start_epoch`` or ``start_step`` on the learning rate cycles, and each minimum leaves a
    snapshot of the ``LightningModule``, as :class:`fge.FGE` does in a loop of one's own. The state
    is part of Lightning's checkpoints: ``trainer.fit(..., ckpt_path=...)`` continues the cycles.
    Of several processes the first writes. With gradient accumulation, steps are optimizer steps,
    as ``trainer.global_step`` counts them.

    >>> from fge.integrations.lightning import FGECallback
    >>> callback = FGECallback(
    ...     start_epoch=6, cycle_steps=400, max_lr=0.05, min_lr=0.0005, out="run/snapshots"
    ... )
    >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False)  # doctest: +SKIP
    >>> trainer.fit(module, loader)  # doctest: +SKIP
    >>> callback.ensemble().predict_proba(test_loader)  # doctest: +SKIP

    The arguments are those of :class:`fge.integrations.CycleCallback`.

    Raises:
        UserError: when the training starts, before its first step: it has several optimizers, a
            scheduler that would change rates during the cycles, FSDP or DeepSpeed, or an end
            before the first snapshot; or what :class:`fge.FGE` refuses.
    """

    _saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the ``FGE``, and begin its cycles if they begin with the training."""
        _check_strategy(trainer)
        progress = _progress(trainer)
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"FGECallback cycles the rates of one optimizer, but configure_optimizers of "
                f"{type(pl_module).__name__} returns {len(trainer.optimizers)}"
            )
        self._check_schedulers(trainer, progress)
        wrapped = trainer.strategy.model
        model = wrapped if isinstance(wrapped, nn.Module) else pl_module
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        saved, self._saved = self._saved, None
        self._seen = progress.step
        optimizer = trainer.optimizers[0]
        self._prepare(model, optimizer, progress, schedulers=schedulers, saved=saved)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin the cycles with this epoch if it is time."""
        self._advance(_position(trainer), stepped=False)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Follow an optimizer step.

        Raises:
            UserError: the batch took several.
        """
        taken, self._seen = trainer.global_step - self._seen, trainer.global_step
        if taken > 1:
            raise UserError(
                f"a batch took {taken} optimizer steps, and FGECallback sets the rate of one: take "
                "one in each training_step"
            )
        if taken:
            self._advance(_position(trainer))

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Begin the cycles with the next epoch if it is time, before its rates are logged."""
        self._advance(_position(trainer, following=True), stepped=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the cycles."""
        return self._state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint when the training starts."""
        self._saved = state_dict

    def _check_schedulers(self, trainer: Trainer, progress: Progress) -> None:
        """Check that the training's own schedulers do not change rates during the cycles.

        Raises:
            UserError: one may.
        """
        start = self._start(progress)
        for config in trainer.lr_scheduler_configs:
            step, steps = start, progress.steps
            if config.interval == "epoch" and progress.steps_per_epoch:
                step = None if start is None else start // progress.steps_per_epoch
                steps = None if steps is None else steps // progress.steps_per_epoch
            first = 0 if step is None else step // config.frequency
            if not at_rest(config.scheduler, first, first + _MANY if steps is None else steps):
                raise UserError(
                    f"the {type(config.scheduler).__name__} of configure_optimizers would change "
                    "rates that FGECallback sets: return the optimizer alone, or a LambdaLR that "
                    "is constant when cycles begin; or fit with the scheduler first, and then "
                    "without it and with FGECallback from these weights"
                )


def _progress(trainer: Trainer) -> Progress:
    """Return where a training is and how long it goes on."""
    position = _position(trainer)
    if trainer.fast_dev_run:  # a trial of a few steps, which need not reach a snapshot
        return position
    try:
        steps = float(trainer.estimated_stepping_batches)
    except MisconfigurationException:  # a schedule of accumulation
        return position
    per_epoch = float(trainer.num_training_batches) / trainer.accumulate_grad_batches
    return Progress(
        position.step,
        position.epoch,
        int(steps) if math.isfinite(steps) and steps >= 0 else None,
        math.ceil(per_epoch) if math.isfinite(per_epoch) else None,
    )


def _position(trainer: Trainer, *, following: bool = False) -> Progress:
    """Return where a training is, in this epoch or at the start of the following one."""
    return Progress(trainer.global_step, trainer.current_epoch + following)


def _check_strategy(trainer: Trainer) -> None:
    """Check that the weights of the model can be read.

    Raises:
        UserError: they are spread over processes in a way that ``FGE`` does not know.
    """
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
        raise UserError(
            f"FGECallback cannot read weights under {type(trainer.strategy).__name__}: use "
            'strategy="ddp", or ModelParallelStrategy with fully_shard'
        )
