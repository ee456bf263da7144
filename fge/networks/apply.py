"""Applying a network to batches: calls and predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError, first_line
from fge.networks.batches import nothing_yielded, parts_of, to_device
from fge.networks.outputs import Output, OutputKind

ForwardFn = Callable[[nn.Module, Any], Tensor]
"""``forward_fn(model, batch)`` -> outputs, for models that are not called as ``model(x)``."""


def call_model(model: nn.Module, batch: Any) -> Tensor:
    """Apply ``model`` to the inputs of a batch, which is ``x`` or ``(x, y, ...)``.

    Raises:
        UserError: the model cannot take the inputs, which are no tensor or not all that it needs.
    """
    parts = parts_of(batch)
    inputs = batch if parts is None else parts[0]
    try:
        outputs: Tensor = model(inputs)
    except (AttributeError, KeyError, TypeError) as error:
        if isinstance(inputs, Tensor):
            # of more parts the others may be inputs too
            if parts is None or len(parts) < 2 or "required positional arg" not in str(error):
                raise
            raise UserError(
                f"the model cannot be called with the first of {len(parts)} parts of a batch alone "
                f"({type(error).__name__}: {first_line(error)}); give forward_fn=lambda model, "
                "batch: model(batch[0], batch[1]), or the like"
            ) from error
        raise UserError(
            f"the model cannot be called with a {type(inputs).__name__} "
            f"({type(error).__name__}: {first_line(error)}); give forward_fn=lambda model, batch: "
            "... to call it"
        ) from error
    return outputs


def predict_logits(
    model: nn.Module, batches: Iterable[Any], *, forward_fn: ForwardFn | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Yield each batch, on the model's device, with the model's logits (N, C) for it.

    The model runs in evaluation mode; its modes are restored at the end.

    Raises:
        UserError: there is no batch, or an output is not of shape (N, C).
    """
    return _outputs_of(model, batches, forward_fn, check_logits)


def predict_outputs(
    model: nn.Module, batches: Iterable[Any], *, forward_fn: ForwardFn | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Yield each batch, on the model's device, with what the model returns for it: one tensor.

    The model runs in evaluation mode; its modes are restored at the end.

    Raises:
        UserError: there is no batch, or an output is no tensor.
    """
    return _outputs_of(model, batches, forward_fn, _check_tensor)


def _outputs_of(
    model: nn.Module,
    batches: Iterable[Any],
    forward_fn: ForwardFn | None,
    check: Callable[[Any], Tensor],
) -> Iterator[tuple[Any, Tensor]]:
    """Yield each batch, on the model's device, with the model's checked outputs for it."""
    forward = call_model if forward_fn is None else forward_fn
    modes = [(module, module.training) for module in model.modules()]
    device = _device_of(model)
    empty = True
    model.eval()
    try:
        for batch in batches:
            empty = False
            moved = to_device(batch, device)
            # not inference_mode: a model may store what it computes here
            with torch.no_grad(), single_refused():
                outputs = check(forward(model, moved))
            yield moved, outputs.detach()  # TorchScript may ignore torch.no_grad
    finally:
        for module, training in modes:
            module.training = training
    if empty:
        raise nothing_yielded()


def predict_proba(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    output: Output = "softmax",
    output_dim: int = 1,
) -> Tensor:
    """Return the probabilities that one model predicts, as :class:`fge.Ensemble` of one member.

    Args:
        model: any module; it is put in evaluation mode and back.
        batches: yields ``x`` or ``(x, y, ...)``.
        forward_fn: ``forward_fn(model, batch) -> outputs``.
        output: what the outputs are: ``"softmax"`` or ``"sigmoid"``.
        output_dim: the dimension of the classes of a softmax.

    Returns:
        probs (N, ...) float64 on the CPU; of a softmax (N, C), rows sum to 1.

    Raises:
        UserError: there is no batch, the outputs are not of shape (N, ...), a softmax would be over
            a single one, or ``output`` is another.
    """
    kind = OutputKind(output, output_dim)
    if not kind.probable:
        raise UserError(f"predict_proba needs output='softmax' or 'sigmoid', got {kind!r}")
    return predict(model, batches, forward_fn=forward_fn, kind=kind)


def predict(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    kind: OutputKind,
    forward_fn: ForwardFn | None = None,
) -> Tensor:
    """Return the predictions (N, ...) of one model, float64 on the CPU; see :func:`predict_proba`.

    Args:
        model: any module; it is put in evaluation mode and back.
        batches: yields ``x`` or ``(x, y, ...)``.
        kind: how outputs become predictions.
        forward_fn: ``forward_fn(model, batch) -> outputs``.
    """
    rows = HostRows()
    for _, outputs in _outputs_of(model, batches, forward_fn, kind.checked):
        rows.add(kind.predictions(outputs))
    return rows.all()


@contextmanager
def single_refused() -> Iterator[None]:
    """Say what is wrong where batch norm has to normalise a batch of a single example.

    Raises:
        UserError: it has, in training, or as it keeps no running statistics.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch norm cannot normalise a batch of a single image; give larger batches, and leave "
            "out a last one of a single image (drop_last)"
        ) from error


class HostRows:
    """Collects rows computed on a device and copies them to the CPU in few transfers.

    A transfer waits for the device, so one transfer per batch would leave the device idle.
    """

    def __init__(self, most_bytes: int = 1 << 26) -> None:
        self.most_bytes = most_bytes
        self._parts: list[Tensor] = []
        self._waiting: list[Tensor] = []
        self._bytes = 0

    def add(self, rows: Tensor) -> None:
        """Add the rows (n, ...) of the next batch."""
        self._waiting.append(rows.detach())  # TorchScript may ignore torch.no_grad
        self._bytes += rows.nbytes
        if self._bytes >= self.most_bytes:
            self._fetch()

    def all(self) -> Tensor:
        """Return all rows (N, ...) on the CPU."""
        self._fetch()
        return torch.cat(self._parts)

    def _fetch(self) -> None:
        if self._waiting:
            self._parts.append(torch.cat(self._waiting).cpu())
            self._waiting, self._bytes = [], 0


def _check_tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise UserError(
            f"the model must return a tensor, got a {type(outputs).__name__}; give "
            "forward_fn=lambda model, batch: ... to pick one"
        )
    return outputs


def check_logits(logits: Any) -> Tensor:
    """Return a model's output if it is logits of shape (N, C); else raise a UserError."""
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits
    kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise UserError(
        f"the model must return logits of shape (N, C), got {kind}; for other outputs give "
        "loss_fn=, the mean loss of outputs and targets"
    )


class RunningMean:
    """The running mean of tensors given one at a time, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None

    def update(self, value: Tensor) -> Tensor:
        """Include one more tensor; return the mean so far, valid until the next update."""
        self.count += 1
        if self._mean is None:
            self._mean = value.double().clone()
        else:
            self._mean += (value.double() - self._mean).div_(self.count)
        return self._mean

    @property
    def value(self) -> Tensor:
        """The mean so far."""
        assert self._mean is not None, "no value yet"
        return self._mean


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
