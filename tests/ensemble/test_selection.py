"""Which members are left out of an ensemble."""

from __future__ import annotations

import numpy as np
import pytest

from fge.ensemble import without_harmful
from fge.errors import UserError
from fge.tasks import Multilabel

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 400)


def member(strength: float, seed: int) -> np.ndarray:
    """Return probabilities that favour the right class by ``strength`` nats, with noise."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(LABELS), 3))
    logits[np.arange(len(LABELS)), LABELS] += strength
    probs = np.exp(logits)
    return np.asarray(probs / probs.sum(axis=1, keepdims=True))


def test_members_of_equal_worth_all_stay() -> None:
    assert without_harmful([member(2, seed) for seed in range(5)], LABELS) == [0, 1, 2, 3, 4]


def test_a_member_that_makes_the_ensemble_worse_is_left_out() -> None:
    members = [member(3, 0), member(-3, 1), member(3, 2), member(-2, 3)]
    assert without_harmful(members, LABELS) == [0, 2]


def test_a_difference_within_two_standard_errors_changes_nothing() -> None:
    some = slice(0, 12)
    good, bad, labels = member(2, 0)[some], member(1, 3)[some], LABELS[some]
    rows = np.arange(len(labels))
    change = np.log(good[rows, labels]) - np.log((good + bad)[rows, labels] / 2)
    assert 0 < change.mean() < 2 * change.std(ddof=1) / np.sqrt(len(rows))  # it is worse with both
    assert without_harmful([good, bad], labels) == [0, 1]


def test_one_member_stays_whatever_it_is() -> None:
    assert without_harmful([member(-5, 0)], LABELS) == [0]


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(UserError, match="probs must be probabilities"):
        without_harmful([member(1, 0) * 2], LABELS)


def test_members_that_predict_labels_are_judged_by_their_nll() -> None:
    labels = np.random.default_rng(1).integers(0, 2, (300, 3))

    def predicted(strength: float, seed: int) -> np.ndarray:
        logits = np.random.default_rng(seed).normal(0, 1, labels.shape)
        return np.asarray(1 / (1 + np.exp(-(logits + strength * (2 * labels - 1)))))

    task = Multilabel(("a", "b", "c"))
    members = [predicted(2, 0), predicted(-2, 1), predicted(2, 2)]
    assert without_harmful(members, labels, task) == [0, 2]
    assert without_harmful(members[::2], labels, task) == [0, 1]
