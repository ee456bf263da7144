"""Several labels at once, each of which an example has or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fge import metrics
from fge.config import TaskName
from fge.networks import LossFn, Output
from fge.tasks.base import (
    BRIER,
    ECE,
    NLL,
    RANKINGS,
    Array,
    Averaged,
    Column,
    Measure,
    PerExample,
    Task,
)
from fge.tasks.losses import label_cross_entropy

_ERROR = Measure("error", "error per label", "{:.2f} %", "{:.2f} points", "%")


@dataclass(frozen=True)
class Multilabel(Task):
    """Any of several labels, by logits (N, L) and a sigmoid each."""

    name: ClassVar[TaskName] = "multilabel"
    columns: ClassVar[tuple[Column, ...]] = (
        *(("error", "error per label", "{:.2f}"), ("exact_match", "exact match", "{:.2f}")),
        *(NLL, BRIER, ECE, *RANKINGS),
    )
    measure: ClassVar[Measure] = _ERROR
    compared: ClassVar[Measure] = _ERROR
    training_words: ClassVar[str] = "binary cross-entropy summed over labels"
    more: ClassVar[tuple[Column, ...]] = (
        *(("exact_match", "exact match %", "{:.2f}"), BRIER, ECE, *RANKINGS),
    )
    calibration: ClassVar[str] = (
        "The calibrated NLL is at the optimal temperature of the logits of all labels "
        "(arXiv 2002.06470)."
    )
    units: ClassVar[str] = (
        "Error per label and exact match (all labels right) are in percent; NLL is in nats per "
        "{example}, summed over its labels; Brier is (p - y)², the mean over labels; ECE is that "
        "of the probabilities of all labels, a fraction (15 bins); AUROC and average precision "
        "(AP) are means over labels."
    )

    @property
    def output(self) -> Output:
        """A sigmoid each."""
        return "sigmoid"

    def loss(self, device: torch.device) -> LossFn:
        """Return the binary cross-entropy, summed over labels."""
        del device
        return label_cross_entropy

    def figures(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return the figures of :func:`fge.metrics.labels_summary`."""
        del spread, noise
        return metrics.labels_summary(mean, targets)

    def scores(
        self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None = None
    ) -> tuple[float, float]:
        """Return error per label and NLL."""
        del spread
        wrong = metrics.wrong_labels(mean, targets)
        return float(100 * wrong.mean()), float(self.nll_per_example(mean, targets).mean())

    def nll_per_example(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,), the sum over labels."""
        return metrics.labels_nll_per_example(mean, targets)

    def wrong(self, mean: ArrayLike, targets: ArrayLike) -> NDArray[np.bool_]:
        """Return where a label or more is wrong (N,)."""
        return np.asarray(metrics.wrong_labels(mean, targets) > 0)

    def tempered(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,) at the best temperature of these examples."""
        return metrics.tempered_labels_nll(mean, targets)

    def per_example(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> PerExample:
        """Return the percentage of wrong labels of each example, and its NLLs."""
        del spread, noise
        return PerExample(
            100 * metrics.wrong_labels(mean, targets),
            metrics.labels_nll_per_example(mean, targets),
            metrics.calibrated_labels_nll(mean, targets),
        )

    def detection(self, inside: Averaged, outside: Averaged) -> dict[str, float]:
        """Return the AUROC by the entropy of the labels."""
        doubts = [metrics.labels_entropy(found.mean) for found in (inside, outside)]
        return {"entropy": metrics.auroc(*doubts)}

    def diversity(self, members: Sequence[Array], targets: ArrayLike) -> dict[str, float]:
        """Return how many labels two members say differently, and the members' figures."""
        said = np.array([member > 0.5 for member in members])
        pairs = [
            np.mean(said[a] != said[b]) for a in range(len(said)) for b in range(a + 1, len(said))
        ]
        scores = np.mean([self.scores(member, targets) for member in members], axis=0)
        return {
            "disagreement": float(100 * np.mean(pairs)),
            "mean_member_error": float(scores[0]),
            "mean_member_nll": float(scores[1]),
        }
