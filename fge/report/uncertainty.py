"""How far predictions can be trusted: rejection, conformal sets, the least certain examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge import metrics
from fge.config import FGE
from fge.data import Split, TableFacts
from fge.ensemble import PredictionFile
from fge.metrics import Conformal, SetCoverage
from fge.report.builder import ReportBuilder
from fge.report.charts import Bars, Chart, Panel
from fge.report.examples import add_least_certain
from fge.report.intervals import (
    REUSED,
    Bounds,
    conformal_facts,
    interval_table,
    interval_verdict,
)
from fge.report.label_sets import LabelSets, label_set_table, label_set_verdict
from fge.report.methods import MethodResult
from fge.report.page import Table
from fge.report.rejection import (
    CAPTION,
    add_rejection,
    answered,
    curve_of,
    rejection_chart,
    rejection_series,
)
from fge.report.reliability import drawn

COVERAGE = 0.9
"""The coverage of conformal sets that is stated, and the part of the images that is answered."""
TITLE = "Rejection and conformal sets"
_SIZES = 10
"""Sizes of sets that have a row each."""
_BINS = 20
Array = NDArray[np.float64]
Conformals = tuple[Callable[..., Any], Callable[..., Table], Callable[..., str]]
_INTERVALS: Conformals = (Bounds.of, interval_table, interval_verdict)
_LABEL_SETS: Conformals = (LabelSets.of, label_set_table, label_set_verdict)
"""What measures a line, and makes the table and the sentence of it."""


@dataclass(frozen=True)
class Doubt:
    """What a line of the method table leaves open on the test set.

    ``aurc``: area under the risk-coverage curve, a fraction; ``answered``: error of the most
    certain ``COVERAGE`` of the images, in percent; ``sets``: its conformal sets, measured, and
    ``fit`` their threshold, None without validation predictions of its members.
    """

    name: str
    members: int
    aurc: float
    answered: float
    fit: Conformal | None = None
    sets: SetCoverage | None = None

    def facts(self) -> dict[str, Any]:
        """Return the content for ``report.json``."""
        found: dict[str, Any] = {
            "name": self.name,
            "members": self.members,
            "aurc": self.aurc,
            "error_answered": self.answered,
        }
        if self.fit and self.sets:
            found["conformal"] = {**conformal_facts(self.fit), **self.sets._asdict()}
        return found


def add_uncertainty(
    report: ReportBuilder,
    results: Sequence[MethodResult],
    test: PredictionFile,
    val: PredictionFile | None,
    split: Split,
    classes: Sequence[str],
    example: str = "image",
    table: TableFacts | None = None,
) -> None:
    """Add rejection, conformal sets and the least certain test examples of a run's best lines.

    Sets are of classes or of labels; numbers have conformal intervals instead.

    Args:
        report: gets tables, the chart ``rejection.png``, a sentence, pictures and facts.
        results: the lines of the run; of each name the last, largest ensemble is shown.
        test: the test predictions of their members.
        val: the validation predictions, for the thresholds of conformal sets.
        split: the test images, of which only the least certain are read.
        classes: names of the classes.
        example: what the split holds: image or row.
        table: the columns, if these are rows of a table.
    """
    shown = drawn(results)
    if not shown:
        return
    main = int(np.argmax([result.members for result in shown]))
    if test.task.of_classes:
        _add_doubts(report, shown, main, test, val, example)
    else:
        found = add_rejection(report, shown, main, test, COVERAGE, example)
        bounds = _add_conformal(report, shown, main, test, val, example)
        names = [line.name for line in shown if line.name in {*found, *bounds}]
        found = {name: found.get(name, {}) | bounds.get(name, {}) for name in names}
        if found:
            report.facts(uncertainty={"coverage": COVERAGE, "methods": [*found.values()]})
    add_least_certain(report, shown[main], test, split, classes, table)


def _add_conformal(
    report: ReportBuilder,
    shown: Sequence[MethodResult],
    main: int,
    test: PredictionFile,
    val: PredictionFile | None,
    example: str,
) -> dict[str, dict[str, Any]]:
    """Add the conformal sets of labels or intervals of numbers, and a sentence on one line.

    Returns:
        the facts of each line by its name.
    """
    if val is None or not len(val.targets):
        return {}
    measure, table, verdict = _INTERVALS if test.task.uses_noise else _LABEL_SETS
    lines = [line for line in shown if all(name in val for name in line.member_names)]
    found = [measure(line, test, val, COVERAGE) for line in lines]
    if not found:
        return {}
    report.table(table(found, len(test.targets), example))
    if shown[main] in lines and found[0].fit.enough:
        own = found[lines.index(shown[main])]
        report.say(verdict(own, len(test.targets), example))
    return {own.name: own.facts() for own in found}


def _add_doubts(
    report: ReportBuilder,
    shown: Sequence[MethodResult],
    main: int,
    test: PredictionFile,
    val: PredictionFile | None,
    example: str,
) -> None:
    """Add rejection and conformal sets of the lines that are shown."""
    doubts = [doubt_of(result, test, val) for result in shown]
    report.table(doubt_table(doubts, len(test.targets), example))
    curves = [rejection_series(result, test) for result in shown]
    if any(curve.x for curve in curves):
        doubt = "their largest probability"
        caption = CAPTION.format(measure="error", example=example, doubt=doubt)
        report.chart("rejection.png", rejection_chart(curves, example), caption)
    report.say(doubt_verdict(doubts[main], len(test.targets), example))
    report.facts(uncertainty={"coverage": COVERAGE, "methods": [d.facts() for d in doubts]})


def doubt_of(result: MethodResult, test: PredictionFile, val: PredictionFile | None) -> Doubt:
    """Return what a line leaves open, measured on the test set."""
    probs, fit, sets = test.mean(result.member_names), None, None
    curve = curve_of(result, test)
    if val is not None and len(val.targets) and all(name in val for name in result.member_names):
        fit = metrics.fit_conformal(
            val.mean(result.member_names), val.targets, coverage=COVERAGE, score="lac"
        )
        sets = metrics.set_coverage(metrics.conformal_sets(probs, fit), test.targets)
    risk = 100 * answered(curve, COVERAGE)
    return Doubt(result.name, result.members, float(curve.risk.mean()), risk, fit, sets)


def doubt_table(doubts: Sequence[Doubt], tests: int, example: str = "image") -> Table:
    """Return the table of rejection and conformal sets.

    Args:
        doubts: of the lines.
        tests: number of test images.
        example: image or row.
    """
    percent = f"{100 * COVERAGE:g} %"
    headings = ["method", "members", "AURC", f"error of the surest {percent}"]
    fitted = [doubt.fit for doubt in doubts if doubt.fit]
    if fitted:
        headings += ["sets: coverage %", "mean size", "empty %"]
    rows = []
    for doubt in doubts:
        row = [doubt.name, str(doubt.members), f"{doubt.aurc:.4f}", f"{doubt.answered:.2f}"]
        if fitted and doubt.sets:
            row += [f"{100 * doubt.sets.coverage:.2f}", f"{doubt.sets.size:.3f}"]
            row += [f"{100 * doubt.sets.empty:.2f}"]
        rows.append(row + ["-"] * (len(headings) - len(row)))
    note = (
        f"AURC is the mean error, a fraction, over all parts of the test {example}s that are "
        "answered, from the surest one to all (arXiv 1805.08206): lower is better. "
    )
    return Table(TITLE, headings, rows, note + _sets_note(fitted, tests, example))


def _sets_note(fitted: Sequence[Conformal], tests: int, example: str) -> str:
    if not fitted:
        return "Without validation predictions there are no conformal sets."
    fit = fitted[0]
    if not fit.enough:
        return (
            f"Conformal sets at {100 * fit.coverage:g} % need {fit.least} validation {example}s, "
            f"and there are {fit.examples}: every set holds all classes."
        )
    low, high = metrics.coverage_range(fit.coverage, fit.examples, tests)
    return (
        "A conformal set holds the classes whose probability is above a threshold (arXiv "
        f"1609.00451). It is to hold the true class of {100 * fit.coverage:g} % of {example}s: the "
        f"threshold is from the {fit.examples} validation {example}s, the coverage is measured on "
        f"the {tests} test {example}s. With so many of both, 95 of 100 runs measure "
        f"{100 * low:.1f} to {100 * high:.1f} %. {REUSED.format(example)}"
    )


def doubt_verdict(doubt: Doubt, tests: int, example: str = "image") -> str:
    """Say what the conformal sets and the rejection of a line come to."""
    text = (
        f"Where `{doubt.name}` answers the surest {100 * COVERAGE:g} % of the test {example}s, its "
        f"error is {doubt.answered:.2f} %."
    )
    if doubt.sets is None or doubt.fit is None or not doubt.fit.enough:
        return text
    return (
        f"{text} Its conformal sets, stated to hold the class of {100 * doubt.fit.coverage:g} % of "
        f"{example}s, hold it for {100 * doubt.sets.coverage:.2f} % of {tests} test {example}s, "
        f"with {doubt.sets.size:.2f} classes on average."
    )


def size_table(sets: NDArray[np.bool_], fit: Conformal, example: str = "image") -> Table:
    """Return how many images have conformal sets of which size.

    Args:
        sets: (N, C), True for the classes in the set.
        fit: the threshold.
        example: image or row.
    """
    sizes = sets.sum(axis=1)
    which = {str(size): sizes == size for size in range(min(_SIZES, sizes.max()) + 1)}
    if sizes.max() > _SIZES:
        which[f"more than {_SIZES}"] = sizes > _SIZES
    rows = [[name, str(own.sum()), f"{100 * own.mean():.1f}"] for name, own in which.items()]
    note = (
        f"The set of each {example} holds its class with a stated probability of "
        f"{100 * fit.coverage:g} %: the classes of probability "
        f"{max(0.0, 1 - float(fit.threshold)):.4f} and more (arXiv 1609.00451), by the run's "
        f"{fit.examples} validation {example}s. That is so if the {example}s are such as those. A "
        "set of several classes leaves the choice open; an empty one says that none is probable "
        f"enough. {REUSED.format(example)}"
    )
    return Table(
        "Sizes of the conformal sets", ["classes in the set", f"{example}s", "%"], rows, note
    )


def information_chart(information: Array, example: str = "image") -> Chart:
    """Return how many images have which mutual information.

    Args:
        information: (N,), in nats.
        example: image or row.
    """
    most = max(float(information.max()), 1e-3)
    counts, edges = np.histogram(information, bins=_BINS, range=(0, most))
    bars = Bars(FGE, edges.tolist(), counts.tolist())
    panel = Panel(f"{example}s", bars=bars)
    return Chart("mutual information, nats", [panel], limits=(0.0, most), height=380)
