"""Operations that PyTorch fuses without a right second derivative, as ones that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fge.errors import UserError

_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_PARTS = {
    "_ctc_loss": ("CTC loss", "use another loss"),
    "cudnn_ctc_loss": ("CTC loss", "use another loss"),
    "_embedding_bag": ("nn.EmbeddingBag", "use nn.Embedding and a sum, mean or maximum"),
    "multi_margin_loss": ("nn.MultiMarginLoss", "write the loss with clamp"),
    "multilabel_margin_loss": ("nn.MultiLabelMarginLoss", "write the loss with clamp"),
    "_scaled_dot_product": ("fused attention", "use F.scaled_dot_product_attention"),
    "_cudnn_rnn": ("a recurrent layer of cuDNN", "use nn.LSTM, nn.GRU or nn.RNN"),
    "miopen_rnn": ("a recurrent layer of MIOpen", "use nn.LSTM, nn.GRU or nn.RNN"),
}
"""Operations without a second derivative by the start of their names: what they are of, and what
to use instead."""


class Unfused(TorchFunctionMode):
    """Replaces fused operations during a ``with`` block.

    The double backward of ``torch._weight_norm`` is wrong, ``hardsigmoid`` has none, and recurrent
    layers of cuDNN have none and no backward in evaluation mode.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the replacement of a fused function, or the function."""
        if func in _RECURRENT and args[0].is_cuda:
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **(kwargs or {}))
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def check_gradients_true(model: nn.Module) -> None:
    """Check that no layer scales its gradient, which is not that of the loss then.

    Raises:
        UserError: one does; the message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq:
            raise UserError(
                f"the layer {name!r} scales its gradient by frequency, so that there is no "
                "Hessian; set its scale_grad_by_freq to False"
            )


def refused_part(reason: str) -> str:
    """Return an error of PyTorch about a missing derivative, with the part that lacks it."""
    for name, (part, remedy) in _PARTS.items():
        if f"'{name}" in reason or f"::{name}" in reason:
            return f"{part} has no second derivative in PyTorch; {remedy} ({reason})"
    return reason


def _normalised(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return the weight g v / |v| (arXiv 1602.07868), with norms over all dimensions but one."""
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim]
    norm = torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1) if others else v.abs()
    weight: Tensor = v * (g / norm)
    return weight


def _hard_sigmoid(*arguments: Any, **named: Any) -> Tensor:
    """Return the piecewise linear sigmoid; the input is not changed, as the result is used."""
    inputs = arguments[0] if arguments else named["input"]
    return F.relu6(inputs + 3) / 6


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _normalised,
    F.hardsigmoid: _hard_sigmoid,
    torch._C._nn.hardsigmoid: _hard_sigmoid,
}
