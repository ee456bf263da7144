"""Models as factories return them: lazy layers, other dtypes, tensors without values."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fge.errors import UserError
from fge.networks.state import unwrap

_WIDE_ENOUGH = torch.float32
"""Logits of fewer bits are turned into this dtype: a loss needs them."""


class InDtype:
    """Hooks that give a model inputs of its dtype, and its outputs at least float32.

    They are objects of a class, so that copies of the model have them too.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def before(self, _model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the inputs with floating tensors in the dtype."""
        return tuple(
            part.to(self.dtype) if isinstance(part, Tensor) and part.is_floating_point() else part
            for part in inputs
        )

    def after(self, _model: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> Any:
        """Return outputs of few bits as float32."""
        narrow = isinstance(outputs, Tensor) and outputs.dtype in (torch.bfloat16, torch.float16)
        return outputs.to(_WIDE_ENOUGH) if narrow else outputs

    def attach_to(self, model: nn.Module) -> None:
        """Register the hooks on a module."""
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after)


def check_values(name: str, model: nn.Module) -> None:
    """Check that a model has values.

    Raises:
        UserError: naming the first tensor that has none.
    """
    module = unwrap(model)
    for part, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"model {name!r} has a tensor {part!r} without values (device meta); build it on "
                "the CPU"
            )


def materialise(model: nn.Module, images: Tensor) -> None:
    """Give lazy layers their shapes and initial weights, by a forward pass in evaluation mode."""
    if not any(is_lazy(p) for p in itertools.chain(model.parameters(), model.buffers())):
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            model(images)
    finally:
        for module, training in modes:
            module.training = training


def only_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of all floating parameters, if it is one and not float32; else None."""
    found = {p.dtype for p in unwrap(model).parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 and torch.float32 not in found else None
