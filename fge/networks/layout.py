"""Where a model's parameters lie in a flat vector: their names, shapes and order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fge.errors import UserError
from fge.networks.state import unwrap


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's distinct parameters, in the order of ``named_parameters()``.

    A tied parameter has one entry, under its first name; frozen ones have theirs.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Return the layout of ``model``, seen through compilation and data-parallel wrappers.

        Raises:
            UserError: the model has no parameters, lazy ones, or ones of several dtypes or devices.
        """
        parameters = named_parameters(model)
        return cls(tuple(parameters), tuple(tuple(p.shape) for p in parameters.values()))

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
    """Return the distinct parameters of a model by their first names, wrappers seen through.

    Raises:
        UserError: the model has no parameters, lazy ones, or ones of several dtypes or devices.
    """
    parameters = dict(unwrap(model).named_parameters())
    if not parameters:
        raise UserError(f"the model, a {type(unwrap(model)).__name__}, has no parameters")
    first_name, first = next(iter(parameters.items()))
    for name, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise UserError(
                f"parameter {name!r} has no shape yet; call the model on one batch first"
            )
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise UserError(
                f"parameter {name!r} is {parameter.dtype} on {parameter.device}, {first_name!r} "
                f"is {first.dtype} on {first.device}; bring all to one dtype and device"
            )
    return parameters
