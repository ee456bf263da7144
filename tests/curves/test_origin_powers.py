"""The smallest whole-number powers against an exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fge.curves.origin import Powers
from fge.errors import UserError

Equation = tuple[int, tuple[int, ...]]


def system(lower: list[int], equations: list[Equation]) -> Powers:
    powers = Powers()
    for bound in lower:
        powers.unknown(bound)
    for number, (total, parts) in enumerate(equations):
        powers.equate(f"equation {number}", total, *parts)
    return powers


def smallest_sum(lower: list[int], equations: list[Equation], top: int) -> int | None:
    """Return the least sum of a solution with unknowns up to ``top``, if there is one."""
    candidates = itertools.product(*(range(bound, top + 1) for bound in lower))
    sums = [
        sum(values)
        for values in candidates
        if all(values[total] == sum(values[p] for p in parts) for total, parts in equations)
    ]
    return min(sums, default=None)


def test_solutions_are_whole_meet_the_equations_and_are_the_smallest() -> None:
    rng = np.random.default_rng(0)
    solved = refused = 0
    for _ in range(60):
        lower = [int(b) for b in rng.integers(0, 2, 5)]
        equations: list[Equation] = [
            (int(total), tuple(int(p) for p in parts))
            for total, *parts in rng.integers(0, 5, (int(rng.integers(1, 4)), 3))
        ]
        expected = smallest_sum(lower, equations, top=6)
        if expected is None:
            refused += 1
            with pytest.raises(UserError):
                system(lower, equations).solve(range(5))
            continue
        solved += 1
        values = system(lower, equations).solve(range(5))
        assert all(isinstance(v, int) and v >= b for v, b in zip(values, lower, strict=True))
        assert all(values[total] == sum(values[p] for p in parts) for total, parts in equations)
        assert sum(values) == expected
    assert min(solved, refused) >= 10


def test_only_the_named_unknowns_are_made_small() -> None:
    powers = system([1, 1, 0], [(2, (0, 1, 1))])
    powers.unknown(5)
    powers.equate("sum", 3, 2)
    assert powers.solve([0]) == [1, 2, 5, 5]
    assert powers.solve([1]) == [3, 1, 5, 5]


def test_bounds_hold_without_equations() -> None:
    powers = Powers()
    powers.unknown(0, 0)
    powers.unknown(2)
    assert powers.solve([0, 1]) == [0, 2]


def test_the_first_equation_that_cannot_be_met_is_named() -> None:
    equations: list[Equation] = [(2, (0, 1)), (2, (0, 0)), (0, (0, 1)), (1, (2, 0))]
    message = r"^no path through the origin: equation 2 joins terms with unequal powers of t"
    with pytest.raises(UserError, match=message):
        system([1, 1, 1], equations).solve([0, 1, 2])
    assert system([1, 1, 1], equations[:2]).solve([0, 1, 2]) == [1, 1, 2]
