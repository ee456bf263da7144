"""Saved training states: checked before they are restored, because a file may hold anything.

A state that was written whole is right. What is checked here is that nothing else is restored in
part, or ends in an error that names no remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from fge.errors import UserError
from fge.files import RESTORE
from fge.networks import unwrap

DAMAGED = "the saved training state is damaged"
_SGD, _ADAM = frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})


class Memory(TypedDict):
    """What an optimizer remembers, by the position of the parameter, and what a scaler does."""

    optimizer: dict[int, dict[str, Any]]
    scaler: dict[str, float]


def damaged(reason: str) -> UserError:
    """Return the error for a saved training state that cannot be restored."""
    return UserError(f"{DAMAGED}: {reason}; {RESTORE}")


def restore_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore a module's parameters and buffers.

    Raises:
        UserError: they are not those of the module.
    """
    try:
        unwrap(model).load_state_dict(state)
    except RuntimeError as error:  # a line for each tensor, after a heading
        *_, first = str(error).split("\n", 2)[:2]
        raise damaged(first.strip()) from None


def restore_memory(
    optimizer: Optimizer, scaler: torch.amp.GradScaler, memory: Mapping[str, Any]
) -> None:
    """Restore what an optimizer and its scaler remember; options stay those that are given.

    Args:
        optimizer: of the training.
        scaler: of its gradients.
        memory: a :class:`Memory`.

    Raises:
        UserError: it is that of other parameters, or of another optimizer.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, values in memory["optimizer"].items():
        if not 0 <= position < len(parameters):
            raise damaged(f"it has a parameter {position}, of {len(parameters)}")
        _check_values(optimizer, parameters[position], values)
    optimizer.load_state_dict({"state": memory["optimizer"], "param_groups": groups})
    if scaler.is_enabled() and memory["scaler"]:
        if memory["scaler"].keys() != scaler.state_dict().keys():
            raise damaged("its gradient scaler is another one")
        scaler.load_state_dict(memory["scaler"])


def _check_values(optimizer: Optimizer, parameter: Tensor, values: Mapping[str, Any]) -> None:
    """Check what SGD or Adam remembers of a parameter; other optimizers are not known."""
    if not isinstance(optimizer, SGD | Adam):
        return
    names = _SGD if isinstance(optimizer, SGD) else _ADAM
    if not names <= values.keys():
        raise damaged(f"its optimizer remembers {', '.join(values) or 'nothing'}")
    for name, value in values.items():
        if value is None and names is _SGD:
            continue
        shape = torch.Size() if name == "step" else parameter.shape
        if not isinstance(value, Tensor) or value.shape != shape:
            raise damaged(f"{name!r} of its optimizer is not a tensor of shape {tuple(shape)}")
