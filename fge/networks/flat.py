"""A module's parameters as one flat vector: layout, reading, writing, and training in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fge.errors import UserError
from fge.networks.naming import under_names
from fge.networks.state import (
    Weights,
    check_kind,
    misshapen,
    missing_tensor,
    not_finite,
    read_weights,
    unknown_tensor,
    unwrap,
)


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's distinct parameters, in the order of ``named_parameters()``.

    A tied parameter has one entry, under its first name; frozen parameters are included.
    ``other_names`` gives the further names of tied parameters, each with the first one; a layout
    that does not know them is the same one.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    other_names: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Return the layout of ``model``; compilation and data-parallel wrappers are bypassed.

        Raises:
            UserError: the model has no parameters, lazy parameters, or several dtypes or devices.
        """
        parameters = named_parameters(model)
        first = {id(parameter): name for name, parameter in parameters.items()}
        every = unwrap(model).named_parameters(remove_duplicate=False)
        tied = ((n, id(p)) for n, p in every if n not in parameters)
        others = {name: first[key] for name, key in tied if key in first}
        shapes = tuple(tuple(parameter.shape) for parameter in parameters.values())
        return cls(tuple(parameters), shapes, others)

    @property
    def sizes(self) -> list[int]:
        """The number of values of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def numel(self) -> int:
        """The number P of values of all parameters."""
        return sum(self.sizes)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a canonical vector (P,), one per parameter, by name.

        Raises:
            UserError: the vector is not of shape (P,).
        """
        if vector.shape != (self.numel,):
            raise UserError(
                f"a vector of the model's parameters has shape ({self.numel},), "
                f"got {tuple(vector.shape)}"
            )
        parts = torch.split(vector, self.sizes)
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the distinct parameters of a model by their first names; wrappers are bypassed.

    Raises:
        UserError: the model has no parameters, lazy parameters, or several dtypes or devices.
    """
    parameters = dict(unwrap(model).named_parameters())
    if not parameters:
        raise UserError(f"the model, a {type(unwrap(model)).__name__}, has no parameters")
    check_shaped(parameters.items())
    first_name, first = next(iter(parameters.items()))
    for name, parameter in parameters.items():
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise UserError(
                f"parameter {name!r} is {parameter.dtype} on {parameter.device}, {first_name!r} "
                f"is {first.dtype} on {first.device}; move all to one dtype and device"
            )
    return parameters


def check_shaped(named: Iterable[tuple[str, Tensor]]) -> None:
    """Check that tensors of lazy layers have got their shapes.

    Raises:
        UserError: naming the first that has none.
    """
    for name, tensor in named:
        if is_lazy(tensor):
            raise UserError(f"{name!r} has no shape yet; call the model on one batch first")


def flatten(weights: Weights, model: nn.Module) -> Tensor:
    """Return weights as one vector (P,): the parameters in C order, one after the other.

    Args:
        weights: a module, a state dict or a path; buffers are ignored.
        model: the architecture of the weights.

    Returns:
        A copy (P,) in the dtype and on the device of the model's parameters.

    Raises:
        UserError: a parameter (the message names it) is missing, unknown, not finite or of another
            shape or kind of number, or a tied parameter has different values; or there is no such
            file.
    """
    state, source = _read(weights)
    parameters = named_parameters(model)
    module = unwrap(model)
    state = under_names(state, module.state_dict())
    aliases: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    first = next(iter(parameters.values()))
    vector = first.new_empty(sum(p.numel() for p in parameters.values()), requires_grad=False)
    parts = Layout.of(model).split(vector)
    for name, parameter in parameters.items():
        names = [alias for alias in aliases[id(parameter)] if alias in state]
        if not names:
            raise missing_tensor(source, name)
        for alias in names:
            _check_shape(state[alias], parameter, alias, source)
        parts[name].copy_(state[names[0]].detach())
        if not bool(torch.isfinite(parts[name]).all()):
            raise not_finite(source, names[0])
        for alias in names[1:]:
            if not torch.equal(state[alias].to(parts[name]), parts[name]):
                raise UserError(
                    f"{source}: {names[0]!r} and {alias!r} differ, but are one parameter in the "
                    "model"
                )
    _check_known(state, module, source)
    return vector


def _read(weights: Weights) -> tuple[Mapping[str, Tensor], str]:
    """Return parameters and buffers by name, and the name of their source for errors."""
    if isinstance(weights, str | Path):
        return read_weights(Path(weights)), str(weights)
    if isinstance(weights, Mapping):
        return weights, "the state dict"
    if not isinstance(weights, nn.Module):
        raise UserError(
            f"weights must be a module, a state dict or a path, got a {type(weights).__name__}"
        )
    module = unwrap(weights)
    return _tensors_of(module), f"the given {type(module).__name__}"


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, non-persistent ones included, under all their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _check_shape(tensor: Tensor, parameter: Tensor, name: str, source: str) -> None:
    if not isinstance(tensor, Tensor):
        raise UserError(f"{source}: {name!r} is a {type(tensor).__name__}, not a tensor")
    if tensor.shape != parameter.shape:
        raise misshapen(source, name, tensor, parameter)
    check_kind(source, name, tensor, parameter)


def _check_known(state: Iterable[str], model: nn.Module, source: str) -> None:
    known = {*model.state_dict(), *_tensors_of(model)}
    for name in state:
        if name not in known:
            raise unknown_tensor(source, name)


def unflatten(vector: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return a canonical vector (P,) as contiguous copies by parameter name, in its dtype.

    Raises:
        UserError: the vector is not of shape (P,), or :func:`named_parameters` refuses the model.
    """
    parts = Layout.of(model).split(vector.detach())
    return {name: part.clone() for name, part in parts.items()}


def write_parameters(model: nn.Module, vector: Tensor) -> None:
    """Copy a canonical vector (P,) into the model's parameters, in place.

    Raises:
        UserError: the vector is not of shape (P,), or :func:`named_parameters` refuses the model.
    """
    parameters = named_parameters(model)
    parts = Layout.of(model).split(vector.detach())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(parts[name])


def check_distinct(start: Tensor, end: Tensor) -> None:
    """Check that two weight vectors (P,) differ, as the ends of a curve must.

    Raises:
        UserError: they are identical.
    """
    if torch.equal(start, end):
        raise UserError("start and end are the same weights; give two networks that differ")


class FlatParameters:
    """The parameters of a model as views of one vector, and their gradients as views of another.

    Writing to ``vector`` changes the model; a backward pass adds to ``gradient`` in place. Both
    are in memory order, which :meth:`pack` and :meth:`unpack` convert: each parameter keeps its
    strides (``channels_last`` too), and parameters whose sizes have larger powers of two come
    first. Tied parameters stay tied; frozen parameters are part of the vector, with gradient 0.

    Existing optimizers and compiled models keep working, recorded CUDA graphs do not. Do not move
    or cast the model afterwards.

    Args:
        model: its parameters move into the vector with their values; gradients start at 0.

    Attributes:
        layout: of the canonical vectors.
        vector: the parameters (P,), in memory order.
        gradient: their gradients (P,), in memory order.

    Raises:
        UserError: :func:`named_parameters` refuses the model, or two parameters share memory
            without being one ``Parameter``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layout = Layout.of(model)
        self.parameters = list(named_parameters(model).values())
        _check_separate(self.layout, self.parameters)
        self._strides = [_dense_strides(parameter) for parameter in self.parameters]
        self._offsets = _aligned_offsets(self.layout.sizes)
        first = self.parameters[0]
        self.vector = torch.zeros(self.layout.numel, dtype=first.dtype, device=first.device)
        self.gradient = torch.zeros_like(self.vector)
        with torch.no_grad():
            for parameter, view in zip(self.parameters, self._views(self.vector), strict=True):
                view.copy_(parameter)
                parameter.data = view
        self._gradients = self._views(self.gradient)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Set the gradient to 0, and attach it again after ``set_to_none=True``."""
        self.gradient.zero_()
        for parameter, view in zip(self.parameters, self._gradients, strict=True):
            if parameter.requires_grad and parameter.grad is not view:
                parameter.grad = view

    def pack(self, vector: Tensor) -> Tensor:
        """Return a canonical vector (P,) in memory order: a copy, bitwise.

        Raises:
            UserError: the vector is not of shape (P,).
        """
        parts = self.layout.split(vector.detach())
        packed = torch.empty_like(vector)
        for view, part in zip(self._views(packed), parts.values(), strict=True):
            view.copy_(part)
        return packed

    def unpack(self, vector: Tensor) -> Tensor:
        """Return a vector (P,) in memory order as a canonical one: a copy, bitwise.

        Raises:
            UserError: the vector is not of shape (P,).
        """
        unpacked = torch.empty_like(vector.detach())
        parts = self.layout.split(unpacked)
        for view, part in zip(self._views(vector.detach()), parts.values(), strict=True):
            part.copy_(view)
        return unpacked

    def _views(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector (P,) in memory order with the parameters' shapes and strides."""
        return [
            vector[offset : offset + size].as_strided(shape, strides)
            for offset, size, shape, strides in zip(
                self._offsets, self.layout.sizes, self.layout.shapes, self._strides, strict=True
            )
        ]


def _dense_strides(parameter: Tensor) -> tuple[int, ...]:
    """Return the parameter's strides, or similar ones without gaps if it has gaps."""
    return torch.empty_like(parameter, device="meta").stride()


def _aligned_offsets(sizes: Sequence[int]) -> list[int]:
    """Return an offset for each size such that the chunks fill the vector without gaps.

    Tensor-core kernels need addresses that are multiples of 16 bytes or more. With the largest
    powers of two first, each chunk starts at a multiple of the power of two in its size.
    """
    offsets, end = [0] * len(sizes), 0
    for index in sorted(range(len(sizes)), key=lambda i: -(sizes[i] & -sizes[i])):
        offsets[index] = end
        end += sizes[index]
    return offsets


def _check_separate(layout: Layout, parameters: Iterable[Tensor]) -> None:
    seen: dict[int, str] = {}
    for name, parameter in zip(layout.names, parameters, strict=True):
        if parameter.numel() == 0:
            continue
        other = seen.setdefault(parameter.data_ptr(), name)
        if other != name:
            raise UserError(
                f"parameters {other!r} and {name!r} share memory but are two Parameters; "
                "assign one Parameter to both names to tie them"
            )
