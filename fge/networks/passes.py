"""Batches that are read several times, and have to be the same on each pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fge.errors import UserError
from fge.networks.batches import reordered, tensors
from fge.networks.copying import same_values


class Passes:
    """Checks that passes over batches agree: all tensors of the first batch, and the examples.

    Call :meth:`begin`, :meth:`look` at each batch that has examples, and :meth:`end`.
    """

    def __init__(self, name: str = "batches") -> None:
        self._name = name
        self._first: list[Tensor] | None = None
        self._total: int | None = None
        self.examples = 0
        """Those of the present pass so far."""

    def begin(self) -> None:
        """Begin a pass."""
        self.examples = 0

    def look(self, batch: Any, examples: int) -> None:
        """Take in a batch, or a part of one, with its number of examples.

        Raises:
            UserError: it is the first of this pass, and another one was that of the first pass.
        """
        if examples and not self.examples:
            # Any tensor may be the same in all batches (a mask, say): one alone tells nothing.
            held = [tensor.detach() for tensor in tensors(batch) if not tensor.is_nested]
            if self._first is None:
                self._first = [tensor.clone() for tensor in held]  # a loader may reuse its memory
            elif len(held) != len(self._first) or not all(map(same_values, self._first, held)):
                raise reordered(self._name)
        self.examples += examples

    def end(self) -> None:
        """End a pass.

        Raises:
            UserError: it had another number of examples than the first one.
        """
        if self._total is None:
            self._total = self.examples
        if self.examples != self._total:
            raise UserError(
                f"{self._name} yielded {self._total} examples on the first pass and "
                f"{self.examples} on a later one; give the same data on each pass"
            )
