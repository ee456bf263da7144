"""Conformal sets of labels: stated by validation data, measured on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge import metrics
from fge.ensemble import PredictionFile
from fge.metrics import Conformal, LabelSetCoverage
from fge.report.intervals import REUSED, conformal_facts
from fge.report.methods import MethodResult
from fge.report.page import Table

TITLE = "Conformal sets of labels"


@dataclass(frozen=True)
class LabelSets:
    """What the sets of a line of the method table did on the test set, and their threshold."""

    name: str
    members: int
    fit: Conformal
    measured: LabelSetCoverage

    @classmethod
    def of(
        cls, result: MethodResult, test: PredictionFile, val: PredictionFile, coverage: float
    ) -> LabelSets:
        """Measure the sets of a line."""
        members = result.member_names
        fit = fit_label_sets(val, members, coverage)
        sets = metrics.conformal_label_sets(test.mean(members), fit)
        measured = metrics.label_set_coverage(sets, test.targets)
        return cls(result.name, result.members, fit, measured)

    def facts(self) -> dict[str, Any]:
        """Return the content for ``report.json``."""
        conformal = {**conformal_facts(self.fit), **self.measured._asdict()}
        return {"name": self.name, "members": self.members, "conformal": conformal}


def fit_label_sets(val: PredictionFile, members: Sequence[str], coverage: float) -> Conformal:
    """Return the threshold of sets of labels by validation predictions of some members."""
    return metrics.fit_conformal_labels(val.mean(members), val.targets, coverage=coverage)


def label_set_table(found: Sequence[LabelSets], tests: int, example: str) -> Table:
    """Return the table of sets of labels: coverage, recall and size of each line."""
    rows = [
        [
            *(own.name, str(own.members), f"{100 * own.measured.coverage:.2f}"),
            *(f"{100 * own.measured.recall:.2f}", f"{own.measured.size:.3f}"),
            *(f"{own.measured.labels:.3f}", f"{100 * own.measured.empty:.2f}"),
        ]
        for own in found
    ]
    fit = found[0].fit
    if fit.enough:
        low, high = metrics.coverage_range(fit.coverage, fit.examples, tests)
        note = (
            "A set holds the labels whose probability is above a threshold. It is to hold all "
            f"labels of {100 * fit.coverage:g} % of {example}s (arXiv 2004.10181): the threshold "
            f"is from the {fit.examples} validation {example}s, the coverage is measured on the "
            f"{tests} test {example}s. With so many of both, 95 of 100 runs measure "
            f"{100 * low:.1f} to {100 * high:.1f} %, or more where {example}s have no label. "
            f"Recall is the part of all labels that are in the sets. {REUSED.format(example)}"
        )
    else:
        note = (
            f"Sets at {100 * fit.coverage:g} % need {fit.least} validation {example}s, and there "
            f"are {fit.examples}: every set holds all labels."
        )
    measured = ("coverage %", "recall %", "mean size", "true labels", "empty %")
    return Table(TITLE, ["method", "members", *measured], rows, note)


def label_set_verdict(sets: LabelSets, tests: int, example: str) -> str:
    """Say what the sets of a line come to."""
    own = sets.measured
    return (
        f"The conformal sets of `{sets.name}`, stated to hold all labels of "
        f"{100 * sets.fit.coverage:g} % of {example}s, hold them for {100 * own.coverage:.2f} % of "
        f"{tests} test {example}s, with {own.size:.2f} labels on average; {example}s have "
        f"{own.labels:.2f}."
    )


def set_size_table(sets: NDArray[np.bool_], fit: Conformal, example: str) -> Table:
    """Return how many examples have conformal sets (N, L) of how many labels."""
    sizes = sets.sum(axis=1)
    rows = [
        [str(size), str(count), f"{100 * count / len(sizes):.1f}"]
        for size, count in enumerate(np.bincount(sizes))
    ]
    note = (
        f"The set of each {example} holds all its labels with a stated probability of "
        f"{100 * fit.coverage:g} %: the labels of probability {1 - float(fit.threshold):.4f} and "
        f"more (arXiv 2004.10181), by the run's {fit.examples} validation {example}s. That is so "
        f"if the {example}s are such as those. {REUSED.format(example)}"
    )
    headings = ["labels in the set", f"{example}s", "%"]
    return Table("Sizes of the conformal sets", headings, rows, note)
