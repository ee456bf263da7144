"""Averaging predictions of several sets of weights, in memory that does not grow with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.networks.state import Weights, load_weights, state_of, unwrap

ForwardFn = Callable[[nn.Module, Any], Tensor]
Combine = Literal["probs", "logits"]
Members = SnapshotStore | Sequence[Weights]


class RunningMean:
    """The mean of arrays seen one at a time, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None

    def update(self, value: Tensor) -> Tensor:
        """Take one more array in; return the mean so far, good until the next update."""
        self.count += 1
        if self._mean is None:
            self._mean = value.double().clone()
        else:
            self._mean += (value.double() - self._mean) / self.count
        return self._mean

    @property
    def value(self) -> Tensor:
        """The mean of what was seen."""
        assert self._mean is not None, "no value yet"
        return self._mean


def call_model(model: nn.Module, batch: Any) -> Tensor:
    """Apply ``model`` to the inputs of a batch, which is ``x`` or ``(x, y, ...)``."""
    outputs: Tensor = model(batch[0] if isinstance(batch, list | tuple) else batch)
    return outputs


def predict_logits(
    model: nn.Module, batches: Iterable[Any], *, forward_fn: ForwardFn | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Yield each batch, on the model's device, with the model's logits (N, C) for it.

    The module is in evaluation mode meanwhile; its modes are restored at the end.

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
            with torch.no_grad():  # not inference_mode: a model may keep what it computes here
                logits = _checked(forward(model, moved))
            yield moved, logits
    finally:
        for module, training in modes:
            module.training = training
    if empty:
        raise UserError(
            "batches yielded nothing: give data, and not a generator that is used up already"
        )


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
    parts = [
        logits.double().softmax(dim=1).cpu()
        for _, logits in predict_logits(model, batches, forward_fn=forward_fn)
    ]
    return torch.cat(parts)


class Ensemble(nn.Module):
    """The averaged prediction of several sets of weights of one architecture.

    One working copy of the model visits the members in turn. A store's snapshots are read from
    disk at each visit; give ``list(store)`` to hold them in memory instead. Members always predict
    in evaluation mode, whatever :meth:`train` says, and without gradients.

    Args:
        model: the architecture; it is copied, not changed.
        members: a store, state dicts, modules or paths to weights files.
        forward_fn: ``forward_fn(model, batch) -> logits (N, C)`` for models that are not called
            as ``model(x)``.
        combine: ``"probs"`` averages probabilities; ``"logits"`` averages logits before softmax.

    Raises:
        UserError: no members, a file that cannot be read, or tensors that do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Members,
        *,
        forward_fn: ForwardFn | None = None,
        combine: Combine = "probs",
    ) -> None:
        super().__init__()
        if combine not in ("probs", "logits"):
            raise UserError(f"combine must be 'probs' or 'logits', got {combine!r}")
        if len(members) == 0:
            raise UserError("an ensemble needs at least one member, got none")
        self.forward_fn = forward_fn
        self.combine = combine
        self.model = copy.deepcopy(unwrap(model)).eval()
        self.members = members if isinstance(members, SnapshotStore) else _states(members)
        for position, state in enumerate(self.members):
            load_weights(self.model, state, f"member {position}")

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.members)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module alone: its members stay in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: Any) -> Tensor:
        """Return the mean class probabilities of one batch, without gradients.

        Args:
            batch: inputs ``x``, or whatever ``forward_fn`` takes.

        Returns:
            probs (N, C), rows sum to 1, in the dtype of the model's outputs.
        """
        mean = RunningMean()
        dtype = torch.float32
        for state in self.members:
            self.model.load_state_dict(state)
            logits = _checked((self.forward_fn or call_model)(self.model, batch))
            dtype = logits.dtype
            mean.update(self._transform(logits))
        return self._finish(mean.value).to(dtype)

    def predict_proba(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean class probabilities over a whole data set.

        Args:
            batches: yields ``x`` or ``(x, y, ...)``, the same batches in the same order at each
                pass; there is one pass per member.

        Returns:
            probs (N, C) float64 on the CPU, rows sum to 1.

        Raises:
            UserError: ``batches`` can be iterated only once, is empty, or changes its order.
        """
        check_reiterable(batches)
        mean = RunningMean()
        first: Tensor | None = None
        for state in self.members:
            self.model.load_state_dict(state)
            parts: list[Tensor] = []
            for batch, logits in predict_logits(self.model, batches, forward_fn=self.forward_fn):
                if not parts:
                    first = _same_order(first, batch)
                parts.append(self._transform(logits).cpu())
            mean.update(torch.cat(parts))
        return self._finish(mean.value)

    def _transform(self, logits: Tensor) -> Tensor:
        return logits.double().softmax(dim=1) if self.combine == "probs" else logits.double()

    def _finish(self, mean: Tensor) -> Tensor:
        return mean if self.combine == "probs" else mean.softmax(dim=1)


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


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch (nested in lists, tuples and dicts) to ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, list | tuple):
        return [to_device(part, device) for part in batch]
    if isinstance(batch, dict):
        return {key: to_device(part, device) for key, part in batch.items()}
    return batch


def _checked(logits: Any) -> Tensor:
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise UserError(f"the model must return logits of shape (N, C), got {found}")


def _states(members: Sequence[Weights]) -> list[dict[str, Tensor]]:
    """Return the members as copied state dicts, for what they belong to may train on."""
    states = (state_of(member) for member in members)
    return [{name: tensor.detach().clone() for name, tensor in s.items()} for s in states]


def _same_order(first: Tensor | None, batch: Any) -> Tensor | None:
    """Compare the first batch of a pass with that of the first pass."""
    inputs = batch[0] if isinstance(batch, list) else batch
    if not isinstance(inputs, Tensor):
        return first
    if first is not None and not torch.equal(first, inputs):
        raise UserError(
            "batches come in another order at each pass; switch shuffling and augmentation off"
        )
    return inputs


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
