"""What outputs of networks mean: how they become predictions, and how much these vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fge.errors import UserError
from fge.networks import RunningMean

Output = Literal["softmax", "sigmoid", "identity"] | Callable[[Tensor], Tensor]
"""What turns a network's outputs into predictions."""
Combine = Literal["probs", "logits"]
_NAMED = ("softmax", "sigmoid", "identity")
_CHOICES = (
    "give output='sigmoid' for the logit of two classes or of independent labels, 'identity' for "
    "regression, or a function of the outputs"
)


class Outputs:
    """How the outputs of a network become predictions, in float64.

    Args:
        kind: ``"softmax"``: logits of exclusive classes; ``"sigmoid"``: logits of independent
            labels, each a probability of its own; ``"identity"``: the prediction itself; or a
            function of the outputs.
        dim: the dimension of the classes of a softmax.
        combine: ``"probs"`` averages predictions, ``"logits"`` outputs.

    Raises:
        UserError: an option is unknown, or ``dim`` is that of the examples.
    """

    def __init__(self, kind: Output, dim: int, combine: Combine) -> None:
        if not callable(kind) and kind not in _NAMED:
            known = ", ".join(map(repr, _NAMED))
            raise UserError(f"output must be {known} or a function of the outputs, got {kind!r}")
        if combine not in ("probs", "logits"):
            raise UserError(f"combine must be 'probs' or 'logits', got {combine!r}")
        if dim == 0:
            raise UserError("output_dim must be the dimension of the classes, got 0, the examples'")
        self.kind, self.dim, self.combine = kind, dim, combine

    @property
    def name(self) -> str | None:
        """The name of the kind, None for a function."""
        return self.kind if isinstance(self.kind, str) else None

    @property
    def probable(self) -> bool:
        """Whether predictions are known to be probabilities."""
        return self.kind in ("softmax", "sigmoid")

    def __repr__(self) -> str:
        kind = repr(self.name) if self.name else getattr(self.kind, "__name__", repr(self.kind))
        where = f" over dimension {self.dim}" if self.name == "softmax" and self.dim != 1 else ""
        return f"output={kind}{where}, combine={self.combine!r}"

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the predictions of one member from its outputs (N, ...)."""
        if self.kind == "softmax":
            return outputs.double().softmax(dim=self.dim)
        if self.kind == "sigmoid":
            return outputs.double().sigmoid()
        return self.kind(outputs.double()) if callable(self.kind) else outputs.double()

    def averaged(self, outputs: Tensor) -> Tensor:
        """Return what is averaged over members."""
        return self.predictions(outputs) if self.combine == "probs" else outputs.double()

    def finished(self, mean: Tensor) -> Tensor:
        """Return the prediction from the mean over members."""
        return mean if self.combine == "probs" else self.predictions(mean)

    def checked(self, outputs: Any) -> Tensor:
        """Return a model's outputs if they are such as the kind needs.

        Raises:
            UserError: they are no tensor (N, ...), or a softmax would be over a single output.
        """
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"the model must return a tensor of outputs (N, ...), got a "
                f"{type(outputs).__name__}; give forward_fn=lambda model, batch: ... to pick one"
            )
        if outputs.ndim == 0:
            raise UserError("the model must return outputs (N, ...), got a single number")
        if self.kind == "softmax":
            self._check_classes(outputs)
        return outputs

    def _check_classes(self, outputs: Tensor) -> None:
        """Check that a softmax is over several outputs of each example."""
        shape, dim = tuple(outputs.shape), self.dim
        if outputs.ndim == 1 or (-outputs.ndim < dim < outputs.ndim and shape[dim] == 1):
            raise UserError(
                f"the model has one output, of shape {shape}, and the softmax of one number is "
                f"always 1; {_CHOICES}"
            )
        if not -outputs.ndim < dim < outputs.ndim:
            raise UserError(
                f"output_dim is {dim}, but the outputs have shape {shape}; give the dimension of "
                "the classes"
            )

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
