"""What comparisons with known outcomes are said to come to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cells import CURVES, FGES, IMAGES, SINGLES, cell, compared, several

from fge.compare import Comparison
from fge.compare import comparison_verdict as in_paragraphs
from fge.metrics import Interval

COSTS = "fge takes 10 epochs of training and 3 passes per prediction"


def shifted(*, error: tuple[float, float], calibrated: tuple[float, float]) -> Comparison:
    """Return FGE and the single network with these ends of the intervals between them."""
    found = compared(SINGLES, FGES)
    ends = {"error": error, "calibrated_nll": calibrated, "nll": (0.0, 0.0)}
    differences, of_fge = (
        tuple(
            replace(one, interval=Interval(sum(ends[one.metric]) / 2, *ends[one.metric]))
            for one in some
        )
        for some in (found.differences, found.fge_differences)
    )
    return replace(found, differences=differences, fge_differences=of_fge)


def verdict(comparison: Comparison) -> str:
    return in_paragraphs(comparison).replace("\n\n", " ")


def test_each_question_has_a_paragraph() -> None:
    text = in_paragraphs(compared(SINGLES, FGES, CURVES))
    begins = [" ".join(paragraph.split()[:2]) for paragraph in text.split("\n\n")]
    whom = ["FGE pays", "FGE and"]
    assert begins == ["At 1", "fge has", "With one", *whom, "Methods are"]


def test_a_sure_winner_is_named_with_its_cost() -> None:
    far = several("single", [30, 31, 30], [0.8, 0.8, 0.81])
    text = verdict(compared(far, FGES))
    assert text.startswith(
        "At 1 B (10 epochs): use fge (10 epochs of training and 3 passes per prediction): it has "
        "the lowest calibrated NLL and error, told apart from every other method. fge has the "
        "lowest calibrated NLL (0.4133) and error (17.33 %), at 10 epochs of training and 3 passes "
        "per prediction. In calibrated NLL fge is told apart from every other method. In error fge "
        "is told apart from every other method. With one pass per prediction: single has the "
        "lowest calibrated NLL (0.8033) and error (60.67 %), at 10 epochs of training and 1 pass "
        "per prediction. single has nobody to be compared with. FGE pays"
    )
    assert "FGE pays against single in calibrated NLL and error: calibrated NLL -0.3900 [" in text
    assert f"{COSTS}, single 10 epochs of training and 1 pass per prediction." in text
    assert text.endswith(
        "Methods are told apart where the interval of their paired difference (95 %) excludes 0; "
        "those that are not may differ all the same. This holds for this data and model, as far as "
        "3 seeds and 50 test images tell."
    )


FAR = several("single", [30] * 3, [0.9] * 3)
SWAS = several("swa", [9, 8, 9], [0.42, 0.41, 0.42])


def test_of_what_cannot_be_told_apart_the_cheapest_is_to_be_used() -> None:
    text = verdict(compared(FAR, FGES, SWAS))
    assert text.startswith(
        "At 1 B (10 epochs): use swa (10 epochs of training and 1 pass per prediction): of the 2 "
        "methods that are not told apart from the best in calibrated NLL and error, it predicts in "
        "the fewest passes. fge has the lowest calibrated NLL (0.4133) and "
    )
    assert "In calibrated NLL fge is not told apart from swa." in text
    assert "With one pass per prediction: swa has the lowest" in text
    assert "In calibrated NLL swa is told apart from every other method of one pass." in text
    assert "paired difference (97.5 %) excludes 0" in text
    assert "That keeps 95 % over all methods of a budget together (Bonferroni); the " in text


def test_of_the_cheapest_that_of_the_lowest_calibrated_nll_is_to_be_used() -> None:
    near = several("fold", [9, 8, 9], [0.425, 0.415, 0.42])
    text = verdict(compared(FAR, FGES, SWAS, near))
    assert (
        "of the 3 methods that are not told apart from the best in calibrated NLL and error, swa "
        "and fold predict in the fewest passes, and swa has the lowest calibrated NLL of them. "
    ) in text


def test_where_no_method_is_among_the_best_in_both_there_are_two_to_be_used() -> None:
    other = several("sse", [2, 2, 3], [0.7, 0.7, 0.71], members=2)
    text = verdict(compared(FAR, FGES, other))
    assert text.startswith(
        "At 1 B (10 epochs): use fge for calibrated NLL and sse for error, none is among the best "
        "in calibrated NLL and error. "
    )


def test_the_only_one_among_the_best_in_both_is_to_be_used() -> None:
    near = several("sse", [9, 8, 8], [0.7, 0.7, 0.71])
    text = verdict(compared(FGES, near))
    assert "use fge (10 epochs of training and 3 passes per prediction): it alone is among" in text


def test_what_has_no_interval_is_not_taken_for_as_good() -> None:
    once = [cell("swa", 0, 20, 0.42)]
    text = verdict(compared(several("single", [30] * 3, [0.9] * 3, members=2), FGES, once))
    assert text.startswith("At 1 B (10 epochs): use fge (")
    assert "not told apart from swa. There is no interval to swa." in text
    pooled = [replace(one, pooled=3) for one in FGES]
    text = verdict(compared(SINGLES, pooled))
    assert "which method to use cannot be told, there are no intervals. fge has the" in text


def test_one_rule_tells_methods_apart_and_what_another_would_say_is_named() -> None:
    """By 95 % the noise of single is told from FGE, by 1 - 0.05 / 39 it is not."""
    noisy = several("single", [9, 9, 9], [0.50, 0.51, 0.52], members=2)
    rivals = [several(f"own-{k}", [30] * 3, [0.9, 0.91, 0.9], members=2) for k in range(38)]
    assert "FGE pays against single in calibrated NLL" in verdict(compared(FGES, noisy))
    text = verdict(compared(FGES, noisy, *rivals, draws=400))
    assert "In calibrated NLL fge is not told apart from single." in text
    assert "FGE pays" not in text
    assert "FGE and single are not told apart in calibrated NLL and error: " in text
    assert "(99.9 % intervals); fge takes" in text
    assert (
        " As the only question asked (95 % intervals), FGE has a lower calibrated NLL; among so "
        "many that may be chance."
    ) in text
    assert "difference (99.9 %) excludes 0" in text


def test_levels_of_several_budgets_are_named() -> None:
    doubled = [replace(one, budget=2) for group in (SINGLES, FGES, SWAS) for one in group]
    text = verdict(compared(SINGLES, FGES, doubled))
    assert "paired difference (95 % at 1 B and 97.5 % at 2 B) excludes 0" in text


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
        (
            (-1, 1),
            (-0.2, 0.1),
            "FGE and single are not told apart in calibrated NLL and error: ",
        ),
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
    assert "(95 % intervals); fge takes" in said
    assert "As the only question" not in said


def test_the_curve_ensemble_is_asked_about_where_it_is_within_the_budget() -> None:
    assert "FGE and curve-ensemble are not told" in verdict(compared(SINGLES, FGES, CURVES))
    beyond = [replace(c, cost=replace(c.cost, train_epochs=11)) for c in CURVES]
    text = verdict(compared(SINGLES, FGES, beyond))
    assert "FGE and curve-ensemble" not in text
    assert "Not compared, since beyond the budget: curve-ensemble at 1 B." in text


def test_one_seed_tells_nothing_apart() -> None:
    text = verdict(compared(SINGLES[:1], FGES[:1]))
    assert "fge is not told apart from any other" in text
    assert "which method to use cannot be told, there are no intervals" in text
    assert "Whether FGE pays against single cannot be told, there is no interval" in text
    assert "excludes 0" not in text
    assert text.endswith(
        f"One seed and {IMAGES} test images: an interval over seeds needs 2 or more."
    )


def test_each_budget_has_its_sentences() -> None:
    doubled = several("single", [5, 5, 6], [0.3, 0.31, 0.3], budget=2)
    deep = several("deep-ensemble", [5, 5, 6], [0.3, 0.31, 0.3], budget=3, members=3)
    text = verdict(compared(SINGLES, FGES, doubled, deep))
    assert "At 1 B (10 epochs): " in text
    assert (
        "At 2 B (20 epochs): single has nobody to be compared with. single has the lowest" in text
    )
    assert "At 3 B" not in text


def test_uneven_numbers_of_seeds_are_said() -> None:
    text = verdict(compared(SINGLES, FGES, [cell("sse", 0, 9)]))
    assert text.endswith("as far as 1 to 3 seeds and 50 test images tell.")
