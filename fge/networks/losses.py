"""The loss of a network's outputs: what are its targets, and what cross-entropy needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fge.errors import UserError, first_line
from fge.networks.batches import parts_of

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)`` -> the mean loss ()."""
TargetFn = Callable[[Any], Any]
"""``target_fn(batch)`` -> targets, where they are not the second of two parts."""
_CHOICES = (
    "give loss_fn=F.binary_cross_entropy_with_logits for the logit of two classes, F.mse_loss for "
    "regression, or the like"
)


def loss_of(outputs: Any, batch: Any, loss_fn: LossFn, target_fn: TargetFn | None = None) -> Tensor:
    """Return the loss of a batch's outputs.

    Raises:
        UserError: it is not known what its targets are, PyTorch's cross-entropy is of a single
            output or of targets that it cannot take, or the loss is not one number.
    """
    return one_number(loss_of_targets(outputs, targets_of(batch, loss_fn, target_fn), loss_fn))


def one_number(loss: Any) -> Tensor:
    """Return a loss () that may have dimensions of length 1.

    Raises:
        UserError: it is no tensor of one number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        kind = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss_fn must return one number, the mean over a batch, got {kind}")
    return loss.reshape(()) if loss.ndim else loss


def loss_of_targets(outputs: Any, targets: Any, loss_fn: LossFn) -> Tensor:
    """Return what ``loss_fn`` gives for outputs and targets; see :func:`loss_of`."""
    if not is_cross_entropy(loss_fn):
        return loss_fn(outputs, targets)
    if not isinstance(outputs, Tensor):
        raise UserError(
            f"cross-entropy needs a tensor of logits, and the model returns a "
            f"{type(outputs).__name__}; give forward_fn=lambda model, batch: ... to pick one"
        )
    if outputs.ndim == 1 or (outputs.ndim > 1 and outputs.shape[1] == 1):
        raise UserError(
            f"the model has one output, of shape {tuple(outputs.shape)}, and the cross-entropy of "
            f"one class is always 0; {_CHOICES}"
        )
    try:
        return loss_fn(outputs, targets)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        # Looked at only here: on a GPU it would wait for the device in every step.
        if (fault := _fault(outputs, targets, loss_fn)) is None:
            raise
        raise UserError(fault.format(reason=first_line(error))) from None


def check_differentiable(loss: Tensor) -> None:
    """Check that a loss can be trained.

    Raises:
        UserError: it does not depend on a trainable parameter.
    """
    if not loss.requires_grad:
        raise UserError(
            "the loss does not depend on a parameter that requires a gradient; set "
            "requires_grad, and do not detach the outputs"
        )


def is_cross_entropy(loss_fn: LossFn) -> bool:
    """Return whether a loss is PyTorch's cross-entropy, with options or without."""
    kind = _within(loss_fn)
    return kind is F.cross_entropy or isinstance(kind, nn.CrossEntropyLoss)


def _within(loss_fn: Any) -> Any:
    while isinstance(loss_fn, partial):
        loss_fn = loss_fn.func
    return loss_fn


def _fault(outputs: Tensor, targets: Any, loss_fn: LossFn) -> str | None:
    """Return what is wrong with the targets of a cross-entropy that failed, if that is known."""
    if not isinstance(targets, Tensor):
        return (
            f"cross-entropy needs a tensor of targets, got a {type(targets).__name__}; give "
            "target_fn=lambda batch: ... to pick it"
        )
    classes = outputs.shape[1] if outputs.ndim > 1 else 0
    numbered = not (targets.is_floating_point() or targets.is_complex())
    labels = targets[targets != _ignored(loss_fn)] if numbered else targets[:0]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        return (
            f"labels must be in [0, {classes}) for a model of {classes} outputs, got "
            f"{int(labels.min())} to {int(labels.max())}; number the classes from 0, or give the "
            "model an output for each"
        )
    shape = (*outputs.shape[:1], *outputs.shape[2:])
    if targets.shape == (shape if numbered else outputs.shape) and _is_usual(targets):
        return None
    return (
        f"cross-entropy of outputs {tuple(outputs.shape)} cannot take targets "
        f"{tuple(targets.shape)} of type {targets.dtype} ({{reason}}); give class numbers {shape} "
        "of type torch.int64, or loss_fn="
    )


def _ignored(loss_fn: Any) -> int:
    """Return the label that a cross-entropy leaves out."""
    options = loss_fn.keywords if isinstance(loss_fn, partial) else {}
    return int(options.get("ignore_index", getattr(_within(loss_fn), "ignore_index", -100)))


def _is_usual(targets: Tensor) -> bool:
    return targets.is_floating_point() or str(targets.dtype) in ("torch.int64", "torch.uint8")


def targets_of(batch: Any, loss_fn: LossFn, target_fn: TargetFn | None = None) -> Any:
    """Return the targets of a batch, or the batch itself for a loss that does without.

    Raises:
        UserError: they are not the second of two parts, and there is no ``target_fn``.
    """
    if target_fn is not None:
        return target_fn(batch)
    parts = parts_of(batch)
    if parts is not None and len(parts) == 2:
        return parts[1]
    if parts is not None and len(parts) > 2:
        raise UserError(
            f"batches of {len(parts)} parts do not say which is the target; give "
            f"target_fn=lambda batch: batch[{len(parts) - 1}], or the right one"
        )
    if _needs_targets(loss_fn, batch):
        raise UserError(
            f"batches must yield (inputs, targets, ...), got a {type(batch).__name__}; give "
            'targets, target_fn=lambda batch: batch["labels"] or the like, or a loss_fn that does '
            "without"
        )
    return batch


def _needs_targets(loss_fn: LossFn, batch: Any) -> bool:
    """Return whether a loss cannot take the batch itself as targets."""
    if is_cross_entropy(loss_fn):
        return True
    kind = loss_fn if hasattr(loss_fn, "__name__") else type(loss_fn)
    of_torch = str(getattr(kind, "__module__", "")).startswith("torch.")
    return of_torch and not isinstance(batch, Tensor)
