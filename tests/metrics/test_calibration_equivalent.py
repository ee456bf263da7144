"""The deep-ensemble equivalent against reference values, a fine search and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fge.errors import UserError
from fge.metrics import deep_ensemble_equivalent

# Computed with the metrics of Ashukha et al. 2020; good to 1e-6.
DEEP_ENSEMBLE = [-1, -0.9, -0.85, -0.82, -0.8]
REFERENCE = [(-0.83, 3.6666667), (-1.05, 1.0)]


@pytest.mark.parametrize(("log_likelihood", "expected"), REFERENCE)
def test_reference_values(log_likelihood: float, expected: float) -> None:
    found = deep_ensemble_equivalent(log_likelihood, DEEP_ENSEMBLE)
    assert found == pytest.approx(expected, rel=0, abs=1e-6)
    assert deep_ensemble_equivalent(log_likelihood, torch.tensor(DEEP_ENSEMBLE)) == pytest.approx(
        expected, rel=0, abs=1e-5
    )


def test_an_ensemble_is_worth_its_own_size() -> None:
    for size, level in enumerate(DEEP_ENSEMBLE, start=1):
        found = deep_ensemble_equivalent(level, DEEP_ENSEMBLE)
        assert found == pytest.approx(size, rel=0, abs=1e-12)


def test_the_worth_lies_between_one_and_the_largest_ensemble() -> None:
    assert deep_ensemble_equivalent(-9.0, DEEP_ENSEMBLE) == 1.0
    assert deep_ensemble_equivalent(-0.1, DEEP_ENSEMBLE) == 5.0
    assert deep_ensemble_equivalent(-0.7, [-0.8]) == 1.0
    assert deep_ensemble_equivalent(-0.9, [-0.8]) == 1.0


def test_sizes_may_leave_gaps() -> None:
    assert deep_ensemble_equivalent(-0.7, [-1, -0.8, -0.6], sizes=[1, 2, 10]) == pytest.approx(6)
    assert deep_ensemble_equivalent(0.0, [-1, -0.8, -0.6], sizes=[1, 2, 10]) == 10.0


def test_where_larger_ensembles_do_worse_the_smallest_that_suffices_counts() -> None:
    levels = [-1.0, -0.8, -0.9, -0.7]
    assert deep_ensemble_equivalent(-0.85, levels) == pytest.approx(1.75)
    assert deep_ensemble_equivalent(-0.8, levels) == pytest.approx(2.0)
    assert deep_ensemble_equivalent(-0.75, levels) == pytest.approx(3.75)
    assert deep_ensemble_equivalent(-0.8, [-1.0, -0.8, -0.8]) == pytest.approx(2.0)
    assert deep_ensemble_equivalent(-0.8, [-0.8, -0.8]) == 1.0


@given(
    st.lists(st.integers(-200, -1), min_size=1, max_size=8),
    st.integers(-200, -1),
)
def test_it_is_the_first_of_a_fine_search(hundredths: list[int], hundredth: int) -> None:
    levels, value = np.array(hundredths) / 100, hundredth / 100
    grid = np.linspace(1, len(levels), 500 * (len(levels) - 1) + 1)  # holds the sizes
    curve = np.interp(grid, np.arange(1, len(levels) + 1), levels)
    reached = np.flatnonzero(curve >= value - 1e-9)
    expected = grid[reached[0]] if len(reached) else len(levels)
    found = deep_ensemble_equivalent(value, levels)
    assert found == pytest.approx(expected, rel=0, abs=1 / 500 + 1e-6)


@pytest.mark.parametrize(
    ("log_likelihood", "levels", "sizes", "message"),
    [
        (-1.0, [], None, r"deep_ensemble must be \(K,\) with K >= 1, got shape \(0,\)"),
        (-1.0, [[-1.0]], None, r"got shape \(1, 1\)"),
        (math.nan, [-1.0], None, "log-likelihoods must be finite, got nan"),
        (-1.0, [-1.0, -math.inf], None, "log-likelihoods must be finite, got -inf"),
        (-1.0, [-1.0, -0.9], [2, 3], r"sizes must be 2 numbers that rise from 1, got \[2, 3\]"),
        (-1.0, [-1.0, -0.9], [1, 1], r"rise from 1, got \[1, 1\]"),
        (-1.0, [-1.0, -0.9], [1], r"sizes must be 2 numbers that rise from 1, got \[1\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    log_likelihood: float, levels: Any, sizes: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        deep_ensemble_equivalent(log_likelihood, levels, sizes=sizes)
