"""From planes and sharpness to tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fge.curves.curve_evaluation import summarise_curve
from fge.landscape.grid import PlaneGrid
from fge.landscape.sharpness import stability_threshold
from fge.report.report import Table

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


def plane_table(networks: Sequence[Mapping[str, Any]], note: str) -> Table:
    """Return the table of the networks on a plane.

    Args:
        networks: each with ``name``, ``x``, ``y``, ``off_plane`` (its distance from the plane) and
            the keys of :func:`fge.evaluate_plane` for ``train`` and ``test``.
        note: what was measured.
    """
    headings = ["network", "x", "y", "off the plane", "train loss", "train error %"]
    headings += ["test error %", "test NLL"]
    rows = []
    for found in networks:
        # Rounded first, and added to 0: a coordinate of -1e-16 is no "-0.000".
        cells = [f"{round(found[key], 3) + 0.0:.3f}" for key in ("x", "y", "off_plane")]
        cells.append(f"{found['train_loss']:.4f}")
        cells += [f"{found[key]:.2f}" for key in ("train_error", "test_error")]
        rows.append([found["name"], *cells, f"{found['test_nll']:.4f}"])
    return Table("Networks on the plane", headings, rows, note)


def plane_verdict(grid: PlaneGrid, networks: Sequence[Mapping[str, Any]]) -> str:
    """Say in words where the training loss is low, and how far from the networks.

    Args:
        grid: with ``train_loss`` and ``test_error``.
        networks: as in :func:`plane_table`.
    """
    loss, error = grid.values["train_loss"], grid.values["test_error"]
    finite = np.where(np.isfinite(loss), loss, np.inf)
    row, column = np.unravel_index(int(finite.argmin()), loss.shape)
    place = np.array([grid.xs[column], grid.ys[row]])
    apart = {n["name"]: _distance(grid, place - np.array([n["x"], n["y"]])) for n in networks}
    near = min(apart, key=lambda name: apart[name])
    return (
        f"Over {len(grid.xs)} x {len(grid.ys)} points the training loss runs from "
        f"{finite.min():.4f} to {loss.max():.4g} and the test error from {error.min():.2f} to "
        f"{error.max():.2f} %. The loss is lowest at ({place[0]:.3g}, {place[1]:.3g}), "
        f"{apart[near]:.3g} from {near}, the nearest network."
    )


def line_table(
    lines: Mapping[str, Sequence[Mapping[str, float]]], note: str, *, barriers: bool
) -> Table:
    """Return the table of lines, or parts of one.

    Args:
        lines: records of :func:`fge.landscape.evaluate_line` for ``train`` and ``test``, by name.
        note: what was measured.
        barriers: whether the lines join networks, between which there may be a barrier.
    """
    headings = ["line", "length", "train loss: start", "end", "lowest", "highest"]
    headings += [*(["barrier"] if barriers else []), "test error %: start", "end", "highest"]
    rows = []
    for name, records in lines.items():
        losses, errors = ([r[key] for r in records] for key in ("train_loss", "test_error"))
        found = [losses[0], losses[-1], min(losses), max(losses)]
        found += [_barrier(records)] if barriers else []
        row = [name, f"{records[-1]['arc'] - records[0]['arc']:.3f}"]
        row += [f"{value:.4f}" for value in found]
        rows.append([*row, *(f"{value:.2f}" for value in (errors[0], errors[-1], max(errors)))])
    if barriers:
        note += (
            " A barrier is the most by which the training loss lies above the straight line "
            "between its values at the ends."
        )
    return Table("Along the line", headings, rows, note)


def line_verdict(
    lines: Mapping[str, Sequence[Mapping[str, float]]], what: str, *, barriers: bool
) -> str:
    """Say in words how high loss and error go along lines; arguments as in :func:`line_table`."""
    losses, errors = (
        [record[key] for records in lines.values() for record in records]
        for key in ("train_loss", "test_error")
    )
    text = (
        f"Along {what}, the training loss lies between {min(losses):.4f} and {max(losses):.4g} and "
        f"the test error between {min(errors):.2f} and {max(errors):.2f} %"
    )
    if not barriers:
        return f"{text}."
    highest = max(lines, key=lambda name: _barrier(lines[name]))
    return f"{text}; the highest barrier, {_barrier(lines[highest]):.4f} nats, is on {highest}."


def _barrier(records: Sequence[Mapping[str, float]]) -> float:
    """Return the most by which the training loss lies above the straight line between its ends."""
    low, high = records[0]["t"], records[-1]["t"]
    part = [{**record, "t": (record["t"] - low) / (high - low)} for record in records]
    return summarise_curve(part, "train_loss")["barrier"]


def _distance(grid: PlaneGrid, step: Any) -> float:
    return math.sqrt(max(float(step @ grid.gram @ step), 0.0))


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
