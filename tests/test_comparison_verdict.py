"""What comparisons with known outcomes are said to come to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cells import CURVES, FGES, IMAGES, SINGLES, cell, compared, several

from fge.bootstrap import Interval
from fge.comparison import Comparison
from fge.comparison_verdict import verdict

COSTS = "fge takes 10 epochs of training and 3 passes per prediction"


def shifted(*, error: tuple[float, float], calibrated: tuple[float, float]) -> Comparison:
    """Return FGE and the single network with these ends of the intervals between them."""
    found = compared(SINGLES, FGES)
    ends = {"error": error, "calibrated_nll": calibrated, "nll": (0.0, 0.0)}
    differences = tuple(
        replace(one, interval=Interval(sum(ends[one.metric]) / 2, *ends[one.metric]))
        for one in found.differences
    )
    return replace(found, differences=differences)


def test_a_sure_winner_is_named_with_its_cost() -> None:
    far = several("single", [30, 31, 30], [0.8, 0.8, 0.81])
    text = verdict(compared(far, FGES))
    assert text.startswith(
        "At 1 B (10 epochs): fge has the lowest calibrated NLL (0.4133) and error (17.33 %), at 10 "
        "epochs of training and 3 passes per prediction. In calibrated NLL fge is told apart from "
        "every other method. In error fge is told apart from every other method. With one pass "
        "per prediction: single has the lowest calibrated NLL (0.8033) and error (60.67 %), at 10 "
        "epochs of training and 1 pass per prediction. In calibrated NLL single has nobody to be "
        "compared with."
    )
    assert "FGE pays against single in calibrated NLL and error: calibrated NLL -0.3900 [" in text
    assert f"{COSTS}, single 10 epochs of training and 1 pass per prediction." in text
    assert text.endswith("as far as 3 seeds and 50 test images tell.")


def test_what_cannot_be_told_apart_is_said_with_the_cheapest() -> None:
    swa = several("swa", [9, 8, 9], [0.42, 0.41, 0.42])
    text = verdict(compared(several("single", [30] * 3, [0.9] * 3), FGES, swa))
    assert (
        "In calibrated NLL fge is not told apart from swa; swa is the cheapest of them to predict "
        "with (10 epochs of training and 1 pass per prediction)."
    ) in text
    assert "With one pass per prediction: swa has the lowest" in text


def test_two_metrics_may_have_two_winners() -> None:
    other = several("sse", [2, 2, 3], [0.7, 0.7, 0.71], members=2)
    text = verdict(compared(FGES, other))
    assert "fge has the lowest calibrated NLL (0.4133), at 10 epochs" in text
    assert "; sse has the lowest error (4.67 %), at 10 epochs" in text


@pytest.mark.parametrize(
    ("error", "calibrated", "text"),
    [
        ((-3, -1), (-0.2, -0.1), "FGE pays against single in calibrated NLL and error: "),
        (
            (-3, 1),
            (-0.2, -0.1),
            "FGE pays against single in calibrated NLL, while no difference can be told in error: ",
        ),
        (
            (1, 3),
            (-0.2, -0.1),
            "FGE pays against single in calibrated NLL, not in error, which is higher: ",
        ),
        ((-1, 1), (-0.2, 0.1), "FGE does not pay against single, no difference can be told: "),
        (
            (-1, 1),
            (0.1, 0.2),
            "FGE does not pay against single, its calibrated NLL is higher and no difference can "
            "be told in error: ",
        ),
        (
            (1, 3),
            (0.1, 0.2),
            "FGE does not pay against single, its calibrated NLL and error are higher: ",
        ),
    ],
)
def test_whether_fge_pays_follows_from_the_intervals(
    error: tuple[float, float], calibrated: tuple[float, float], text: str
) -> None:
    said = verdict(shifted(error=error, calibrated=calibrated))
    assert text in said
    low, high = calibrated
    assert f"calibrated NLL {(low + high) / 2:+.4f} [{low:+.4f}, {high:+.4f}]" in said


def test_the_curve_ensemble_is_asked_about_where_it_is_within_the_budget() -> None:
    assert "against curve-ensemble" in verdict(compared(SINGLES, FGES, CURVES))
    beyond = [replace(c, cost=replace(c.cost, train_epochs=11)) for c in CURVES]
    text = verdict(compared(SINGLES, FGES, beyond))
    assert "against curve-ensemble" not in text
    assert "Not compared, since beyond the budget: curve-ensemble at 1 B." in text


def test_one_seed_tells_nothing_apart() -> None:
    text = verdict(compared(SINGLES[:1], FGES[:1]))
    assert "fge is not told apart from any other" in text
    assert "Whether FGE pays against single cannot be told: too few seeds" in text
    assert text.endswith(
        f"One seed and {IMAGES} test images: an interval over seeds needs 2 or more."
    )


def test_each_budget_has_its_sentences() -> None:
    doubled = several("single", [5, 5, 6], [0.3, 0.31, 0.3], budget=2)
    deep = several("deep-ensemble", [5, 5, 6], [0.3, 0.31, 0.3], budget=3, members=3)
    text = verdict(compared(SINGLES, FGES, doubled, deep))
    assert "At 1 B (10 epochs): " in text
    assert "At 2 B (20 epochs): single has the lowest" in text
    assert "At 3 B" not in text


def test_uneven_numbers_of_seeds_are_said() -> None:
    text = verdict(compared(SINGLES, FGES, [cell("sse", 0, 9)]))
    assert text.endswith("as far as 1 to 3 seeds and 50 test images tell.")
