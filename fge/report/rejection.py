"""Rejection: how good the predictions are of which a method is most certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fge import metrics
from fge.ensemble import PredictionFile
from fge.metrics import RiskCoverage
from fge.report.builder import ReportBuilder
from fge.report.charts import Chart, Series, lines_chart
from fge.report.methods import MethodResult
from fge.report.page import Table
from fge.report.reliability import FEWEST
from fge.tasks import Task

CAPTION = (
    "Rejection: the {measure} of the most certain part of the test {example}s, by {doubt}; parts "
    f"of fewer than {FEWEST} {{example}}s are left out"
)
TITLE = "Rejection"
_POINTS = 100


def curve_of(result: MethodResult, test: PredictionFile) -> RiskCoverage:
    """Return the risk of the most certain part of the test examples.

    Of classes and labels it is the fraction that is wrong, by the largest probability or by the
    entropy of the labels; of numbers the squared error, by the variance over members. The noise is
    the same for all examples, so the predicted variance has the same order.
    """
    members, task = result.member_names, test.task
    mean = test.mean(members).numpy()
    if task.of_classes:
        return metrics.risk_coverage(mean, test.targets)
    if task.uses_noise:
        squares = metrics.squared_residuals(mean, test.targets.reshape(mean.shape))
        return metrics.risk_coverage_of(test.spread(members).mean(axis=1), squares)
    doubt = metrics.labels_entropy(mean)
    return metrics.risk_coverage_of(doubt, metrics.wrong_labels(mean, test.targets))


def answered(curve: RiskCoverage, coverage: float) -> float:
    """Return the risk of the most certain part of the examples."""
    return float(curve.risk[max(1, round(coverage * len(curve.risk))) - 1])


def rejection_series(result: MethodResult, test: PredictionFile) -> Series:
    """Return the risk of the most certain part of the test examples against the part.

    It is in percent, of numbers in their units squared. It begins with ``FEWEST`` examples, since
    the risk of fewer is chance.
    """
    curve = curve_of(result, test)
    count = len(curve.risk)
    if count < FEWEST:
        return Series(result.name, [], [])
    places = np.unique(np.linspace(FEWEST, count, _POINTS).round().astype(int)) - 1
    risk = _factor(test.task) * curve.risk[places]
    return Series(result.name, curve.coverage[places].tolist(), risk.tolist())


def rejection_chart(
    series: Sequence[Series], example: str = "image", y: str = "error of these, %"
) -> Chart:
    """Return the chart of risks against the part of the examples that is answered."""
    return lines_chart(series, x=f"fraction of the test {example}s answered", y=y)


def add_rejection(
    report: ReportBuilder,
    shown: Sequence[MethodResult],
    main: int,
    test: PredictionFile,
    coverage: float,
    example: str,
) -> dict[str, dict[str, Any]]:
    """Add the rejection of lines, of labels or numbers, and a sentence on one of them.

    One network is not more certain of one number than of another.

    Returns:
        the facts of each line by its name.
    """
    measure, factor, best = test.task.compared, _factor(test.task), shown[main]
    if test.task.uses_noise:
        shown = [result for result in shown if len(result.member_names) > 1]
    if not shown:
        return {}
    curves = [curve_of(result, test) for result in shown]
    risks = [factor * answered(curve, coverage) for curve in curves]
    part = f"the surest {100 * coverage:g} %"
    headings = ["method", "members", "AURC", f"{measure.word} of {part}", "of all"]
    rows = [
        [
            *(line.name, str(line.members), f"{float(curve.risk.mean()):.4g}"),
            *(measure.form.format(value) for value in (risk, factor * curve.risk[-1])),
        ]
        for line, curve, risk in zip(shown, curves, risks, strict=True)
    ]
    report.table(Table(TITLE, headings, rows, _note(test.task, example)))
    series = [rejection_series(result, test) for result in shown]
    if any(one.x for one in series):
        words = {"measure": measure.word, "example": example, "doubt": _doubt(test.task)}
        y = measure.axis_of(" of these")
        report.chart("rejection.png", rejection_chart(series, example, y), CAPTION.format(**words))
    if best in shown:
        risk, of_all = risks[shown.index(best)], factor * curves[shown.index(best)].risk[-1]
        report.say(
            f"Where `{best.name}` answers {part} of the test {example}s, its {measure.word} is "
            f"{measure.value.format(risk)}; of all it is {measure.value.format(of_all)}."
        )
    return {
        line.name: {
            "name": line.name,
            "members": line.members,
            "aurc": float(curve.risk.mean()),
            f"{measure.key}_answered": risk,
        }
        for line, curve, risk in zip(shown, curves, risks, strict=True)
    }


def _factor(task: Task) -> float:
    """Return what makes risks those that the task compares: fractions become percent."""
    return 1.0 if task.uses_noise else 100.0


def _doubt(task: Task) -> str:
    return "the variance over the members" if task.uses_noise else "the entropy of the labels"


def _note(task: Task, example: str) -> str:
    what = "squared error" if task.uses_noise else "part of the labels that is wrong"
    order = (
        "Certain are those on which the members differ least, a mean over the targets; one network "
        "has no such order."
        if task.uses_noise
        else "Certain are those whose labels have the lowest entropy, summed over labels."
    )
    return (
        f"AURC is the mean {what} over all parts of the test {example}s that are answered, from "
        f"the surest one to all (arXiv 1805.08206): lower is better. {order}"
    )
