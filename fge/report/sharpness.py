"""Results of the Hessian: table, sentence and charts of eigenvalues, trace and spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fge.errors import UserError
from fge.landscape import stability_threshold
from fge.report.charts import Chart, Panel, Series
from fge.report.page import Table
from fge.tasks import MANY_CLASSES, Task

_SHARPNESS_NOTE = (
    "Hessian of the mean loss over {examples} training {example}s without augmentation, in "
    "{units}. The residual bounds the distance to an eigenvalue; the trace has its standard error. "
    "Products are Hessian-vector products, for eigenvalues and trace together; gradients are their "
    "estimated cost, in gradients over the {example}s."
)
THRESHOLD_NOTE = (
    "2(1+m)/lr is the stability threshold of full-batch heavy-ball descent on a quadratic loss; "
    "training with batches may differ."
)
_ROUGH = 100
"""Fewer examples than these give a rough estimate of the Hessian on all of them."""
_EIGENVALUE = "eigenvalue of the Hessian"
_DECADES = 1e-8
"""Between nodes the smoothed density falls to nothing; what is shown spans eight decades."""


def curvature_units(task: Task) -> str:
    """Return the units of eigenvalues of the Hessian of a task's loss.

    >>> curvature_units(MANY_CLASSES)
    'nats per squared weight'
    """
    return f"{task.training.unit or 'units of the loss'} per squared weight"


def threshold_series(places: Sequence[float], thresholds: Sequence[float]) -> Series:
    """Return the line 2 (1 + momentum) / lr."""
    return Series("2 (1 + momentum) / learning rate", places, thresholds, dash="dash", like="sse")


def eigenvalue_chart(
    places: Sequence[float],
    eigenvalues: Sequence[Sequence[float]],
    *,
    place: str,
    thresholds: Sequence[float] | None = None,
) -> Chart:
    """Return the largest eigenvalues of networks, and the line 2 (1 + momentum) / lr.

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
        raise UserError("a chart of eigenvalues needs at least one network, got none")
    series = [
        Series("top eigenvalue" if rank == 1 else f"eigenvalue {rank}", places, values, marker=True)
        for rank, values in enumerate(zip(*eigenvalues, strict=True), start=1)
    ]
    if thresholds is not None:
        series.append(threshold_series(places, thresholds))
    log = all(value > 0 for row in eigenvalues for value in row)  # a threshold may lie far above
    whole = all(float(value).is_integer() for value in places)
    return Chart(place, [Panel(_EIGENVALUE, series, log=log)], whole=whole)


def spectrum_chart(grid: Sequence[float], density: Sequence[float]) -> Chart:
    """Return a spectral density (g,) over eigenvalues (g,), ascending, on a logarithmic axis."""
    largest = max(density)
    floor = _DECADES * largest
    shown = [value if value > floor else math.nan for value in density]
    series = Series("density", grid, shown, like="top eigenvalue", filled=True, legend=False)
    panel = Panel(
        "density (per unit of eigenvalue)", [series], log=True, limits=(floor, 2 * largest)
    )
    return Chart(_EIGENVALUE, [panel], height=430)


def thresholds_of(
    networks: Sequence[Mapping[str, Any]], momentum: float | None
) -> list[float] | None:
    """Return 2 (1 + momentum) / lr for each network, or None if one of the two is unknown."""
    if momentum is None or not all(network.get("lr", 0.0) > 0 for network in networks):
        return None
    return [stability_threshold(network["lr"], momentum) for network in networks]


def sharpness_table(
    networks: Sequence[Mapping[str, Any]],
    *,
    examples: int,
    thresholds: Sequence[float] | None = None,
    no_line: str = "",
    task: Task = MANY_CLASSES,
    example: str = "image",
) -> Table:
    """Return the table of networks and their sharpness.

    Args:
        networks: each with ``name``, ``eigenvalues`` and ``residuals`` (k,), ``converged``,
            ``trace``, ``trace_standard_error``, ``hessian_products``, ``gradient_cost``; and where
            known ``epoch`` and ``lr``.
        examples: number of images or rows that the loss is over.
        thresholds: of :func:`thresholds_of`.
        no_line: a sentence that says why there are none, or "".
        task: whose loss it is.
        example: what the loss is over, image or row.
    """
    several = len(networks[0]["eigenvalues"]) > 1
    dated = all("epoch" in network and "lr" in network for network in networks)
    headings = ["network", *(["epoch", "lr"] if dated else [])]
    headings += ["top eigenvalue", "residual", *(["next ones"] if several else [])]
    headings += ["trace", *(["2(1+m)/lr"] if thresholds else []), "products", "gradients"]
    rows = []
    for position, network in enumerate(networks):
        top, *others = (f"{value:.4g}" for value in network["eigenvalues"])
        row = [network["name"]]
        row += [f"{network['epoch']:g}", f"{network['lr']:g}"] if dated else []
        row += [top, f"{network['residuals'][0]:.1g}", *([", ".join(others)] if several else [])]
        row.append(f"{network['trace']:.4g} ± {network['trace_standard_error']:.2g}")
        row += [f"{thresholds[position]:.4g}"] if thresholds else []
        row += [str(network["hessian_products"]), f"{network['gradient_cost']:.0f}"]
        rows.append(row)
    units = curvature_units(task)
    note = _SHARPNESS_NOTE.format(examples=examples, example=example, units=units)
    note += f" {THRESHOLD_NOTE}" if thresholds else f" {no_line}" if no_line else ""
    short = [network["name"] for network in networks if not network["converged"]]
    if short:
        note += f" The residual is above 1 % of the eigenvalue for {', '.join(short)}."
    return Table("Sharpness", headings, rows, note)


def sharpness_verdict(
    networks: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float] | None,
    *,
    examples: int,
    total: int,
    example: str = "image",
) -> list[str]:
    """Say how large the top eigenvalue is, on so many of all training examples.

    Other arguments as in :func:`sharpness_table`.
    """
    tops, last = [network["eigenvalues"][0] for network in networks], networks[-1]
    sentences = [
        f"The largest eigenvalue of the Hessian is {tops[-1]:.4g} for {last['name']} (residual "
        f"{last['residuals'][0]:.1g})."
    ]
    if len(tops) > 1:
        sentences.append(
            f"Over the {len(tops)} networks it lies between {min(tops):.4g} and {max(tops):.4g}."
        )
    if thresholds:
        sentences.append(
            f"The threshold 2(1 + momentum)/lr is {thresholds[-1]:.4g} at the learning rate of "
            f"{last['name']}."
        )
    if examples < min(_ROUGH, total):
        sentences.append(
            f"These are of the loss on {examples} of the {total} training {example}s: on all of "
            "them they may differ much; --examples takes more."
        )
    return sentences
