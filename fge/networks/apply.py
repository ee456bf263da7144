"""Applying a network to batches: calls, predictions, and the tensors in a nested batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)`` -> the mean loss ()."""
ForwardFn = Callable[[nn.Module, Any], Tensor]
"""``forward_fn(model, batch)`` -> outputs, for models that are not called as ``model(x)``."""


def call_model(model: nn.Module, batch: Any) -> Tensor:
    """Apply ``model`` to the inputs of a batch, which is ``x`` or ``(x, y, ...)``."""
    outputs: Tensor = model(batch[0] if isinstance(batch, list | tuple) else batch)
    return outputs


def predict_logits(
    model: nn.Module, batches: Iterable[Any], *, forward_fn: ForwardFn | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Yield each batch, on the model's device, with the model's logits (N, C) for it.

    The model runs in evaluation mode; its modes are restored at the end.

    Raises:
        UserError: there is no batch, or an output is not of shape (N, C).
    """
    forward = forward_fn or call_model
    modes = [(module, module.training) for module in model.modules()]
    device = _device_of(model)
    empty = True
    model.eval()
    try:
        for batch in batches:
            empty = False
            moved = to_device(batch, device)
            with torch.no_grad():  # not inference_mode: a model may store what it computes here
                logits = check_logits(forward(model, moved))
            yield moved, logits
    finally:
        for module, training in modes:
            module.training = training
    if empty:
        raise nothing_yielded()


def predict_proba(
    model: nn.Module, batches: Iterable[Any], *, forward_fn: ForwardFn | None = None
) -> Tensor:
    """Return the class probabilities of one model.

    Args:
        model: any module; it is put in evaluation mode and back.
        batches: yields ``x`` or ``(x, y, ...)``.
        forward_fn: ``forward_fn(model, batch) -> logits (N, C)``.

    Returns:
        probs (N, C) float64 on the CPU, rows sum to 1.

    Raises:
        UserError: there is no batch, or an output is not of shape (N, C).
    """
    rows = HostRows()
    for _, logits in predict_logits(model, batches, forward_fn=forward_fn):
        rows.add(logits.double().softmax(dim=1))
    return rows.all()


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
        self._waiting.append(rows)
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


def check_logits(logits: Any) -> Tensor:
    """Return a model's output if it is logits of shape (N, C); else raise a UserError."""
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits
    kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise UserError(f"the model must return logits of shape (N, C), got {kind}")


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
            self._mean += (value.double() - self._mean) / self.count
        return self._mean

    @property
    def value(self) -> Tensor:
        """The mean so far."""
        assert self._mean is not None, "no value yet"
        return self._mean


def check_reiterable(batches: Iterable[Any]) -> None:
    """Check that ``batches`` can be iterated more than once.

    Raises:
        UserError: it is an iterator, which a first pass uses up.
    """
    if isinstance(batches, Iterator):
        raise UserError(
            f"batches must be iterable more than once, got a {type(batches).__name__}; "
            "give a list, a DataLoader or the like"
        )


def nothing_yielded(name: str = "batches") -> UserError:
    """Return the error for batches of which there are none, or none on a second pass."""
    return UserError(f"{name} yielded nothing; give data that can be iterated more than once")


def reordered(name: str = "batches") -> UserError:
    """Return the error for batches that differ from pass to pass."""
    return UserError(
        f"{name} come in a different order on each pass; turn off shuffling and augmentation"
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch (nested in lists, tuples and dicts) to ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, list | tuple):
        return [to_device(part, device) for part in batch]
    if isinstance(batch, dict):
        return {key: to_device(part, device) for key, part in batch.items()}
    return batch


def count_examples(batch: Any) -> int:
    """Return the length of the first tensor in a batch.

    >>> import torch
    >>> count_examples((torch.zeros(5, 3), torch.zeros(5))), count_examples({"ids": torch.ones(2)})
    (5, 2)

    Raises:
        UserError: there is no tensor in it.
    """
    for tensor in tensors(batch):
        return len(tensor)
    raise UserError(f"a batch must hold a tensor, got a {type(batch).__name__}")


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch, nested in lists, tuples and mappings, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, list | tuple | Mapping):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors(part)


def cut(batch: Any, chunk: int) -> Iterator[tuple[Any, int]]:
    """Yield pieces of at most ``chunk`` examples, as equal in size as possible, and their sizes.

    An empty batch has no pieces. A batch whose tensors (nested in lists, tuples and dicts) differ
    in length is not cut. Tuples become lists.

    >>> import torch
    >>> [size for _, size in cut([torch.zeros(10, 3), torch.zeros(10)], 4)]
    [3, 3, 4]

    Raises:
        UserError: there is no tensor in the batch, or its tensors have no first dimension.
    """
    parts = list(tensors(batch))
    if any(tensor.ndim == 0 for tensor in parts):
        raise UserError("a batch must hold tensors of shape (n, ...), got one of shape ()")
    count = count_examples(batch)
    pieces = -(-count // chunk)
    if count and (pieces == 1 or any(len(tensor) != count for tensor in parts)):
        yield batch, count
        return
    starts = [count * piece // pieces for piece in range(pieces)]
    for start, stop in itertools.pairwise([*starts, count]):
        yield _rows(batch, start, stop), stop - start


def _rows(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, list | tuple):
        return [_rows(part, start, stop) for part in batch]
    if isinstance(batch, dict):
        return {key: _rows(part, start, stop) for key, part in batch.items()}
    return batch


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
