"""Buffers that no state dict holds (``persistent=False``), where networks take a model's place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fge.errors import UserError
from fge.parallel import is_shard

_ROUNDING = 4
"""By so many roundings of its largest value, a float32 cache may differ on another device."""


def check_unsaved(model: nn.Module, network: nn.Module, source: object) -> None:
    """Check that a network has the model's values in the buffers that its state dict lacks.

    The network is used as the model with its state dict, so others would be the model's silently.
    A buffer that is None in one of the two is one that it makes itself.

    Raises:
        UserError: one differs; ``source`` names the network.
    """
    if network is model:
        return
    own = dict(_unsaved(model))
    for name, value in _unsaved(network):
        if name in own and not _alike(own[name], value):
            raise UserError(
                f"{source}: the buffer {name!r} is not in the state dict (persistent=False) and "
                "differs from the model's; register it with persistent=True, or give the "
                "state_dict() if the model's is right"
            )


def _unsaved(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers with values that are not saved, by name."""
    for path, part in module.named_modules():
        for name in part._non_persistent_buffers_set:
            value = part._buffers.get(name)
            if value is not None and not (is_lazy(value) or is_shard(value) or value.is_meta):
                yield f"{path}.{name}".lstrip("."), value


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values in the narrower dtype, to rounding."""
    if one.shape != other.shape or one.layout != other.layout:
        return False
    if one.numel() == 0 or one.layout is not torch.strided:
        return True
    dtype = _common(one.dtype, other.dtype)
    first, second = (tensor.detach().to(one.device, dtype) for tensor in (one, other))
    same = (first == second) | ((first != first) & (second != second))  # NaN differs from itself
    if dtype.is_floating_point or dtype.is_complex:
        eps = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        size = first.abs().nan_to_num(posinf=0).max()
        same |= (first - second).abs() <= _ROUNDING * eps * size
    return bool(same.all())


def _common(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return the narrower of two dtypes of floating-point numbers, or one that holds both."""
    if one.is_floating_point and other.is_floating_point:
        return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.promote_types(one, other)
