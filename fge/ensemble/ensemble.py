"""Averaging the predictions of several sets of weights; memory does not grow with their number."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.networks import (
    ForwardFn,
    HostRows,
    RunningMean,
    Weights,
    call_model,
    check_logits,
    check_reiterable,
    check_whole,
    load_weights,
    predict_logits,
    reordered,
    state_of,
    unwrap,
)
from fge.observer import counted

Combine = Literal["probs", "logits"]
Members = SnapshotStore | Sequence[Weights]


class Ensemble(nn.Module):
    """The averaged prediction of several sets of weights of one architecture.

    One working copy of the model takes the weights of each member in turn. A store's snapshots
    are read from disk each time; give ``list(store)`` to hold them in memory instead. Members
    always predict in evaluation mode, even after :meth:`train`, and without gradients.

    Args:
        model: the architecture; it is copied, not changed. It is whole, not under ``fully_shard``.
        members: a store, state dicts, modules or paths to weights files.
        forward_fn: ``forward_fn(model, batch) -> logits (N, C)`` for models that are not called
            as ``model(x)``.
        combine: ``"probs"`` averages probabilities; ``"logits"`` averages logits before softmax.

    Raises:
        UserError: no members, a file that cannot be read, tensors that do not fit the model, or a
            model that is sharded.
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
        check_whole(model)
        self.forward_fn = forward_fn
        self.combine = combine
        self.model = copy.deepcopy(unwrap(model)).eval()
        self.members = members if isinstance(members, SnapshotStore) else _states(members)
        for position, state in enumerate(self.members):
            load_weights(self.model, state, f"member {position}")

    def __repr__(self) -> str:
        """Return the architecture, the number of members and how they are combined."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"Ensemble({counted(len(self), 'member')} of {type(self.model).__name__}, "
            f"{counted(parameters, 'parameter')} each, combine={self.combine!r})"
        )

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.members)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module; its members stay in evaluation mode."""
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
            logits = check_logits((self.forward_fn or call_model)(self.model, batch))
            dtype = logits.dtype
            mean.update(self._transform(logits))
        return self._finish(mean.value).to(dtype)

    def predict_proba(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean class probabilities over a whole data set.

        Args:
            batches: yields ``x`` or ``(x, y, ...)``, the same batches in the same order on each
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
            rows: HostRows | None = None
            for batch, logits in predict_logits(self.model, batches, forward_fn=self.forward_fn):
                if rows is None:
                    first, rows = _same_order(first, batch), HostRows()
                rows.add(self._transform(logits))
            assert rows is not None  # predict_logits refuses empty batches
            mean.update(rows.all())
        return self._finish(mean.value)

    def _transform(self, logits: Tensor) -> Tensor:
        return logits.double().softmax(dim=1) if self.combine == "probs" else logits.double()

    def _finish(self, mean: Tensor) -> Tensor:
        return mean if self.combine == "probs" else mean.softmax(dim=1)


def _states(members: Sequence[Weights]) -> list[dict[str, Tensor]]:
    """Return copies of the members' state dicts: the networks given may continue to train."""
    states = (state_of(member) for member in members)
    return [{name: tensor.detach().clone() for name, tensor in s.items()} for s in states]


def _same_order(first: Tensor | None, batch: Any) -> Tensor | None:
    """Return the first inputs of a pass, after checking them against those of the first pass."""
    inputs = batch[0] if isinstance(batch, list) else batch
    if not isinstance(inputs, Tensor):
        return first
    if first is not None and not torch.equal(first, inputs):
        raise reordered()
    return inputs
