"""Figures of sharpness: eigenvalues over training or along a curve, and the whole spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fge.errors import UserError

TOP, OTHERS, THRESHOLD = "#1d4ed8", "#93c5fd", "#d97706"


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
        thresholds: (n,) of :func:`fge.sharpness.stability_threshold`, at the learning rate of each
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
