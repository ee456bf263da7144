"""Exclusive classes: several, by a softmax, or two, by one logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fge import metrics
from fge.config import CLASSIFICATION, TaskName
from fge.networks import ForwardFn, LossFn, Output, call_model
from fge.tasks.base import BALANCED, BRIER, ECE, NLL, RANKINGS, Array, Column, PerExample, Task
from fge.tasks.losses import BinaryCrossEntropy

_ERROR = ("error", "error", "{:.2f}")


@dataclass(frozen=True)
class Classification(Task):
    """One of several classes, by logits (N, C) and a softmax."""

    name: ClassVar[TaskName] = CLASSIFICATION
    columns: ClassVar[tuple[Column, ...]] = (_ERROR, NLL, BRIER, ECE)
    more: ClassVar[tuple[Column, ...]] = (BRIER, ECE, ("calibrated_ece", "cal. ECE", "{:.4f}"))
    units: ClassVar[str] = (
        "Error is in percent, NLL in nats per {example}, Brier summed over classes, ECE a fraction "
        "(15 bins)."
    )

    @property
    def output(self) -> Output:
        """A softmax."""
        return "softmax"

    def loss(self, device: torch.device) -> LossFn:
        """Return PyTorch's cross-entropy."""
        del device
        return F.cross_entropy

    def figures(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return error (percent), NLL, Brier score (summed over classes) and ECE."""
        del spread, noise
        return metrics.summary(mean, targets)

    def scores(
        self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None = None
    ) -> tuple[float, float]:
        """Return error and NLL."""
        del spread
        return metrics.error(mean, targets), metrics.nll(mean, targets)

    def nll_per_example(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,)."""
        return metrics.nll_per_example(mean, targets)

    def wrong(self, mean: ArrayLike, targets: ArrayLike) -> NDArray[np.bool_]:
        """Return where the most probable class is another one (N,)."""
        return np.asarray(np.asarray(mean).argmax(axis=1) != np.asarray(targets))

    def tempered(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,) at the best temperature of these examples."""
        return metrics.tempered_nll_per_example(mean, targets)

    def per_example(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> PerExample:
        """Return 100 where an example is wrong, and its NLLs."""
        del spread, noise
        probs, y = metrics.check_examples(mean, targets)
        return PerExample(
            100.0 * (probs.argmax(axis=1) != y),
            metrics.nll_per_example(mean, targets),
            metrics.calibrated_nll_per_example(mean, targets),
        )

    def diversity(self, members: Sequence[Array], targets: ArrayLike) -> dict[str, float]:
        """Return disagreement, correlation of errors, and the members' error and NLL."""
        gains = metrics.gain_split(members, targets)
        return {
            "disagreement": metrics.disagreement(members),
            "error_correlation": metrics.error_correlation(members, targets),
            "mean_member_error": gains["error"].members,
            "mean_member_nll": gains["nll"].members,
        }

    def extra(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return adaptive and calibrated ECE, and the area under the risk-coverage curve."""
        del spread, noise
        calibrated = metrics.calibrated_summary(mean, targets)
        return {
            "adaptive_ece": metrics.adaptive_ece(mean, targets),
            **calibrated,
            "calibrated_nll": -calibrated["calibrated_log_likelihood"],
            "aurc": metrics.aurc(mean, targets),
        }


@dataclass(frozen=True)
class Binary(Classification):
    """One of two classes, by one logit (N, 1): that of the second class.

    Predictions are the probabilities of both (N, 2), so that all that is known of classes holds:
    a temperature on the logit is one on both log-probabilities.
    """

    name: ClassVar[TaskName] = "binary"
    columns: ClassVar[tuple[Column, ...]] = (_ERROR, NLL, BRIER, ECE, *RANKINGS)
    more: ClassVar[tuple[Column, ...]] = (*(BALANCED, *Classification.more, *RANKINGS),)
    units: ClassVar[str] = (
        "Error is in percent, NLL in nats per {example}; Brier is (p - y)² of the second class; "
        "ECE is a fraction (15 bins); AUROC and average precision (AP) are those of the "
        "second class."
    )

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    @property
    def output(self) -> Output:
        """The probabilities of both classes."""
        return both_classes

    @property
    def forward_fn(self) -> ForwardFn | None:
        """The logits 0 and z of both classes."""
        return two_logits

    @property
    def path_output(self) -> Output:
        """The softmax of these logits."""
        return "softmax"

    def path_loss(self, device: torch.device) -> LossFn:
        """Return the cross-entropy of these logits."""
        return super().loss(device)

    def loss(self, device: torch.device) -> LossFn:
        """Return the binary cross-entropy of the logit."""
        del device
        return BinaryCrossEntropy()

    def figures(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return those of classes, with the Brier score of one class, AUROC and AP."""
        found = super().figures(mean, targets, spread, noise)
        found["brier"] /= 2
        probs, y = np.asarray(mean)[:, 1:], np.asarray(targets)[:, None]
        return found | metrics.ranking_scores(np.clip(probs, 0, 1), y)

    def extra(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return those of classes, and the mean of the errors of both."""
        counts = metrics.confusion(mean, targets)
        found = super().extra(mean, targets, spread, noise)
        return {**found, "balanced_error": metrics.balanced_error(counts)}


def both_classes(outputs: Tensor) -> Tensor:
    """Return the probabilities (N, 2) of two classes from the logit (N, 1) of the second.

    >>> both_classes(torch.tensor([[0.0], [50.0]])).tolist()[0]
    [0.5, 0.5]
    """
    logits = outputs.reshape(outputs.shape[0])
    return torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=1)


def two_logits(model: nn.Module, batch: Any) -> Tensor:
    """Return the logits (N, 2), 0 and z, of a network with one logit z.

    Their cross-entropy is the binary one of z.
    """
    logits = call_model(model, batch)
    logits = logits.reshape(len(logits), 1)
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


MANY_CLASSES = Classification(())
"""The task of functions that are not told another one."""
