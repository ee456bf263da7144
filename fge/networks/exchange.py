"""One state after the other in a model, without copying parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fge.networks.state import fitting

_KINDS = (Tensor, nn.Parameter)
_PLAIN_LOADER = nn.Module._load_from_state_dict
_VALUES = methodcaller("values")
_KIND = attrgetter("dtype", "device")
_DATA = attrgetter("data")


class Exchange:
    """Has each of several states in a model in turn.

    Parameters lend their storage from the state, so nothing may write to them meanwhile; buffers,
    which a forward pass may write to, are copied. What cannot be lent (another dtype, device or
    layout; modules that load in a way of their own) is loaded as PyTorch does it. What is found out
    about the model and the states is kept, and found out again where they have changed.
    """

    def __init__(self) -> None:
        self._slots: _Slots | None = None
        self._loans: dict[int, _Loan] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Exchange], tuple[()]]:
        """Copy as one that knows nothing: the copied model is another."""
        return Exchange, ()

    def in_turn(
        self, model: nn.Module, states: Iterable[Mapping[str, Tensor]], *, keep: bool
    ) -> Iterator[None]:
        """Put each state into the model; at the end, its parameters have their own values again.

        Buffers stay those of the last state. Other threads wait meanwhile: there is one model.

        Args:
            model: without wrappers.
            states: by name, as in its state dict.
            keep: whether to keep the states, so that the next turn is faster.

        Raises:
            UserError: a state does not fit the model.
        """
        with self._lock:
            slots = self._slots_of(model)
            own = list(map(_DATA, slots.parameters))
            try:
                for position, state in enumerate(states):
                    loan = self._kept(slots, position, state) if keep else slots.loan(state)
                    if loan.parameters is None:
                        _set(slots.parameters, own)
                        model.load_state_dict(fitting(model, state, f"member {position}"))
                    else:
                        _set(slots.parameters, loan.parameters)
                        if slots.buffers:
                            with torch.no_grad():
                                torch._foreach_copy_(slots.buffers, loan.buffers)
                    yield
            finally:
                _set(slots.parameters, own)

    def _slots_of(self, model: nn.Module) -> _Slots:
        if self._slots is None or not self._slots.are_of(model):
            self._slots, self._loans = _Slots(model), {}
        return self._slots

    def _kept(self, slots: _Slots, position: int, state: Mapping[str, Tensor]) -> _Loan:
        loan = self._loans.get(position)
        if loan is None or not _same(loan.values, list(state.values())):
            loan = slots.loan(state)
            self._loans[position] = loan
        return loan


class _Loan(NamedTuple):
    """The values of a state, and those of them that take the places of the model's tensors."""

    values: list[Tensor]
    parameters: list[Tensor] | None
    buffers: list[Tensor]


class _Slots:
    """The tensors of a model that a state dict names: parameters and buffers apart."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_modules(remove_duplicate=False))
        self.modules = [module for _, module in named]
        self.plain = all(map(_loads_plainly, self.modules))
        self.holders = [
            holder for m in self.modules for holder in (m._parameters, m._buffers, m._modules)
        ]
        self.held = self._contents()
        slots = dict(_named_tensors(named)) if self.plain else {}
        self.parameter_names = [n for n, t in slots.items() if isinstance(t, nn.Parameter)]
        self.buffer_names = [n for n in slots if n not in set(self.parameter_names)]
        self.parameters = [slots[name] for name in self.parameter_names]
        self.buffers = [slots[name] for name in self.buffer_names]
        self.kinds = self._kinds()

    def are_of(self, model: nn.Module) -> bool:
        """Return whether the model has still these modules and tensors, of these kinds.

        A small network predicts one image in a millisecond: this is fast, as all loops are C.
        """
        return (
            self.modules[0] is model
            and _same(self.held, self._contents())
            and self.kinds == self._kinds()
        )

    def loan(self, state: Mapping[str, Tensor]) -> _Loan:
        """Return the tensors of a state in the order of the slots, if all can be lent."""
        values = list(state.values())
        parameters, buffers = (
            [state[n] for n in names if n in state]
            for names in (self.parameter_names, self.buffer_names)
        )
        slots = [*self.parameters, *self.buffers]
        if self.plain and len(values) == len(slots) == len(parameters) + len(buffers):
            lent = map(can_lend, slots, [*parameters, *buffers])
            if all(lent):
                return _Loan(values, parameters, buffers)
        return _Loan(values, None, [])

    def _contents(self) -> list[Any]:
        return list(chain.from_iterable(map(_VALUES, self.holders)))

    def _kinds(self) -> list[Any]:
        return list(map(_KIND, self.parameters))


def _named_tensors(named: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in named:
        start = f"{prefix}." if prefix else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield start + name, tensor


def _loads_plainly(module: nn.Module) -> bool:
    """Return whether loading a state does nothing but copy tensors of the same names."""
    if isinstance(module, torch.jit.ScriptModule):  # its tensors are wrapped again at each look
        return False
    kind = type(module)
    loader = kind._load_from_state_dict
    return (
        (loader is _PLAIN_LOADER or loader.__module__.startswith("torch.nn.modules."))
        and kind.get_extra_state is nn.Module.get_extra_state
        and not module._load_state_dict_pre_hooks
        and not module._load_state_dict_post_hooks
        and not module._state_dict_hooks
    )


def can_lend(slot: Tensor, tensor: Tensor) -> bool:
    """Return whether a tensor of a model can have the storage of one of a state."""
    return (
        type(slot) in _KINDS
        and type(tensor) in _KINDS
        and (slot.dtype, slot.device, slot.layout) == (tensor.dtype, tensor.device, tensor.layout)
        and (slot.shape, slot.stride()) == (tensor.shape, tensor.stride())
        and not (tensor.is_meta or tensor.is_inference())
    )


def _set(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))
