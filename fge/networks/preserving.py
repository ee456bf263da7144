"""Leaving a module as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fge.networks.state import unwrap


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore parameters, gradients, buffers and modes at the end of a ``with`` block.

    The block works on copies of the parameters, so the originals stay untouched, strides
    included; buffers are copied back, those too that the block assigns again, as a forward pass
    may. The block must not replace parameters.

    Args:
        model: any module; compilation and data-parallel wrappers are bypassed.
    """
    target = unwrap(model)
    parameters = [(p, p.data, p.grad) for p in target.parameters()]
    homes = [
        (module, dict(module._buffers))
        for module in target.modules()
        if isinstance(module._buffers, dict)  # TorchScript does not let its own be replaced
    ]
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
        for module, held in homes:
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, saved in buffers:
                if not buffer.is_inference():  # of torch.inference_mode: nothing could change it
                    buffer.copy_(saved)
        for module, training in modes:
            module.training = training
