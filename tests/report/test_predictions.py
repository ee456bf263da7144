"""The page of predictions: counts, means, the least certain images, the histogram."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fge.report import (
    class_table,
    confidence_figure,
    confidence_plot,
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


def test_the_sentence_has_the_means() -> None:
    verdict = predictions_verdict(PROBS[:2], "2 snapshots")
    assert verdict.startswith(
        "2 images, predicted by 2 snapshots: largest probability 0.750 on average, 0.500 at least; "
        f"entropy {LN2 / 2:.3f} nats on average."
    )


@pytest.mark.parametrize("certain", [1.0, 1 + 1e-7])
def test_each_image_is_in_the_histogram_once(certain: float) -> None:
    probs = PROBS.copy()
    probs[1, 0], probs[2] = certain, [0.1, 0.72, 0.18]
    [bars] = confidence_plot(probs).data
    expected = dict.fromkeys(range(20), 0) | {10: 2, 14: 1, 19: 1}
    assert dict(enumerate(bars["y"])) == expected
    assert bars["x"][10] == 0.525
    assert bars["text"][10] == "0.50 to 0.55"
    [stairs] = confidence_figure(probs).axes[0].patches
    counts, edges, _ = stairs.get_data()  # type: ignore[attr-defined]
    assert counts.tolist() == bars["y"]
    assert edges[[0, -1]].tolist() == [0, 1]
