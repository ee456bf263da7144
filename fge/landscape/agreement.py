"""Whether Hessian products are right: symmetry, and a finite difference of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fge.errors import UserError
from fge.networks import map_tensors
from fge.seeds import generator

Products = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
EXAMPLES = 8
"""Examples on which products are checked."""
_STEPS = {torch.float64: (1e-8, 1e-9), torch.float32: (1e-3, 3e-4)}
"""Sizes of the steps, as parts of the weights' norm; a small one crosses no kink of a ReLU."""
_ASIDE = 1e-3
"""How far beside the weights products are compared where the weights are on a kink."""
_SYMMETRY = {torch.float64: 1e-5, torch.float32: 0.05}
_DIFFERENCE = {torch.float64: 1e-3, torch.float32: 0.5}
"""Relative differences that are allowed. In float32 rounding and kinks leave little to compare."""
_CAUSE = (
    "a part of the model or loss has a wrong second derivative (a custom autograd function or a "
    "fused layer) or draws random numbers: replace it"
)


@dataclass(frozen=True)
class Agreement:
    """How well Hessian products on a few examples agree with what they have to be.

    ``symmetry``: |u·Hv - v·Hu| as a part of |u| |Hv|, for random u and v; ``difference``: of Hu and
    a central difference of gradients, as a part of |Hu|; ``dtype``: in which both were computed;
    ``agrees``: whether the difference is small, or no more than rounding leaves. The numbers are
    NaN if nothing could be compared, as in half precision.
    """

    symmetry: float
    difference: float
    dtype: torch.dtype
    agrees: bool = True

    def __str__(self) -> str:
        """Say it in a sentence."""
        precision = str(self.dtype).removeprefix("torch.")
        if math.isnan(self.symmetry):
            return f"Hessian products could not be checked in {precision}."
        return (
            f"Hessian products are symmetric to {self.symmetry:.0e} and agree with finite "
            f"differences of gradients to {self.difference:.0e} ({precision})."
        )


@dataclass(frozen=True)
class Differentiable:
    """A loss to check: ``gradients(batch)`` returns them, and their products with directions."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    gradients: Callable[[Any], tuple[Sequence[Tensor | None], Products]]


def check_products(subject: Differentiable, batch: Any) -> Agreement:
    """Check products of a loss's Hessian on a few examples.

    They are computed in float64 if the model can do so, else in its own dtype.

    Args:
        subject: the loss.
        batch: the examples, as ``gradients`` takes them.

    Raises:
        UserError: they are not symmetric, or do not agree with a finite difference of gradients.
    """
    own = subject.parameters[0].dtype
    agreement = None
    try:
        with set_aside(subject.model, torch.float64), _Widened() as widened:
            agreement = _measured(subject, in_dtype(batch, torch.float64), torch.float64)
    except UserError:
        raise
    except Exception:  # a part of the model or loss computes in a dtype of its own
        if own == torch.float64:
            raise
    if agreement is None or (widened.narrower and not _is_right(agreement)):
        if own not in (torch.float32, torch.float64):
            return Agreement(math.nan, math.nan, own)
        with set_aside(subject.model, torch.float32):
            agreement = _measured(subject, in_dtype(batch, torch.float32), torch.float32)
    if agreement.symmetry > _SYMMETRY[agreement.dtype]:
        raise UserError(
            f"Hessian products are wrong: u·Hv and v·Hu differ by {agreement.symmetry:.2g} of "
            f"|u| |Hv|, but a Hessian is symmetric; {_CAUSE}"
        )
    if not agreement.agrees:
        raise UserError(
            f"Hessian products are wrong: they differ by {agreement.difference:.2g} of their size "
            f"from a finite difference of gradients; {_CAUSE}"
        )
    return agreement


class _Widened(TorchFunctionMode):
    """Computes in float64, during a ``with`` block, where a part asks for float32.

    Losses and norms of language models do so whatever they are given. Their rounding would pass
    for a wrong second derivative. ``narrower``: whether something that depends on the weights was
    in fewer digits all the same.
    """

    narrower = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function with float64 in place of float32, and look at what it returns."""
        wide = {key: _wide(value) for key, value in (kwargs or {}).items()}
        if func is Tensor.float:
            func = Tensor.double
        result = func(*map(_wide, args), **wide)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.narrower |= result.requires_grad and result.dtype != torch.float64
        return result


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _is_right(agreement: Agreement) -> bool:
    return agreement.agrees and not agreement.symmetry > _SYMMETRY[agreement.dtype]


def _measured(subject: Differentiable, batch: Any, dtype: torch.dtype) -> Agreement:
    parameters = subject.parameters
    rng = generator(0, "agreement")
    u, v = (_direction(parameters, rng, dtype) for _ in range(2))
    _, products = subject.gradients(batch)
    hu, hv = (_flat(products(direction), parameters) for direction in (u, v))
    if not bool(torch.isfinite(hu).all() and torch.isfinite(hv).all()):
        return Agreement(math.nan, math.nan, dtype)  # the measurement itself will say so
    flat_u, flat_v = _flat(u, parameters), _flat(v, parameters)
    scale = float(flat_u.norm() * torch.maximum(hv.norm(), hu.norm())) or 1.0
    symmetry = abs(float(flat_u @ hv) - float(flat_v @ hu)) / scale
    difference, agrees = _difference(subject, batch, u, hu)
    if not agrees:
        # Weights without a gradient may be rounded to integers, as the signs of an orthogonal
        # parametrization are: the loss jumps along them. Padding acts on the loss, but is constant.
        gradients = subject.gradients(batch)[0]
        u = [
            torch.zeros_like(d) if g is None else torch.where(g.detach() == 0, 0, d)
            for d, g in zip(u, gradients, strict=True)
        ]
        _hold_padding(subject, u)
        difference, agrees = _difference(subject, batch, u, _flat(products(u), parameters))
    if not agrees:
        # The weights may be on a kink of a ReLU, as those of a residual branch that begins at zero
        # are. Products are right or wrong beside it too.
        with moved(parameters, v, _ASIDE):
            _, products = subject.gradients(batch)
            difference, agrees = _difference(subject, batch, u, _flat(products(u), parameters))
    return Agreement(symmetry, difference, dtype, agrees=agrees)


def _hold_padding(subject: Differentiable, direction: Sequence[Tensor]) -> None:
    """Take rows of padding out of a direction: of tied weights they may have a gradient."""
    for module in subject.model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            for part, parameter in zip(direction, subject.parameters, strict=True):
                if parameter is module.weight:
                    part[module.padding_idx] = 0


def _difference(
    subject: Differentiable, batch: Any, u: Sequence[Tensor], hu: Tensor
) -> tuple[float, bool]:
    """Return how far Hu is from central differences of gradients, and whether that is little."""
    differences, allowed = [], False
    size_of_hu = float(hu.norm())
    for size in _STEPS[u[0].dtype]:
        ends = []
        for sign in (1, -1):
            with moved(subject.parameters, u, sign * size):
                ends.append(_flat(subject.gradients(batch)[0], subject.parameters))
        away = float(((ends[0] - ends[1]) / (2 * size) - hu).norm())
        differences.append(away / (size_of_hu or 1.0))
        # What rounding of the gradients leaves is no disagreement.
        rounding = 100 * torch.finfo(u[0].dtype).eps * float(ends[0].norm()) / size
        allowed = away <= max(_DIFFERENCE[u[0].dtype] * size_of_hu, rounding)
        if allowed:
            break
    return min(differences), allowed


def _direction(
    parameters: Sequence[Tensor], rng: torch.Generator, dtype: torch.dtype
) -> list[Tensor]:
    """Return a random direction, as long as all weights together."""
    draws = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in parameters]
    length = math.sqrt(sum(float(d.square().sum()) for d in draws))
    weights = math.sqrt(sum(float(p.detach().double().square().sum()) for p in parameters)) or 1.0
    return [
        (draw * (weights / length)).to(parameter.device, dtype)
        for draw, parameter in zip(draws, parameters, strict=True)
    ]


def _flat(parts: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    pairs = zip(parts, parameters, strict=True)
    flat = [(torch.zeros_like(p) if part is None else part).reshape(-1) for part, p in pairs]
    return torch.cat([part.detach().double() for part in flat])


@contextmanager
def moved(
    parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], size: float
) -> Iterator[None]:
    """Move the parameters along a direction during a ``with`` block."""
    before = [parameter.data for parameter in parameters]
    for parameter, along in zip(parameters, direction, strict=True):
        parameter.data = parameter.data + size * along
    try:
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


@contextmanager
def set_aside(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Work on copies of parameters and buffers, in a dtype, during a ``with`` block.

    The originals come back untouched: not even their version counters move, which graphs of theirs
    would take for a change.
    """
    parameters = [(p, p.data, p.grad) for p in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    for parameter, data, _ in parameters:
        parameter.data = data.to(dtype, copy=True) if data.is_floating_point() else data
        parameter.grad = None
    for module, kept in buffers:
        module._buffers.update({name: in_dtype(value, dtype) for name, value in kept.items()})
    try:
        yield
    finally:
        for parameter, data, gradient in parameters:
            parameter.data = data
            parameter.grad = gradient
        for module, kept in buffers:
            module._buffers.update(kept)


def in_dtype(batch: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a batch whose floating-point tensors are in a dtype."""
    return map_tensors(
        batch, lambda t: t.to(dtype, copy=True) if t.is_floating_point() else t.clone()
    )
