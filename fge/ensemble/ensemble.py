"""Averaging the predictions of several sets of weights; memory does not grow with their number."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from fge.devices import free_memory
from fge.ensemble.deployed import Deployed, cast_to, chosen, floating_dtype, is_traced, twins
from fge.ensemble.ensemble_file import member_names, members_of, read_ensemble, write_ensemble
from fge.ensemble.networks import Networks, laid_out
from fge.ensemble.outputs import Combine, Outputs
from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.networks import (
    Exchange,
    ForwardFn,
    HostRows,
    Output,
    Passes,
    RunningMean,
    Weights,
    call_model,
    check_reiterable,
    check_whole,
    copy_module,
    fitting,
    nothing_yielded,
    single_refused,
    state_bytes,
    tensors,
    to_device,
)
from fge.observer import counted

Members = SnapshotStore | Sequence[Weights]
_PART_OF_MEMORY = 0.25
"""The part of the free memory that the members of a store may take."""


class Ensemble(nn.Module):
    """The averaged prediction of several sets of weights of one architecture.

    Members in memory are networks of their own, made at the first prediction. Others take turns in
    one working copy of the model, ``ensemble.model``; so do all of them once that module has been
    looked at, by its name or as one of :meth:`modules`: a hook or a change to it counts for each.
    Threads that predict at the same time wait for each other. Members always predict in evaluation
    mode, even after :meth:`train`. Their parameters get no gradients; the inputs of :meth:`forward`
    do. :meth:`state_dict` holds all members, under ``members.0.``, ``members.1.``, ...
    :meth:`deployable` is the same as a plain module, which compiles and exports.

    >>> import torch
    >>> models = [torch.nn.Linear(1, 1) for _ in range(2)]
    >>> for model, value in zip(models, (1.0, 3.0)):
    ...     _ = model.weight.data.fill_(value), model.bias.data.zero_()
    >>> ensemble = Ensemble(models[0], models, output="identity")
    >>> figures = ensemble.uncertainty([torch.tensor([[2.0], [4.0]])])
    >>> figures["mean"].tolist(), figures["variance"].tolist()
    ([[4.0], [8.0]], [[4.0], [16.0]])

    Args:
        model: the architecture; it is copied, not changed. It is whole, not under ``fully_shard``.
        members: a store, state dicts, modules or paths to weights files.
        forward_fn: ``forward_fn(model, batch) -> outputs (N, ...)`` for models that are not called
            as ``model(x)``.
        combine: ``"probs"`` averages predictions; ``"logits"`` averages outputs before the softmax,
            the sigmoid or the function.
        output: what the outputs are. ``"softmax"``: logits of exclusive classes, (N, C) or with
            further dimensions, (N, C, H, W) for example; ``"sigmoid"``: logits of two classes or
            of independent labels, of any shape; ``"identity"``: predictions, as of regression, of
            any shape (N, ...); or a function of the outputs in float64.
        output_dim: the dimension of the classes of a softmax; -1 for tokens (N, T, C).
        in_memory: whether the members of a store are kept in memory, on the device of the model,
            or read from disk at each use. By default they are kept if they take at most a quarter
            of the free memory. Other members are always kept.

    Raises:
        UserError: no members, a file that cannot be read, tensors that do not fit the model, a
            module with another buffer that is not in its state, an unknown option, or a model that
            is sharded or cannot be copied.
    """

    _cast: torch.dtype | None = None
    _seen = False
    """Whether somebody has looked at the working copy, who may have changed it."""
    _together = True
    """Whether the members in memory are on the device of the model."""

    def __init__(
        self,
        model: nn.Module,
        members: Members,
        *,
        forward_fn: ForwardFn | None = None,
        combine: Combine = "probs",
        output: Output = "softmax",
        output_dim: int = 1,
        in_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.outputs = Outputs(output, output_dim, combine)
        if len(members) == 0:
            raise UserError("an ensemble needs at least one member, got none")
        check_whole(model)
        self.forward_fn = forward_fn
        self.model = copy_module(model).eval()
        self._exchange, self._networks = Exchange(), Networks()
        self.members: SnapshotStore | list[dict[str, Tensor]]
        if isinstance(members, SnapshotStore):
            kept = self._fits(len(members)) if in_memory is None else in_memory
            self.members = self._whole_store(members, kept=kept)
        else:
            states = (fitting(self._model, *named) for named in _named(members))
            self.members = self._placed(_cloned(state) for state in states)

    def __getattr__(self, name: str) -> Any:
        """Return a module, as PyTorch does, and note who looks at the working copy."""
        if name == "model":
            self._seen = True
        return super().__getattr__(name)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the working copy with its name."""
        self._seen = True
        return super().named_children()

    def named_modules(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        """Return the modules of the working copy with their names."""
        self._seen = True
        return super().named_modules(*args, **options)  # type: ignore[no-any-return]

    @property
    def _model(self) -> nn.Module:
        return cast("nn.Module", self._modules["model"])

    @property
    def combine(self) -> Combine:
        """What is averaged: ``"probs"`` or ``"logits"``."""
        return self.outputs.combine

    def __repr__(self) -> str:
        """Return the architecture, the number of members, and what they predict and average."""
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        return (
            f"Ensemble({counted(len(self), 'member')} of {type(self._model).__name__}, "
            f"{counted(parameters, 'parameter')} each, {self.outputs!r})"
        )

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.members)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module; its members stay in evaluation mode."""
        self.training = mode
        self._model.eval()
        return self

    def forward(self, batch: Any) -> Tensor:
        """Return the mean prediction for one batch.

        Args:
            batch: inputs ``x``, or whatever ``forward_fn`` takes. If a tensor in it requires a
                gradient, the prediction can be differentiated with respect to it; the weights of
                all members are then copied. :meth:`deployable` copies them once for many batches.

        Returns:
            predictions (N, ...), for a softmax probabilities (N, C) whose rows sum to 1, in the
            dtype of the model's outputs.

        Raises:
            UserError: the outputs are no tensor (N, ...), or a single one for a softmax; or this is
                called by ``torch.export`` or ``torch.jit.trace``.
        """
        if is_traced():
            raise UserError(
                "torch.export and torch.jit.trace cannot follow the exchange of weights in an "
                "Ensemble; give them ensemble.deployable(), which holds a network for each member"
            )
        if not torch.is_grad_enabled():
            return self._mean_of(self._in_turn(), batch)
        differentiable = any(tensor.requires_grad for tensor in tensors(batch))
        with torch.set_grad_enabled(differentiable):
            return self._mean_of(self._copies() if differentiable else self._in_turn(), batch)

    def deployable(
        self, members: Sequence[int] | None = None, *, preprocess: nn.Module | None = None
    ) -> Deployed:
        """Return the same prediction as a module that compiles and exports: a network a member.

        Args:
            members: the positions of those that are wanted, from 0; by default all.
            preprocess: is applied to the inputs first, such as :class:`fge.Normalise`; it is moved
                to the device of the ensemble.

        Raises:
            UserError: a member is unknown or given twice, or none is given.
        """
        copies = list(twins(self._model, [self.members[k] for k in chosen(members, len(self))]))
        deployed = Deployed(copies, self.outputs, forward_fn=self.forward_fn, preprocess=preprocess)
        deployed.cast = self._cast is not None
        return deployed.to(self._device())

    def predict(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean prediction over a whole data set.

        Args:
            batches: yields ``x`` or ``(x, y, ...)``, the same batches in the same order on each
                pass; there is one pass per member.

        Returns:
            predictions (N, ...) float64 on the CPU: probabilities, or with ``output="identity"``
            the outputs.

        Raises:
            UserError: ``batches`` can be iterated only once, is empty, or changes its order; or
                outputs are no tensor (N, ...), a single one for a softmax, or differ in shape.
        """
        mean = RunningMean()
        for values in self._passes(batches, self.outputs.averaged):
            mean.update(values)
        return self.outputs.finished(mean.value)

    def predict_proba(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean probabilities over a whole data set.

        Args:
            batches: as of :meth:`predict`.

        Returns:
            probs (N, ...) float64 on the CPU; of a softmax (N, C), rows sum to 1.

        Raises:
            UserError: as :meth:`predict`, or the outputs are not known to be probabilities.
        """
        if not self.outputs.probable:
            raise UserError(
                f"predict_proba needs output='softmax' or 'sigmoid', this ensemble has "
                f"{self.outputs!r}; use predict"
            )
        return self.predict(batches)

    def predict_members(self, batches: Iterable[Any]) -> Tensor:
        """Return the prediction of each of the S members over a whole data set.

        Args:
            batches: as of :meth:`predict`.

        Returns:
            predictions (S, N, ...) float64 on the CPU; their mean over S is :meth:`predict`
            unless ``combine="logits"``.

        Raises:
            UserError: as :meth:`predict`.
        """
        return torch.stack(list(self._passes(batches, self.outputs.predictions)))

    def uncertainty(self, batches: Iterable[Any], *, members: bool = False) -> dict[str, Tensor]:
        """Return the mean prediction and how uncertain it is.

        Probabilities: the entropy H(mean p) of the mean, in nats; its part that the members agree
        on, the expected entropy mean H(p); its part that they disagree on, the mutual information
        H(mean p) - mean H(p) (arXiv 1112.5745, equation 2); and the disagreement, the fraction of
        members whose label is not the mean's. Other outputs: the variance over the S members,
        sum (f_s - mean f)² / S. The members take one pass, and memory that does not grow with S.

        Args:
            batches: as of :meth:`predict`.
            members: also return each member's prediction.

        Returns:
            float64 on the CPU: ``mean`` (N, ...) as of :meth:`predict`; for ``"softmax"``
            ``entropy``, ``expected_entropy``, ``mutual_information`` and ``disagreement`` without
            the dimension of the classes: (N,) for (N, C); for ``"sigmoid"`` the same in the shape
            of the outputs, of each label by itself (predicted above one half); otherwise
            ``variance`` in the shape of the predictions. With ``members``, also ``members``
            (S, N, ...) as of :meth:`predict_members`. :func:`fge.metrics.uncertainty` gives the
            same for predictions that were kept.

        Raises:
            UserError: as :meth:`predict`, or ``combine="logits"``, whose mean is of no mixture.
        """
        if self.combine == "logits" and self.outputs.name != "identity":
            raise UserError(
                "uncertainty is that of averaged predictions, and this ensemble averages logits; "
                "use combine='probs'"
            )
        figures, kept = self.outputs.uncertainty(), []
        for predictions in self._passes(batches, self.outputs.predictions):
            figures.update(predictions)
            if members:
                kept.append(predictions)
        return {**figures.figures(), **({"members": torch.stack(kept)} if members else {})}

    def save(self, path: str | Path) -> None:
        """Write all members to one ``.safetensors`` file, completely or not at all.

        The file says what the outputs are, but a function is not saved.

        Raises:
            UserError: the path does not end in ``.safetensors``.
            OSError: the file could not be written; what it held before is unchanged.
        """
        write_ensemble(Path(path), self.members, self.outputs)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module,
        *,
        forward_fn: ForwardFn | None = None,
        output: Output | None = None,
    ) -> Ensemble:
        """Return the ensemble that :meth:`save` wrote.

        Args:
            path: the file.
            model: the architecture, with whatever weights; it is copied, not changed.
            forward_fn: as of the constructor; it is not in the file.
            output: by default what the file says.

        Raises:
            UserError: there is no such file, it holds no whole ensemble, its tensors do not fit the
                model, or it was saved with a function as ``output`` and none is given.
        """
        members, options = read_ensemble(Path(path), output)
        try:
            return cls(model, members, forward_fn=forward_fn, **options)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Put the tensors of all members into a state dict."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for position, state in enumerate(self.members):
            for name, tensor in member_names(position, state, prefix):
                destination[name] = tensor

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the tensors of all members by name: ``members.0.weight``, ...

        As in PyTorch they are not copied, except those that are read from a store.
        """
        state = super().state_dict(*args, **options)
        prefix = f"{options.get('prefix', args[1] if len(args) > 1 else '')}model."
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]  # the working copy, which holds one member at a time
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *_arguments: Any
    ) -> None:
        """Take over all members, after they have been checked.

        Raises:
            UserError: the state holds another number of members, or tensors that do not fit.
        """
        own = {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}
        states = members_of(own, "the state dict")
        if len(states) != len(self):
            raise UserError(
                f"the state dict holds {counted(len(states), 'member')} and the ensemble has "
                f"{len(self)}; make it with as many members, or use Ensemble.save and load"
            )
        fitted = [fitting(self._model, *named) for named in _named(states)]
        self._exchange, self._networks = Exchange(), Networks()
        self.members = self._placed(_cloned(state) for state in fitted)
        for name, tensor in self.members[0].items():  # what PyTorch loads into the working copy
            state_dict[f"{prefix}model.{name}"] = tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the working copy; members in memory follow it to its device.

        After a cast, inputs are cast too.
        """
        before, seen = floating_dtype(self._model), self._seen
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after, self._seen = floating_dtype(self._model), seen
        self._cast = self._cast if after == before else after
        self._exchange, self._networks = Exchange(), Networks()
        if not isinstance(self.members, SnapshotStore):
            self.members = self._placed(self.members)
        return self

    def _device(self) -> torch.device:
        held = itertools.chain(self._model.parameters(), self._model.buffers())
        return next((tensor.device for tensor in held), torch.device("cpu"))

    def _fits(self, members: int) -> bool:
        """Return whether so many members take a small part of the memory that is free."""
        needed = members * state_bytes(self._model)
        return needed <= _PART_OF_MEMORY * free_memory(torch.device("cpu"))

    def _whole_store(
        self, store: SnapshotStore, *, kept: bool
    ) -> SnapshotStore | list[dict[str, Tensor]]:
        """Return the members of a store, checked, in memory or as a store that does not grow."""
        states = (fitting(self._model, *named) for named in _named(store))
        if kept:
            return self._placed(states)
        for _ in states:
            pass
        return copy.copy(store)  # its index is replaced when it grows, and not changed

    def _placed(self, states: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return states in memory: on the model's device where they fit, else where they are.

        Their tensors lie there as those of the model (channels last), which can then borrow them.
        """
        device, held = self._device(), list(states)
        needed = sum(t.nbytes for s in held for t in s.values() if t.device != device)
        self._together = device.type == "cpu" or needed <= _PART_OF_MEMORY * free_memory(device)
        if not self._together:
            return [dict(state) for state in held]
        slots = self._model.state_dict()
        return [
            {name: laid_out(tensor.to(device), slots.get(name)) for name, tensor in s.items()}
            for s in held
        ]

    def _in_turn(self) -> Iterator[nn.Module]:
        """Yield the network of each member, or the working copy with each member's weights."""
        members, networks = self.members, self._networks
        kept = isinstance(members, list)
        if isinstance(members, list) and self._together and not (self._seen or networks.stateful):
            yield from networks.in_turn(self._model, members)
            return
        for _ in self._exchange.in_turn(self._model, members, keep=kept):
            yield self._model

    def _copies(self) -> Iterator[nn.Module]:
        """Yield a network for each member: a graph outlives the exchange of weights."""
        return twins(self._model, self.members)

    def _mean_of(self, members: Iterator[nn.Module], batch: Any) -> Tensor:
        outputs = (self._outputs(batch, member) for member in members)
        return self.outputs.mean_of(outputs, len(self.members))

    def _outputs(self, batch: Any, member: nn.Module) -> Tensor:
        batch = batch if self._cast is None else cast_to(self._cast, batch)
        forward = call_model if self.forward_fn is None else self.forward_fn
        return self.outputs.checked(forward(member, batch))

    def _passes(
        self, batches: Iterable[Any], transform: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Yield the transformed outputs (N, ...) of each member over a data set, on the CPU."""
        check_reiterable(batches)
        device, passes = self._device(), Passes()
        for member in self._in_turn():
            member.eval()
            passes.begin()
            rows: HostRows | None = None
            shape: tuple[int, ...] = ()
            for batch in batches:
                moved = to_device(batch, device)
                # not inference_mode: a model may store what it computes here
                with torch.no_grad(), single_refused():
                    outputs = self._outputs(moved, member)
                    values = transform(outputs)
                passes.look(moved, len(values))
                if rows is None:
                    rows, shape = HostRows(), values.shape[1:]
                if values.shape[1:] != shape:
                    raise _ragged(shape, tuple(values.shape[1:]))
                rows.add(values)
            if rows is None:
                raise nothing_yielded()
            passes.end()
            yield rows.all()


def _named(states: Iterable[Weights]) -> Iterator[tuple[Weights, str]]:
    """Yield the weights of members, each with its name for errors."""
    return ((state, f"member {position}") for position, state in enumerate(states))


def _cloned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state: the network it was given with may continue to train."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _ragged(first: tuple[int, ...], other: tuple[int, ...]) -> UserError:
    return UserError(
        f"predictions of one batch have shape (N, {', '.join(map(str, first))}), of another "
        f"(N, {', '.join(map(str, other))}); pad the inputs to one size, or call the ensemble on "
        "each batch"
    )
