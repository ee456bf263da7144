"""Frozen parameters: those whose names match, and the batch norm of the modules that they make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fge.errors import UserError
from fge.networks.state import unwrap

_MARK = "_fge_keeps_statistics"
"""The attribute of layers whose running statistics belong to frozen weights."""


def freeze(model: nn.Module, pattern: str) -> str:
    """Freeze the parameters whose names match a regular expression; return a sentence about them.

    The match may be anywhere in a name. Batch norm of a module whose parameters are all frozen
    stays in evaluation mode in :func:`train_mode`, and keeps its statistics where others are
    estimated.

    Args:
        model: any module; changed in place.
        pattern: as of ``re.search``, for example ``^(stem|layer[12])``.

    Raises:
        UserError: the pattern is no regular expression, or matches no parameter or all of them.
    """
    try:
        wanted = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"freeze {pattern!r} is no regular expression: {error}") from None
    module = unwrap(model)
    named = dict(module.named_parameters())
    frozen = {name: p for name, p in named.items() if wanted.search(name)}
    if not frozen:
        first, last = next(iter(named), "none"), next(reversed(named), "none")
        raise UserError(
            f"freeze {pattern!r} matches none of the {len(named)} parameters; their names go from "
            f"{first!r} to {last!r}"
        )
    if len(frozen) == len(named):
        raise UserError(
            f"freeze {pattern!r} matches all of the {len(named)} parameters, so nothing would be "
            f"trained; leave out the last ones, such as {next(reversed(named))!r}"
        )
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    _mark(module)
    count, total = (sum(p.numel() for p in part.values()) for part in (frozen, named))
    return (
        f"frozen: {len(frozen)} of {len(named)} parameters, {count:,} of {total:,} numbers, from "
        f"{next(iter(frozen))} to {next(reversed(frozen))}"
    )


def _mark(module: nn.Module, *, within: bool = False) -> None:
    """Mark the normalisation layers of frozen modules, or of all modules of a frozen one."""
    parameters = list(module.parameters())
    within = within or (bool(parameters) and not any(p.requires_grad for p in parameters))
    if within and isinstance(module, _NormBase):
        setattr(module, _MARK, True)
    for child in module.children():
        _mark(child, within=within)


def keeps_statistics(module: nn.Module) -> bool:
    """Return whether a layer's running statistics belong to frozen weights."""
    return getattr(module, _MARK, False) is True


@contextmanager
def kept_as_trained(model: nn.Module) -> Iterator[None]:
    """Have the layers that a training holds in evaluation mode keep their statistics in a block.

    In a model in training mode, these layers normalise by their statistics while all is trained.
    """
    module = unwrap(model)
    layers = [part for part in module.modules() if isinstance(part, _NormBase)]
    held = [part for part in layers if not (part.training or keeps_statistics(part))]
    held = held if module.training else []
    for layer in held:
        setattr(layer, _MARK, True)
    try:
        yield
    finally:
        for layer in held:
            delattr(layer, _MARK)


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen parameters and the buffers of frozen normalisation layers, by name."""
    module = unwrap(model)
    found = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    for path, layer in module.named_modules():
        if keeps_statistics(layer):
            found |= {f"{path}.{n}".lstrip("."): b for n, b in layer.named_buffers()}
    return found


def train_mode(model: nn.Module, *, training: bool = True) -> None:
    """Set a model's mode; the batch norm of frozen modules stays in evaluation mode."""
    model.train(training)
    for module in model.modules() if training else ():
        if keeps_statistics(module):
            module.training = False
