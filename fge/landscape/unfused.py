"""Operations that PyTorch fuses without a right second derivative, as ones that have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
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
INTO_OUT = "functions with out="
"""What PyTorch says of a backward pass that writes into given tensors."""


class Unfused(TorchFunctionMode):
    """Replaces fused operations during a ``with`` block.

    The double backward of ``torch._weight_norm`` is wrong, ``hardsigmoid`` and sparse gradients of
    embeddings have none, and recurrent layers of cuDNN have none and no backward in evaluation
    mode.
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
    """Check that each layer's gradient is that of the loss at the weights as they are.

    Raises:
        UserError: an embedding that is not frozen scales its gradient or shortens its weights; the
            message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            which = f"the layer {name!r}" if name else "the model"
            _check_embedding(which, module.weight, module.max_norm, module.scale_grad_by_freq)


def _check_embedding(which: str, weight: Tensor, max_norm: float | None, scaled: bool) -> None:
    if not weight.requires_grad:
        return
    if scaled:
        raise UserError(
            f"{which} scales its gradient by frequency, so that there is no Hessian; set its "
            "scale_grad_by_freq to False"
        )
    if max_norm is not None:
        raise UserError(
            f"{which} shortens its weights in the forward pass, so that there is no Hessian; set "
            "its max_norm to None"
        )


def refused_part(reason: str) -> str:
    """Return an error of PyTorch about a missing derivative, with the part that lacks it."""
    reason = reason.rstrip(".")
    for name, (part, remedy) in _PARTS.items():
        if f"'{name}" in reason or f"::{name}" in reason:
            return f"{part} has no second derivative in PyTorch; {remedy} ({reason})"
    if INTO_OUT in reason:
        return (
            "a backward pass that writes into out=, as that of nn.CrossMapLRN2d, has no second "
            f"derivative in PyTorch; write the layer with ordinary operations ({reason})"
        )
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


def _dense(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an embedding with dense gradients, which have the same values as sparse ones."""
    signature = inspect.signature(function)

    @wraps(function)
    def embed(*arguments: Any, **named: Any) -> Tensor:
        given = signature.bind(*arguments, **named)
        given.apply_defaults()
        options = given.arguments
        facts = (options[name] for name in ("weight", "max_norm", "scale_grad_by_freq"))
        _check_embedding(f"F.{function.__name__}", *facts)
        options["sparse"] = False
        return function(*given.args, **given.kwargs)

    return embed


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _normalised,
    F.hardsigmoid: _hard_sigmoid,
    torch._C._nn.hardsigmoid: _hard_sigmoid,
    F.embedding: _dense(F.embedding),
    F.embedding_bag: _dense(F.embedding_bag),
}
