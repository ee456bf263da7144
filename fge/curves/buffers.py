"""Buffers of the networks on a curve: running statistics and the like, which are no parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.networks import Weights, buffers_of, buffers_within, estimated_layers, unwrap

Buffers = Mapping[str, Tensor]
Ends = tuple[Buffers, Buffers]
"""The buffers of the networks at the ends of a curve."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def end_buffers(model: nn.Module, start: Weights, end: Weights) -> Ends | None:
    """Return the buffers of two networks by name, on the model's device.

    None if the model has none, or weights come without theirs.

    Raises:
        UserError: a buffer is of another shape than the model's.
    """
    first, second = (buffers_within(weights, model) for weights in (start, end))
    return (first, second) if first and second else None


def check_buffers(ends: Ends) -> None:
    """Check that two networks have the same buffers.

    Raises:
        UserError: they differ in names or shapes.
    """
    first, second = ({name: value.shape for name, value in end.items()} for end in ends)
    if first != second:
        name = next(n for n in (*first, *second) if first.get(n) != second.get(n))
        raise UserError(f"the ends of the curve differ in the buffer {name!r}; give both the same")


def between(ends: Ends, t: float) -> dict[str, Tensor]:
    """Return the buffers at t: those of an end, bitwise, and linear in between.

    Those that are not floating-point are the nearer end's.
    """
    first, second = ends
    if t in (0, 1):
        return {name: value.clone() for name, value in (second if t else first).items()}
    buffers = {}
    for name, value in first.items():
        nearer = second[name] if t > 0.5 else value
        floats = value.is_floating_point() and not torch.equal(value, second[name])
        buffers[name] = torch.lerp(value, second[name], t) if floats else nearer.clone()
    return buffers


def unknown_statistic(ends: Ends) -> str | None:
    """Return the name of a running statistic that differs at the ends, or None."""
    first, second = ends
    for name, value in first.items():
        if name.rpartition(".")[2] in _STATISTICS[:2] and not torch.equal(value, second[name]):
            return name
    return None


def interpolated(model: nn.Module, ends: Ends) -> list[str]:
    """Return the names of the buffers that differ at the ends and cannot be estimated from data."""
    layers = {id(layer) for layer in estimated_layers(model)}
    names = {
        f"{path}.{statistic}".lstrip(".")
        for path, module in unwrap(model).named_modules()
        if id(module) in layers
        for statistic in _STATISTICS
    }
    first, second = ends
    return [n for n, v in first.items() if n not in names and not torch.equal(v, second[n])]


def write_buffers(model: nn.Module, buffers: Buffers) -> None:
    """Copy buffers, by name, into a model."""
    own = buffers_of(model)
    with torch.no_grad():
        for name, value in buffers.items():
            own[name].copy_(value)
