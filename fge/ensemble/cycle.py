"""``FGE``: cyclic learning rate, snapshots and ensemble inside somebody's own training loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from fge.ensemble.ensemble import Ensemble
from fge.ensemble.outputs import Combine
from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.networks import (
    Output,
    UniformAverage,
    Weights,
    check_copyable,
    check_plain,
    check_reiterable,
    gather_state,
    has_running_statistics,
    is_sharded,
    kept_as_trained,
    own_statistics,
    ranks_of,
    refresh_batch_norm,
    state_of,
    unnoticed,
    warn_of_statistics,
)
from fge.parallel import Ranks
from fge.train import TriangularLR


class FGE:
    """Fast Geometric Ensembling (arXiv 1802.10026) in three lines of a training loop.

    Call :meth:`step` after every optimizer step. It sets the next learning rate and, at each
    minimum of the cycle, keeps a snapshot of the model with its buffers: the mean of its weights
    over the last part of the descent (arXiv 2202.06658), or the last weights.

    Args:
        model: any module; wrappers of ``torch.compile`` and data-parallel are seen through. It may
            be sharded by ``fully_shard``: snapshots hold it whole.
        optimizer: any optimizer; its learning rates are set from now on.
        cycle_steps: optimizer steps per cycle, even.
        max_lr: rate at the start of a cycle; one number, or one per parameter group. One number is
            that of later groups too (``add_param_group``), from the next :meth:`step` on.
        min_lr: rate in the middle of a cycle; one number, or one per parameter group.
        out: folder of the snapshots.
        average: the last part of each descent over which a snapshot is the mean of the weights, in
            [0, 1]; 0 keeps the last weights, the paper's rule. By default 0.3 where the mean needs
            no more data: ``refresh`` is given, or the model has no batch norm and no instance norm
            with running statistics; otherwise 0. It is 0 too if a layer of one's own has a buffer
            ``running_mean`` or ``running_var``, which ``refresh`` does not estimate.
        refresh: re-iterable of training inputs, ``x`` or ``(x, y, ...)``, varied as in training, to
            estimate the batch-norm statistics of a mean. The training is not touched. Layers that
            it holds in evaluation mode keep their statistics.
        overwrite: drop the snapshots that the folder holds.
        forward_fn: ``forward_fn(model, batch) -> logits (N, C)`` for models that are not called
            as ``model(x)``.
        write: whether this process writes the snapshots. By default all do, but of a model in
            ``DistributedDataParallel`` or ``fully_shard`` only the first process; the others hold
            the position in the cycle alone, and call :meth:`step` and the state's methods all the
            same. Give True in each where every machine is to have a folder of its own.
        ranks: the processes that train the model together, where it does not say so itself: by
            default those of its ``DistributedDataParallel`` or ``fully_shard``.

    Raises:
        UserError: a learning rate or ``cycle_steps`` that makes no cycle, a mean of a model with
            batch norm without ``refresh`` or of a sharded model, an optimizer whose parameters are
            all frozen, a model that cannot be copied for an ensemble, whose state holds something
            other than tensors, or that is sharded over a mesh of several dimensions that leaves
            processes out.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        cycle_steps: int,
        max_lr: float | Sequence[float],
        min_lr: float | Sequence[float],
        out: str | Path,
        average: float | None = None,
        refresh: Iterable[Any] | None = None,
        overwrite: bool = False,
        forward_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        write: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.forward_fn = forward_fn
        self.sharded = is_sharded(model)
        if not self.sharded:  # sharded weights are gathered for an architecture given later
            check_copyable(model)
            _check_saved(model)
        if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
            raise UserError("no parameter of the optimizer requires a gradient; set requires_grad")
        self.scheduler = TriangularLR(
            optimizer, max_lr=max_lr, min_lr=min_lr, cycle_steps=cycle_steps
        )
        self.store = SnapshotStore(out)
        self.ranks = ranks_of(model) if ranks is None else ranks
        self.writes = self.ranks.leads if write is None else write
        if refresh is not None:
            check_reiterable(refresh)
        self.refresh = refresh
        self.average = _part(average, model, refresh, sharded=self.sharded)
        self._mean: UniformAverage | None = None  # made when weights exist: some are lazy
        self._included = -1  # the last step whose weights are in the mean
        self._kept = 0
        if overwrite:
            with self.ranks.together():
                if self.writes:
                    self.store.truncate(0)
        self._owns_store = len(self.store) == 0 or not self.writes

    def __repr__(self) -> str:
        """Return the step reached, that of the next snapshot, and what is kept.

        Steps after the last snapshot are not in the ensemble.
        """
        step, length = self.scheduler.last_epoch, self.scheduler.cycle_steps
        upcoming = step + ((length // 2 - 1 - step) % length) + 1
        return (
            f"FGE(step {step} in cycles of {length} steps, next snapshot after step {upcoming}, "
            f"average={self.average:g}, {self.store!r})"
        )

    def step(self) -> bool:
        """Set the learning rate of the next optimizer step; keep a snapshot at a minimum.

        The processes of a ``DistributedDataParallel`` or ``fully_shard`` model call this together:
        at a minimum the running statistics of batch norm become their means over the processes,
        and other buffers those of the first, so that the snapshot is the same whoever writes it.
        A sharded model is gathered. The snapshot is written when they come back, and if one cannot
        write it all raise. After an error the position is as before, so that a call with the same
        weights, once its cause is mended, keeps the snapshot.

        Returns:
            Whether a snapshot was kept, by whichever process.

        Raises:
            UserError: the folder held snapshots before, and no saved state was loaded; the
                optimizer's learning rates are not those that the last call set; it has parameter
                groups without a rate; or another process could not write.
            OSError: the snapshot could not be written.
        """
        if not self._owns_store:
            raise UserError(
                f"{self.store.path} already holds {len(self.store)} snapshots; load the saved "
                "state to continue from them, give another folder, or overwrite=True to drop them"
            )
        self._check_rates()
        self._join_groups()
        before = self.scheduler.state_dict()
        self.scheduler.step()
        try:
            self._include()
            return self.scheduler.at_minimum and self._keep()
        except Exception:
            self.scheduler.load_state_dict(before)
            raise

    def _keep(self) -> bool:
        """Keep a snapshot; return True."""
        self.ranks.synchronise(self.model)
        weights: Weights = self.model
        if self.sharded:
            weights = gather_state(self.model, self.ranks, keeps=self.writes)
        # Processes wait for each other, so that all find the snapshot in the folder.
        with self._averaged() as facts, self.ranks.together():
            if self.writes:
                lr = float(self.scheduler.get_last_lr()[0])
                self.store.append(weights, step=self.scheduler.last_epoch, lr=lr, **facts)
        self._kept += 1
        return True

    def _check_rates(self) -> None:
        """Check that the optimizer has used the rates that were set for it.

        Raises:
            UserError: something else has changed them.
        """
        schedule = self.scheduler
        due = (schedule.last_epoch + 1) % schedule.cycle_steps == schedule.cycle_steps // 2
        pairs = zip(schedule.optimizer.param_groups, schedule.get_lr(), strict=False)
        for number, (group, rate) in enumerate(pairs):
            found, precision = group["lr"], 1e-6
            if isinstance(found, Tensor):
                if found.device.type != "cpu" and not due:  # reading it waits for the device
                    continue
                precision = max(precision, torch.finfo(found.dtype).eps)
            if not math.isclose(found, rate, rel_tol=precision):
                raise UserError(
                    f"the learning rate of parameter group {number} is {float(found):g}, but FGE "
                    f"set it to {rate:g}: leave the rates to FGE, without another scheduler; to "
                    "resume, load the optimizer's state before that of FGE"
                )

    def _join_groups(self) -> None:
        """Give parameter groups that the optimizer did not have before their place in the cycle.

        Raises:
            UserError: rates were given per group, so that these have none.
        """
        schedule = self.scheduler
        groups, known = schedule.optimizer.param_groups, len(schedule.max_lrs)
        if len(groups) == known:
            return
        if schedule.per_group:
            raise UserError(
                f"the optimizer has {len(groups)} parameter groups, but max_lr and min_lr were "
                f"given for {known}: make an FGE with rates for all and the same folder, and load "
                "this one's state_dict() into it"
            )
        schedule.join_groups()

    def _include(self) -> None:
        """Include the weights in the mean, or start a new one with them, within a tail."""
        step = self.scheduler.last_epoch
        tail = self.scheduler.tail_step(self.average) if self.average else None
        if tail is not None and step != self._included:  # a step that failed is taken again
            self._mean = self._mean or UniformAverage(self.model)
            self._mean.include(self.model, first=tail == 0)
            self._included = step

    @contextmanager
    def _averaged(self) -> Iterator[dict[str, int]]:
        """Have the mean, with statistics of its own, in the model; nothing where there is none.

        Processes pool their images, so that all have the same statistics.
        """
        if self._mean is None:
            yield {}
            return
        with (
            unnoticed(self.refresh) as batches,
            kept_as_trained(self.model),
            self._mean.swapped(self.model),
        ):
            if batches is not None:
                refresh_batch_norm(
                    self.model,
                    batches,
                    forward_fn=self.forward_fn,
                    all_ranks=self.ranks.size > 1,
                )
            yield {"averaged_steps": self._mean.updates}

    def ensemble(
        self,
        model: nn.Module | None = None,
        *,
        output: Output = "softmax",
        output_dim: int = 1,
        combine: Combine = "probs",
        in_memory: bool | None = None,
    ) -> Ensemble:
        """Return the ensemble of the snapshots so far; later ones do not join it.

        Args:
            model: the architecture, with whatever weights; by default that of the trained model.
                A sharded model cannot be copied, so it needs one here: unsharded, on the device
                where the ensemble is to predict.
            output: ``"softmax"``, ``"sigmoid"``, ``"identity"`` or a function, as of
                :class:`fge.Ensemble`.
            output_dim: the dimension of the classes of a softmax.
            combine: what is averaged, ``"probs"`` or ``"logits"``.
            in_memory: whether the snapshots are kept in memory; by default where they are small.

        Raises:
            UserError: there is no snapshot yet, an option is unknown, or the model is sharded.
        """
        # Read again from the folder: another process may have written it, and it still grows.
        architecture = self.model if model is None else model
        return Ensemble(
            architecture,
            SnapshotStore(self.store.path),
            forward_fn=self.forward_fn,
            output=output,
            output_dim=output_dim,
            combine=combine,
            in_memory=in_memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs in addition to the states of the model and the optimizer."""
        kept = len(self.store) if self.writes else self._kept
        state = {"scheduler": self.scheduler.state_dict(), "snapshots": kept}
        if self.average:
            state["mean"] = copy.deepcopy(self._mean.state_dict()) if self._mean else None
            state["included"] = self._included  # after a step that failed, the next one
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state: position in the cycle and number of snapshots.

        The cycle's options are those given to the constructor. Snapshots later than the state are
        dropped. Load the optimizer's state first, since it holds a learning rate of its own.

        Raises:
            UserError: the folder holds fewer snapshots than the state speaks of, or the state has
                no mean of weights; or the optimizer has parameter groups without a rate.
        """
        self._join_groups()
        if self.average:
            if "mean" not in state_dict:
                raise UserError(
                    f"average is {self.average:g}, but the state was saved without a mean of "
                    "weights; give average=0, as it was saved with"
                )
            self._mean = None
            if state_dict["mean"] is not None:
                self._mean = UniformAverage(self.model)
                self._mean.load_state_dict(state_dict["mean"])
        expected = state_dict["snapshots"]
        with self.ranks.together():
            if self.writes and len(self.store) < expected:
                raise UserError(
                    f"{self.store.path} holds {len(self.store)} snapshots, the state speaks of "
                    f"{expected}: give the folder that the state was saved with"
                )
            if self.writes:
                self.store.truncate(expected)
        self._kept = expected
        self._included = state_dict.get("included", -1)
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self._owns_store = True


_USUAL_PART = 0.3
"""The last part of a descent that is averaged by default, where that needs no more data."""


def _check_saved(model: nn.Module) -> None:
    """Check, before any training, that a snapshot can hold the model's state.

    Raises:
        UserError: it holds something other than plain tensors; the message names it.
    """
    known = {name: t for name, t in state_of(model).items() if not is_lazy(t)}
    check_plain(known, "the model's state")


def _part(
    average: float | None, model: nn.Module, refresh: Iterable[Any] | None, *, sharded: bool
) -> float:
    """Return the part of each descent to average; refuse what would make a wrong network."""
    stale = refresh is None and has_running_statistics(model)
    if average is None:
        return 0.0 if stale or sharded or own_statistics(model) else _USUAL_PART
    if not 0 <= average <= 1:
        raise UserError(f"average must be in [0, 1], got {average}")
    if average and sharded:
        raise UserError(f"the weights of a sharded model are not averaged, got average={average}")
    if average and stale:
        raise UserError(
            f"average is {average:g} and the model has batch norm, or instance norm with running "
            "statistics, which are those of other weights than the mean: give refresh=batches of "
            "training inputs, or average=0"
        )
    if average:
        warn_of_statistics(model, stacklevel=4)
    return average
