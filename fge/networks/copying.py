"""Copies of modules, of those too that ``copy.deepcopy`` refuses, as they hold computed tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fge.errors import UserError
from fge.networks.state import unwrap
from fge.parallel import is_shard

M = TypeVar("M", bound=nn.Module)


def copy_module(model: nn.Module) -> nn.Module:
    """Return a copy of a module without its wrappers, whose tensors are its own.

    ``copy.deepcopy`` refuses tensors with a graph. ``nn.utils.weight_norm``, ``spectral_norm`` and
    pruning leave the last weight they computed in the module, others their last activations. The
    copy holds the values without the graph, and computes them again in its next forward pass.

    Raises:
        UserError: the module holds something else that cannot be copied, or its own way of copying
            gives other weights; the message names it.
    """
    target = unwrap(model)
    twin = _copied(target, {})
    _check_same(target, twin)
    for parameter in twin.parameters():
        if not parameter.is_leaf:  # TorchScript clones parameters with their graph
            parameter.detach_().requires_grad_(True)
    return twin


def check_copyable(model: nn.Module) -> None:
    """Check, without memory for its weights, that :func:`copy_module` copies a module.

    Raises:
        UserError: it does not; the message names what cannot be copied.
    """
    target = unwrap(model)
    _copied(target, {id(t): t for t in itertools.chain(target.parameters(), target.buffers())})


def _check_same(model: nn.Module, twin: nn.Module) -> None:
    """Check that a copy has the parameters and buffers of the model, bit for bit."""
    theirs = dict(_tensors(twin))
    for name, tensor in _tensors(model):
        copied = theirs.get(name)
        if copied is None or not same_values(tensor, copied):
            raise UserError(
                f"the copy of the model, a {type(model).__name__}, has another {name!r} than the "
                "model; correct its __deepcopy__ method"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's parameters and buffers with names; shards and lazy ones have no values."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if not (is_lazy(tensor) or is_shard(tensor)):
            yield name, tensor


def same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are of one kind and equal, NaN too; those of meta are."""
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.is_meta or one.layout is not torch.strided:
        return True
    same = one == other.to(one.device)
    return bool((same | ((one != one) & (other != other))).all())  # NaN differs from itself


def _copied(model: M, shared: Mapping[int, Tensor]) -> M:
    """Return a deep copy that shares some tensors, given by their ids."""
    constants = {id(tensor): tensor.detach().clone() for tensor in _computed(model)}
    memo: dict[int, Any] = {**constants, **shared}
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:  # whatever an attribute raises
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(
            f"the model, a {type(model).__name__}, cannot be copied{_culprit(model, memo)}: "
            f"{reason}; remove what cannot be copied, or give it a __deepcopy__ method"
        ) from error


def _culprit(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """Return words for the first attribute that cannot be copied, if one alone cannot."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            try:
                copy.deepcopy(value, {**memo, id(model): model})
            except Exception:
                return f" because of its attribute {'.'.join(filter(None, (path, name)))!r}"
    return ""


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors with a graph that a module holds in attributes and containers in them."""
    waiting: list[Any] = [model]
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)
        elif isinstance(value, MethodType):
            waiting.append(value.__self__)
        elif hasattr(value, "__dict__") and not isinstance(value, type | FunctionType | ModuleType):
            waiting.extend(vars(value).values())
