"""What comparisons with known outcomes are said to come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_cells import CURVES, FGES, IMAGES, SINGLES, cell, compared, several

from fge.compare import Comparison, Cost, make_cell
from fge.compare import comparison_verdict as in_paragraphs
from fge.metrics import Interval

COSTS = "fge costs 10 epochs of training and 3 passes per prediction"


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
    return " ".join(in_paragraphs(comparison))


def test_each_question_has_a_paragraph() -> None:
    paragraphs = in_paragraphs(compared(SINGLES, FGES, CURVES))
    begins = [" ".join(paragraph.split()[:2]) for paragraph in paragraphs]
    assert begins == ["At 1", "2 methods", "With one", "FGE is", "FGE and", "A difference"]
    assert "\n" not in "".join(paragraphs)


def test_a_sure_winner_is_named_with_its_cost_in_the_first_line() -> None:
    far = several("single", [30, 31, 30], [0.8, 0.8, 0.81])
    line, *_ = in_paragraphs(compared(far, FGES))
    assert line == (
        "At 1 B (10 epochs), use fge (10 epochs of training and 3 passes per prediction): its "
        "calibrated NLL and error are significantly lower than all others (3 seeds, 50 test "
        "images)."
    )
    text = verdict(compared(far, FGES))
    assert text.startswith(
        f"{line} fge has the lowest calibrated NLL (0.4133) and error (17.33 %), for 10 epochs of "
        "training and 3 passes per prediction. In calibrated NLL, fge is significantly better than "
        "every other method. In error, fge is significantly better than every other method. With "
        "one pass per prediction, single has the lowest calibrated NLL (0.8033) and error "
        "(60.67 %), for 10 epochs of training and 1 pass per prediction. single is the only method "
        "with one pass. FGE is significantly better than single in calibrated NLL and error. Its "
        "calibrated NLL is 0.3900 lower ["
    )
    assert "points lower [" in text
    assert text.count(" (lower in 3 of 3 seeds): significant.") == 2
    assert f"{COSTS}, single 10 epochs of training and 1 pass per prediction." in text
    assert text.endswith(
        "A difference is significant if the interval of the paired difference (95 %) excludes 0; a "
        "difference that is not significant may still exist. The results hold for this data and "
        "model, with 3 seeds and 50 test images."
    )


FAR = several("single", [30] * 3, [0.9] * 3)
SWAS = several("swa", [9, 9, 9], [0.42, 0.41, 0.42])


def test_of_what_does_not_differ_significantly_the_cheapest_is_to_be_used() -> None:
    text = verdict(compared(FAR, FGES, SWAS))
    assert text.startswith(
        "At 1 B (10 epochs), use swa (10 epochs of training and 1 pass per prediction): not "
        "significantly worse than the best in calibrated NLL and error, with the fewest passes "
        "(3 seeds, 50 test images). 2 methods are not significantly worse than the best in "
        "calibrated NLL and error; of these, swa needs the fewest passes. fge has the lowest "
        "calibrated NLL (0.4133) and "
    )
    assert "In calibrated NLL, fge is not significantly better than swa." in text
    assert "With one pass per prediction, swa has the lowest" in text
    assert (
        "In calibrated NLL, swa is significantly better than every other method with one pass."
    ) in text
    assert "paired difference (97.5 %) excludes 0" in text
    assert "This keeps 95 % for all methods of a budget together (Bonferroni); each " in text


def test_of_the_cheapest_that_of_the_lowest_calibrated_nll_is_to_be_used() -> None:
    near = several("fold", [9, 8, 9], [0.425, 0.415, 0.42])
    text = verdict(compared(FAR, FGES, SWAS, near))
    assert (
        " 3 methods are not significantly worse than the best in calibrated NLL and error; of "
        "these, swa and fold need the fewest passes, and swa has the lowest calibrated NLL. "
    ) in text


def test_where_no_method_is_among_the_best_in_both_there_are_two_to_be_used() -> None:
    other = several("sse", [2, 2, 3], [0.7, 0.7, 0.71], members=2)
    text = verdict(compared(FAR, FGES, other))
    assert text.startswith(
        "At 1 B (10 epochs), use fge for calibrated NLL and sse for error: no method is among the "
        "best in calibrated NLL and error ("
    )


def test_the_only_one_among_the_best_in_both_is_to_be_used() -> None:
    near = several("sse", [9, 8, 8], [0.7, 0.7, 0.71])
    text = verdict(compared(FGES, near))
    assert "use fge (10 epochs of training and 3 passes per prediction): no other method is" in text


def test_what_has_no_interval_is_not_taken_for_as_good() -> None:
    once = [cell("swa", 0, 20, 0.42)]
    text = verdict(compared(several("single", [30] * 3, [0.9] * 3, members=2), FGES, once))
    assert text.startswith("At 1 B (10 epochs), use fge (")
    assert "not significantly better than swa. There is no interval for swa." in text
    pooled = [replace(one, pooled=3) for one in FGES]
    text = verdict(compared(SINGLES, pooled))
    assert "the best method is unknown, because there are no intervals (3 seeds" in text


def test_one_rule_decides_and_what_another_would_say_is_named() -> None:
    """By 95 % single is worse than FGE, by 1 - 0.05 / 39 it is not."""
    noisy = several("single", [9, 9, 9], [0.50, 0.51, 0.52], members=2)
    rivals = [several(f"own-{k}", [30] * 3, [0.9, 0.91, 0.9], members=2) for k in range(38)]
    better = "FGE is significantly better than single in calibrated NLL"
    assert better in verdict(compared(FGES, noisy))
    text = verdict(compared(FGES, noisy, *rivals, draws=400))
    assert "In calibrated NLL, fge is not significantly better than single." in text
    assert better not in text
    assert "FGE and single do not differ significantly in calibrated NLL and error. Its " in text
    assert "These are 99.9 % intervals; fge costs" in text
    assert (
        " By the 95 % intervals of the tables, its calibrated NLL is significantly lower; among so "
        "many intervals that may be chance."
    ) in text
    assert "difference (99.9 %) excludes 0" in text


def test_several_budgets_share_the_first_line_and_have_their_levels() -> None:
    doubled = [replace(one, budget=2) for group in (SINGLES, FGES, SWAS) for one in group]
    line, *others = in_paragraphs(compared(SINGLES, FGES, doubled))
    assert line.startswith("At 1 B (10 epochs), use fge (")
    assert "; at 2 B (20 epochs), use swa (" in line
    assert "paired difference (95 % at 1 B and 97.5 % at 2 B) excludes 0" in others[-1]
    assert [one.split(":")[0] for one in others if one.startswith("At ")] == ["At 1 B", "At 2 B"]


def test_two_metrics_may_have_two_winners() -> None:
    other = several("sse", [2, 2, 3], [0.7, 0.7, 0.71], members=2)
    text = verdict(compared(FGES, other))
    assert "fge has the lowest calibrated NLL (0.4133), for 10 epochs" in text
    assert "; sse has the lowest error (4.67 %), for 10 epochs" in text


@pytest.mark.parametrize(
    ("error", "calibrated", "text"),
    [
        (
            (-3, -1),
            (-0.2, -0.1),
            "FGE is significantly better than single in calibrated NLL and error. ",
        ),
        (
            (-3, 1),
            (-0.2, -0.1),
            "FGE is significantly better than single in calibrated NLL; the difference in error is "
            "not significant. ",
        ),
        (
            (1, 3),
            (-0.2, -0.1),
            "FGE is significantly better than single in calibrated NLL and worse than single in "
            "error. ",
        ),
        (
            (-1, 1),
            (-0.2, 0.1),
            "FGE and single do not differ significantly in calibrated NLL and error. ",
        ),
        (
            (-1, 1),
            (0.1, 0.2),
            "FGE is significantly worse than single in calibrated NLL; the difference in error is "
            "not significant. ",
        ),
        (
            (1, 3),
            (0.1, 0.2),
            "FGE is significantly worse than single in calibrated NLL and error. ",
        ),
    ],
)
def test_whether_fge_is_better_follows_from_the_intervals(
    error: tuple[float, float], calibrated: tuple[float, float], text: str
) -> None:
    said = verdict(shifted(error=error, calibrated=calibrated))
    assert text in said
    for word, unit, places, (low, high) in (
        ("calibrated NLL", "", 4, calibrated),
        ("error", " points", 2, error),
    ):
        middle = (low + high) / 2
        way = "lower" if middle < 0 else "higher"
        significant = "significant" if low > 0 or high < 0 else "not significant"
        assert (
            f"Its {word} is {abs(middle):.{places}f}{unit} {way} [{low:+.{places}f}, "
            f"{high:+.{places}f}] (lower in 3 of 3 seeds): {significant}."
        ) in said
    assert "These are 95 % intervals; fge costs" in said
    assert "By the 95 % intervals of the tables" not in said


def test_the_curve_ensemble_is_asked_about_where_it_is_within_the_budget() -> None:
    text = verdict(compared(SINGLES, FGES, CURVES))
    assert "FGE and curve-ensemble do not differ" in text
    beyond = [replace(c, cost=replace(c.cost, train_epochs=11)) for c in CURVES]
    text = verdict(compared(SINGLES, FGES, beyond))
    assert "FGE and curve-ensemble" not in text
    assert (
        "Not compared, because it trains for longer than the budget: curve-ensemble at 1 B."
    ) in text


def test_one_seed_tells_nothing() -> None:
    text = verdict(compared(SINGLES[:1], FGES[:1]))
    assert "fge is not significantly better than any other method." in text
    assert "the best method is unknown, because there are no intervals" in text
    assert f"(1 seed, {IMAGES} test images)" in text
    assert "Whether FGE is better than single is unknown: there is no interval; fge costs" in text
    assert "excludes 0" not in text
    assert text.endswith("An interval over seeds needs 2 seeds or more.")


def test_each_budget_has_its_sentences() -> None:
    doubled = several("single", [5, 5, 6], [0.3, 0.31, 0.3], budget=2)
    deep = several("deep-ensemble", [5, 5, 6], [0.3, 0.31, 0.3], budget=3, members=3)
    text = verdict(compared(SINGLES, FGES, doubled, deep))
    assert "At 1 B (10 epochs), " in text
    assert "; at 2 B (20 epochs), single is the only method (3 seeds" in text
    assert "At 2 B: single has the lowest" in text
    assert "3 B" not in text


def test_a_calibrated_nll_that_cannot_be_trusted_is_said() -> None:
    sure = [
        replace(one, figures={**one.figures, "nll": nll})
        for one, nll in zip(SINGLES, (0.1, 0.2, 0.3), strict=True)
    ]
    _, warning, *_ = in_paragraphs(compared(sure, FGES))
    assert warning.startswith(
        "The calibrated NLL says little here: that of single at 1 B is 0.5100, its NLL as it is "
        "0.2000. Half of the test images has too few errors"
    )
    assert "says little" not in verdict(compared(SINGLES, FGES))


def test_no_temperature_fits_where_a_half_of_the_test_set_has_no_error() -> None:
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.integers(0, 2, 114))
    margins = torch.from_numpy(rng.uniform(1, 8, 114))
    margins[0] = -2  # the only error
    logits = margins * (2 * targets - 1)
    probs = torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    made = make_cell("single", 1, 0, [probs], targets, cost=Cost(10, 100, 1, 1, 4))
    assert made.figures["calibrated_nll"] > 1.5 * made.figures["nll"]
    assert "says little here" in verdict(compared([made]))


def test_uneven_numbers_of_seeds_are_said() -> None:
    text = verdict(compared(SINGLES, FGES, [cell("sse", 0, 9)]))
    assert text.endswith("with 1 to 3 seeds and 50 test images.")
