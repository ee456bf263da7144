"""An ensemble as one plain module that compiles, exports and has gradients: a network a member."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fge.ensemble.outputs import Outputs
from fge.errors import UserError
from fge.networks import ForwardFn, call_model, copy_module, load_weights, map_tensors
from fge.observer import counted

_WIDE_ENOUGH = torch.float32
"""Predictions are averaged in this dtype if the outputs have fewer bits."""


class KeepsDtype(nn.Module):
    """Moves with the rest of a module, but is not cast with it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, but do not cast: half precision has too few digits for raw inputs."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call,no-any-return]


class Normalise(KeepsDtype):
    """Images of whole grey levels as a network takes them: (x - mean) / std per channel, float32.

    It stays in float32 when it is cast with the rest of a module.

    >>> Normalise([100.0], [50.0])(torch.tensor([[[[0, 150]]]], dtype=torch.uint8)).tolist()
    [[[[-2.0, 1.0]]]]

    Args:
        mean: of each channel, in grey levels from 0 to 255.
        std: of each channel, in grey levels, above 0.

    Raises:
        UserError: they are empty, of different lengths, or not finite, or ``std`` is not above 0.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not 0 < len(mean) == len(std):
            raise UserError(
                f"mean and std must have a number for each channel, got {len(mean)} and {len(std)}"
            )
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise UserError(
                f"mean must be finite, and std finite and above 0, got {list(mean)} and {list(std)}"
            )
        means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 1 / stds)
        self.register_buffer("shift", -means / stds)

    def forward(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) float32 for images (N, C, H, W) of any dtype."""
        return images.to(torch.float32) * self.scale + self.shift


class DeployedNetworks(nn.Module):
    """Several networks in one module without any tricks, always in evaluation mode.

    Args:
        members: the networks; they are not copied.
        outputs: what the outputs are.
        forward_fn: ``forward_fn(model, batch) -> outputs (N, ...)``.
        preprocess: is applied to the inputs first, such as :class:`fge.Normalise`.
    """

    cast = False
    """Whether the networks were cast to another dtype, which inputs follow then."""

    def __init__(
        self,
        members: Iterable[nn.Module],
        outputs: Outputs,
        *,
        forward_fn: ForwardFn | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.forward_fn = forward_fn
        self.preprocess = preprocess
        self.members = nn.ModuleList(members)
        _fixed(self)

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.members)

    def extra_repr(self) -> str:
        """Return the number of members, and what they predict and average."""
        return f"{counted(len(self), 'member')}, {self.outputs!r}"

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow a cast of the networks with that of their inputs."""
        before = floating_dtype(self.members)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.cast = self.cast or floating_dtype(self.members) != before
        return self

    def each(self, batch: Any) -> list[Tensor]:
        """Return the outputs (N, ...) of each member for one batch."""
        given = batch if self.preprocess is None else self.preprocess(batch)
        # Other inputs are as the networks take them: of float64, say, whatever their weights are.
        follows = self.cast or self.preprocess is not None
        dtype = floating_dtype(self.members) if follows else None
        given = given if dtype is None else cast_to(dtype, given)
        predict = call_model if self.forward_fn is None else self.forward_fn
        return [self.outputs.checked(predict(member, given)) for member in self.members]


class Deployed(DeployedNetworks):
    """The mean prediction of several networks, in one module without any tricks.

    :meth:`fge.Ensemble.deployable` makes it. It holds a network for each member, so that
    ``torch.compile``, ``torch.export`` and ONNX take it, and needs the memory of all of them. It
    is always in evaluation mode, and differentiable in its inputs.

    Predictions are averaged in float32, or float64 if that is what the networks return, so that
    every runtime can do it. They differ from those of the ensemble by rounding, about 1e-7. After
    ``.half()`` or ``.to(torch.bfloat16)`` the networks compute in that dtype; inputs are cast to
    it, and predictions are still float32.

    Its arguments are the networks, which are not copied, what their outputs are, ``forward_fn`` and
    ``preprocess``, which is applied to the inputs first.
    """

    def forward(self, batch: Any) -> Tensor:
        """Return the mean prediction for one batch.

        Args:
            batch: inputs ``x``, or whatever ``forward_fn`` takes.

        Returns:
            predictions (N, ...), for a softmax probabilities (N, C) whose rows sum to 1, in
            float32, or float64 for networks of that dtype.

        Raises:
            UserError: the outputs are no tensor (N, ...), or a single one for a softmax.
        """
        mean: Tensor | None = None
        for count, outputs in enumerate(self.each(batch), start=1):
            wide = torch.promote_types(outputs.dtype, _WIDE_ENOUGH)
            values = self.outputs.averaged(outputs, wide)
            mean = values if mean is None else mean + (values - mean) / count
        assert mean is not None, "an ensemble has a member"
        return self.outputs.finished(mean)

    def with_variance(self, noise: Sequence[float] = (0.0,)) -> DeployedGaussian:
        """Return a module of the same networks, of a regression, that says its variance too.

        Args:
            noise: the variance (K,) of the targets around the mean, or one for all outputs.

        Raises:
            UserError: it is not finite, or negative; or the outputs are no numbers.
        """
        return DeployedGaussian(self, noise)


class DeployedGaussian(DeployedNetworks):
    """The mean and the variance of several networks of a regression, both in float64.

    The variance is that over the members, divided by their number, plus the noise variance of the
    targets. :meth:`Deployed.with_variance` makes it.
    """

    def __init__(self, deployed: Deployed, noise: Sequence[float]) -> None:
        if deployed.outputs.probable:
            raise UserError(f"with_variance is for a regression, got {deployed.outputs!r}")
        if not noise or not all(math.isfinite(value) and value >= 0 for value in noise):
            raise UserError(f"noise must be finite variances of at least 0, got {list(noise)}")
        super().__init__(
            deployed.members,
            deployed.outputs,
            forward_fn=deployed.forward_fn,
            preprocess=deployed.preprocess,
        )
        self.cast = deployed.cast
        self.noise = tuple(map(float, noise))

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return mean and variance (N, ...) for one batch, in float64.

        Raises:
            UserError: the outputs are no tensor (N, ...).
        """
        each = [self.outputs.predictions(outputs, torch.float64) for outputs in self.each(batch)]
        mean, squares = each[0], torch.zeros_like(each[0])
        for count, values in enumerate(each[1:], start=2):
            before, mean = mean, mean + (values - mean) / count
            squares = squares + (values - before) * (values - mean)
        noise = torch.tensor(self.noise, dtype=torch.float64, device=mean.device)
        return mean, squares / len(self) + noise


def twins(model: nn.Module, states: Iterable[Mapping[str, Tensor]]) -> Iterator[nn.Module]:
    """Yield a copy of a model with each of several states, whose parameters need no gradient."""
    for position, state in enumerate(states):
        twin = copy_module(model)
        load_weights(twin, state, f"member {position}")
        yield _fixed(twin)


def chosen(members: Sequence[int] | None, count: int) -> list[int]:
    """Return the positions of the members that are meant, of ``count``; all by default.

    Raises:
        UserError: there are none, one is unknown, or one is given twice.
    """
    if members is None:
        return list(range(count))
    positions = list(members)
    strange = [p for p in positions if isinstance(p, bool) or p not in range(count)]
    if strange or len(set(positions)) != len(positions) or not positions:
        raise UserError(
            f"members must be different numbers from 0 to {count - 1}, one or more, got {positions}"
        )
    return positions


def is_traced() -> bool:
    """Return whether ``torch.export`` or ``torch.jit.trace`` records what is computed."""
    exporting = getattr(torch.compiler, "is_exporting", None)  # PyTorch 2.5 cannot tell
    if exporting is not None and exporting():
        return True
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _fixed(module: nn.Module) -> nn.Module:
    """Put a module in evaluation mode, and let its parameters need no gradient."""
    for parameter in module.parameters():  # scripted modules have no requires_grad_()
        parameter.requires_grad_(False)
    return module.eval()


def cast_to(dtype: torch.dtype, batch: Any) -> Any:
    """Return a batch whose floating-point tensors have a dtype."""
    return map_tensors(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)


def floating_dtype(members: nn.Module) -> torch.dtype | None:
    """Return the dtype of all floating parameters, if it is one."""
    found = {p.dtype for p in members.parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 else None
