"""The mean of the weights over the tail of a training, for any loop and schedule."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fge.errors import UserError, check_at_least
from fge.networks.apply import ForwardFn
from fge.networks.average import UniformAverage
from fge.networks.batches import unnoticed
from fge.networks.batchnorm import is_scripted_norm, refresh_batch_norm
from fge.networks.copying import copy_module
from fge.networks.frozen import kept_as_trained
from fge.networks.state import canonical_state, unwrap
from fge.parallel import is_shard


def has_running_statistics(model: nn.Module) -> bool:
    """Return whether the model has batch or instance norm with running statistics."""
    return any(
        (isinstance(module, _NormBase) and module.running_mean is not None)
        or is_scripted_norm(module)
        for module in unwrap(model).modules()
    )


class StatisticsWarning(UserWarning):
    """Running statistics of averaged weights are those of other weights, and stay so."""


def warn_of_statistics(model: nn.Module, *, stacklevel: int = 3) -> None:
    """Warn of running statistics of a model's own making, which nobody can estimate for a mean."""
    layer = own_statistics(model)
    if layer is not None:
        warnings.warn(
            f"the running statistics in {type(layer).__name__} are those of other weights than "
            "the mean and cannot be estimated; set them from data, use PyTorch's batch norm, or "
            "keep the last weights",
            StatisticsWarning,
            stacklevel=stacklevel,
        )


def own_statistics(model: nn.Module) -> nn.Module | None:
    """Return the first layer that keeps running statistics and is none of PyTorch's, or None.

    It is known by the names of its buffers, as on curves. Frozen batch norm, as libraries for
    detection name theirs, keeps constants.
    """
    for module in unwrap(model).modules():
        names = {name for name, _ in module.named_buffers(recurse=False)}
        known = isinstance(module, _NormBase) or is_scripted_norm(module)
        frozen = any("Frozen" in kind.__name__ for kind in type(module).__mro__)
        if names & {"running_mean", "running_var"} and not (known or frozen):
            return module
    return None


class TailAverage:
    """The mean of a model's weights after each step from one on (Polyak and Juditsky 1992).

    The mean takes away the noise of the last steps, so the learning rate need not be annealed to
    the end (arXiv 2209.14981, 2306.03241): :class:`fge.LinearTailLR` falls to a tenth, and the tail
    is the last tenth to fifth of the steps. Call :meth:`step` after every optimizer step.

    Parameters are averaged, in float32 or their wider dtype; buffers are the model's current ones.
    Batch-norm statistics of other weights are wrong for the mean: :meth:`module` estimates them,
    and warns of those of a layer of one's own, which a buffer ``running_mean`` or ``running_var``
    tells.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> tail = TailAverage(model, first_step=2)
    >>> for value in (1.0, 2.0, 3.0, 5.0):
    ...     _ = model.weight.data.fill_(value)  # a training step
    ...     tail.step()
    >>> len(tail), tail.state_dict()["weight"].item()
    (2, 4.0)

    Args:
        model: any module; wrappers of ``torch.compile`` and data-parallel are seen through. Its
            parameters are read, never changed, except in :meth:`swapped`.
        first_step: the number of steps before the first one that is averaged: 0 averages all.

    Raises:
        UserError: ``first_step`` is negative, or the model is sharded by ``fully_shard``.
    """

    def __init__(self, model: nn.Module, first_step: int) -> None:
        check_at_least(0, first_step=first_step)
        if any(is_shard(parameter) for parameter in unwrap(model).parameters()):
            raise UserError("a sharded model is not averaged; use TailAverage before fully_shard")
        self.model = model
        self.first_step = first_step
        self.steps = 0
        self._mean: UniformAverage | None = None  # made when weights exist: some are lazy

    def __len__(self) -> int:
        """Return the number of steps in the mean."""
        return self._mean.updates if self._mean else 0

    def __repr__(self) -> str:
        """Return the steps taken and averaged."""
        return f"TailAverage({self.steps} steps, {len(self)} of them averaged)"

    def step(self) -> None:
        """Count an optimizer step; from ``first_step`` on, include the weights after it.

        Raises:
            UserError: the model's parameters are not those that it had before, or are lazy and
                have no shape yet.
        """
        if self.steps >= self.first_step:
            self._mean = self._mean or UniformAverage(self.model)
            self._mean.update(self.model)
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state with the mean in the place of its parameters.

        Tensors by name, on the CPU, contiguous, in the model's dtypes. Statistics of batch norm are
        the current ones: estimate them again (:func:`fge.refresh_batch_norm`) after loading.

        Raises:
            UserError: no step has been averaged yet, or the mean is not finite.
        """
        with self._checked().swapped(self.model):
            return canonical_state(self.model)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the mean into the model during a ``with`` block; everything comes back bitwise.

        Raises:
            UserError: no step has been averaged yet.
        """
        with self._checked().swapped(self.model):
            yield

    def module(
        self, refresh: Iterable[Any] | None = None, *, forward_fn: ForwardFn | None = None
    ) -> nn.Module:
        """Return a copy of the model with the mean, in evaluation mode.

        Args:
            refresh: re-iterable of ``x`` or ``(x, y, ...)``, training images varied as in training,
                to estimate running statistics; needed where the model has any. Layers in evaluation
                mode keep theirs if the model is in training mode: they were trained like that.
            forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
                ``model(x)``.

        Raises:
            UserError: no step has been averaged yet, ``refresh`` is missing, or the model cannot be
                copied; :meth:`state_dict` needs no copy.
        """
        if refresh is None and has_running_statistics(self.model):
            raise UserError(
                "the model has batch norm, or instance norm with running statistics, which are "
                "those of other weights than the mean; give refresh=batches of training inputs"
            )
        warn_of_statistics(self.model)
        with self.swapped():
            model = copy_module(self.model)
        if refresh is not None:
            with unnoticed(refresh) as batches, kept_as_trained(model):
                refresh_batch_norm(model, batches, forward_fn=forward_fn)
        return model.eval()

    def progress(self) -> dict[str, Any]:
        """Return what resuming needs beside the model's own state: tensors and numbers."""
        mean = copy.deepcopy(self._mean.state_dict()) if self._mean else None
        return {"first_step": self.first_step, "steps": self.steps, "mean": mean}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Continue from saved progress.

        Raises:
            UserError: it belongs to another ``first_step`` or to a model with other parameters.
        """
        if progress["first_step"] != self.first_step:
            raise UserError(
                f"the progress was saved with first_step {progress['first_step']}, got "
                f"{self.first_step}; give the same"
            )
        self._mean = None
        if progress["mean"] is not None:
            self._mean = UniformAverage(self.model)
            self._mean.load_state_dict(progress["mean"])
        self.steps = int(progress["steps"])

    def _checked(self) -> UniformAverage:
        """Return the mean, if there is one and it is finite."""
        if self._mean is None:
            raise UserError(
                f"no step has been averaged: {self.steps} steps were taken, and averaging starts "
                f"after {self.first_step}; train longer or use a smaller first_step"
            )
        name = self._mean.first_not_finite(self.model)
        if name is not None:
            raise UserError(f"the mean of {name!r} is not finite; lower the learning rate")
        return self._mean
