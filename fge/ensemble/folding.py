"""Folding the members of an ensemble into one network: averages of weights, each one measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fge import metrics
from fge.ensemble.ensemble import Members
from fge.errors import UserError
from fge.networks import (
    ForwardFn,
    RunningAverage,
    RunningMean,
    canonical_state,
    check_reiterable,
    load_weights,
    predict_logits,
    refresh_batch_norm,
    unwrap,
)


class Scores(NamedTuple):
    """Error (percent) and NLL (nats per example)."""

    error: float
    nll: float


NOT_FINITE = Scores(math.nan, math.inf)
"""The figures of outputs that are not finite: no average is worse."""


@dataclass(frozen=True)
class Candidate:
    """A network that a fold may end with.

    ``state``: its tensors by name; ``figures``: on validation data; ``probs`` (N, C): its
    validation probabilities, None for a member as it was; ``refresh_images``: passed forward for
    its batch-norm statistics.
    """

    state: dict[str, Tensor]
    figures: Scores
    probs: Tensor | None = None
    refresh_images: int = 0


class Trial(NamedTuple):
    """One step of a fold: the member tried, the figures of the average with it, whether it stayed.

    ``member`` is a position among the members.
    """

    member: int
    figures: Scores
    kept: bool


@dataclass(frozen=True)
class Fold:
    """Members folded into one network, and what that lost; figures are those on validation data.

    ``network``: what came out; ``best``: the position of the member that it started from;
    ``members``: the figures of each; ``ensemble``: those of their averaged probabilities;
    ``trials``: the averages measured, in order; ``refresh_images``: passed forward for the
    batch-norm statistics of all of them.
    """

    network: Candidate
    best: int
    members: tuple[Scores, ...]
    ensemble: Scores
    trials: tuple[Trial, ...]
    refresh_images: int

    @property
    def state(self) -> dict[str, Tensor]:
        """The folded network's tensors by name, on the CPU, contiguous."""
        return self.network.state

    @property
    def folded(self) -> tuple[int, ...]:
        """The positions of the members in the average; the best one alone where none was safe."""
        return (self.best, *(trial.member for trial in self.trials if trial.kept))

    @property
    def before(self) -> Scores:
        """The figures of the best member."""
        return self.members[self.best]

    @property
    def after(self) -> Scores:
        """The figures of the folded network."""
        return self.network.figures

    @property
    def lost(self) -> Scores:
        """What the ensemble's figures lie below those of the folded network; negative: a gain."""
        return Scores(self.after.error - self.ensemble.error, self.after.nll - self.ensemble.nll)

    def __str__(self) -> str:
        """Say what was folded, and what it lost."""
        if len(self.folded) == 1:
            what = f"No average was safe: member {self.best} is kept as it is"
        else:
            what = f"Members {', '.join(map(str, self.folded))} are folded into one network"
        return (
            f"{what}: validation NLL {self.after.nll:.4f} (best member {self.before.nll:.4f}, "
            f"ensemble {self.ensemble.nll:.4f}), error {self.after.error:.2f} % (best member "
            f"{self.before.error:.2f} %, ensemble {self.ensemble.error:.2f} %)"
        )


def fold(
    model: nn.Module,
    members: Members,
    validation: Iterable[Any],
    *,
    refresh: Iterable[Any],
    num_images: int | None = 5120,
    forward_fn: ForwardFn | None = None,
) -> Fold:
    """Fold members into one network by greedily averaging weights while validation NLL allows it.

    The greedy soup of Wortsman et al. 2022 (arXiv 2203.05482, recipe 1), by NLL: it starts from
    the member of the lowest validation NLL, tries the others from good to bad, and keeps one in
    the average if the average with it, its batch-norm statistics estimated anew, has no higher
    validation NLL than the average without. So members from other basins are refused by being
    measured, and at worst the best member comes back as it was. The folded network's own
    validation figures are optimistic, for it was chosen by them.

    >>> import torch
    >>> from torch import nn
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> states = [{"weight": torch.tensor([[a, b], [b, a]])} for a, b in ((6.0, 2.0), (2.0, -2.0))]
    >>> result = fold(nn.Linear(2, 2, bias=False), states, [(x, y)], refresh=[x])
    >>> result.folded, result.state["weight"].tolist()
    ((0, 1), [[4.0, 0.0], [0.0, 4.0]])

    Args:
        model: the architecture, on the device to use; it is copied, not changed.
        members: a store, state dicts, modules or paths.
        validation: re-iterable of ``(x, y, ...)`` in one order; no training and no test data.
        refresh: re-iterable of ``x`` or ``(x, y, ...)`` that batch-norm statistics are estimated
            on: training data, without augmentation.
        num_images: as many are used for that; None uses all.
        forward_fn: ``forward_fn(model, batch) -> logits (N, C)`` for models that are not called
            as ``model(x)``.

    Raises:
        UserError: no members, tensors that do not fit the model, a member whose predictions are
            not finite, or batches that are used up, empty, shuffled or without targets.
    """
    for batches in (validation, refresh):
        check_reiterable(batches)
    if len(members) == 0:
        raise UserError("folding needs at least one member, got none")
    bench = _Bench(copy.deepcopy(unwrap(model)), validation, refresh, num_images, forward_fn)
    figures, mean = [], RunningMean()
    for position in range(len(members)):
        load_weights(bench.model, canonical_state(members[position]), f"member {position}")
        probs = bench.predict()
        figures.append(bench.figures(probs))
        if not math.isfinite(figures[-1].nll):
            raise UserError(f"member {position} gives predictions that are not finite; drop it")
        mean.update(probs)
    return fold_greedily(members, figures, bench.figures(mean.value), bench.measure)


def fold_greedily(
    members: Members,
    figures: Sequence[Scores],
    ensemble: Scores,
    measure: Callable[[dict[str, Tensor]], Candidate],
) -> Fold:
    """Fold members whose validation figures are known, as :func:`fold` says.

    Args:
        members: a store, state dicts, modules or paths.
        figures: of each.
        ensemble: those of their averaged probabilities.
        measure: turns averaged weights into a candidate, batch-norm statistics estimated anew.
    """
    best, *others = sorted(range(len(figures)), key=lambda position: figures[position].nll)
    network = Candidate(canonical_state(members[best]), figures[best])
    average, trials, images = RunningAverage(), [], 0
    average.update(network.state)
    for position in others:
        wider = average.including(members[position])
        candidate = measure(wider.state_dict())
        images += candidate.refresh_images
        kept = candidate.figures.nll <= network.figures.nll
        trials.append(Trial(position, candidate.figures, kept))
        if kept:
            network, average = candidate, wider
    return Fold(network, best, tuple(figures), ensemble, tuple(trials), images)


def scores_of(probs: Tensor, targets: Tensor) -> Scores:
    """Return the figures of probabilities (N, C) for targets (N,)."""
    if not bool(torch.isfinite(probs).all()):
        return NOT_FINITE
    return Scores(metrics.error(probs, targets), metrics.nll(probs, targets))


class _Bench:
    """A working copy of a model that measures weights on validation data."""

    def __init__(
        self,
        model: nn.Module,
        validation: Iterable[Any],
        refresh: Iterable[Any],
        num_images: int | None,
        forward_fn: ForwardFn | None,
    ) -> None:
        self.model = model
        self.validation = validation
        self.refresh = refresh
        self.num_images = num_images
        self.forward_fn = forward_fn
        self.targets: Tensor | None = None

    def measure(self, state: dict[str, Tensor]) -> Candidate:
        """Return what averaged weights become with batch-norm statistics of their own."""
        self.model.load_state_dict(state)
        images = refresh_batch_norm(
            self.model, self.refresh, num_images=self.num_images, forward_fn=self.forward_fn
        )
        probs = self.predict()
        return Candidate(canonical_state(self.model), self.figures(probs), probs, images)

    def predict(self) -> Tensor:
        """Return validation probabilities (N, C) float64, of the weights in the model."""
        probs, labels = [], []
        for batch, logits in predict_logits(
            self.model, self.validation, forward_fn=self.forward_fn
        ):
            probs.append(logits.double().softmax(dim=1).cpu())
            labels.append(_targets(batch).cpu())
        self._check_order(torch.cat(labels))
        return torch.cat(probs)

    def figures(self, probs: Tensor) -> Scores:
        """Return the validation figures of probabilities (N, C)."""
        assert self.targets is not None, "nothing was predicted yet"
        return scores_of(probs, self.targets)

    def _check_order(self, targets: Tensor) -> None:
        if self.targets is not None and not torch.equal(self.targets, targets):
            raise UserError(
                "validation batches come in another order at each pass; switch shuffling off"
            )
        self.targets = targets


def _targets(batch: Any) -> Tensor:
    if isinstance(batch, list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    raise UserError("validation batches must yield (inputs, targets, ...): targets are missing")
