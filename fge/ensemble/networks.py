"""A network for each member of an ensemble that is in memory: nothing is exchanged to predict."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from operator import is_

import torch
from torch import Tensor, nn

from fge.ensemble.deployed import twins
from fge.networks import can_lend, same_values


class Networks:
    """Holds a copy of a model for each of several states, whose parameters are those of the state.

    A copy costs the memory of the buffers and of what else a module holds. It has the buffers of
    its state once, not before each pass: :attr:`stateful` says whether the first passes have
    written to them, so that later ones would predict something else.
    """

    def __init__(self) -> None:
        self.stateful = False
        self._networks: list[nn.Module] = []
        self._values: list[list[Tensor]] = []
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Networks], tuple[()]]:
        """Copy as one that holds nothing: the tensors of copied states are others."""
        return Networks, ()

    def in_turn(
        self, model: nn.Module, states: Sequence[Mapping[str, Tensor]]
    ) -> Iterator[nn.Module]:
        """Yield the network of each state; other threads wait meanwhile.

        Raises:
            UserError: a state does not fit the model.
        """
        with self._lock:
            known = len(self._values) == len(states) and all(map(_holds, self._values, states))
            if not known:
                self._networks = list(_sharing(model, states))
                self._values = [list(state.values()) for state in states]
            for network, state in zip(self._networks, states, strict=True):
                try:
                    yield network
                finally:
                    if not known and _has_written(network, state):
                        self.stateful = True


def laid_out(tensor: Tensor, slot: Tensor | None) -> Tensor:
    """Return a tensor with the strides of the one whose place it takes."""
    if slot is None or tensor.shape != slot.shape or tensor.stride() == slot.stride():
        return tensor
    return torch.empty_like(slot, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _sharing(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> Iterator[nn.Module]:
    """Yield a copy of a model for each state, whose tensors its parameters are where they can."""
    for network, state in zip(twins(model, states), states, strict=True):
        for name, parameter in network.named_parameters(remove_duplicate=False):
            value = state.get(name)
            if value is not None and can_lend(parameter, value) and same_values(parameter, value):
                parameter.data = value
        yield network


def _has_written(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return whether a network has other buffers than its state."""
    with torch.no_grad():
        return any(
            name in state and not same_values(buffer, state[name].to(buffer))
            for name, buffer in network.named_buffers()
        )


def _holds(values: list[Tensor], state: Mapping[str, Tensor]) -> bool:
    """Return whether a state has still these tensors."""
    return len(values) == len(state) and all(map(is_, values, state.values()))
