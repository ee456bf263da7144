"""Figures of sharpness: eigenvalues over training or along a curve, and the whole spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fge.errors import UserError
from fge.report.plots import RATE, SINGLE, SNAPSHOT

TOP, OTHERS, THRESHOLD = "#1d4ed8", "#93c5fd", "#d97706"


@dataclass(frozen=True)
class SharpnessCurves:
    """How the top Hessian eigenvalue went through a training, over completed epochs.

    ``epochs`` and ``eigenvalues``: each measurement; ``snapshots``: epochs at which one was kept;
    ``rate_epochs``, ``rates`` and ``thresholds``: the learning rate and 2 (1 + momentum) / lr, NaN
    where the rate is 0, empty where the optimizer has no such line; ``single``: epochs and
    eigenvalues of the single network, empty where there is none.
    """

    epochs: Sequence[float]
    eigenvalues: Sequence[float]
    snapshots: Sequence[float]
    rate_epochs: Sequence[float]
    rates: Sequence[float]
    thresholds: Sequence[float]
    single: tuple[Sequence[float], Sequence[float]] = ((), ())


def eigenvalue_figure(
    places: Sequence[float],
    eigenvalues: Sequence[Sequence[float]],
    *,
    place: str,
    thresholds: Sequence[float] | None = None,
) -> Figure:
    """Draw the top eigenvalue, thinner the next ones, and the line 2 (1 + momentum) / lr.

    Args:
        places: (n,) of the networks on the horizontal axis.
        eigenvalues: (n, k), largest first.
        place: what the places are.
        thresholds: (n,) of :func:`fge.landscape.stability_threshold`, at the learning rate of each
            network.

    Raises:
        UserError: there are no networks.
    """
    if not places:
        raise UserError("a figure of eigenvalues needs at least one network, got none")
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for rank, values in reversed(list(enumerate(zip(*eigenvalues, strict=True)))):
        colour, label = (OTHERS, None) if rank else (TOP, "top eigenvalue")
        if rank == 1:
            label = "next eigenvalues" if len(eigenvalues[0]) > 2 else "second eigenvalue"
        axes.plot(places, values, "o-", color=colour, label=label, markersize=3 if rank else 5)
    if thresholds is not None:
        label = "2 (1 + momentum) / learning rate"
        axes.plot(places, thresholds, "o--", color=THRESHOLD, label=label, markersize=4)
    if all(value > 0 for row in eigenvalues for value in row):
        axes.set_yscale("log")  # the threshold may lie factors of ten above
    if all(float(value).is_integer() for value in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(place)
    axes.set_ylabel("eigenvalue of the Hessian")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def dynamics_figure(curves: SharpnessCurves) -> Figure:
    """Draw the top eigenvalue over a training, 2 (1 + momentum) / lr beside and the rate below it.

    Raises:
        UserError: nothing was measured.
    """
    if not curves.epochs:
        raise UserError("a figure of the sharpness needs a measurement, got none")
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    sharpness, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_sharpness(sharpness, curves)
    rate.plot(curves.rate_epochs, curves.rates, color=RATE, linewidth=1.2)
    rate.set_ylabel("learning rate")
    rate.set_ylim(0, 1.08 * max(curves.rates))
    rate.set_xlabel("epochs")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (sharpness, rate):
        for epoch in curves.snapshots:
            axes.axvline(epoch, color="#d1d5db", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_sharpness(axes: Axes, curves: SharpnessCurves) -> None:
    if curves.thresholds:
        axes.plot(
            curves.rate_epochs,
            curves.thresholds,
            "--",
            color=THRESHOLD,
            label="2 (1 + momentum) / learning rate",
            linewidth=1.2,
        )
    axes.plot(
        curves.epochs, curves.eigenvalues, "o-", color=TOP, label="top eigenvalue", markersize=3
    )
    value = dict(zip(curves.epochs, curves.eigenvalues, strict=True))
    kept = [value[epoch] for epoch in curves.snapshots]
    axes.plot(
        curves.snapshots, kept, "D", color=SNAPSHOT, label="at a snapshot", markersize=6, zorder=3
    )
    if curves.single[0]:
        axes.plot(*curves.single, "o-", color=SINGLE, label="single network", markersize=3)
    shown = [*curves.eigenvalues, *curves.single[1]]
    if min(shown) > 0:
        axes.set_yscale("log")
        # Where the rate falls to nothing the line goes to infinity; it may leave at the top.
        lines = [x for x in curves.thresholds if math.isfinite(x)]
        axes.set_ylim(min(shown + lines) / 1.5, 3 * max(shown + lines[:1]))
    axes.set_ylabel("top eigenvalue of the Hessian\n(nats per squared weight)")
    axes.legend(frameon=False)


def spectrum_figure(grid: Tensor, density: Tensor) -> Figure:
    """Draw a spectral density on a logarithmic scale.

    Args:
        grid: eigenvalues (g,), ascending.
        density: (g,), per unit of eigenvalue.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    # Between nodes the smoothed density falls to nothing; what is drawn spans eight decades.
    floor = 1e-8 * float(density.max())
    shown = density.where(density > floor, torch.nan).tolist()
    axes.semilogy(grid.tolist(), shown, color=TOP, linewidth=1.2)
    axes.fill_between(grid.tolist(), shown, floor, color=TOP, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=floor)
    axes.set_xlabel("eigenvalue of the Hessian")
    axes.set_ylabel("density (per unit of eigenvalue)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
