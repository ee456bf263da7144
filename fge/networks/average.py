"""Averages of weights: of several networks, and over the steps of one training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.files import checked
from fge.networks.flat import check_shaped
from fge.networks.naming import under_names
from fge.networks.state import Weights, canonical_state, first_not_finite, unwrap
from fge.observer import counted
from fge.schemas import Count


class RunningAverage:
    """The running average of state dicts given one at a time, in float64 on the CPU.

    Floating-point parameters and buffers are averaged; integer buffers (batch counts, indices)
    come from the last state dict. The batch-norm statistics of averaged weights are not the
    average of the statistics: estimate them with :func:`fge.networks.refresh_batch_norm`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._dtypes: dict[str, torch.dtype] = {}
        self._means: dict[str, Tensor] = {}

    def update(self, state: Weights) -> None:
        """Include one more state dict, which is not changed.

        Raises:
            UserError: its names or shapes differ from those of the first, or it is not finite
                where they are; the tensor is named, and the average stays as it was.
        """
        tensors = dict(under_names(canonical_state(state), self._means))
        if self.count == 0:
            self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
            self._means = {name: _wide(tensor) for name, tensor in tensors.items()}
        else:
            self._check(tensors)
            self._means = {name: self._with(name, tensors[name]) for name in self._means}
        self.count += 1

    def including(self, state: Weights) -> RunningAverage:
        """Return the average with one more state dict; this average is not changed.

        Raises:
            UserError: as :meth:`update`.
        """
        other = RunningAverage()
        other.count, other._dtypes, other._means = self.count, self._dtypes, dict(self._means)
        other.update(state)
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average: tensors by name, contiguous, in the dtypes of the first state.

        Raises:
            UserError: no state dict was included.
        """
        if self.count == 0:
            raise UserError("an average of weights needs at least one state dict, got none")
        return {n: mean.to(self._dtypes[n], copy=True) for n, mean in self._means.items()}

    def _with(self, name: str, value: Tensor) -> Tensor:
        """Return the mean of a tensor with one more value; infinite or NaN only where all are."""
        mean = self._means[name]
        new = _towards(mean, value, self.count + 1)
        shared = (mean == value) | (mean.isnan() & value.isnan())
        if not bool((new.isfinite() | shared).all()):
            raise UserError(
                f"member {self.count}: tensor {name!r} has no average with those of the members "
                "before it, because one of them is not finite; leave that member out"
            )
        return new

    def _check(self, tensors: dict[str, Tensor]) -> None:
        for name, mean in self._means.items():
            if name not in tensors:
                raise UserError(f"member {self.count} has no tensor {name!r}, which member 0 has")
            if tensors[name].shape != mean.shape:
                raise UserError(
                    f"member {self.count}: tensor {name!r} has shape "
                    f"{tuple(tensors[name].shape)}, that of member 0 has {tuple(mean.shape)}"
                )
        for name in tensors:
            if name not in self._means:
                raise UserError(f"member {self.count} has a tensor {name!r}, which member 0 lacks")


def average_weights(states: Iterable[Weights]) -> dict[str, Tensor]:
    """Return the average of several networks' weights, as in SWA.

    Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407): w = 1/S sum_i w_i over S
    networks. The result is one network, with one forward pass per prediction. Averaging networks
    from different basins is harmful: :func:`fge.ensemble.fold` measures before it averages.
    Memory does not grow with S if ``states`` loads them one by one, as a store does.

    >>> import torch
    >>> average_weights([{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([3.0, 8.0])}])
    {'w': tensor([2., 6.])}

    Args:
        states: a store, state dicts, modules or paths, at least one.

    Returns:
        Tensors by name, on the CPU, contiguous: floating-point tensors averaged in float64 and cast
        back to their dtype in the first state, integer tensors from the last. Estimate batch-norm
        statistics again (:func:`fge.networks.refresh_batch_norm`).

    Raises:
        UserError: no states, names or shapes that differ, or a member that is not finite or lazy.
    """
    average = RunningAverage()
    for state in states:
        average.update(state)
    return average.state_dict()


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor) -> Tensor:
    if not _averaged(tensor):
        return tensor
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _towards(mean: Tensor, value: Tensor, count: int) -> Tensor:
    """Return the mean of ``count`` tensors from the mean of all but the last, and the last."""
    if not _averaged(value):
        return value
    # Equal values stay as they are: the difference of infinities (an attention mask) is NaN.
    return torch.where(value == mean, mean, mean + (value - mean) / count)


class _SavedAverage(TypedDict):
    """The state of an average."""

    updates: Count
    averages: dict[str, Tensor]


class StepAverage:
    """An average of a model's parameters over training steps, on its device.

    Buffers, and parameters that are no floating-point numbers, are not averaged: estimate
    batch-norm statistics inside :meth:`swapped`. Infinite numbers that stay (an attention mask that
    is a frozen parameter) are those of the average. Subclasses say with which weight a step enters.

    Args:
        model: its parameters are averaged; compilation and data-parallel wrappers are bypassed.
            The averages are copies on its device, in float32 or the parameters' wider dtype.

    Raises:
        UserError: a parameter is lazy and has no shape yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self.updates = 0
        self._lent = False  # whether the model holds the average now
        self.averages = {
            name: parameter.detach().to(_at_least_single(parameter.dtype), copy=True)
            for name, parameter in _averaged_parameters(model).items()
        }
        # Of these, the difference of equal numbers may not be 0.
        self._odd = _not_finite(self.averages)

    def __repr__(self) -> str:
        """Return the number of steps averaged and of parameters."""
        count = sum(average.numel() for average in self.averages.values())
        name = type(self).__name__
        return f"{name}({counted(self.updates, 'step')}, {counted(count, 'parameter')})"

    def _weight(self) -> float:
        """Return the weight with which the parameters enter the average now."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Include the parameters after a step; the first time, copy them.

        Raises:
            UserError: the parameters are not those of the model given to the constructor, or the
                model holds the average, within :meth:`swapped`.
        """
        if self._lent:
            raise UserError(
                "the model holds the average of its weights and not those of a training step; "
                "leave the swapped() block before the next step"
            )
        averages = list(self.averages.values())
        present = [
            parameter.detach().to(average)
            for parameter, average in zip(self._parameters(model), averages, strict=True)
        ]
        if self.updates == 0:
            torch._foreach_copy_(averages, present)
        else:
            values = dict(zip(self.averages, present, strict=True))
            same = [(name, self.averages[name] == values[name]) for name in self._odd]
            torch._foreach_lerp_(averages, present, self._weight())
            for name, where in same:
                torch.where(where, values[name], self.averages[name], out=self.averages[name])
        self.updates += 1

    def first_not_finite(self, model: nn.Module) -> str | None:
        """Return the name of the first average with NaN or infinity that the model does not have.

        Raises:
            UserError: the parameters are not those of the model given to the constructor.
        """
        own = dict(zip(self.averages, self._parameters(model), strict=True))
        for name in _not_finite(self.averages):
            average = self.averages[name]
            if not bool((average.isfinite() | (average == own[name].to(average))).all()):
                return name
        return None

    def reset(self) -> None:
        """Forget every step, so that the next one starts a new average."""
        self.updates = 0

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Put the average into the model during a ``with`` block.

        Parameters and buffers are restored bitwise at the end, also after an exception, so the
        block may estimate batch-norm statistics or replace buffers. Gradients are not touched.

        Args:
            model: changed in place, so compiled code and optimizers see it.

        Raises:
            UserError: the parameters are not those of the model given to the constructor.
        """
        parameters = self._parameters(model)
        buffers = [
            (module, name, buffer)
            for module in unwrap(model).modules()
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        ]
        held = {id(tensor): tensor for tensor in (*parameters, *(b for _, _, b in buffers))}
        originals = [(tensor, tensor.detach().clone()) for tensor in held.values()]
        before, self._lent = self._lent, True
        try:
            with torch.no_grad():
                for parameter, average in zip(parameters, self.averages.values(), strict=True):
                    parameter.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for tensor, saved in originals:
                    if not tensor.is_inference():  # nothing could change it
                        tensor.copy_(saved)
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            self._lent = before

    def _parameters(self, model: nn.Module) -> list[Tensor]:
        """Return the model's parameters in the order of the averages."""
        parameters = _averaged_parameters(model)
        _check_fit(self.averages, parameters, "the model")
        return [parameters[name] for name in self.averages]

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name and the number of updates."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a saved state; options stay the constructor's.

        Raises:
            UserError: the state belongs to a model with other parameters, or is damaged.
        """
        state = checked(state_dict, _SavedAverage, "the saved average is damaged")
        saved = state["averages"]
        _check_fit(self.averages, saved, "the saved state")
        for name, average in self.averages.items():
            average.copy_(saved[name])
        self.updates = state["updates"]


class ExponentialAverage(StepAverage):
    """The exponential moving average (EMA) of a model's parameters over training steps.

    After each step avg = d avg + (1 - d) w, for a decay d; the first update copies the parameters,
    so the initial weights do not count (as in ``torch.optim.swa_utils.AveragedModel``). Polyak and
    Juditsky 1992 average iterates; Tarvainen and Valpola 2017 (arXiv 1703.01780, equation 2), for
    example, use exponential weights. Buffers are not averaged: estimate batch-norm statistics
    inside :meth:`swapped`.

    Args:
        model: of :class:`StepAverage`.
        decay: d, in [0, 1). About the last 1 / (1 - d) steps count.

    Raises:
        UserError: a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay must be in [0, 1), got {decay}")
        super().__init__(model)
        self.decay = decay

    def _weight(self) -> float:
        return 1 - self.decay


class UniformAverage(StepAverage):
    """The mean of a model's parameters over training steps, all with the same weight.

    Polyak and Juditsky 1992, over the steps since the last :meth:`reset`: the mean takes away the
    noise of a learning rate that is not annealed to the end (arXiv 2209.14981, 2306.03241).
    """

    def include(self, model: nn.Module, *, first: bool) -> None:
        """Include the parameters after a step, or start a new mean with them."""
        if first:
            self.reset()
        self.update(model)

    def _weight(self) -> float:
        return 1 / (self.updates + 1)


def _averaged_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model that can be averaged, by name; none may be lazy."""
    named = list(unwrap(model).named_parameters())
    check_shaped(named)
    return {name: parameter for name, parameter in named if _averaged(parameter)}


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with NaN or infinity."""
    if first_not_finite(tensors.items()) is None:  # which waits for the device once
        return []
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_fit(averages: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    ours, theirs = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (averages, given)
    )
    if ours == theirs:
        return
    name = next(n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n))
    raise UserError(
        f"{source} has other parameters than the average: {name!r} is {theirs.get(name, 'missing')}"
        f", the average has {ours.get(name, 'none')}"
    )
