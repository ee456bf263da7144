"""Objectives of a curve fit: the mean loss over t, the mean along the curve, or its maximum.

An objective chooses t from a number u that is uniform in [0, 1), and expresses the gradient of
each point of the curve by the gradient g of the loss at w(t)::

    grad_j = scale_j * g + (L_t - baseline) * sum_i pull_ji * w_i

so no gradient has to flow through the curve. With c the coefficients at t, w(t) = sum_i c_i w_i, g
includes the weight decay at w(t), and L_t = L(w(t)) + decay/2 |w(t)|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from fge.curves.families import Family
from fge.errors import UserError, check_at_least, check_positive, unknown
from fge.files import RESTORE, checked
from fge.schemas import Count
from fge.seeds import generator

_DAMAGED = "the saved state of the objective is damaged"
_CELLS = 256
_SLOWEST = 1e-3
"""Lower bound of speeds, as a fraction of the mean speed."""


@dataclass(frozen=True)
class Shape:
    """The curve as an objective sees it: its family, and the Gram matrix of its points.

    ``gram`` (B, B) is float64 on the CPU, up to a shift of the points; None for an objective that
    does not use it (``uses_gram``).
    """

    family: Family
    gram: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """A draw: ``t`` and (float64) the gradient terms ``scale`` (B,) and ``pull`` (B, B) or None."""

    t: float
    scale: Tensor
    pull: Tensor | None = None


class _SavedMean(TypedDict):
    mean: float | None
    count: Count


class _SavedMeans(TypedDict):
    means: list[float | None]
    waiting: list[tuple[Count, float]]


class Objective:
    """The base class of objectives: the mean of L_t over t ~ U[0, 1].

    Subclasses override :meth:`draw`; those that learn from losses also :meth:`observe` and the
    state. Register them in ``OBJECTIVES``, or give :func:`fge.curves.fit_curve` an instance.

    Attributes:
        name: in ``OBJECTIVES``.
        uses_gram: whether :meth:`draw` needs the Gram matrix of the points.
        uses_loss: whether :meth:`observe` is called.
        strata: steps per block of stratified draws; see :func:`fge.curves.stratified_uniform`.
            8 by default: with momentum 0.9, the gradients' noise from t was 0.54 to 0.63 of that of
            independent draws for five functions of t, 0.55 to 0.64 with 4 strata and 0.65 with 16.
    """

    name: ClassVar[str]
    uses_gram: ClassVar[bool] = False
    uses_loss: ClassVar[bool] = False

    def __init__(self, *, strata: int = 8) -> None:
        check_at_least(1, strata=strata)
        self.strata = strata

    def options(self) -> dict[str, Any]:
        """Return the name and the constructor's arguments, which identify the objective."""
        return {"name": self.name, "strata": self.strata}

    def draw(self, u: float, shape: Shape) -> Draw:
        """Return t and the gradient's terms for ``u``, uniform in [0, 1)."""
        return Draw(u, shape.family.coefficients(u))

    def baseline(self) -> Tensor | float | None:
        """Return what to subtract from L_t in the pull's factor; None leaves the pull out."""
        return 0.0

    def observe(self, draw: Draw, loss: Tensor) -> None:
        """Called with L_t (0-d, on the device, detached); avoid waiting for the device."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state learned from losses, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""


def stratified_uniform(seed: int, step: int, strata: int) -> float:
    """Return a random number in [0, 1) for a step, stratified over blocks of steps.

    Each number is uniform, so estimates from one are unbiased; the ``strata`` steps of a block have
    one number in each of the ``strata`` equal parts of [0, 1), in random order. The number depends
    only on the seed and the step.

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


def place_in_cells(u: float, shares: Tensor) -> float:
    """Return the t in [0, 1) where the CDF of equal cells with these shares (n,) reaches u."""
    ends = shares.cumsum(0)
    cell = min(int(torch.searchsorted(ends, u * float(ends[-1]), right=True)), len(shares) - 1)
    share = float(shares[cell])
    inside = (u * float(ends[-1]) - (float(ends[cell]) - share)) / share
    return (cell + min(max(inside, 0.0), 1.0)) / len(shares)


class Uniform(Objective):
    """The mean of L_t over t ~ U[0, 1] (arXiv 1802.10026, equation 2)."""

    name = "uniform"


class ArcLength(Objective):
    """The mean of L_t along the curve: (1/l) * integral of L_t * s(t) dt (1802.10026, equation 1).

    s(t) = |w'(t)| is the speed and l the length, from the Gram matrix G of the points: s^2 = c'^T G
    c'. With t drawn from q = s/l by inverse CDF on a grid, an unbiased gradient of point j is ::

        c_j * g + (L_t - b) * sum_i [c'_j c'_i / s^2 - M_ji / l] * w_i,  M_ji = int c'_j c'_i / s dt

    for a baseline b that does not depend on the sample: the running mean of the losses before it.
    (The first sample has none; its second term is left out.) The objective can fall because the
    curve gets longer within a region of low loss, so check the length and the maximum too.

    Args:
        strata: steps per block of stratified draws.
        memory: number of losses that the running mean covers.
    """

    name = "arclength"
    uses_gram = True
    uses_loss = True

    def __init__(self, *, strata: int = 8, memory: int = 50) -> None:
        super().__init__(strata=strata)
        check_at_least(1, memory=memory)
        self.memory = memory
        self._mean: Tensor | None = None
        self._count = 0
        self._grid: tuple[tuple[str, int], Tensor] | None = None

    def options(self) -> dict[str, Any]:
        """Return the name and the constructor's arguments."""
        return {**super().options(), "memory": self.memory}

    def draw(self, u: float, shape: Shape) -> Draw:
        """Return t ~ s/l and the gradient's terms for ``u``, uniform in [0, 1)."""
        assert shape.gram is not None, "the objective needs the Gram matrix"
        slopes = self._slopes(shape.family)
        speeds = ((slopes @ shape.gram) * slopes).sum(1).clamp_min(0).sqrt()
        floor = max(_SLOWEST * float(speeds.mean()), 1e-300)
        speeds = speeds.clamp_min(floor)
        length = float(speeds.mean())
        t = place_in_cells(u, speeds / speeds.sum())
        slope = shape.family.derivative(t)
        square = max(float(slope @ shape.gram @ slope), floor**2)
        mean = (slopes / speeds[:, None]).T @ slopes / len(slopes)
        pull = torch.outer(slope, slope) / square - mean / length
        return Draw(t, shape.family.coefficients(t), pull)

    def _slopes(self, family: Family) -> Tensor:
        """Return c' (cells, B) at the centres of cells that end at the knots of a chain."""
        key = (family.name, family.num_points)
        if self._grid is None or self._grid[0] != key:
            pieces = family.num_points - 1
            cells = pieces * -(-_CELLS // pieces)
            middles = [(cell + 0.5) / cells for cell in range(cells)]
            self._grid = key, torch.stack([family.derivative(t) for t in middles])
        return self._grid[1]

    def baseline(self) -> Tensor | None:
        """Return the running mean of the losses so far."""
        return self._mean

    def observe(self, draw: Draw, loss: Tensor) -> None:
        """Include a loss in the running mean, unless it is not finite."""
        del draw
        value = loss.double()
        mean = torch.zeros_like(value) if self._mean is None else self._mean.to(value.device)
        self._count += 1
        step = (value - mean) / min(self._count, self.memory)
        self._mean = mean + step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean and the number of losses in it."""
        return {"mean": None if self._mean is None else float(self._mean), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved running mean; a damaged state is a UserError."""
        saved = checked(state, _SavedMean, _DAMAGED)
        mean = saved["mean"]
        self._mean = None if mean is None else torch.tensor(mean, dtype=torch.float64)
        self._count = saved["count"]


class MinMax(Objective):
    """The maximum over the curve: min over the bends of the max over t of L_t.

    t is drawn from ``bins`` equal bins with p proportional to exp(mean / tau), mixed with the
    uniform distribution. ``mean`` is the average of the running mean losses of a bin and its two
    neighbours, and tau is ``temperature`` times the standard deviation of these averages; a bin
    without a loss yet counts as the highest. The gradient is that at t, unweighted, so a step costs
    one pass. Losses reach the bins at the end of a block of steps, to wait less often for a GPU.

    The defaults were the best of those tried on four curved two- and three-dimensional toy problems
    with noisy losses and gradients, where the maximum came within 2 to 35 % of the optimum of its
    basin. Without the neighbours a third of the fits stayed in a bad basin; temperatures below 0.5
    and above 1, weights instead of draws, and an annealed temperature were worse.

    Near the ends the bends get almost no gradient (c_j is about 2 t for three points), and the loss
    of the ends themselves is fixed: if it is the highest of the curve, draws in the outermost bins
    achieve little, and the uniform draws keep the rest improving. Leaving those bins out, or
    weighting all bins by c_j, was worse on the same toy problems, even with ends of high loss: the
    loss next to an end then rises unnoticed.

    Args:
        strata: steps per block of stratified draws.
        bins: equal parts of [0, 1].
        temperature: relative to the spread of the bins' means.
        uniform: fraction of uniform draws, in (0, 1].
        rate: weight of a new loss in its bin's running mean, in (0, 1].
    """

    name = "minmax"
    uses_loss = True

    def __init__(
        self,
        *,
        strata: int = 8,
        bins: int = 21,
        temperature: float = 0.6,
        uniform: float = 0.2,
        rate: float = 0.1,
    ) -> None:
        super().__init__(strata=strata)
        check_at_least(2, bins=bins)
        for name, value in (("uniform", uniform), ("rate", rate)):
            if not 0 < value <= 1:
                raise UserError(f"{name} must be in (0, 1], got {value}")
        check_positive(temperature=temperature)
        self.bins = bins
        self.temperature = temperature
        self.uniform = uniform
        self.rate = rate
        self._means: list[float | None] = [None] * bins
        self._waiting: list[tuple[int, Tensor]] = []

    def options(self) -> dict[str, Any]:
        """Return the name and the constructor's arguments."""
        options = {"bins": self.bins, "temperature": self.temperature}
        return {**super().options(), **options, "uniform": self.uniform, "rate": self.rate}

    def draw(self, u: float, shape: Shape) -> Draw:
        """Return t and the gradient's scale for ``u``, uniform in [0, 1)."""
        t = place_in_cells(u, self.probabilities())
        return Draw(t, shape.family.coefficients(t))

    def probabilities(self) -> Tensor:
        """Return the probability of each bin, (bins,) float64."""
        known = [mean for mean in self._means if mean is not None]
        even = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if not known:
            return even
        means = torch.tensor(
            [max(known) if mean is None else mean for mean in self._means], dtype=torch.float64
        )
        padded = torch.cat([means[:1], means, means[-1:]])
        means = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
        spread = max(float(means.std(correction=0)), 1e-12 * (1 + float(means.abs().max())))
        likely = (means / (self.temperature * spread)).softmax(0)
        return (1 - self.uniform) * likely + self.uniform * even

    def observe(self, draw: Draw, loss: Tensor) -> None:
        """Add the losses of a complete block to their bins, except those that are not finite."""
        self._waiting.append((min(int(draw.t * self.bins), self.bins - 1), loss))
        if len(self._waiting) < self.strata:
            return
        # Those loaded from a state are on the CPU.
        losses = torch.stack([waiting.to(loss) for _, waiting in self._waiting]).tolist()
        for (index, _), value in zip(self._waiting, losses, strict=True):
            mean = self._means[index]
            if math.isfinite(value):
                self._means[index] = value if mean is None else mean + self.rate * (value - mean)
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the running means and the losses that are not in them yet."""
        waiting = [[index, float(loss)] for index, loss in self._waiting]
        return {"means": list(self._means), "waiting": waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved running means; a damaged state is a UserError."""
        saved = checked(state, _SavedMeans, _DAMAGED)
        count = len(self._means)
        if len(saved["means"]) != count or any(index >= count for index, _ in saved["waiting"]):
            raise UserError(f"{_DAMAGED}: its means are not those of {count} bins; {RESTORE}")
        self._means = list(saved["means"])
        self._waiting = [
            (index, torch.tensor(loss, dtype=torch.float64)) for index, loss in saved["waiting"]
        ]


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    objective.name: objective for objective in (Uniform, ArcLength, MinMax)
}


def make_objective(objective: str | Objective) -> Objective:
    """Return an objective by its name, with default options, or the objective given."""
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]()
