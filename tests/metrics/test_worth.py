"""What a method is worth in networks, by a power law and as a share: closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fge.errors import UserError
from fge.metrics import (
    PowerLaw,
    deep_ensemble_equivalent,
    fit_power_law,
    gain_share,
    power_law_equivalent,
)
from fge.metrics.worth import MAX_EXPONENT, MIN_EXPONENT


def levels_of(law: PowerLaw, sizes: Sequence[int]) -> list[float]:
    return [-law.nll(size) for size in sizes]


@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.83, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("sizes", [(1, 2, 3), (1, 2, 3, 4, 5), (1, 3, 10, 50)])
def test_an_exact_power_law_is_found_again(exponent: float, sizes: tuple[int, ...]) -> None:
    law = PowerLaw(0.23, 0.04, exponent)
    found = fit_power_law(levels_of(law, sizes), sizes=sizes)
    assert found is not None
    assert found == pytest.approx(law, rel=1e-6)


@pytest.mark.slow
@given(
    st.floats(0.3, 3.5),
    st.floats(0.0, 5.0),
    st.floats(0.001, 2.0),
    st.floats(1.0, 7.9),
)
def test_an_exact_power_law_gives_the_exact_number_of_networks(
    a: float, c: float, b: float, networks: float
) -> None:
    law = PowerLaw(c, b, a)
    found = power_law_equivalent(-law.nll(networks), levels_of(law, (1, 2, 3, 4)))
    # Where the law is flat the figures hold few digits of the number: dm = dL / |L'(m)|.
    slope = a * b * networks ** (-a - 1)
    assert found == pytest.approx(networks, rel=1e-5, abs=1e-12 * max(c, 1) / slope + 1e-9)


def test_the_law_is_that_of_the_least_squares() -> None:
    rng = np.random.default_rng(0)
    sizes = np.arange(1, 7)
    losses = 0.2 + 0.05 / sizes + 0.0005 * rng.standard_normal(6)
    law = fit_power_law(-losses)
    assert law is not None

    def squares(c: float, b: float, a: float) -> float:
        return float(np.sum((c + b * sizes**-a - losses) ** 2))

    best = squares(*law)
    for step in (1e-4, -1e-4):
        for place in range(3):
            moved = [value + step * (place == k) for k, value in enumerate(law)]
            assert squares(*moved) > best
    grid = [
        squares(*np.linalg.lstsq(np.stack([np.ones(6), sizes**-a], 1), losses, rcond=None)[0], a)
        for a in np.linspace(MIN_EXPONENT, MAX_EXPONENT, 500)
    ]
    assert best <= min(grid) + 1e-15


@pytest.mark.parametrize(("exponent", "end"), [(0.05, MIN_EXPONENT), (9.0, MAX_EXPONENT)])
def test_the_exponent_stays_in_its_range(exponent: float, end: float) -> None:
    law = fit_power_law(levels_of(PowerLaw(0.2, 0.1, exponent), (1, 2, 3, 4)))
    assert law is not None
    assert law.a == pytest.approx(end, rel=1e-12)


def test_the_equivalent_lies_between_one_and_the_cap() -> None:
    levels = levels_of(PowerLaw(0.2, 0.1, 1.0), (1, 2, 3, 4, 5))
    assert power_law_equivalent(-0.31, levels) == 1.0
    assert power_law_equivalent(-0.3, levels) == pytest.approx(1.0)
    assert power_law_equivalent(-0.2125, levels) == pytest.approx(8.0, rel=1e-6)
    assert power_law_equivalent(-0.205, levels) == 10.0  # by the law 20
    assert power_law_equivalent(-0.1, levels) == 10.0  # below the limit of the law
    assert power_law_equivalent(-0.205, levels, cap=30) == pytest.approx(20.0, rel=1e-6)
    assert power_law_equivalent(-0.1, levels, cap=30) == 30.0


def test_both_equivalents_agree_on_the_ensembles_themselves() -> None:
    levels = levels_of(PowerLaw(0.2, 0.1, 0.8), (1, 2, 3, 4))
    for size, level in enumerate(levels, start=1):
        assert power_law_equivalent(level, levels) == pytest.approx(size, rel=1e-6)
        assert deep_ensemble_equivalent(level, levels) == pytest.approx(size)
    between = -PowerLaw(0.2, 0.1, 0.8).nll(2.5)
    linear = deep_ensemble_equivalent(between, levels)
    assert linear > 2.5  # the chord of a convex law lies above it


@pytest.mark.parametrize("levels", [[-0.3], [-0.3, -0.2], [-0.2, -0.25, -0.3], [-0.3] * 4])
def test_where_there_is_no_law_there_is_no_equivalent(levels: list[float]) -> None:
    """Too few sizes, or larger ensembles that are not better."""
    assert fit_power_law(levels) is None
    assert power_law_equivalent(-0.25, levels) is None


@pytest.mark.parametrize(
    ("method", "expected"), [(-0.30, 0.0), (-0.25, 50.0), (-0.2, 100.0), (-0.32, -20.0)]
)
def test_the_share_of_the_gain(method: float, expected: float) -> None:
    assert gain_share(method, single=-0.3, ensemble=-0.2) == pytest.approx(expected, abs=1e-9)


def test_an_ensemble_that_gains_nothing_has_no_shares() -> None:
    assert gain_share(-0.2, single=-0.3, ensemble=-0.3) is None
    assert gain_share(-0.2, single=-0.3, ensemble=-0.31) is None


@pytest.mark.parametrize(
    ("method", "levels", "options", "message"),
    [
        (-1.0, [], {}, r"deep_ensemble must be \(K,\) with K >= 1, got shape \(0,\)"),
        (math.nan, [-1.0], {}, "log-likelihoods must be finite, got nan"),
        (-1.0, [-1.0, -math.inf], {}, "log-likelihoods must be finite, got -inf"),
        (-1.0, [-1.0, -0.9], {"sizes": [2, 3]}, "sizes must be 2 numbers that rise from 1"),
        (-1.0, [-1.0, -0.9], {"cap": 0.5}, "cap must be >= 1, got 0.5"),
    ],
)
def test_what_cannot_be_read_off_is_refused(
    method: float, levels: list[float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        power_law_equivalent(method, levels, **options)
    with pytest.raises(UserError, match="must be finite, got nan"):
        gain_share(math.nan, single=-1, ensemble=-0.5)
