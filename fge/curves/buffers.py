"""Buffers of the networks on a curve: running statistics and the like, which are no parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.networks import Weights, buffers_of, buffers_within, estimated_layers, unwrap

Buffers = Mapping[str, Tensor]
Ends = tuple[Buffers, Buffers]
"""The buffers of the networks at the ends of a curve."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_MOST_NAMED = 3
_ROUNDING = 1e-9
"""What the weight of a network may differ from 1 by, where it is met."""


class InterpolatedWarning(UserWarning):
    """Buffers between the ends of a curve are linear, because they cannot be estimated."""


def end_buffers(model: nn.Module, start: Weights, end: Weights) -> Ends | None:
    """Return the buffers of two networks by name, on the model's device.

    None if the model has none, or weights come without theirs.

    Raises:
        UserError: a buffer is of another shape than the model's.
    """
    first, second = (buffers_within(weights, model) for weights in (start, end))
    return (first, second) if first and second else None


def check_buffers(ends: Ends) -> None:
    """Check that two networks have the same buffers.

    Raises:
        UserError: they differ in names or shapes.
    """
    first, second = ({name: value.shape for name, value in end.items()} for end in ends)
    if first != second:
        name = next(n for n in (*first, *second) if first.get(n) != second.get(n))
        raise UserError(f"the ends of the curve differ in the buffer {name!r}; give both the same")


def check_model(model: nn.Module, networks: Buffers | None, what: str) -> None:
    """Check that a model has the buffers of networks, by name, and only those; None is unknown.

    Running statistics, which are estimated, may be the model's alone. ``what`` names the networks.

    Raises:
        UserError: naming the first buffer that only one of the two has.
    """
    if networks is None:
        return
    module = unwrap(model)
    saved = module.state_dict().keys()
    every = {n for n, _ in module.named_buffers(remove_duplicate=False) if n in saved}
    for name in networks:
        if name not in every:
            raise UserError(
                f"{what} has a buffer {name!r}, which the model lacks; give the model that it was "
                "made with"
            )
    estimated = _estimated_names(model)
    for name in buffers_of(model):
        if name not in networks and name not in estimated:
            raise UserError(
                f"the model has a buffer {name!r}, which {what} lacks; give the model that it was "
                "made with"
            )


def between(ends: Ends, t: float) -> dict[str, Tensor]:
    """Return the buffers at t: those of an end, bitwise, also beyond it, and linear in between.

    Those that are not floating-point are the nearer end's.
    """
    part = min(max(t, 0.0), 1.0)
    return mixed(ends, [1 - part, part])


def mixed(networks: Sequence[Buffers], parts: Sequence[float]) -> dict[str, Tensor]:
    """Return the mean of the buffers of networks, with weights ``parts`` whose sum is 1.

    A network of weight 1, to rounding, has its own, bitwise. Buffers that are equal stay so; those
    that are not floating-point are those of the network of the largest weight. With an infinite
    number the mean is infinite, and NaN only between infinities of both signs.
    """
    heaviest = max(range(len(parts)), key=lambda k: parts[k])
    nearest = networks[heaviest]
    if parts[heaviest] >= 1 - _ROUNDING:
        return {name: value.clone() for name, value in nearest.items()}
    buffers = {}
    for name, value in nearest.items():
        buffers[name] = value.clone()
        every = [network[name] for network in networks]
        if value.is_floating_point() and not all(torch.equal(value, v) for v in every):
            for other, part in zip(every, parts, strict=True):
                buffers[name] += _step(value, other, part)
    return buffers


def _step(value: Tensor, other: Tensor, part: float) -> Tensor:
    """Return a part of the way from a value to another; finite numbers draw no infinity away."""
    # The difference of equal infinities (an attention mask) is NaN, and 0 of an infinity too.
    stays = (value == other) | (value.isinf() & other.isfinite()) | (part == 0)
    return torch.where(stays, torch.zeros_like(value), part * (other - value))


def unknown_statistic(ends: Ends) -> str | None:
    """Return the name of a running statistic that differs at the ends, or None."""
    first, second = ends
    for name, value in first.items():
        if name.rpartition(".")[2] in _STATISTICS[:2] and not torch.equal(value, second[name]):
            return name
    return None


def interpolated(model: nn.Module, ends: Ends) -> list[str]:
    """Return the names of the buffers that differ at the ends and cannot be estimated from data."""
    names = _estimated_names(model)
    first, second = ends
    return [n for n, v in first.items() if n not in names and not torch.equal(v, second[n])]


def _estimated_names(model: nn.Module) -> set[str]:
    layers = {id(layer) for layer in estimated_layers(model)}
    return {
        f"{path}.{statistic}".lstrip(".")
        for path, module in unwrap(model).named_modules()
        if id(module) in layers
        for statistic in _STATISTICS
    }


@dataclass(frozen=True)
class Statistics:
    """Where the buffers of the networks measured on a curve come from.

    ``own_ends``: whether the ends have the buffers of their networks, beside the statistics of
    batch norm, which are estimated there too; ``batch_norm`` and ``instance_norm``: whether there
    are such statistics to estimate; ``interpolated``: the buffers that differ at the ends and are
    linear in between; ``models``: buffers that are the model's at every t; ``places``: what the
    ends are called. Printed, it is a text.
    """

    own_ends: bool
    batch_norm: bool = False
    instance_norm: bool = False
    interpolated: Sequence[str] = ()
    models: Sequence[str] = ()
    places: str = "ends"

    def __str__(self) -> str:
        everywhere = "at every t" if self.places == "ends" else "at every point"
        own, parts = f"at the {self.places}", []
        if self.batch_norm:
            included = f"{everywhere}, the {self.places} included"
            parts.append(f"statistics of batch norm are estimated {included}")
        if self.instance_norm:
            where = everywhere
            if self.own_ends:
                where = f"in between, and {own} they are the networks' own"
            parts.append(f"statistics of instance norm are estimated {where}")
        if self.interpolated:
            parts.append(
                f"the buffers {_named(self.interpolated)} are the networks' own {own}, and linear "
                "in between"
            )
        if self.models:
            parts.append(f"the buffers {_named(self.models)} are the model's {everywhere}")
        if not parts:
            return "the networks have no statistics that differ"
        return "; ".join(parts)

    def facts(self) -> dict[str, Any]:
        """Return what ``report.json`` says."""
        return {**asdict(self), "in_words": str(self)}


def statistics_of(
    model: nn.Module, pieces: Iterable[Ends | None], *, estimated: bool = True
) -> Statistics:
    """Return where buffers come from on a curve, or on a chain of several pieces.

    Args:
        model: the architecture.
        pieces: the buffers at the ends of each, None if they are not known.
        estimated: whether statistics are estimated; otherwise all buffers are the model's.
    """
    ends = list(pieces)
    own = buffers_of(model)
    if not estimated:
        return Statistics(False, models=list(own))
    known = [pair for pair in ends if pair is not None]
    whole = bool(ends) and len(known) == len(ends)
    others = [name for name in own if name not in _estimated_names(model)]
    every, batch = (estimated_layers(model, instance_norm=both) for both in (True, False))
    return Statistics(
        whole,
        batch_norm=bool(batch),
        instance_norm=len(every) > len(batch),
        interpolated=[n for n in others if any(n in interpolated(model, p) for p in known)],
        models=[] if whole else others,
    )


def warn_of_interpolated(names: Sequence[str], places: str = "ends") -> None:
    """Warn of buffers, by name, that can neither be known nor estimated between networks."""
    if names:
        warnings.warn(
            f"buffers that differ at the {places} ({names[0]!r}{', ...' if len(names) > 1 else ''}"
            ") are interpolated in between, because they cannot be estimated from data",
            InterpolatedWarning,
            stacklevel=4,
        )


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MOST_NAMED]))
    return f"{shown}, ..." if len(names) > _MOST_NAMED else shown


def write_buffers(model: nn.Module, buffers: Buffers) -> None:
    """Copy buffers, by name, into a model; one of another shape there is replaced."""
    # All names of a shared buffer: moving a model to another device or dtype parts it.
    own = dict(unwrap(model).named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, value in buffers.items():
            if own[name].shape == value.shape and not own[name].is_inference():
                own[name].copy_(value)
            else:  # the last forward pass may have stored a batch of its own
                path, _, last = name.rpartition(".")
                unwrap(model).get_submodule(path)._buffers[last] = value.to(own[name], copy=True)
