"""Whole-number powers that satisfy equations, the smallest ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from fge.errors import UserError

Array = NDArray[np.float64]


class Powers:
    """Whole-number unknowns with lower bounds, and the equations between them."""

    def __init__(self) -> None:
        self.lower: list[int] = []
        self.upper: list[float] = []
        self.equations: list[tuple[str, int, tuple[int, ...]]] = []

    def unknown(self, lower: int, upper: float = np.inf) -> int:
        """Return the index of a new unknown."""
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.lower) - 1

    def equate(self, place: str, total: int, *parts: int) -> None:
        """Demand total = sum of parts; ``place`` names the layer that does so."""
        self.equations.append((place, total, parts))

    def solve(self, weights: Iterable[int]) -> list[int]:
        """Return the solution with the smallest sum over ``weights``.

        Raises:
            UserError: there is none; the first layer that makes it so is named.
        """
        cost = np.zeros(len(self.lower))
        cost[list(weights)] = 1.0
        solution = self._attempt(cost, len(self.equations))
        if solution is not None:
            return [round(float(value)) for value in solution]
        low, high = 0, len(self.equations)  # the first `high` cannot be met, the first `low` can
        while high - low > 1:
            middle = (low + high) // 2
            met = self._attempt(cost, middle) is not None
            low, high = (middle, high) if met else (low, middle)
        raise UserError(
            f"no path through the origin: what meets at {self.equations[high - 1][0]} "
            "scales with unequal powers of t, whatever the powers of the weights"
        )

    def _attempt(self, cost: Array, count: int) -> Array | None:
        entries = [
            (row, column, sign)
            for row, (_, total, parts) in enumerate(self.equations[:count])
            for column, sign in ((total, 1.0), *((part, -1.0) for part in parts))
        ]
        constraints = []
        if entries:
            rows, columns, signs = zip(*entries, strict=True)
            matrix = csr_array((signs, (rows, columns)), shape=(count, len(cost)))
            constraints = [LinearConstraint(matrix, 0, 0)]
        result = milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=Bounds(np.array(self.lower), np.array(self.upper)),
            constraints=constraints,
        )
        return result.x if result.success else None
