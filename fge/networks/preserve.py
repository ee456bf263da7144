"""A model that is the same after a block of code as before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fge.networks.state import unwrap


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Let a block change parameters, gradients, buffers and modes; bring all back at its end.

    The parameters get copies to work with, so that theirs stay untouched, strides included; the
    buffers are copied back. Parameters and buffers must not be replaced by others.

    Args:
        model: any module; compilation and data-parallel wrappers are seen through.
    """
    target = unwrap(model)
    parameters = [(p, p.data, p.grad) for p in target.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in target.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    for parameter, data, _ in parameters:
        parameter.data = data.clone()
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, data, gradient in parameters:
            parameter.data = data
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        for module, training in modes:
            module.training = training
