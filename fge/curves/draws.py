"""Where on a curve a training step looks: stratified numbers, and points t with their terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fge.curves.families import Family
from fge.seeds import generator


def stratified_uniform(seed: int, step: int, strata: int) -> float:
    """Return the number in [0, 1) of a step, stratified over blocks of steps.

    Each is uniform by itself, so that what is computed from one is unbiased; the ``strata`` steps
    of a block fall into the ``strata`` equal parts of [0, 1), one each, in random order. It follows
    from the seed and the step alone.

    Args:
        seed: of the sequence.
        step: 0-based.
        strata: steps per block; 1 draws independently.

    >>> sorted(int(4 * stratified_uniform(7, step, 4)) for step in range(8, 12))
    [0, 1, 2, 3]
    """
    block, position = divmod(step, strata)
    rng = generator(seed, "strata", block)
    order = torch.randperm(strata, generator=rng)
    offsets = torch.rand(strata, generator=rng, dtype=torch.float64)
    return (int(order[position]) + float(offsets[position])) / strata


@dataclass(frozen=True)
class Shape:
    """The curve as an objective sees it: its family, and the Gram matrix of its points.

    ``gram`` (B, B) float64 on the CPU, up to a shift of the points; None for an objective that
    does not ask for it (``uses_gram``).
    """

    family: Family
    gram: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """A ``t`` with the gradient's terms: ``scale`` (B,), ``pull`` (B, B) or None; float64."""

    t: float
    scale: Tensor
    pull: Tensor | None = None


def place_in_cells(u: float, shares: Tensor) -> float:
    """Return the t in [0, 1) where the CDF of equal cells with these shares (n,) reaches u."""
    ends = shares.cumsum(0)
    cell = min(int(torch.searchsorted(ends, u * float(ends[-1]), right=True)), len(shares) - 1)
    share = float(shares[cell])
    inside = (u * float(ends[-1]) - (float(ends[cell]) - share)) / share
    return (cell + min(max(inside, 0.0), 1.0)) / len(shares)
