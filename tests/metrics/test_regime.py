"""Whether a network still gains from epochs: made-up differences whose error is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fge.errors import UserError
from fge.metrics import find_regime

N = 100
SIGNS = np.tile([1.0, -1.0], N // 2)
"""Of mean 0, with a standard deviation of sqrt(N / (N - 1)) of a sample."""
ERROR = math.sqrt(N / (N - 1)) / math.sqrt(N)


def nlls(*means: float, noise: float = 0.0) -> list[np.ndarray]:
    """NLL per example with these means; differences to the last have this deviation."""
    found = [np.full(N, mean) + noise * SIGNS for mean in means]
    found[-1] = found[-1] - noise * SIGNS
    return found


def test_the_last_doubling_decides() -> None:
    regime = find_regime([10, 20, 40], nlls(0.9, 0.5, 0.4, noise=0.1))
    assert (regime.first, regime.last) == (20, 40)
    assert regime.gain == pytest.approx(0.1)
    assert regime.standard_error == pytest.approx(0.1 * ERROR)
    assert regime.gains
    assert regime.saturated_since is None
    assert regime.fit is None


@pytest.mark.parametrize(("errors", "gains"), [(1.9, False), (2.0, True), (-5.0, False)])
def test_a_gain_counts_if_it_is_more_than_chance_allows(errors: float, gains: bool) -> None:
    drop = errors * 0.1 * ERROR
    regime = find_regime([10, 20], nlls(0.5 + drop, 0.5, noise=0.1))
    assert (regime.gains, regime.significant) == (gains, gains)
    assert regime.saturated_since == (None if gains else 10)


def test_it_is_saturated_since_the_first_measurement_that_nothing_followed() -> None:
    regime = find_regime([5, 10, 20, 40, 60], nlls(0.9, 0.5, 0.402, 0.401, 0.4, noise=0.05))
    assert (regime.first, regime.last) == (20, 60)
    assert regime.saturated_since == 20


@pytest.mark.parametrize(("train_nll", "since"), [(0.21, None), (0.19, 10), (0.05, 10)])
def test_a_network_that_does_not_fit_its_images_still_gains(
    train_nll: float, since: int | None
) -> None:
    regime = find_regime([10, 20], nlls(0.4, 0.4, noise=0.1), train_nll=train_nll)
    assert regime.fit == pytest.approx(train_nll / 0.4)
    assert regime.saturated_since == since
    assert not regime.significant


def test_a_network_that_fits_its_images_may_still_gain() -> None:
    assert find_regime([10, 20], nlls(0.6, 0.4), train_nll=0.01).gains


def test_without_a_doubling_the_first_measurement_is_compared() -> None:
    regime = find_regime([77, 87, 97], nlls(0.5, 0.4, 0.3))
    assert (regime.first, regime.last, regime.gain) == (77, 97, pytest.approx(0.2))


@pytest.mark.parametrize(("train_nll", "since"), [(0.3, None), (0.1, 12)])
def test_one_measurement_is_enough_with_a_training_nll(train_nll: float, since: int | None) -> None:
    regime = find_regime([12], nlls(0.4), train_nll=train_nll)
    assert (regime.first, regime.last, regime.gain, regime.standard_error) == (12, 12, 0, 0)
    assert regime.saturated_since == since


@pytest.mark.parametrize(
    ("epochs", "values", "train_nll", "message"),
    [
        ([10], nlls(0.4), None, "needs 2 measurements or more, got 1 epochs and 1 of NLL"),
        ([], [], 0.1, "needs 1 measurements or more, got 0 epochs and 0 of NLL"),
        ([10, 20], nlls(0.4), None, "got 2 epochs and 1 of NLL"),
        ([20, 10], nlls(0.4, 0.4), None, r"epochs must rise, got \[20, 10\]"),
        ([10, 20], [[0.1, 0.2], [0.1]], None, r"one N >= 2, got shapes \[\(1,\), \(2,\)\]"),
        ([10, 20], [[0.1], [0.1]], None, r"one N >= 2, got shapes \[\(1,\)\]"),
        ([10, 20], [[0.1, math.nan], [0.1, 0.2]], None, "not finite"),
        ([10, 20], [[0.1, 0.2], [0.1, 0.2]], math.inf, "not finite"),
    ],
)
def test_what_has_no_regime_is_refused(
    epochs: list[int], values: Any, train_nll: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find_regime(epochs, values, train_nll=train_nll)
