"""Training losses of outputs that are not logits of several classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Cross-entropy of one logit for the class 1 of two, averaged over the examples.

    With target probability t, smoothing s and weights w of the classes the loss of an example is::

        (w_0 (1 - t) + w_1 t) BCE(sigmoid(z), (1 - s) t + s / 2)

    So smoothing is that of the cross-entropy of two classes; weights are, of targets that are
    classes and not probabilities.

    Args:
        weights: (2,), on the device of the outputs; None for 1 and 1.
        smoothing: in [0, 1).
    """

    weights: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (N, 1) and targets (N,), or probabilities (N, 2)."""
        logits = outputs.reshape(len(outputs))
        ones = (targets[:, 1] if targets.ndim == 2 else targets).to(logits.dtype)
        wanted = (1 - self.smoothing) * ones + self.smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        if self.weights is not None:
            losses = losses * (self.weights[0] * (1 - ones) + self.weights[1] * ones)
        return losses.mean()


def label_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits (N, L) and labels (N, L), summed over labels.

    It is averaged over the examples. Targets may be probabilities.
    """
    losses = F.binary_cross_entropy_with_logits(
        outputs, targets.to(outputs.dtype), reduction="none"
    )
    return losses.sum(dim=1).mean()


@dataclass(frozen=True)
class SquaredError:
    """The squared error of standardised targets, averaged over examples and outputs.

    Args:
        mean: of the training targets (K,), on the device of the outputs, float64.
        std: their standard deviation (K,).
    """

    mean: Tensor
    std: Tensor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of outputs (N, K), or (N,) for one, and targets (N, K)."""
        wanted = ((targets - self.mean) / self.std).to(outputs.dtype)
        return (outputs.reshape(wanted.shape) - wanted).square().mean()
