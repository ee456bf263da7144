"""How the outputs of an ensemble's members become predictions, and how much these vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fge.errors import UserError
from fge.networks import Output, OutputKind, RunningMean

Combine = Literal["probs", "logits"]


class Outputs(OutputKind):
    """The outputs of an ensemble's members, and what is averaged.

    Args:
        kind: as of :class:`OutputKind`.
        dim: as of :class:`OutputKind`.
        combine: ``"probs"`` averages predictions, ``"logits"`` outputs.

    Raises:
        UserError: an option is unknown, or ``dim`` is that of the examples.
    """

    def __init__(self, kind: Output, dim: int, combine: Combine) -> None:
        super().__init__(kind, dim)
        if combine not in ("probs", "logits"):
            raise UserError(f"combine must be 'probs' or 'logits', got {combine!r}")
        self.combine = combine

    def __repr__(self) -> str:
        return f"{super().__repr__()}, combine={self.combine!r}"

    def averaged(self, outputs: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return what is averaged over members, in a dtype."""
        return self.predictions(outputs, dtype) if self.combine == "probs" else outputs.to(dtype)

    def finished(self, mean: Tensor) -> Tensor:
        """Return the prediction from the mean over members, in its dtype."""
        return mean if self.combine == "probs" else self.predictions(mean, mean.dtype)

    def uncertainty(self) -> Uncertainty:
        """Return what collects the members' predictions."""
        if self.kind == "softmax":
            return Information(lambda probs: torch.special.entr(probs).sum(dim=self.dim))
        if self.kind == "sigmoid":
            return Information(_binary_entropy)
        return Variance()


class Uncertainty:
    """Collects the predictions of one member after the other."""

    def update(self, predictions: Tensor) -> None:
        """Include one more member's predictions (N, ...)."""
        raise NotImplementedError

    def figures(self) -> dict[str, Tensor]:
        """Return the mean prediction and measures of its uncertainty."""
        raise NotImplementedError


class Information(Uncertainty):
    """Entropy of the mean, in nats, and its part that members disagree on (mutual information).

    I = H(mean p) - mean H(p) (Houlsby et al. 2011, arXiv 1112.5745, equation 2).
    """

    def __init__(self, entropy: Callable[[Tensor], Tensor]) -> None:
        self._entropy = entropy
        self._mean, self._expected = RunningMean(), RunningMean()

    def update(self, predictions: Tensor) -> None:
        """Include one more member's probabilities."""
        self._mean.update(predictions)
        self._expected.update(self._entropy(predictions))

    def figures(self) -> dict[str, Tensor]:
        """Return ``mean``, ``entropy`` and ``mutual_information``."""
        total = self._entropy(self._mean.value)
        information = (total - self._expected.value).clamp(min=0)  # rounding
        return {"mean": self._mean.value, "entropy": total, "mutual_information": information}


class Variance(Uncertainty):
    """The variance over members, by Welford's update; divided by their number S."""

    def __init__(self) -> None:
        self._mean, self._squares = RunningMean(), RunningMean()

    def update(self, predictions: Tensor) -> None:
        """Include one more member's predictions."""
        before = self._mean.value.clone() if self._mean.count else predictions
        after = self._mean.update(predictions)
        self._squares.update((predictions - before) * (predictions - after))

    def figures(self) -> dict[str, Tensor]:
        """Return ``mean`` and ``variance``."""
        return {"mean": self._mean.value, "variance": self._squares.value}


def _binary_entropy(probs: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probs) + torch.special.entr(1 - probs)
    return entropy
