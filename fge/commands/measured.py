"""What ``predict`` says of each image beside its probabilities: how sure they are, and sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.data import Split
from fge.ensemble import Ensemble
from fge.metrics import Conformal, conformal_sets, uncertainty
from fge.report import (
    ReportBuilder,
    add_gallery,
    conformal_facts,
    information_chart,
    size_table,
)

Array = NDArray[np.float64]
OF_MEMBERS = ("mutual_information", "disagreement")
"""Measures that one network does not have."""
_BETWEEN = " | "
"""Between the classes or labels of a set."""
ONE_NETWORK = (
    "One network predicted, so its entropy is the only measure: there are no members that could "
    "disagree."
)


def figures_of(
    ensemble: Ensemble, batches: Iterable[Any], *, keep_members: bool
) -> dict[str, Tensor]:
    """Return the mean probabilities (N, C) of an ensemble of classifiers and their uncertainty.

    A function of the outputs may give the probabilities too. Of these the ensemble knows only the
    variance, so the members are kept and measured.
    """
    of_function = ensemble.outputs.name is None
    found = ensemble.uncertainty(batches, members=keep_members or of_function)
    if of_function:
        measures = uncertainty(found["members"].numpy())
        del measures["mean"]
        found |= {name: torch.from_numpy(values) for name, values in measures.items()}
    if not keep_members:
        found.pop("members", None)
    return found


def set_in_words(probs: Array, inside: NDArray[np.bool_], names: Sequence[str]) -> str:
    """Return the classes or labels in a set, the most probable first."""
    order = np.argsort(-probs, kind="stable")
    return _BETWEEN.join(names[k] for k in order if inside[k])


@dataclass(frozen=True)
class Measured:
    """Predictions of N images, and how uncertain they are.

    ``probs``: (N, C) float64; ``split``: the images, or rows, which ``example`` says;
    ``measures``: columns (N,) by name;
    ``members``: (S, N, C) float32, if they are kept; ``fit`` and ``sets`` (N, C): conformal sets,
    or ``no_sets``: why there are none.
    """

    probs: Array
    split: Split
    measures: Mapping[str, Array]
    example: str = "image"
    members: NDArray[np.float32] | None = None
    fit: Conformal | None = None
    sets: NDArray[np.bool_] | None = None
    no_sets: str = ""

    @classmethod
    def of(
        cls,
        figures: Mapping[str, Tensor],
        networks: int,
        split: Split,
        fit: Conformal | None,
        no_sets: str,
        example: str = "image",
    ) -> Measured:
        """Return what the uncertainty of some networks comes to; of one, its entropy alone."""
        probs = figures["mean"].numpy()
        names = ("entropy", *(OF_MEMBERS if networks > 1 else ()))
        members = figures["members"].float().numpy() if "members" in figures else None
        sets = conformal_sets(probs, fit) if fit else None
        measures = {name: figures[name].numpy() for name in names}
        return cls(probs, split, measures, example, members, fit, sets, no_sets)

    def cells(self, classes: Sequence[str]) -> Iterator[list[str]]:
        """Yield the headings of the columns that ``predictions.csv`` has more, and their rows."""
        yield [*self.measures, *(["set"] if self.sets is not None else [])]
        for image in range(len(self.probs)):
            row = [f"{values[image]:.6f}" for values in self.measures.values()]
            yield row + ([self.set_of(image, classes)] if self.sets is not None else [])

    def set_of(self, image: int, classes: Sequence[str]) -> str:
        """Return the classes of an image's set in words, the most probable first."""
        assert self.sets is not None
        return set_in_words(self.probs[image], self.sets[image], classes)

    def shown(self, classes: Sequence[str]) -> dict[str, Callable[[int], str]]:
        """Return, by heading, what the table of the least certain images has more of an image."""

        def cell(name: str) -> Callable[[int], str]:
            return lambda image: f"{self.measures[name][image]:.3f}"

        named = [name for name in OF_MEMBERS if name in self.measures]
        found = {name.replace("_", " "): cell(name) for name in named}
        if self.sets is not None:
            found["set"] = lambda image: self.set_of(image, classes) or "(empty)"
        return found

    def arrays(self) -> dict[str, Any]:
        """Return the arrays that ``predictions.npz`` has more."""
        found: dict[str, Any] = dict(self.measures)
        if self.sets is not None and self.fit is not None:
            found |= {"sets": self.sets, "coverage": self.fit.coverage}
        if self.members is not None:
            found["member_probabilities"] = self.members
        return found

    def facts(self) -> dict[str, Any]:
        """Return the content for ``report.json``: means over the images."""
        found: dict[str, Any] = {name: float(v.mean()) for name, v in self.measures.items()}
        if self.sets is not None and self.fit is not None:
            sizes = self.sets.sum(axis=1)
            means = {"size": float(sizes.mean()), "empty": float((sizes == 0).mean())}
            found["conformal"] = {**conformal_facts(self.fit), **means}
        return found

    def add_to(self, report: ReportBuilder, names: Sequence[str], classes: Sequence[str]) -> None:
        """Add a table of the sets, a chart of the members' disagreement, and pictures."""
        if self.sets is not None and self.fit is not None:
            report.table(size_table(self.sets, self.fit, self.example))
            report.say(
                f"The conformal sets, stated to hold the class of {100 * self.fit.coverage:g} % of "
                f"{self.example}s, have {self.sets.sum(axis=1).mean():.2f} classes on average."
            )
        else:
            report.say(f"{self.no_sets[:1].upper()}{self.no_sets[1:]}.")
        if "mutual_information" in self.measures:
            caption = "How much of the entropy the members disagree on"
            chart = information_chart(self.measures["mutual_information"], self.example)
            report.chart("information.png", chart, caption)
        else:
            report.say(ONE_NETWORK)
        report.facts(uncertainty=self.facts())
        figures = {"mean": self.probs, **self.measures}
        note = "Those of the lowest largest probability, as the network sees them; in nats."
        add_gallery(report, self.split, figures, classes, note=note, names=names)
