"""What the checks are given, and what they find."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fge.errors import UserError, first_line
from fge.networks import (
    ForwardFn,
    LossFn,
    Output,
    TargetFn,
    call_model,
    check_differentiable,
    check_reiterable,
    check_shaped,
    count_examples,
    cut,
    loss_of,
    nothing_yielded,
    preserved,
    refresh_batch_norm,
    to_device,
    unwrap,
)

Status = Literal["ok", "failed", "skipped"]
EXAMPLES = 32
"""Examples of the first batch that the checks use."""
BATCHES = 3
"""Batches that the checks of statistics and averages use."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    ``name``: what was checked; ``status``: ok, failed or skipped; ``detail``: what was found;
    ``remedy``: what to use instead, for a failed check.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the finding as one line."""
        tail = f"; {self.remedy}" if self.remedy else ""
        return f"{self.name}: {self.status}, {self.detail}{tail}"


@dataclass(frozen=True)
class Findings:
    """The outcomes of all checks of a model, in order."""

    found: tuple[Finding, ...]

    def __iter__(self) -> Any:
        """Iterate over the findings."""
        return iter(self.found)

    def __len__(self) -> int:
        """Return the number of checks."""
        return len(self.found)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The failed checks."""
        return tuple(finding for finding in self.found if finding.status == "failed")

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __str__(self) -> str:
        """Return a line per check."""
        return "\n".join(map(str, self.found))


class CheckFailedError(Exception):
    """Ends a check that failed: what was found, and what to use instead."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class SkippedError(Exception):
    """Ends a check that does not apply; its text is the reason."""


@dataclass
class Subject:
    """The model under examination, and a few examples.

    ``batch``: at most 32 examples of the first batch, on the model's device; ``batches``: the first
    batches, cut as this one.
    """

    model: nn.Module
    batches: list[Any]
    loss_fn: LossFn
    forward_fn: ForwardFn | None
    own_call: bool = field(default=False)
    target_fn: TargetFn | None = None
    output: Output = "softmax"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFn,
        forward_fn: ForwardFn | None,
        target_fn: TargetFn | None = None,
        output: Output = "softmax",
    ) -> Subject:
        """Return the subject with the first examples.

        Raises:
            UserError: ``batches`` can be iterated only once, or yields nothing; or a parameter has
                no shape yet.
        """
        check_shaped(itertools.chain(model.named_parameters(), model.named_buffers()))
        check_reiterable(batches)
        device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
        device = device or torch.device("cpu")
        layout: dict[str, Any] = {"model": model, "target_fn": target_fn}
        pieces = (next(cut(to_device(b, device), EXAMPLES, **layout), None) for b in batches)
        kept = list(itertools.islice((piece for piece in pieces if piece is not None), BATCHES))
        if not kept:
            raise nothing_yielded()
        # Batch norm cannot be trained on one example: a fit leaves it out where others are larger.
        most = max(count for _, count in kept)
        parts = [part for part, count in kept if count > 1 or most == 1]
        own_call = forward_fn is not None
        return cls(unwrap(model), parts, loss_fn, forward_fn, own_call, target_fn, output)

    @property
    def batch(self) -> Any:
        """The first examples."""
        return self.batches[0]

    @property
    def examples(self) -> int:
        """Their number."""
        return count_examples(self.batch, self.target_fn)

    def refresh(self) -> None:
        """Estimate the model's batch-norm statistics from the batches."""
        refresh_batch_norm(
            self.model, self.batches, forward_fn=self.forward_fn, target_fn=self.target_fn
        )

    def pieces(self, size: int) -> Iterator[Any]:
        """Yield the first examples in pieces of at most ``size``, whole where they are not cut."""
        for piece, _ in cut(self.batch, size, model=self.model, target_fn=self.target_fn):
            yield piece

    def untouched(self) -> AbstractContextManager[None]:
        """Restore the model at the end of a ``with`` block."""
        return preserved(self.model)

    def outputs(self, batch: Any = None, model: nn.Module | None = None) -> Any:
        """Apply the model to a batch, the first by default."""
        call = call_model if self.forward_fn is None else self.forward_fn
        return call(self._chosen(model), self.batch if batch is None else batch)

    def predict(self, batch: Any = None, model: nn.Module | None = None) -> Tensor:
        """Return the outputs in evaluation mode, without gradients.

        Raises:
            CheckFailedError: they are no tensor.
        """
        self._chosen(model).eval()
        with torch.no_grad():
            outputs = self.outputs(batch, model)
        if not isinstance(outputs, Tensor):
            raise CheckFailedError(
                f"the model returns a {type(outputs).__name__}, not a tensor",
                "give forward_fn=, which returns the logits",
            )
        return outputs

    def _chosen(self, model: nn.Module | None) -> nn.Module:
        """Return the given model; its truth may be its length, and it may have none."""
        return self.model if model is None else model

    def loss(self, batch: Any = None, model: nn.Module | None = None) -> Tensor:
        """Return the loss of a batch with its graph.

        Raises:
            UserError: it is not known what its targets are.
        """
        whole = self.batch if batch is None else batch
        return loss_of(self.outputs(whole, model), whole, self.loss_fn, self.target_fn)

    def step(self, lr: float = 0.01, batch: Any = None) -> Tensor:
        """Take a step of plain gradient descent in training mode; return the loss before it.

        Raises:
            UserError: it does not depend on a trainable parameter, or its targets are not known.
        """
        self.model.train()
        self.model.zero_grad()
        loss = self.loss(batch)
        check_differentiable(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=lr)
        return loss.detach()

    def copy(self) -> nn.Module:
        """Return a deep copy of the model.

        Raises:
            CheckFailedError: it cannot be copied.
        """
        try:
            return copy.deepcopy(self.model)
        except Exception as error:  # modules raise many types
            raise CheckFailedError(
                f"the model cannot be deep-copied ({first_line(error)})",
                "give a module that can be, or build each network with its factory",
            ) from None


def outcome(name: str, error: Exception) -> Finding:
    """Return the finding of a check that ended with an exception."""
    if isinstance(error, SkippedError):
        return Finding(name, "skipped", str(error))
    if isinstance(error, CheckFailedError):
        return Finding(name, "failed", error.detail, error.remedy)
    if isinstance(error, UserError):
        return Finding(name, "failed", str(error))
    return Finding(name, "failed", f"{type(error).__name__}: {first_line(error)}")


def distance(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected| in float64; infinity where it is not a number."""
    difference = (found.double() - expected.double()).norm()
    ratio = float(difference / expected.double().norm().clamp_min(1e-30))
    return ratio if ratio == ratio else float("inf")
