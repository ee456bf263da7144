"""Results of the Hessian: table, sentence and figures of eigenvalues, trace and spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fge.errors import UserError
from fge.landscape import stability_threshold
from fge.report.page import Table
from fge.report.plots import RATE, SINGLE, SNAPSHOT

_SHARPNESS_NOTE = (
    "Hessian of the mean loss over {examples} training images without augmentation, in nats per "
    "squared weight. A residual bounds the distance to an eigenvalue; traces have their standard "
    "error. Products are Hessian-vector products, for eigenvalues and trace together; gradients "
    "are an estimate of what they cost, in gradients over the images."
)
_THRESHOLD_NOTE = (
    " 2(1+m)/lr is where full-batch heavy-ball descent on a quadratic loss stops being stable; "
    "training with batches is another thing."
)

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


def thresholds_of(
    networks: Sequence[Mapping[str, Any]], momentum: float | None
) -> list[float] | None:
    """Return 2 (1 + momentum) / lr for each network, or None where one of the two is unknown."""
    if momentum is None or not all(network.get("lr", 0.0) > 0 for network in networks):
        return None
    return [stability_threshold(network["lr"], momentum) for network in networks]


def sharpness_table(
    networks: Sequence[Mapping[str, Any]],
    *,
    examples: int,
    thresholds: Sequence[float] | None = None,
    no_line: str = "",
) -> Table:
    """Return the table of networks and their sharpness.

    Args:
        networks: each with ``name``, ``eigenvalues`` and ``residuals`` (k,), ``converged``,
            ``trace``, ``trace_standard_error``, ``hessian_products``, ``gradient_cost``; and where
            known ``epoch`` and ``lr``.
        examples: images that the loss is over.
        thresholds: of :func:`thresholds_of`.
        no_line: why there are none, where it is to be said.
    """
    several = len(networks[0]["eigenvalues"]) > 1
    dated = all("epoch" in network and "lr" in network for network in networks)
    headings = ["network", *(["epoch", "lr"] if dated else [])]
    headings += ["top eigenvalue", "residual", *(["next ones"] if several else [])]
    headings += ["trace", *(["2(1+m)/lr"] if thresholds else []), "products", "gradients"]
    rows = []
    for position, found in enumerate(networks):
        top, *others = (f"{value:.4g}" for value in found["eigenvalues"])
        row = [found["name"]]
        row += [f"{found['epoch']:g}", f"{found['lr']:g}"] if dated else []
        row += [top, f"{found['residuals'][0]:.1g}", *([", ".join(others)] if several else [])]
        row.append(f"{found['trace']:.4g} ± {found['trace_standard_error']:.2g}")
        row += [f"{thresholds[position]:.4g}"] if thresholds else []
        row += [str(found["hessian_products"]), f"{found['gradient_cost']:.0f}"]
        rows.append(row)
    note = _SHARPNESS_NOTE.format(examples=examples)
    note += _THRESHOLD_NOTE if thresholds else f" {no_line}" if no_line else ""
    short = [found["name"] for found in networks if not found["converged"]]
    if short:
        note += f" Residuals above 1 % of the eigenvalue were left for {', '.join(short)}."
    return Table("Sharpness", headings, rows, note)


def sharpness_verdict(
    networks: Sequence[Mapping[str, Any]], thresholds: Sequence[float] | None
) -> str:
    """Say in words how large the top eigenvalue is; arguments as in :func:`sharpness_table`."""
    tops = [network["eigenvalues"][0] for network in networks]
    text = f"The largest eigenvalue of the Hessian is {tops[-1]:.4g} for {networks[-1]['name']}"
    if len(tops) > 1:
        text += (
            f"; over the {len(tops)} networks it lies between {min(tops):.4g} and {max(tops):.4g}"
        )
    if thresholds:
        text += (
            f". The line 2(1 + momentum)/lr lies at {thresholds[-1]:.4g} at the learning rate of "
            f"{networks[-1]['name']}"
        )
    return f"{text}."
