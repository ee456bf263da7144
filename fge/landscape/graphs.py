"""The gradient of a loss as a function of the parameters, kept to be differentiated again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fge.errors import UserError

_NOT_TWICE = "the loss is not twice differentiable here: "


@dataclass(frozen=True)
class GradientGraph:
    """The gradient of a mean loss over some examples, with the graph that it was made by.

    Attributes:
        parameters: what the loss was differentiated by.
        gradients: of each parameter; None where the loss does not depend on it.
        count: the examples.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    count: int

    @classmethod
    def of(cls, loss: Any, parameters: Sequence[Tensor], count: int) -> GradientGraph:
        """Differentiate a loss once.

        Raises:
            UserError: it is not one finite number, or its gradient does not depend on the
                parameters as far as autograd can tell.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"loss_fn must return one number, the mean over a batch, got {found}")
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the loss is {loss.item()}; only a finite one has a Hessian")
        if not loss.requires_grad:
            raise UserError(f"{_NOT_TWICE}it does not depend on the parameters through autograd")
        with _refusals():
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if not any(g is not None and g.requires_grad for g in gradients):
            raise UserError(
                f"{_NOT_TWICE}its gradient does not depend on the parameters through autograd "
                "(loss and model are piecewise linear, or a part defines its own gradient)"
            )
        return cls(parameters, gradients, count)

    def product(self, directions: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        """Return the Hessian times ``directions``, one tensor per parameter; None stands for 0.

        Args:
            directions: shaped as the parameters.
            keep: whether the graph is to be used again.

        Raises:
            UserError: a part of the model has no second derivative.
        """
        pairs = zip(self.gradients, directions, strict=True)
        varying = [(g, d) for g, d in pairs if g is not None and g.requires_grad]
        with _refusals():
            return torch.autograd.grad(
                [gradient for gradient, _ in varying],
                self.parameters,
                grad_outputs=[direction for _, direction in varying],
                retain_graph=keep,
                allow_unused=True,
            )

    def check(self) -> None:
        """Check that no part of the graph is marked as differentiable once only.

        Autograd does not come across the mark when it differentiates by the parameters: it would
        leave that part's second derivatives out without a word.

        Raises:
            UserError: a part is, by ``once_differentiable``.
        """
        if any(node.name() == "torch::autograd::Error" for node in self._nodes()):
            raise UserError(
                f"{_NOT_TWICE}a part of it is marked once_differentiable; replace that function "
                "by one of differentiable operations"
            )

    def saved_storages(self) -> dict[int, int]:
        """Return the bytes of each storage that the graph holds, by address."""
        own = {p.untyped_storage().data_ptr() for p in self.parameters}
        storages = [t.untyped_storage() for node in self._nodes() for t in _saved_tensors(node)]
        return {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}

    def _nodes(self) -> Iterator[Node]:
        found = [g.grad_fn for g in self.gradients if g is not None]
        waiting = [node for node in found if node is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            yield node
            new = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= new
            waiting += new


def _saved_tensors(node: Node) -> Iterator[Tensor]:
    for name in dir(node):
        if not name.startswith("_saved_") and name != "saved_tensors":
            continue
        with suppress(RuntimeError):  # saved and changed in place since
            value = getattr(node, name)
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, Tensor):
                    yield part


@contextmanager
def measuring(
    model: nn.Module, device: torch.device, *, batch_statistics: bool = False
) -> Iterator[None]:
    """Run a model such that what it computes can be differentiated twice; restore it after.

    All modules are in evaluation mode, without autocast, without the fused kernels of attention.

    Args:
        model: its modes are restored.
        device: that it runs on.
        batch_statistics: have the batch-norm layers use the statistics of the batch, and leave
            their running ones alone.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = _batch_norms(model) if batch_statistics else []
    tracking = [layer.track_running_stats for layer in layers]
    autocast = torch.amp.is_autocast_available(device.type)
    try:
        for module, _ in modes:
            module.training = False
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        with (
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False) if autocast else nullcontext(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, tracked in zip(layers, tracking, strict=True):
            layer.track_running_stats = tracked


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _refusals() -> Iterator[None]:
    """Put autograd's refusals to differentiate twice in the user's words."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        if not any(part in reason for part in ("not implemented", "twice", "double backward")):
            raise
        raise UserError(_NOT_TWICE + reason) from None
