"""Results of fitted curves: tables, sentences and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fge.curves import Record, bound, summarise_curve
from fge.report.methods import MethodResult
from fge.report.page import Table

PATH_UNITS = (
    "Training loss in nats (cross-entropy, images without augmentation, batch-norm statistics "
    "estimated at each point), test error in percent; mean over t, arc mean over the path's "
    "length. A barrier is the most by which a path lies above "
    "the straight line between its ends' values. The mean over t bounds the lowest training loss "
    "there is from above; the lowest loss met is its other side."
)
CURVE, SEGMENT = "#1d4ed8", "#d97706"
_PANELS = (
    ("train_loss", "training loss (nats)"),
    ("test_loss", "test loss (nats)"),
    ("train_error", "training error (%)"),
    ("test_error", "test error (%)"),
)
_ENSEMBLE_STYLES = {
    "curve": (CURVE, "-"),
    "segment": (SEGMENT, "-"),
    "random-direction": ("#6b7280", ":"),
    "random-at-angle": ("#be185d", "--"),
    "same-gram-arc": ("#15803d", "-."),
}
ENSEMBLE_LABELS = {
    "curve": "curve",
    "segment": "segment",
    "random-direction": "random direction",
    "random-at-angle": "random, at the curve's angle",
    "same-gram-arc": "random arc of the curve's shape",
}
ALONG = "t, from the first network (0) to the second (1)"
_STEEP = 2
"""The ratio of largest to smallest value from which axes begin at zero."""
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PairResult:
    """Two networks and what lies between them.

    ``distance`` |w(1) - w(0)| and ``length`` of the curve in weight space, ``angle`` between the
    two weight vectors in degrees; ``summaries`` per path and key, as
    :func:`fge.curves.summarise_curve` gives them; ``bounds`` per path. ``probe_images``
    were passed forward to measure the paths, batch-norm statistics included.
    """

    name: str
    distance: float
    angle: float
    length: float
    fit_epochs: int
    summaries: dict[str, dict[str, dict[str, float]]]
    bounds: dict[str, dict[str, float]]
    probe_images: int = 0

    def barrier(self, path: str, key: str = "test_error") -> float:
        """Return the barrier of a path, in the key's unit."""
        return self.summaries[path][key]["barrier"]

    def as_json(self) -> dict[str, Any]:
        """Return the result as ``report.json`` holds it."""
        return asdict(self)


def pair_result(
    name: str,
    geometry: Mapping[str, float],
    paths: Mapping[str, Sequence[Record]],
    *,
    fit_epochs: int,
    probe_images: int = 0,
) -> PairResult:
    """Return what the records along each path (segment and curve) of a pair come to.

    Args:
        name: of the pair.
        geometry: ``distance``, ``angle`` and ``length``.
        paths: records by path.
        fit_epochs: epochs of the fit.
        probe_images: passed forward to measure the paths.
    """
    keys = ("train_loss", "train_error", "test_loss", "test_error", "test_nll")
    return PairResult(
        name,
        fit_epochs=fit_epochs,
        probe_images=probe_images,
        summaries={
            path: {key: summarise_curve(records, key) for key in keys}
            for path, records in paths.items()
        },
        bounds={path: bound(records, "train_loss") for path, records in paths.items()},
        **geometry,
    )


def path_table(pair: PairResult) -> Table:
    """Return the table of a pair's paths, a line each."""
    headings = ["path", "length", "loss: min", "max", "mean", "arc mean", "barrier"]
    headings += ["error: min", "max", "barrier"]
    rows = []
    for path, summary in pair.summaries.items():
        loss, error = summary["train_loss"], summary["test_error"]
        cells = [loss[key] for key in ("min", "max", "mean", "arc_mean", "barrier")]
        rows.append(
            [path, f"{loss['length']:.1f}", *(f"{value:.4f}" for value in cells)]
            + [f"{error[key]:.2f}" for key in ("min", "max", "barrier")]
        )
    note = (
        f"The networks are {pair.distance:.1f} apart, at an angle of {pair.angle:.1f} degrees seen "
        f"from the origin. {PATH_UNITS}"
    )
    return Table(f"Between the networks {pair.name}", headings, rows, note)


def pairs_table(pairs: Sequence[PairResult], title: str) -> Table:
    """Return one table of several pairs, a line each."""
    headings = ["pair", "distance", "angle", "length", "loss barrier: segment", "curve"]
    headings += ["error barrier: segment", "curve", "max error: segment", "curve"]
    rows = []
    for pair in pairs:
        barriers = [pair.barrier(path, "train_loss") for path in ("segment", "curve")]
        errors = [pair.barrier(path) for path in ("segment", "curve")]
        largest = [pair.summaries[path]["test_error"]["max"] for path in ("segment", "curve")]
        rows.append(
            [pair.name, f"{pair.distance:.1f}", f"{pair.angle:.1f}", f"{pair.length:.1f}"]
            + [f"{value:.4f}" for value in barriers]
            + [f"{value:.2f}" for value in (*errors, *largest)]
        )
    note = (
        "Distance of the networks, length of the curve, angle between the weights in degrees. Loss "
        "barriers in nats on training images without augmentation; error barriers in points and "
        "largest errors in percent on the test set."
    )
    return Table(title, headings, rows, note)


def pair_verdict(pair: PairResult, results: Sequence[MethodResult]) -> str:
    """Say in words what segment and curve are like, and which ensemble came out best.

    Args:
        pair: the two networks.
        results: of the ensembles, among them ``ends`` and ``curve``.
    """
    segment, curve = (pair.barrier(path) for path in ("segment", "curve"))
    ends, along = (next(r for r in results if r.name == name) for name in ("ends", "curve"))
    better = (
        f"lowers the error of the two ends from {ends.error:.2f} to {along.error:.2f} % and "
        f"the NLL from {ends.nll:.4f} to {along.nll:.4f}"
        if along.error < ends.error and along.nll < ends.nll
        else f"has {along.error:.2f} % error and NLL {along.nll:.4f}, the two ends alone "
        f"{ends.error:.2f} % and {ends.nll:.4f}"
    )
    more = along.train_epochs - ends.train_epochs
    return (
        f"On the segment between the networks {pair.name} the test error rises {segment:.2f} "
        f"points above its ends, on the curve {curve:.2f} points. Averaging {along.members} "
        f"networks along the curve {better}, for {more} "
        f"{'epoch' if more == 1 else 'epochs'} of training more. One pair of runs, one test set."
    )


def connection_verdict(pairs: Sequence[PairResult]) -> str:
    """Say in words how far the error rises on segments and on curves."""
    parts = [
        f"{pair.name}: {pair.barrier('segment'):.2f} points on the segment, "
        f"{pair.barrier('curve'):.2f} on the curve"
        for pair in pairs
    ]
    return f"Rise of the test error above the ends: {'; '.join(parts)}."


def strategy_table(found: Sequence[tuple[PairResult, Sequence[MethodResult]]]) -> Table:
    """Return one table of several pairs that share their first network: paths and ensembles.

    Args:
        found: each pair with its results, among them ``network-1``, ``network-2``, ``ends`` and
            ``curve``.
    """
    headings = ["pair", "error: network 1", "network 2", "distance"]
    headings += ["loss barrier: segment", "curve", "error barrier: segment", "curve"]
    headings += ["ends: error", "NLL", "curve: error", "NLL", "members", "epochs"]
    rows = []
    for pair, results in found:
        line = {result.name: result for result in results}
        cells = [f"{line[f'network-{i}'].error:.2f}" for i in (1, 2)]
        cells.append(f"{pair.distance:.1f}")
        cells += [f"{pair.barrier(path, 'train_loss'):.4f}" for path in ("segment", "curve")]
        cells += [f"{pair.barrier(path):.2f}" for path in ("segment", "curve")]
        for name in ("ends", "curve"):
            cells += [f"{line[name].error:.2f}", f"{line[name].nll:.4f}"]
        curve = line["curve"]
        rows.append([pair.name, *cells, str(curve.members), str(curve.train_epochs)])
    note = (
        "Strategies of arXiv 1806.06977. Test errors in percent, of each network and of the "
        "ensembles of the two ends and along the curve; loss barriers in nats on training images "
        "without augmentation, error barriers in points on the test set; members and epochs (the "
        "fit included) are those of the ensemble along the curve."
    )
    return Table("Training strategies", headings, rows, note)


def curve_figure(
    curve: Records,
    segment: Records,
    *,
    place: str = ALONG,
) -> Figure:
    """Draw loss and error along a curve and along the segment, on training and test data.

    Args:
        curve: records of :func:`fge.evaluate_curve` with keys ``t``, ``train_loss``,
            ``train_error``, ``test_loss``, ``test_error``.
        segment: likewise.
        place: what ``t`` is.
    """
    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS, strict=True):
        for records, colour, name in ((segment, SEGMENT, "segment"), (curve, CURVE, "curve")):
            axes.plot(_values(records, "t"), _values(records, key), color=colour, label=name)
        _finish(axes, label)
    axes_list = figure.axes
    axes_list[0].legend(frameon=False)
    for axes in axes_list[2:]:
        axes.set_xlabel(place)
    return figure


def ensemble_figure(paths: Mapping[str, Records]) -> Figure:
    """Draw the test error of the two networks {w(0), w(t)} against how far w(t) is from w(0).

    The figure of arXiv 1802.10026 (section 4) that asks how far one has to go along a curve to
    gain from ensembling, with further baselines at the same distances.

    Args:
        paths: name of the path to its records with keys ``distance`` and ``ensemble_error``.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, records in paths.items():
        colour, style = _ENSEMBLE_STYLES[name]
        axes.plot(
            _values(records, "distance"),
            _values(records, "ensemble_error"),
            style,
            color=colour,
            label=ENSEMBLE_LABELS[name],
        )
    axes.set_xlabel("distance from the first network")
    _finish(axes, "test error of the two (%)")
    axes.legend(frameon=False)
    return figure


def _values(records: Records, key: str) -> list[float]:
    return [float(record[key]) for record in records]


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    heights = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata())]
    if heights and max(heights) > _STEEP * min(heights):  # else zero would flatten what is shown
        axes.set_ylim(0, 1.05 * max(heights))
    axes.spines[["top", "right"]].set_visible(False)
