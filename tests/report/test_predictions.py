"""The page of predictions: counts, means, the least certain images, the histogram."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fge.report import (
    class_table,
    confidence_chart,
    predictions_verdict,
    uncertain_table,
)
from fge.report.predictions import UNCERTAIN

CLASSES = ("cat", "dog", "emu")
PROBS = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.1, 0.7, 0.2], [0.25, 0.5, 0.25]])
LN2 = math.log(2)


def test_classes_are_counted_with_their_means() -> None:
    dog = -(0.1 * math.log(0.1) + 0.7 * math.log(0.7) + 0.2 * math.log(0.2)) / 2 + 1.5 * LN2 / 2
    assert list(class_table(PROBS, CLASSES).rows) == [
        ["cat", "2", "50.0", "0.750", f"{LN2 / 2:.3f}"],
        ["dog", "2", "50.0", "0.600", f"{dog:.3f}"],
        ["emu", "0", "0.0", "-", "-"],
    ]


def test_the_least_certain_images_come_first() -> None:
    table = uncertain_table(PROBS, ["a", "b", "c", "d"], CLASSES)
    assert list(table.rows)[:2] == [
        ["a", "cat", "0.500", "dog", "0.500", f"{LN2:.3f}"],
        ["d", "dog", "0.500", "cat", "0.250", f"{1.5 * LN2:.3f}"],
    ]
    assert [row[0] for row in table.rows] == ["a", "d", "c", "b"]
    many = np.full((UNCERTAIN + 5, 3), 1 / 3)
    assert len(uncertain_table(many, [str(n) for n in range(len(many))], CLASSES).rows) == UNCERTAIN


def test_one_class_has_no_other() -> None:
    assert list(uncertain_table(np.ones((1, 1)), ["a"], ["all"]).rows) == [
        ["a", "all", "1.000", "-", "-", "0.000"]
    ]


def test_the_sentences_have_the_means() -> None:
    assert predictions_verdict(PROBS[:2], "2 snapshots") == [
        "2 images, predicted by 2 snapshots: the mean largest probability is 0.750, the lowest "
        "0.500.",
        f"The mean entropy is {LN2 / 2:.3f} nats. The true classes are unknown, so the error is "
        "unknown.",
    ]


@pytest.mark.parametrize("certain", [1.0, 1 + 1e-7])
def test_each_image_is_in_the_histogram_once(certain: float) -> None:
    probs = PROBS.copy()
    probs[1, 0], probs[2] = certain, [0.1, 0.72, 0.18]
    bars = confidence_chart(probs).panels[0].bars
    assert bars is not None
    expected = dict.fromkeys(range(20), 0) | {10: 2, 14: 1, 19: 1}
    assert dict(enumerate(bars.counts)) == expected
    assert bars.edges[10:12] == pytest.approx([0.5, 0.55])
    assert [bars.edges[0], bars.edges[-1]] == [0, 1]
