"""Folding the members of an ensemble into one network by averages of weights, each measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.ensemble.ensemble import Members
from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.networks import (
    REFRESH_IMAGES,
    ForwardFn,
    LossFn,
    Passes,
    RunningAverage,
    RunningMean,
    TargetFn,
    Weights,
    canonical_state,
    check_reiterable,
    check_unsaved,
    copy_module,
    count_examples,
    fitting,
    loss_of_targets,
    parts_of,
    predict_logits,
    predict_outputs,
    refresh_batch_norm,
    reordered,
    same_values,
    state_of,
    targets_of,
    tensors,
    unwrap,
)
from fge.observer import counted, listed
from fge.tasks import MANY_CLASSES, Task


class Scores(NamedTuple):
    """Error (percent), or the first figure of another task, and NLL (nats per example).

    Of a loss of one's own, NaN and the loss.
    """

    error: float
    nll: float


NOT_FINITE = Scores(math.nan, math.inf)
"""The scores of outputs that are not finite, the worst of all."""


@dataclass(frozen=True)
class Candidate:
    """A network that a fold may return.

    ``state``: its tensors by name; ``figures``: its validation scores; ``probs`` (N, C): its
    validation probabilities, None for an unchanged member; ``refresh_images``: images passed
    forward for its batch-norm statistics.
    """

    state: dict[str, Tensor]
    figures: Scores
    probs: Tensor | None = None
    refresh_images: int = 0


class Trial(NamedTuple):
    """One step of a fold.

    ``member``: the position of the member tried; ``figures``: validation scores of the average
    with it; ``kept``: whether it stayed in the average.
    """

    member: int
    figures: Scores
    kept: bool


@dataclass(frozen=True)
class Fold:
    """Members folded into one network, with validation scores before and after.

    ``network``: the result; ``best``: the position of the member that the fold started from;
    ``members``: the scores of each; ``ensemble``: the scores of their averaged probabilities;
    ``trials``: the averages measured, in order; ``refresh_images``: images passed forward for the
    batch-norm statistics of all trials.
    """

    network: Candidate
    best: int
    members: tuple[Scores, ...]
    ensemble: Scores
    trials: tuple[Trial, ...]
    refresh_images: int

    def __repr__(self) -> str:
        """Return the description, without the weights."""
        return f"<Fold of {counted(len(self.members), 'member')}. {self}>"

    @property
    def state(self) -> dict[str, Tensor]:
        """The folded network's tensors by name, on the CPU, contiguous."""
        return self.network.state

    @property
    def folded(self) -> tuple[int, ...]:
        """The positions of the members in the average; only the best one if no average was safe."""
        return (self.best, *(trial.member for trial in self.trials if trial.kept))

    @property
    def before(self) -> Scores:
        """The scores of the best member."""
        return self.members[self.best]

    @property
    def after(self) -> Scores:
        """The scores of the folded network."""
        return self.network.figures

    @property
    def lost(self) -> Scores:
        """The scores of the folded network minus those of the ensemble; below 0 is a gain."""
        return Scores(self.after.error - self.ensemble.error, self.after.nll - self.ensemble.nll)

    def __str__(self) -> str:
        """Describe what was folded and what was lost."""
        if len(self.folded) == 1:
            what = f"No average was safe: member {self.best} is returned unchanged"
        else:
            what = f"Members {listed(self.folded)} are folded into one network"
        if math.isnan(self.after.error):
            others = f"best member {self.before.nll:.4f}"
            if not math.isnan(self.ensemble.nll):
                others += f", ensemble {self.ensemble.nll:.4f}"
            return f"{what}: validation loss {self.after.nll:.4f} ({others})"
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
    num_images: int | None = REFRESH_IMAGES,
    loss_fn: LossFn | None = None,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
) -> Fold:
    """Fold members into one network by greedily averaging weights while validation NLL allows it.

    The greedy soup of Wortsman et al. 2022 (arXiv 2203.05482, recipe 1), by NLL: it starts from
    the member with the lowest validation NLL, tries the others from good to bad, and keeps one in
    the average if the average with it, with its own batch-norm statistics, has no higher
    validation NLL than the average without it. So the measurement excludes members from other
    basins, and in the worst case the best member is returned unchanged. The folded network's
    validation scores are optimistic, because they chose it.

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
        validation: re-iterable of ``(x, y)`` in one order; neither training nor test data.
        refresh: re-iterable of ``x`` or ``(x, y, ...)`` for estimating batch-norm statistics:
            training data, varied as in training.
        num_images: how many images estimate the statistics; None uses all.
        loss_fn: judge by this mean loss of outputs and targets and not by NLL, for regression,
            tokens and other outputs (N, ...). The ensemble is then that of averaged outputs. If
            ``forward_fn`` returns the loss of a batch, give ``lambda loss, _: loss``; there is no
            loss of the ensemble then.
        forward_fn: ``forward_fn(model, batch) -> logits (N, C)`` for models that are not called
            as ``model(x)``.
        target_fn: ``target_fn(batch) -> targets (N,)`` where they are not the second of two parts.

    Raises:
        UserError: no members, tensors that do not fit the model, a model that cannot be copied or
            has a single output, a member whose predictions are not finite, or batches that are
            used up, empty, shuffled or without targets.
    """
    for batches in (validation, refresh):
        check_reiterable(batches)
    if len(members) == 0:
        raise UserError("folding needs at least one member, got none")
    copy = copy_module(model)
    how = copy, validation, refresh, num_images, forward_fn, target_fn
    bench = _Bench(*how) if loss_fn is None else _LossBench(loss_fn, *how)
    named = _UnderNames(copy, members)
    figures, mean = [], RunningMean()
    for position in range(len(members)):
        bench.model.load_state_dict(named[position])
        probs = bench.predict()
        figures.append(bench.figures(probs))
        if not math.isfinite(figures[-1].nll):
            raise UserError(f"member {position} gives predictions that are not finite; drop it")
        mean.update(probs)
    return fold_greedily(named, figures, bench.joint_figures(mean.value), bench.measure)


class _Indexed(Protocol):
    """Members that are taken one by one."""

    def __getitem__(self, position: int, /) -> Weights:
        """Return the weights of a member."""


class _UnderNames:
    """Members under the names of a model, which may differ from theirs by wrappers."""

    def __init__(self, model: nn.Module, members: Members) -> None:
        self._model, self._members = model, members
        # Before any forward pass, which may write to such buffers of the model.
        given = () if isinstance(members, SnapshotStore) else members
        for position, member in enumerate(given):
            if isinstance(member, nn.Module):
                check_unsaved(unwrap(model), unwrap(member), f"member {position}")

    def __getitem__(self, position: int, /) -> dict[str, Tensor]:
        """Return the tensors of a member.

        Raises:
            UserError: they do not fit the model.
        """
        return fitting(self._model, state_of(self._members[position]), f"member {position}")


def fold_greedily(
    members: _Indexed,
    figures: Sequence[Scores],
    ensemble: Scores,
    measure: Callable[[dict[str, Tensor]], Candidate],
) -> Fold:
    """Fold members whose validation scores are known; see :func:`fold`.

    Args:
        members: a store, state dicts, modules or paths.
        figures: the scores of each member.
        ensemble: the scores of their averaged probabilities.
        measure: turns averaged weights into a candidate with its own batch-norm statistics.
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


def scores_of(probs: Tensor, targets: Tensor, task: Task = MANY_CLASSES) -> Scores:
    """Return the scores of probabilities (N, C), or what a task predicts, for targets (N,)."""
    if not bool(torch.isfinite(probs).all()):
        return NOT_FINITE
    return Scores(*task.scores(probs, targets))


class _Bench:
    """A working copy of a model that measures weights on validation data."""

    def __init__(
        self,
        model: nn.Module,
        validation: Iterable[Any],
        refresh: Iterable[Any],
        num_images: int | None,
        forward_fn: ForwardFn | None,
        target_fn: TargetFn | None,
    ) -> None:
        self.model = model
        self.validation = validation
        self.refresh = refresh
        self.num_images = num_images
        self.forward_fn = forward_fn
        self.target_fn = target_fn
        self.targets: Tensor | None = None
        self._passes = Passes("validation batches")

    def measure(self, state: dict[str, Tensor]) -> Candidate:
        """Return the candidate of averaged weights, with their own batch-norm statistics."""
        self.model.load_state_dict(state)
        images = refresh_batch_norm(
            self.model,
            self.refresh,
            num_images=self.num_images,
            forward_fn=self.forward_fn,
            target_fn=self.target_fn,
        )
        probs = self.predict()
        return Candidate(canonical_state(self.model), self.figures(probs), probs, images)

    def predict(self) -> Tensor:
        """Return the model's validation probabilities (N, C), float64."""
        probs, labels = [], []
        self._passes.begin()
        for batch, logits in predict_logits(
            self.model, self.validation, forward_fn=self.forward_fn
        ):
            if logits.shape[1] == 1:
                raise UserError(
                    "folding measures the probabilities of two or more classes, and the model has "
                    "one output; give forward_fn=lambda model, batch: ..., which returns, say, the "
                    "logits (0, z) of two classes"
                )
            self._passes.look(batch, len(logits))
            probs.append(logits.double().softmax(dim=1).cpu())
            labels.append(self._targets_of(batch).cpu())
        self._passes.end()
        self._check_order(torch.cat(labels))
        return torch.cat(probs)

    def figures(self, probs: Tensor) -> Scores:
        """Return the validation scores of probabilities (N, C)."""
        assert self.targets is not None, "nothing was predicted yet"
        return scores_of(probs, self.targets)

    def joint_figures(self, probs: Tensor) -> Scores:
        """Return the validation scores of averaged probabilities (N, C)."""
        return self.figures(probs)

    def _check_order(self, targets: Tensor) -> None:
        if self.targets is not None and not same_values(self.targets, targets):
            raise reordered("validation batches")
        self.targets = targets

    def _targets_of(self, batch: Any) -> Tensor:
        few = self.target_fn is None and len(parts_of(batch) or ()) < 2
        targets = None if few else targets_of(batch, F.cross_entropy, self.target_fn)
        if not isinstance(targets, Tensor):
            raise UserError(
                "validation batches must yield (inputs, targets, ...): targets are missing; give "
                "them, or target_fn"
            )
        return targets


class _Filled:
    """The batches that have examples: the mean loss of none is not a number."""

    def __init__(self, batches: Iterable[Any], target_fn: TargetFn | None) -> None:
        self._batches, self._target_fn = batches, target_fn

    def __iter__(self) -> Iterator[Any]:
        """Yield them."""
        return (batch for batch in self._batches if count_examples(batch, self._target_fn))


class _LossBench(_Bench):
    """A working copy of a model that measures weights by a loss of one's own."""

    def __init__(self, loss_fn: LossFn, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loss_fn = loss_fn
        self._batches: list[tuple[Any, int, bool]] = []  # targets, examples, whether by example
        self._rows: list[int] = []
        self._dtype = torch.float32

    def predict(self) -> Tensor:
        """Return the model's validation outputs (N, ...), or the loss of each batch."""
        outputs: list[Tensor] = []
        self._batches = []
        self._passes.begin()
        for batch, found in predict_outputs(
            self.model, _Filled(self.validation, self.target_fn), forward_fn=self.forward_fn
        ):
            outputs.append(found.reshape(-1) if found.ndim == 0 else found)
            targets = targets_of(batch, self.loss_fn, self.target_fn)
            count = count_examples(batch, self.target_fn)
            self._passes.look(batch, count)
            self._batches.append((targets, count, found.ndim > 0))
        self._passes.end()
        if len({found.shape[1:] for found in outputs}) > 1:
            raise UserError(
                "the outputs of validation batches differ in shape, so that they cannot be "
                "averaged; pad all to one length"
            )
        parts = [t.reshape(-1).cpu() for held, _, _ in self._batches for t in tensors(held)]
        if parts:
            self._check_order(torch.cat(parts))
        self._rows = [len(found) for found in outputs]
        self._dtype = outputs[0].dtype
        return torch.cat(outputs)

    def figures(self, probs: Tensor) -> Scores:
        """Return the mean loss of outputs (N, ...), each batch weighted by its examples."""
        total, seen = 0.0, 0
        pieces = torch.split(probs, self._rows)
        for piece, (targets, count, whole) in zip(pieces, self._batches, strict=True):
            loss = loss_of_targets(piece if whole else piece[0], targets, self.loss_fn)
            total, seen = total + float(loss) * count, seen + count
        mean = total / seen
        return Scores(math.nan, mean if math.isfinite(mean) else math.inf)

    def joint_figures(self, probs: Tensor) -> Scores:
        """Return the loss of averaged outputs (N, ...); nothing is known of averaged losses."""
        if not all(whole for _, _, whole in self._batches):
            return Scores(math.nan, math.nan)
        return self.figures(probs.to(self._dtype))
