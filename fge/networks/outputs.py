"""What the outputs of a network mean, and how they become predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fge.errors import UserError

Output = Literal["softmax", "sigmoid", "identity"] | Callable[[Tensor], Tensor]
"""What turns a network's outputs into predictions."""
_NAMED = ("softmax", "sigmoid", "identity")
_CHOICES = (
    "give output='sigmoid' for the logit of two classes or of independent labels, 'identity' for "
    "regression, or a function of the outputs"
)


class OutputKind:
    """How the outputs of a network become predictions, by default in float64.

    Args:
        kind: ``"softmax"``: logits of exclusive classes; ``"sigmoid"``: logits of independent
            labels, each a probability of its own; ``"identity"``: the prediction itself; or a
            function of the outputs.
        dim: the dimension of the classes of a softmax.

    Raises:
        UserError: an option is unknown, or ``dim`` is that of the examples.
    """

    def __init__(self, kind: Output = "softmax", dim: int = 1) -> None:
        if not callable(kind) and kind not in _NAMED:
            known = ", ".join(map(repr, _NAMED))
            raise UserError(f"output must be {known} or a function of the outputs, got {kind!r}")
        if dim == 0:
            raise UserError("output_dim must be the dimension of the classes, got 0, the examples'")
        self.kind, self.dim = kind, dim

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
        return f"output={kind}{where}"

    def predictions(self, outputs: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the predictions of a network from its outputs (N, ...), computed in a dtype.

        A function of the outputs always gets them in float64.
        """
        if callable(self.kind):
            return self.kind(outputs.double()).to(dtype)
        if self.kind == "softmax":
            return outputs.softmax(dim=self.dim, dtype=dtype)
        given = outputs.to(dtype)
        return given.sigmoid() if self.kind == "sigmoid" else given

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
