"""Whether a network still gains from more epochs, or is saturated; numpy, float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fge.errors import UserError
from fge.metrics.given import as_array

Array = NDArray[np.float64]
SIGNIFICANT = 1.96
"""A gain of so many standard errors is not chance: 95 % of a normal distribution, two-sided."""
FITS = 0.5
"""Above this ratio of training NLL to validation NLL a network still learns from its images."""
_TINY = 1e-12


@dataclass(frozen=True)
class Regime:
    """Whether one network still gains from epochs.

    ``first`` and ``last``: the epochs that were compared, a doubling if one was measured (equal for
    a single measurement); ``gain``: how much lower the NLL is after the last (nats per example);
    ``standard_error``: of the gain, paired over examples; ``fit``: ratio of training NLL to
    validation NLL after the last, None if it is not known; ``saturated_since``: the epoch from
    which the NLL has not fallen significantly, None while the network gains.
    """

    first: int
    last: int
    gain: float
    standard_error: float
    fit: float | None
    saturated_since: int | None

    @property
    def gains(self) -> bool:
        """Whether it still gains from epochs."""
        return self.saturated_since is None

    @property
    def significant(self) -> bool:
        """Whether the gain is more than chance allows."""
        return self.gain > SIGNIFICANT * self.standard_error


def find_regime(
    epochs: Sequence[int], nlls: Sequence[ArrayLike], *, train_nll: float | None = None
) -> Regime:
    """Return whether a network still gains from epochs.

    It does if the last doubling of the epochs lowered its validation NLL by more than 1.96 paired
    standard errors, std(d) / sqrt(N) with d the differences per example, or if its training NLL is
    above half of its validation NLL. If no doubling was measured, the first measurement takes the
    place of the one at half of the epochs. A network that does not gain is saturated since the
    first measurement after which its NLL did not fall significantly.

    >>> before, after = [0.5, 0.7, 0.6, 0.8], [0.4, 0.6, 0.5, 0.6]
    >>> regime = find_regime([10, 20], [before, after])
    >>> regime.gains, round(regime.gain, 3), round(regime.standard_error, 3)
    (True, 0.125, 0.025)

    Args:
        epochs: after which the network was measured, rising (K,).
        nlls: its NLL of each validation example (N,) at each of them, nats; the same examples in
            the same order.
        train_nll: its mean NLL of training examples at the last of them, nats; if it is not known,
            the validation NLL alone decides.

    Raises:
        UserError: fewer than 2 measurements (or 1 with ``train_nll``), epochs that do not rise,
            shapes that do not fit, fewer than 2 examples, or values that are not finite.
    """
    values = _checked(epochs, nlls, train_nll)
    last = epochs[-1]
    gains = [_gain(before, values[-1]) for before in values]
    halves = [k for k, epoch in enumerate(epochs) if 2 * epoch <= last]
    start = halves[-1] if halves else 0
    mean = float(values[-1].mean())
    fit = None if train_nll is None else train_nll / max(mean, _TINY)
    above = [gain > SIGNIFICANT * error for gain, error in gains]
    since = None
    if not above[start] and (fit is None or fit <= FITS):
        since = epochs[above.index(False)]
    return Regime(epochs[start], last, *gains[start], fit, since)


def _gain(before: Array, after: Array) -> tuple[float, float]:
    """Return by how much the mean fell, and the paired standard error."""
    difference = before - after
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(difference.mean()), error


def _checked(
    epochs: Sequence[int], nlls: Sequence[ArrayLike], train_nll: float | None
) -> list[Array]:
    fewest = 2 if train_nll is None else 1
    if len(epochs) != len(nlls) or len(epochs) < fewest:
        raise UserError(
            f"a regime needs {fewest} measurements or more, got {len(epochs)} epochs and "
            f"{len(nlls)} of NLL"
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(epochs)):
        raise UserError(f"epochs must rise, got {list(epochs)}")
    values = [as_array(nll, dtype=np.float64) for nll in nlls]
    shapes = {value.shape for value in values}
    if len(shapes) > 1 or values[0].ndim != 1 or len(values[0]) < 2:
        raise UserError(f"NLL must be (N,) with one N >= 2, got shapes {sorted(shapes)}")
    finite = all(bool(np.isfinite(value).all()) for value in values)
    if not finite or not math.isfinite(train_nll or 0.0):
        raise UserError("NLL holds values that are not finite")
    return values
