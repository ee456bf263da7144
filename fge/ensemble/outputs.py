"""How the outputs of an ensemble's members become predictions, and how much these vary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from fge.errors import UserError
from fge.networks import Output, OutputKind, RunningMean

Combine = Literal["probs", "logits"]
_HALF = 0.5
_FEW = 1 << 16
"""The most outputs of all members for one batch that are kept to be averaged together."""


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

    def mean_of(self, outputs: Iterable[Tensor], members: int) -> Tensor:
        """Return the mean prediction for one batch, in the dtype of the outputs.

        Few outputs are averaged together, which is faster; of many, only the mean is kept.

        Args:
            outputs: those of each member, (N, ...).
            members: how many there are.
        """
        mean, few = RunningMean(), []
        dtype = torch.float32
        for one in outputs:
            dtype = one.dtype
            if self.name and one.numel() * members <= _FEW:
                few.append(one)
            else:
                mean.update(self.averaged(one))
        averaged = self._mean_of_few(few) if few else mean.value
        return self.finished(averaged).to(dtype)

    def _mean_of_few(self, outputs: list[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return self.averaged(outputs[0])
        rows = torch.stack(outputs, dim=1 if self.dim < 0 else -1)
        return self.averaged(rows).mean(dim=1 if self.dim < 0 else -1)

    def uncertainty(self) -> Uncertainty:
        """Return what collects the members' predictions."""
        if self.kind == "softmax":
            return Information(
                lambda probs: torch.special.entr(probs).sum(dim=self.dim), Votes(self.dim)
            )
        if self.kind == "sigmoid":
            return Information(_binary_entropy, Votes())
        return Variance()


class Uncertainty:
    """Collects the predictions of one member after the other."""

    def update(self, predictions: Tensor) -> None:
        """Include one more member's predictions (N, ...)."""
        raise NotImplementedError

    def figures(self) -> dict[str, Tensor]:
        """Return the mean prediction and measures of its uncertainty."""
        raise NotImplementedError


class Votes:
    """Counts which labels the members predict, in memory that does not grow with their number.

    Args:
        dim: of the classes; without one, each output is a label by itself, which is predicted above
            one half.
    """

    def __init__(self, dim: int | None = None) -> None:
        self._dim = dim
        self._counts: Tensor | None = None
        self._members = 0

    def update(self, predictions: Tensor) -> None:
        """Include one more member's probabilities."""
        if self._counts is None:
            self._counts = torch.zeros(predictions.shape, dtype=torch.int32)
        self._members += 1
        if self._dim is None:
            self._counts += predictions > _HALF
            return
        label = predictions.argmax(dim=self._dim, keepdim=True)
        self._counts.scatter_add_(self._dim, label, torch.ones_like(label, dtype=torch.int32))

    def against(self, mean: Tensor) -> Tensor:
        """Return the fraction of members whose label is another than that of the mean."""
        assert self._counts is not None
        if self._dim is None:
            agreeing = torch.where(mean > _HALF, self._counts, self._members - self._counts)
        else:
            label = mean.argmax(dim=self._dim, keepdim=True)
            agreeing = self._counts.gather(self._dim, label).squeeze(self._dim)
        return 1 - agreeing.double() / self._members


class Information(Uncertainty):
    """Entropy of the mean, in nats, its parts, and how many members disagree with the mean's label.

    Members disagree on I = H(mean p) - mean H(p), the mutual information (Houlsby et al. 2011,
    arXiv 1112.5745, equation 2), and agree on the rest.
    """

    def __init__(self, entropy: Callable[[Tensor], Tensor], votes: Votes) -> None:
        self._entropy, self._votes = entropy, votes
        self._mean, self._expected = RunningMean(), RunningMean()

    def update(self, predictions: Tensor) -> None:
        """Include one more member's probabilities."""
        self._mean.update(predictions)
        self._expected.update(self._entropy(predictions))
        self._votes.update(predictions)

    def figures(self) -> dict[str, Tensor]:
        """Return ``mean``, ``entropy``, its two parts, and ``disagreement``."""
        total, expected = self._entropy(self._mean.value), self._expected.value
        return {
            "mean": self._mean.value,
            "entropy": total,
            "expected_entropy": expected,
            "mutual_information": (total - expected).clamp(min=0),  # rounding
            "disagreement": self._votes.against(self._mean.value),
        }


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
