"""What a curve is fitted to: the mean loss over t, the mean along the curve, or its maximum.

An objective chooses t from a number u that is uniform in [0, 1), and says what the gradient of
each point of the curve is in terms of the gradient g of the loss at w(t)::

    grad_j = scale_j * g + (L_t - baseline) * sum_i pull_ji * w_i

so that no gradient ever flows through the curve. With c the coefficients at t, w(t) = sum_i c_i
w_i, g includes the weight decay at w(t), and L_t = L(w(t)) + decay/2 |w(t)|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fge.curves.families import Family
from fge.errors import UserError, unknown
from fge.seeds import generator

_CELLS = 256
_SLOWEST = 1e-3
"""Speeds count as at least this share of the mean speed."""


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


class Objective:
    """The base of objectives: the mean of L_t over t ~ U[0, 1].

    Subclasses override :meth:`draw`, and :meth:`observe` with the state where they learn from
    losses. Register them in ``OBJECTIVES``, or give :func:`fge.curves.fit_curve` an instance.

    Attributes:
        name: in ``OBJECTIVES``.
        uses_gram: whether :meth:`draw` needs the Gram matrix of the points.
        uses_loss: whether losses are to be observed.
        strata: steps per block of stratified draws; see :func:`fge.curves.stratified_uniform`.
            8 by default: in the moving average that a momentum of 0.9 makes of the gradients,
            their noise from t was 0.54 to 0.63 of that of independent draws for five functions of
            t, 0.55 to 0.64 with 4 and 0.65 with 16.
    """

    name: ClassVar[str]
    uses_gram: ClassVar[bool] = False
    uses_loss: ClassVar[bool] = False

    def __init__(self, *, strata: int = 8) -> None:
        if strata < 1:
            raise UserError(f"strata must be >= 1, got {strata}")
        self.strata = strata

    def options(self) -> dict[str, Any]:
        """Return the name and what the constructor was given: what tells two fits apart."""
        return {"name": self.name, "strata": self.strata}

    def draw(self, u: float, shape: Shape) -> Draw:
        """Return t and the gradient's terms for ``u``, uniform in [0, 1)."""
        return Draw(u, shape.family.coefficients(u))

    def baseline(self) -> Tensor | float | None:
        """Return what is subtracted from the loss before it weighs the pull; None: the loss."""
        return 0.0

    def observe(self, draw: Draw, loss: Tensor) -> None:
        """Hear of L_t (0-d, on the device, detached); do not wait for it where it can be helped."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


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

    s(t) = |w'(t)| is the speed and l the length, by the Gram matrix G of the points: s^2 = c'^T G
    c'. With t drawn from q = s/l by inverse CDF on a grid, an unbiased gradient of point j is ::

        c_j * g + (L_t - b) * sum_i [c'_j c'_i / s^2 - M_ji / l] * w_i,  M_ji = int c'_j c'_i / s dt

    for a baseline b that does not depend on the sample: the running mean of the losses before it.
    (The first sample has none; its second term is left out.) The objective can fall by
    lengthening the curve within a region of low loss: look at length and maximum beside it.

    Args:
        strata: steps per block of stratified draws.
        memory: the losses that the running mean looks back on.
    """

    name = "arclength"
    uses_gram = True
    uses_loss = True

    def __init__(self, *, strata: int = 8, memory: int = 50) -> None:
        super().__init__(strata=strata)
        if memory < 1:
            raise UserError(f"memory must be >= 1, got {memory}")
        self.memory = memory
        self._mean: Tensor | None = None
        self._count = 0
        self._grid: tuple[tuple[str, int], Tensor] | None = None

    def options(self) -> dict[str, Any]:
        """Return the name and the constructor's arguments."""
        return {**super().options(), "memory": self.memory}

    def draw(self, u: float, shape: Shape) -> Draw:
        """Return t ~ s/l and the gradient's terms for ``u``, uniform in [0, 1)."""
        assert shape.gram is not None, "the objective asks for the Gram matrix"
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
        """Return c' (cells, B) in the middle of cells that end at the knots of a chain."""
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
        """Take a loss into the running mean; one that is not finite is left out."""
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
        """Go on from a saved running mean."""
        mean = state["mean"]
        self._mean = None if mean is None else torch.tensor(mean, dtype=torch.float64)
        self._count = state["count"]


class MinMax(Objective):
    """The maximum over the curve: min over the bends of the max over t of L_t.

    t is drawn from ``bins`` equal bins with p proportional to exp(mean / tau), mixed with a share
    of the uniform distribution. ``mean`` is the average over a bin and its two neighbours of the
    running means of their losses, and tau is ``temperature`` times the standard deviation of that
    over the bins; a bin not met yet counts as the highest one. The gradient is that at t,
    unweighted, so that a step costs one pass. Losses reach the bins at the end of a block of
    steps, so that a GPU is seldom waited for.

    The defaults did best among what was tried on four curved two- and three-dimensional toys with
    noisy losses and gradients, where the maximum came within 2 to 35 % of the optimum in the
    basins found: without the neighbours a third of the fits stayed in a bad one; temperatures
    below 0.5 and above 1, weights instead of draws, and an annealed temperature did worse.

    Near the ends the bends get almost no gradient (c_j is about 2 t for three points), and the
    loss of the ends themselves cannot be lowered at all: where it is the highest of the curve,
    the outermost bins take draws that do little, and the share of uniform draws keeps the rest
    going. Leaving those bins out, or weighing all by c_j, did worse on the same toys, even with
    ends of high loss: what is next to an end then rises unseen.

    Args:
        strata: steps per block of stratified draws.
        bins: equal parts of [0, 1].
        temperature: relative to the spread of the bins' means.
        uniform: share of uniform draws, in (0, 1].
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
        if bins < 2:
            raise UserError(f"bins must be >= 2, got {bins}")
        for name, value in (("uniform", uniform), ("rate", rate)):
            if not 0 < value <= 1:
                raise UserError(f"{name} must be in (0, 1], got {value}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise UserError(f"temperature must be finite and > 0, got {temperature}")
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
        """Return t of a likely bin, and the gradient's scale, for ``u``, uniform in [0, 1)."""
        t = place_in_cells(u, self.probabilities())
        return Draw(t, shape.family.coefficients(t))

    def probabilities(self) -> Tensor:
        """Return the probability (bins,) float64 with which each bin is drawn."""
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
        """Take the losses of a block into their bins; those that are not finite are left out."""
        self._waiting.append((min(int(draw.t * self.bins), self.bins - 1), loss))
        if len(self._waiting) < self.strata:
            return
        # Those from a state on disk lie on the CPU.
        losses = torch.stack([waiting.to(loss) for _, waiting in self._waiting]).tolist()
        for (place, _), value in zip(self._waiting, losses, strict=True):
            mean = self._means[place]
            if math.isfinite(value):
                self._means[place] = value if mean is None else mean + self.rate * (value - mean)
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the running means and the losses that are not in them yet."""
        waiting = [[place, float(loss)] for place, loss in self._waiting]
        return {"means": list(self._means), "waiting": waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved running means."""
        self._means = list(state["means"])
        self._waiting = [
            (place, torch.tensor(loss, dtype=torch.float64)) for place, loss in state["waiting"]
        ]


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    objective.name: objective for objective in (Uniform, ArcLength, MinMax)
}


def make_objective(objective: str | Objective) -> Objective:
    """Return the objective of that name with its default options, or the one given.

    Raises:
        UserError: there is none of that name.
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]()
