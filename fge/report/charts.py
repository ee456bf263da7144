"""Descriptions of charts, independent of what draws them: panels, series, marks and scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

Array = NDArray[np.float64]
Dash = Literal["solid", "dash", "dot", "dashdot"]
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot", "dashdot")
Limits = tuple[float, float]
APART = 0.004
"""How far methods are moved sideways from one to the next, as a part of the axis."""
_MARGIN = 0.05
_MOST_TICKS = 10
_SPARSE = 1000
"""Ratio of the ends of a logarithmic axis from which powers of ten are ticks enough."""
_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Series:
    """Points (n,) by name.

    Attributes:
        name: in the legend; series of one name in several panels are one entry.
        x: places.
        y: values; those that are not finite are left out.
        spread: drawn up and down from each value.
        notes: shown on hovering.
        dash: of the line; None for markers without a line.
        marker: whether points have markers.
        like: the name whose colour and marker it has; its own by default.
        filled: whether the area down to the lower end of the panel is filled.
        legend: whether it is in the legend.
        told: places that hovering shows, if the points are drawn next to them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    notes: Sequence[str] | None = None
    dash: Dash | None = "solid"
    marker: bool = False
    like: str = ""
    filled: bool = False
    legend: bool = True
    told: Sequence[float] | None = None

    @property
    def style(self) -> str:
        """The name that decides on colour and marker."""
        return self.like or self.name


@dataclass(frozen=True)
class Bars:
    """Counts (n,) between edges (n + 1,)."""

    name: str
    edges: Sequence[float]
    counts: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """What is drawn over one vertical axis.

    Attributes:
        label: of the axis, with its unit.
        series: from back to front.
        bars: behind them.
        log: whether the axis is logarithmic.
        zero: whether the axis begins at zero.
        limits: of the axis; by default they hold all values, with a margin.
        level: where a dotted line goes from left to right.
        note: shown if there is nothing to draw.
        share: of the height, relative to the other panels.
    """

    label: str
    series: Sequence[Series] = ()
    bars: Bars | None = None
    log: bool = False
    zero: bool = False
    limits: Limits | None = None
    level: float | None = None
    note: str = ""
    share: float = 1.0

    @property
    def y_limits(self) -> Limits:
        """The ends of the vertical axis."""
        if self.limits is not None:
            return self.limits
        values = [] if self.level is None else [self.level]
        for one in self.series:
            spread = one.spread or [0.0] * len(one.y)
            values += [y + way * s for y, s in zip(one.y, spread, strict=True) for way in (-1, 1)]
        values += self.bars.counts if self.bars else ()
        return limits_of(values, log=self.log, zero=self.zero or self.bars is not None)

    @property
    def dense(self) -> bool:
        """Whether a logarithmic axis has ticks at 2 and 5 times the powers of ten, too."""
        low, high = self.y_limits
        return high < _SPARSE * low


@dataclass(frozen=True)
class Chart:
    """Panels one above the other, which share the horizontal axis.

    Attributes:
        x: what the horizontal axis is, with its unit.
        panels: from the top.
        marks: where faint lines go from top to bottom.
        whole: whether the horizontal axis has ticks only at whole numbers.
        limits: of the horizontal axis; by default they hold all places, with a margin.
        height: of the whole, in pixels of a page.
    """

    x: str
    panels: Sequence[Panel]
    marks: Sequence[float] = ()
    whole: bool = False
    limits: Limits | None = None
    height: int = 460

    @property
    def x_limits(self) -> Limits:
        """The ends of the horizontal axis."""
        if self.limits is not None:
            return self.limits
        places = [x for panel in self.panels for one in panel.series for x in one.x]
        return limits_of([*places, *self.marks])

    @property
    def x_step(self) -> int:
        """The distance of ticks at whole numbers."""
        low, high = self.x_limits
        steps = (step * int(10**power) for power in range(12) for step in _STEPS)
        return next(step for step in steps if high - low <= step * _MOST_TICKS)

    @property
    def legend(self) -> list[Series]:
        """The series in the legend: the first of each name."""
        shown = (one for panel in self.panels for one in panel.series if one.legend)
        first: dict[str, Series] = {}
        for one in shown:
            first.setdefault(one.name, one)
        return list(first.values())


def limits_of(values: Iterable[float], *, log: bool = False, zero: bool = False) -> Limits:
    """Return the ends of an axis that holds all finite values, with a margin.

    Args:
        values: those that a logarithmic axis cannot show are left aside.
        log: whether the axis is logarithmic.
        zero: whether it begins at zero.

    >>> limits_of([1.0, 3.0]), limits_of([0.5, 2.0], zero=True)
    ((0.9, 3.1), (0.0, 2.16))
    """
    held = [float(v) for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not held:
        return (0.1, 1.0) if log else (0.0, 1.0)
    if zero and not log and min(held) >= 0:
        return 0.0, 1.08 * max(held) or 1.0
    low, high = min(held), max(held)
    if log:
        low, high = math.log10(low), math.log10(high)
    margin = _MARGIN * (high - low) or _MARGIN * abs(low) or _MARGIN
    low, high = low - margin, high + margin
    return (10.0**low, 10.0**high) if log else (low, high)


def set_apart(series: Sequence[Series]) -> list[Series]:
    """Return the series moved sideways a little, so that none hides another; hovering tells x."""
    places = [place for one in series for place in one.x]
    apart = APART * max(max(places) - min(places), 0.2 * max(places)) if places else 0.0
    return [
        replace(
            one,
            x=[place + (position - (len(series) - 1) / 2) * apart for place in one.x],
            told=list(one.x),
        )
        for position, one in enumerate(series)
    ]


def methods_chart(series: Sequence[Series], *, x: str, y: str) -> Chart:
    """Return the chart that compares methods: a line with markers each, bars of the spread.

    Methods of equal cost are set apart a little; hovering tells the true place.

    Args:
        series: one per method; ``spread`` is a standard deviation over seeds.
        x: what the horizontal axis is, counted in whole numbers.
        y: what the vertical axis is, with its unit.
    """
    shown = [replace(one, marker=True) for one in set_apart(series)]
    return Chart(x, [Panel(y, shown)], whole=True)


def lines_chart(series: Sequence[Series], *, x: str, y: str) -> Chart:
    """Return a chart of lines that differ by their dashes, too."""
    shown = [
        replace(one, dash=DASHES[position % len(DASHES)]) for position, one in enumerate(series)
    ]
    return Chart(x, [Panel(y, shown)], height=430)


@dataclass(frozen=True)
class PlaneChart:
    """A plane as filled contours, or raised as a surface, with points and paths on it.

    Attributes:
        measured: places (M, 2) that were measured.
        values: (M,) there.
        xs: (X,) at which heights are known, finer than what was measured.
        ys: (Y,), like ``xs``.
        heights: (Y, X); those above the last level are drawn alike.
        levels: ascending, where colours change.
        colours: of the bands between levels and of what is above the last, one per level.
        label: what the heights are, with their unit.
        axes: what x and y are.
        points: places by name.
        paths: (T, 2) by name.
        equal: whether both axes have one scale.
        raised: whether it is a surface to turn.
    """

    measured: Array
    values: Array
    xs: Array
    ys: Array
    heights: Array
    levels: Array
    colours: Sequence[str]
    label: str
    axes: tuple[str, str]
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    paths: Mapping[str, Array] = field(default_factory=dict)
    equal: bool = False
    raised: bool = False

    @property
    def surface(self) -> Array:
        """The heights (Y, X) cut off at the last level."""
        return np.asarray(np.minimum(self.heights, self.levels[-1]), dtype=np.float64)

    @property
    def ticks(self) -> list[str]:
        """The levels as text, the last one as the cap that values lie above."""
        return [*(f"{level:.3g}" for level in self.levels[:-1]), f"> {self.levels[-1]:.3g}"]

    @property
    def bands(self) -> Array:
        """The heights (Y, X) in units of levels: k at level k, and more above the last level."""
        ends = [*self.levels, 2 * self.levels[-1] - self.levels[-2]]
        return np.asarray(np.interp(self.heights, ends, np.arange(len(ends))), dtype=np.float64)

    def on_surface(self) -> Callable[[Any], Array]:
        """Return what gives the heights (T,) of the surface at places (T, 2); NaN outside."""
        at = RegularGridInterpolator((self.xs, self.ys), self.heights.T, bounds_error=False)
        return lambda places: np.asarray(np.minimum(at(places), self.levels[-1]), np.float64)


def refined(path: Array, steps: int = 30) -> Array:
    """Return a path (T, D) with more points between neighbours, to follow a curved surface."""
    places = np.linspace(0, len(path) - 1, steps * (len(path) - 1) + 1)
    columns = [np.interp(places, np.arange(len(path)), column) for column in path.T]
    return np.stack(columns, axis=1)
