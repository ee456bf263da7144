"""Results of fitted curves: tables, sentences and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fge.config import CURVE_ENSEMBLE
from fge.curves import Record, Statistics, bound, summarise_curve
from fge.report.charts import DASHES, Chart, Panel, Series
from fge.report.methods import MethodResult, comparison, cost_text
from fge.report.page import Table

PATH_UNITS = (
    "Training loss in nats (cross-entropy, images without augmentation), test error in percent. "
    "The mean is over t, the arc mean over the length of the path. The barrier is the largest "
    "height of the path above the straight line between the values of its ends. The mean over t is "
    "an upper bound of the lowest training loss; the lowest loss on the path is the other side of "
    "that bound."
)
_PANELS = {"loss": "loss (nats)", "error": "error (%)"}
_SPLITS = (("test", DASHES[0]), ("train", DASHES[2]))
_LIKE = {"curve": CURVE_ENSEMBLE}
ENSEMBLE_LABELS = {
    "curve": "curve",
    "segment": "segment",
    "random-direction": "random direction",
    "random-at-angle": "random, at the curve's angle",
    "same-gram-arc": "random arc of the curve's shape",
}
ALONG = "t (0: first network, 1: second)"
_STEEP = 2
"""The ratio of largest to smallest value from which axes begin at zero."""
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PairResult:
    """Two networks and the paths between them.

    ``distance`` |w(1) - w(0)| and ``length`` of the curve in weight space, ``angle`` between the
    two weight vectors in degrees; ``summaries`` per path and key, as
    :func:`fge.curves.summarise_curve` gives them; ``bounds`` per path. ``probe_images``
    were passed forward to measure the paths, batch-norm statistics included; ``statistics`` says
    which buffers the networks on them have.
    """

    name: str
    distance: float
    angle: float
    length: float
    fit_epochs: int
    summaries: dict[str, dict[str, dict[str, float]]]
    bounds: dict[str, dict[str, float]]
    probe_images: int = 0
    statistics: Statistics | None = None

    def barrier(self, path: str, key: str = "test_error") -> float:
        """Return the barrier of a path, in the key's unit."""
        return self.summaries[path][key]["barrier"]

    def as_json(self) -> dict[str, Any]:
        """Return the result as ``report.json`` holds it."""
        statistics = {} if self.statistics is None else {"statistics": self.statistics.facts()}
        return {k: v for k, v in asdict(self).items() if k != "statistics"} | statistics

    def in_words(self) -> str:
        """Return a sentence on the buffers of the networks on curve and segment."""
        return f"On curve and segment, {self.statistics}." if self.statistics else ""


def pair_result(
    name: str,
    geometry: Mapping[str, float],
    paths: Mapping[str, Sequence[Record]],
    *,
    fit_epochs: int,
    probe_images: int = 0,
    statistics: Statistics | None = None,
) -> PairResult:
    """Summarise the records along each path (segment and curve) of a pair.

    Args:
        name: of the pair.
        geometry: ``distance``, ``angle`` and ``length``.
        paths: records by path.
        fit_epochs: epochs of the fit.
        probe_images: passed forward to measure the paths.
        statistics: which buffers the networks on them have.
    """
    keys = ("train_loss", "train_error", "test_loss", "test_error", "test_nll")
    return PairResult(
        name,
        fit_epochs=fit_epochs,
        probe_images=probe_images,
        statistics=statistics,
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
        f"The distance of the networks is {pair.distance:.1f}, the angle between their weights "
        f"{pair.angle:.1f} degrees. {PATH_UNITS} {pair.in_words()}"
    ).rstrip()
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
        "barriers are in nats, on training images without augmentation; error barriers are in "
        "points and largest errors in percent, on the test set."
    )
    words = " ".join(dict.fromkeys(pair.in_words() for pair in pairs))
    return Table(title, headings, rows, f"{note} {words}".rstrip())


def pair_verdict(pair: PairResult, results: Sequence[MethodResult]) -> list[str]:
    """Return sentences on the ensemble along the curve, its cost, and on segment and curve.

    Args:
        pair: the two networks.
        results: of the ensembles, among them ``ends`` and ``curve``.
    """
    segment, curve = (pair.barrier(path) for path in ("segment", "curve"))
    ends, along = (next(r for r in results if r.name == name) for name in ("ends", "curve"))
    more = along.train_epochs - ends.train_epochs
    return [
        f"The ensemble of {along.members} networks along the curve has {along.error:.2f} % error "
        f"and NLL {along.nll:.4f}, for {cost_text(along.train_epochs, along.forward_passes)} "
        "(one pair of runs, one test set).",
        f"It has {comparison(along, ends)} its two ends alone, which have {ends.error:.2f} % "
        f"error and NLL {ends.nll:.4f}; the curve costs {more} "
        f"{'epoch' if more == 1 else 'epochs'} more.",
        f"Between the networks {pair.name}, the test error rises {segment:.2f} points on the "
        f"segment and {curve:.2f} points on the curve.",
    ]


def connection_verdict(pairs: Sequence[PairResult]) -> list[str]:
    """Say how far the error rises on segments and on curves."""
    segments, curves = ([pair.barrier(path) for pair in pairs] for path in ("segment", "curve"))
    count = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of networks"
    return [
        f"The test error rises by at most {max(curves):.2f} points on the curves and "
        f"{max(segments):.2f} points on the segments ({count}, one test set).",
        *(
            f"{pair.name}: {segment:.2f} points on the segment, {curve:.2f} on the curve."
            for pair, segment, curve in zip(pairs, segments, curves, strict=True)
        ),
    ]


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
        "Strategies of arXiv 1806.06977. Test errors are in percent: of each network, of the "
        "ensemble of the two ends and of the ensemble along the curve. Loss barriers are in nats, "
        "on training images without augmentation; error barriers are in points, on the test set. "
        "Members and epochs (fit included) are those of the ensemble along the curve."
    )
    return Table("Training strategies", headings, rows, note)


def curve_chart(curve: Records, segment: Records, *, place: str = ALONG) -> Chart:
    """Return loss and error along a curve and along the segment, on test and training images.

    Args:
        curve: records of :func:`fge.evaluate_curve` with keys ``t``, ``train_loss``,
            ``train_error``, ``test_loss``, ``test_error``.
        segment: records of the segment, with the same keys.
        place: what ``t`` is.
    """
    paths = {"curve": curve, "segment": segment}
    panels = []
    for key, label in _PANELS.items():
        series = [
            Series(
                f"{path}, {split}",
                _values(records, "t"),
                _values(records, f"{split}_{key}"),
                dash=dash,
                like=_LIKE.get(path, path),
            )
            for path, records in paths.items()
            for split, dash in _SPLITS
        ]
        panels.append(Panel(label, series, zero=_steep(series)))
    return Chart(place, panels, height=650)


def _steep(series: Sequence[Series]) -> bool:
    """Return whether values differ enough for an axis that begins at zero."""
    heights = [y for one in series for y in one.y]
    return bool(heights) and max(heights) > _STEEP * min(heights)


def ensemble_chart(paths: Mapping[str, Records]) -> Chart:
    """Return the test error of the two networks {w(0), w(t)} against how far w(t) is from w(0).

    The figure of arXiv 1802.10026 (section 4) that asks how far one has to go along a curve to
    gain from ensembling, with further baselines at the same distances.

    Args:
        paths: name of the path to its records with keys ``distance`` and ``ensemble_error``.
    """
    series = [
        Series(
            ENSEMBLE_LABELS.get(name, name),
            _values(records, "distance"),
            _values(records, "ensemble_error"),
            dash=DASHES[position % len(DASHES)],
            like=_LIKE.get(name, name),
        )
        for position, (name, records) in enumerate(paths.items())
    ]
    return Chart("distance from the first network", [Panel("test error of the two (%)", series)])


def _values(records: Records, key: str) -> list[float]:
    return [float(record[key]) for record in records]
