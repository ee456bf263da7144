"""``FGECallback`` for the Trainer of transformers (the extra ``transformers``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fge.errors import UserError, missing_package
from fge.integrations.callback import CycleCallback, Progress
from fge.integrations.rates import at_rest
from fge.networks import parts_of, read_state, write_state
from fge.parallel import default_ranks

try:
    from transformers import TrainerCallback, TrainingArguments
    from transformers.trainer_callback import TrainerControl, TrainerState
except ImportError as error:
    raise missing_package(
        "fge.integrations.transformers", "transformers", error, extra="transformers"
    ) from None

__all__ = ["FGECallback", "logits"]

STATE_FILE = "fge_callback.safetensors"
"""What a checkpoint has in addition to the Trainer's own files."""


def logits(model: nn.Module, batch: Any) -> Tensor:
    """Return the logits of a model of transformers for a batch, as a ``forward_fn`` does.

    Args:
        model: called with the entries of a mapping as arguments, or with the first part of others.
        batch: as of a ``DataLoader`` of the Trainer: tensors by name. Labels are allowed.

    Returns:
        Its output ``logits``, or where it has none of that name, the first one but the loss.
    """
    if isinstance(batch, Mapping):
        outputs = model(**batch)
    else:
        parts = parts_of(batch)
        outputs = model(batch if parts is None else parts[0])
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
    if found is None:
        found = next(value for name, value in outputs.items() if name != "loss")
    picked: Tensor = found
    return picked


class FGECallback(CycleCallback, TrainerCallback):
    """Fast Geometric Ensembling in a training by the ``Trainer`` of transformers.

    From ``start_epoch`` or ``start_step`` on the learning rate cycles, and each minimum leaves a
    snapshot of the model, as :class:`fge.FGE` does in a loop of one's own. The Trainer logs the
    rates of the cycles. Each checkpoint gets a file with the state, so that
    ``trainer.train(resume_from_checkpoint=...)`` continues the cycles. Of several processes the
    first writes. With gradient accumulation, steps are optimizer steps, as
    ``trainer.state.global_step`` counts them.

    The Trainer's schedule must be at rest when the cycles begin: ``lr_scheduler_type="constant"``,
    or ``"constant_with_warmup"`` with a warm-up that ends before.

    >>> from fge.integrations.transformers import FGECallback
    >>> callback = FGECallback(
    ...     start_epoch=2, cycle_steps=400, max_lr=5e-5, min_lr=5e-7, out="run/snapshots"
    ... )
    >>> arguments = TrainingArguments("run", lr_scheduler_type="constant")  # doctest: +SKIP
    >>> trainer = Trainer(model, arguments, callbacks=[callback], ...)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    >>> callback.ensemble().predict_proba(trainer.get_eval_dataloader())  # doctest: +SKIP

    The arguments are those of :class:`fge.integrations.CycleCallback`; ``forward_fn`` is
    :func:`logits` by default.

    Raises:
        UserError: when the training starts, before its first step: its schedule would change rates
            during the cycles, it is a search of hyperparameters, under FSDP or DeepSpeed, or ends
            before the first snapshot; a checkpoint without the state is to be continued; or what
            :class:`fge.FGE` refuses.
    """

    _forward_fn = staticmethod(logits)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        **training: Any,
    ) -> None:
        """Make the ``FGE``, and begin its cycles if they begin with the training."""
        _check_kind(args, state)
        progress = _progress(args, state, training["train_dataloader"])
        if self.start_epoch and progress.steps_per_epoch is None:
            raise UserError(
                "the length of an epoch is not known, since the training data have no length: give "
                "start_step instead of start_epoch"
            )
        scheduler = training["lr_scheduler"]
        start = self._start(progress) or 0
        if not at_rest(scheduler, start, state.max_steps):
            raise UserError(
                f"the Trainer's schedule, {_name(scheduler, args)}, would change rates "
                'that FGECallback sets: use lr_scheduler_type="constant", or '
                f'"constant_with_warmup" with a warm-up that ends by step {start}, where the '
                "cycles begin"
            )
        optimizer = training["optimizer"]
        self._prepare(
            training["model"],
            getattr(optimizer, "optimizer", optimizer),  # within that of accelerate
            progress,
            schedulers=[scheduler],
            saved=_saved(args, state),
            ranks=default_ranks(),  # the model is given without its wrapper
        )

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Follow an optimizer step."""
        self._advance(Progress(state.global_step, int(state.epoch)))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Put the state beside the rest of a checkpoint."""
        folder = _checkpoint(args, state)
        if args.should_save and folder.is_dir():
            write_state(folder / STATE_FILE, self._state())


def _name(scheduler: Any, args: TrainingArguments) -> str:
    """Return how the user has named a schedule; one of their own by its class."""
    if isinstance(scheduler, LambdaLR):
        return f"lr_scheduler_type={args.lr_scheduler_type.value!r}"
    return f"a {type(scheduler).__name__}"


def _progress(args: TrainingArguments, state: TrainerState, loader: Any) -> Progress:
    """Return where a training is and how long it goes on."""
    try:
        per_epoch = max(1, -(-len(loader) // args.gradient_accumulation_steps))
    except TypeError:
        return Progress(state.global_step, 0, state.max_steps)
    epoch = state.global_step // per_epoch
    return Progress(state.global_step, epoch, state.max_steps, per_epoch)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _saved(args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
    """Return the state in the checkpoint that a training continues, None if it has none."""
    if state.global_step == 0:
        return None
    given = args.resume_from_checkpoint
    folders = [Path(given)] if isinstance(given, str) else []
    for folder in (*folders, _checkpoint(args, state)):
        if (folder / STATE_FILE).is_file():
            return read_state(folder / STATE_FILE)
    return None


def _check_kind(args: TrainingArguments, state: TrainerState) -> None:
    """Check that a training is of a kind in which one model is trained and can be read.

    Raises:
        UserError: it is not.
    """
    if state.is_hyper_param_search:
        raise UserError(
            "a search of hyperparameters trains many models, and FGECallback keeps snapshots of "
            "one: search first, then train with FGECallback"
        )
    if args.deepspeed or args.fsdp:
        raise UserError(
            f"FGECallback cannot read weights under {'DeepSpeed' if args.deepspeed else 'FSDP'}: "
            "use data-parallel processes (torchrun)"
        )
