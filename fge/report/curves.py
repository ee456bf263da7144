"""Results of fitted curves: tables, sentences and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fge.config import CURVE_ENSEMBLE
from fge.curves import Record, Statistics, bound, summarise_curve
from fge.report.charts import DASHES, Chart, Panel, Series
from fge.report.methods import MethodResult, comparison, cost_text, scores_text
from fge.report.page import Table
from fge.tasks import MANY_CLASSES, Measure, Task

_PATH_UNITS = (
    "Training loss{nats} ({loss}, {example}s without augmentation), test {measure} {units}. "
    "The mean is over t, the arc mean over the length of the path. The barrier is the largest "
    "height of the path above the straight line between the values of its ends. The mean over t is "
    "an upper bound of the lowest training loss; the lowest loss on the path is the other side of "
    "that bound."
)
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
    which buffers the networks on them have. ``task`` says which loss and figure were measured, and
    ``example`` on what: image or row.
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
    task: Task = MANY_CLASSES
    example: str = "image"

    def tested(self, path: str) -> dict[str, float]:
        """Return the summary of the task's measure on test data along a path."""
        return self.summaries[path][f"test_{self.task.measure.key}"]

    def barrier(self, path: str, key: str = "") -> float:
        """Return the barrier of a path, by default that of the measure, in the key's unit."""
        return (self.summaries[path][key] if key else self.tested(path))["barrier"]

    def as_json(self) -> dict[str, Any]:
        """Return the result as ``report.json`` holds it."""
        statistics = {} if self.statistics is None else {"statistics": self.statistics.facts()}
        return {k: v for k, v in asdict(self).items() if k not in _NOT_IN_JSON} | statistics

    def in_words(self) -> str:
        """Return a sentence on the buffers of the networks on curve and segment."""
        return f"On curve and segment, {self.statistics}." if self.statistics else ""


_NOT_IN_JSON = ("statistics", "task", "example")


def pair_result(
    name: str,
    geometry: Mapping[str, float],
    paths: Mapping[str, Sequence[Record]],
    *,
    fit_epochs: int,
    probe_images: int = 0,
    statistics: Statistics | None = None,
    task: Task = MANY_CLASSES,
    example: str = "image",
) -> PairResult:
    """Summarise the records along each path (segment and curve) of a pair.

    Args:
        name: of the pair.
        geometry: ``distance``, ``angle`` and ``length``.
        paths: records by path.
        fit_epochs: epochs of the fit.
        probe_images: passed forward to measure the paths.
        statistics: which buffers the networks on them have.
        task: whose figures the records have.
        example: what they were measured on, image or row.
    """
    measure = task.measure.key
    keys = ("train_loss", f"train_{measure}", "test_loss", f"test_{measure}", "test_nll")
    return PairResult(
        name,
        fit_epochs=fit_epochs,
        probe_images=probe_images,
        statistics=statistics,
        task=task,
        example=example,
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
    measure, training = pair.task.measure, pair.task.training
    headings += [f"{measure.word}: min", "max", "barrier"]
    rows = []
    for path, summary in pair.summaries.items():
        loss, tested = summary["train_loss"], pair.tested(path)
        cells = [loss[key] for key in ("min", "max", "mean", "arc_mean", "barrier")]
        rows.append(
            [path, f"{loss['length']:.1f}", *(f"{value:.4f}" for value in cells)]
            + [measure.form.format(tested[key]) for key in ("min", "max", "barrier")]
        )
    units = _PATH_UNITS.format(
        nats=f" in {training.unit}" if training.unit else "",
        loss=pair.task.training_words,
        example=pair.example,
        measure=measure.word,
        units=_units(measure),
    )
    note = (
        f"The distance of the networks is {pair.distance:.1f}, the angle between their weights "
        f"{pair.angle:.1f} degrees. {units} {pair.in_words()}"
    ).rstrip()
    return Table(f"Between the networks {pair.name}", headings, rows, note)


def _units(measure: Measure) -> str:
    return "in percent" if measure.unit == "%" else "in the units of the targets"


def _barrier_units(pair: PairResult, *, largest: bool) -> str:
    """Return the units of barriers, and of the ``largest`` values of the measure."""
    measure, training = pair.task.measure, pair.task.training
    loss = f"in {training.unit}" if training.unit else f"those of the {pair.task.training_words}"
    units = [_units(measure)]
    if measure.unit == "%":
        units = ["in points", *(["largest errors in percent"] if largest else [])]
    return (
        f"Loss barriers are {loss}, on training {pair.example}s without augmentation; "
        f"{measure.word} barriers are {' and '.join(units)}, on the test set."
    )


def pairs_table(pairs: Sequence[PairResult], title: str) -> Table:
    """Return one table of several pairs, a line each."""
    headings = ["pair", "distance", "angle", "length", "loss barrier: segment", "curve"]
    measure = pairs[0].task.measure
    headings += [f"{measure.word} barrier: segment", "curve"]
    headings += [f"max {measure.word}: segment", "curve"]
    rows = []
    for pair in pairs:
        barriers = [pair.barrier(path, "train_loss") for path in ("segment", "curve")]
        rises = [pair.barrier(path) for path in ("segment", "curve")]
        largest = [pair.tested(path)["max"] for path in ("segment", "curve")]
        rows.append(
            [pair.name, f"{pair.distance:.1f}", f"{pair.angle:.1f}", f"{pair.length:.1f}"]
            + [f"{value:.4f}" for value in barriers]
            + [measure.form.format(value) for value in (*rises, *largest)]
        )
    note = (
        "Distance of the networks, length of the curve, angle between the weights in degrees. "
        f"{_barrier_units(pairs[0], largest=True)}"
    )
    words = " ".join(dict.fromkeys(pair.in_words() for pair in pairs))
    return Table(title, headings, rows, f"{note} {words}".rstrip())


def pair_verdict(pair: PairResult, results: Sequence[MethodResult]) -> list[str]:
    """Return sentences on the ensemble along the curve, its cost, and on segment and curve.

    Args:
        pair: the two networks.
        results: of the ensembles, among them ``ends`` and ``curve``.
    """
    measure = pair.task.measure
    segment, curve = (measure.difference.format(pair.barrier(p)) for p in ("segment", "curve"))
    ends, along = (next(r for r in results if r.name == name) for name in ("ends", "curve"))
    more = along.train_epochs - ends.train_epochs
    return [
        f"The ensemble of {along.members} networks along the curve has {scores_text(along)}, for "
        f"{cost_text(along.train_epochs, along.forward_passes)} "
        "(one pair of runs, one test set).",
        f"It has {comparison(along, ends)} its two ends alone, which have {scores_text(ends)}; "
        f"the curve costs {more} {'epoch' if more == 1 else 'epochs'} more.",
        f"Between the networks {pair.name}, the test {measure.word} rises {segment} on the "
        f"segment and {curve} on the curve.",
    ]


def connection_verdict(pairs: Sequence[PairResult]) -> list[str]:
    """Say how far the error, or the measure of another task, rises on segments and on curves."""
    measure = pairs[0].task.measure
    points, plain = measure.difference.format, measure.form.format
    segments, curves = ([pair.barrier(path) for pair in pairs] for path in ("segment", "curve"))
    count = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of networks"
    return [
        f"The test {measure.word} rises by at most {points(max(curves))} on the curves and "
        f"{points(max(segments))} on the segments ({count}, one test set).",
        *(
            f"{pair.name}: {points(segment)} on the segment, {plain(curve)} on the curve."
            for pair, segment, curve in zip(pairs, segments, curves, strict=True)
        ),
    ]


def strategy_table(found: Sequence[tuple[PairResult, Sequence[MethodResult]]]) -> Table:
    """Return one table of several pairs that share their first network: paths and ensembles.

    Args:
        found: each pair with its results, among them ``network-1``, ``network-2``, ``ends`` and
            ``curve``.
    """
    task = found[0][0].task
    measure, form = task.measure, task.measure.form
    headings = ["pair", f"{measure.word}: network 1", "network 2", "distance"]
    headings += ["loss barrier: segment", "curve", f"{measure.word} barrier: segment", "curve"]
    headings += [f"ends: {measure.word}", "NLL", f"curve: {measure.word}", "NLL"]
    headings += ["members", "epochs"]
    rows = []
    for pair, results in found:
        line = {result.name: result for result in results}
        cells = [form.format(line[f"network-{i}"].value(measure.key)) for i in (1, 2)]
        cells.append(f"{pair.distance:.1f}")
        cells += [f"{pair.barrier(path, 'train_loss'):.4f}" for path in ("segment", "curve")]
        cells += [form.format(pair.barrier(path)) for path in ("segment", "curve")]
        for name in ("ends", "curve"):
            cells += [form.format(line[name].value(measure.key)), f"{line[name].nll:.4f}"]
        curve = line["curve"]
        rows.append([pair.name, *cells, str(curve.members), str(curve.train_epochs)])
    errors = "errors" if measure.unit == "%" else f"{measure.word}s"
    note = (
        f"Strategies of arXiv 1806.06977. Test {errors} are {_units(measure)}: of each network, of "
        "the ensemble of the two ends and of the ensemble along the curve. "
        f"{_barrier_units(found[0][0], largest=False)} Members and epochs (fit included) are those "
        "of the ensemble along the curve."
    )
    return Table("Training strategies", headings, rows, note)


def curve_chart(
    curve: Records, segment: Records, *, place: str = ALONG, task: Task = MANY_CLASSES
) -> Chart:
    """Return loss and error along a curve and along the segment, on test and training data.

    Args:
        curve: records of :func:`fge.evaluate_curve` with keys ``t``, ``train_loss``,
            ``train_error``, ``test_loss``, ``test_error``, or the measure of another task.
        segment: records of the segment, with the same keys.
        place: what ``t`` is.
        task: whose loss and measure it is.
    """
    paths = {"curve": curve, "segment": segment}
    panels = []
    for measure in (task.training, task.measure):
        series = [
            Series(
                f"{path}, {split}",
                _values(records, "t"),
                _values(records, f"{split}_{measure.key}"),
                dash=dash,
                like=_LIKE.get(path, path),
            )
            for path, records in paths.items()
            for split, dash in _SPLITS
        ]
        panels.append(Panel(measure.axis, series, zero=_steep(series)))
    return Chart(place, panels, height=650)


def _steep(series: Sequence[Series]) -> bool:
    """Return whether values differ enough for an axis that begins at zero."""
    heights = [y for one in series for y in one.y]
    return bool(heights) and max(heights) > _STEEP * min(heights)


def ensemble_chart(paths: Mapping[str, Records], *, task: Task = MANY_CLASSES) -> Chart:
    """Return the test error of the two networks {w(0), w(t)} against how far w(t) is from w(0).

    The figure of arXiv 1802.10026 (section 4) that asks how far one has to go along a curve to
    gain from ensembling, with further baselines at the same distances.

    Args:
        paths: name of the path to its records with keys ``distance`` and ``ensemble_error``.
        task: of another one than of classes its measure is shown, ``ensemble_rmse`` for example.
    """
    series = [
        Series(
            ENSEMBLE_LABELS.get(name, name),
            _values(records, "distance"),
            _values(records, f"ensemble_{task.measure.key}"),
            dash=DASHES[position % len(DASHES)],
            like=_LIKE.get(name, name),
        )
        for position, (name, records) in enumerate(paths.items())
    ]
    axis = f"test {task.measure.axis_of(' of the two')}"
    return Chart("distance from the first network", [Panel(axis, series)])


def _values(records: Records, key: str) -> list[float]:
    return [float(record[key]) for record in records]
