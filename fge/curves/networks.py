"""The networks on a curve: their state dicts, modules of their own, and ensembles of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from fge.curves.buffers import (
    Ends,
    Statistics,
    between,
    check_model,
    interpolated,
    statistics_of,
    unknown_statistic,
    warn_of_interpolated,
    write_buffers,
)
from fge.ensemble import Ensemble
from fge.errors import UserError
from fge.networks import (
    REFRESH_IMAGES,
    ForwardFn,
    Layout,
    copy_module,
    estimated_layers,
    refresh_batch_norm,
    write_parameters,
)
from fge.seeds import same_random_state


class Networks(ABC):
    """What curves and chains of curves share: the networks at their points."""

    layout: Layout | None

    @abstractmethod
    def at(self, t: float) -> Tensor:
        """Return w(t) (P,)."""

    @abstractmethod
    def ends_at(self, t: float) -> tuple[Ends | None, float]:
        """Return the buffers of the ends between which t lies, if known, and where: 0 to 1."""

    @abstractmethod
    def all_ends(self) -> list[Ends | None]:
        """Return the buffers of the ends of each piece, None where they are not known."""

    def statistics(self, model: nn.Module) -> Statistics:
        """Return which buffers the networks have where they are measured; printed, it is a text.

        They are those of :func:`fge.evaluate_curve`. An end in :meth:`module` has all its own.

        Args:
            model: the architecture.
        """
        return statistics_of(model, self.all_ends())

    def knows(self, t: float) -> bool:
        """Return whether the network at t is an end whose buffers the curve has."""
        ends, part = self.ends_at(t)
        return ends is not None and part in (0, 1)

    def buffers_at(self, t: float) -> dict[str, Tensor]:
        """Return the buffers at t by name, as copies: an end has its own, bitwise.

        In between they are linear in t, and those that are not floating-point the nearer end's.
        There are none if the curve does not have those of its ends.
        """
        ends, part = self.ends_at(t)
        return {} if ends is None else between(ends, part)

    def parameters(self, t: float) -> dict[str, Tensor]:
        """Return the parameters at t by name, contiguous, each with its own memory.

        Raises:
            UserError: the curve has no layout, or t is outside [0, 1].
        """
        vector = self.at(t)
        if self.layout is None:
            raise UserError("a state dict needs names; give the curve a layout: Layout.of(model)")
        return {name: part.clone() for name, part in self.layout.split(vector).items()}

    def state_dict(self, t: float) -> dict[str, Tensor]:
        """Return parameters and buffers at t by name, contiguous, each with its own memory.

        Buffers are those of :meth:`buffers_at`. Tied parameters have all their names if the layout
        knows them, as that of a fitted curve does. The extra state of modules
        (``get_extra_state``) is not on a curve: :meth:`module` has that of its model.

        Raises:
            UserError: running statistics at t are not known, as those of batch norm between the
                ends: use :meth:`module`; the curve has no layout, or t is outside [0, 1].
        """
        state = self.parameters(t)
        ends, part = self.ends_at(t)
        unknown = unknown_statistic(ends) if ends is not None and part not in (0, 1) else None
        if unknown is not None:
            raise UserError(
                f"the running statistics at t = {t:g} ({unknown!r}, ...) have to be estimated; use "
                f"curve.module(model, {t:g}, refresh=batches).state_dict(), or "
                f"curve.parameters({t:g}) for the parameters alone"
            )
        others = self.layout.other_names if self.layout is not None else {}
        tied = {name: state[first].clone() for name, first in others.items()}
        return {**state, **tied, **self.buffers_at(t)}

    def module(
        self,
        model: nn.Module,
        t: float,
        refresh: Iterable[Any] | None = None,
        *,
        num_images: int | None = REFRESH_IMAGES,
        forward_fn: ForwardFn | None = None,
    ) -> nn.Module:
        """Return a copy of a model with the network at t, in evaluation mode.

        An end has its own buffers. Elsewhere running statistics of batch norm and instance norm
        are estimated from data; other buffers are linear in t, with a warning if they differ.

        Args:
            model: the architecture, on the device to use; it is copied, not changed.
            t: from 0 to 1.
            refresh: re-iterable of ``x`` or ``(x, y, ...)``, training inputs varied as in training,
                to estimate running statistics; needed if the model has any, except at an end.
            num_images: at most this many of them; None for all.
            forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
                ``model(x)``.

        Raises:
            UserError: ``refresh`` is missing, the curve is of another architecture, t is outside
                [0, 1], or the model cannot be copied.
        """
        vector, known = self.at(t), self.knows(t)
        self.check_fits(model)
        estimated = bool(estimated_layers(model)) and not known
        if estimated and refresh is None:
            raise UserError(
                f"the running statistics at t = {t:g} have to be estimated; give "
                "refresh=batches of training inputs"
            )
        network = copy_module(model)
        write_parameters(network, vector)
        write_buffers(network, self.buffers_at(t))
        self.warn_of_interpolated(network, [t])
        if estimated and refresh is not None:
            with same_random_state():  # a loader may draw its order from the global generator
                refresh_batch_norm(network, refresh, num_images=num_images, forward_fn=forward_fn)
        return network.eval()

    def ensemble(
        self,
        model: nn.Module,
        ts: Sequence[float],
        refresh: Iterable[Any] | None = None,
        *,
        num_images: int | None = REFRESH_IMAGES,
        forward_fn: ForwardFn | None = None,
        **options: Any,
    ) -> Ensemble:
        """Return the ensemble of the networks at several t.

        Args:
            model: as of :meth:`module`.
            ts: from 0 to 1, at least one.
            refresh: as of :meth:`module`.
            num_images: as of :meth:`module`.
            forward_fn: as of :meth:`module`.
            options: other options of :class:`fge.Ensemble`.

        Raises:
            UserError: as :meth:`module` and :class:`fge.Ensemble`.
        """
        how: dict[str, Any] = {"num_images": num_images, "forward_fn": forward_fn}
        members = [self.module(model, t, refresh, **how).state_dict() for t in ts]
        return Ensemble(model, members, forward_fn=forward_fn, **options)

    def check_fits(self, model: nn.Module, *, buffers: bool = True) -> None:
        """Check that the parameters have the names, shapes and order of a model's, if known.

        Args:
            model: the architecture.
            buffers: whether the names of buffers are compared too, if the curve has any.

        Raises:
            UserError: they do not, or one of the two has a buffer that the other lacks.
        """
        if self.layout is not None and self.layout != Layout.of(model):
            raise UserError("the curve is of another architecture than the model; give its own")
        for ends in self.all_ends() if buffers else ():
            check_model(model, ends and ends[0], "the curve")

    def _ends_in_words(self) -> str:
        """Say for ``repr`` whether the ends come with buffers."""
        known = [ends is not None for ends in self.all_ends()]
        return "own buffers at the ends" if all(known) else "no buffers of its ends"

    def warn_of_interpolated(self, model: nn.Module, ts: Iterable[float]) -> None:
        """Warn if buffers at some t can neither be known nor estimated."""
        for t in ts:
            ends, part = self.ends_at(t)
            names = interpolated(model, ends) if ends is not None and part not in (0, 1) else []
            if names:
                warn_of_interpolated(names)
                return
