"""Comparisons of made-up cells against means, intervals and rankings worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_cells import CURVES, FGES, SINGLES, cell, compared, several

from fge.compare import compare_cells, comparison_verdict
from fge.compare.comparison import BASELINES
from fge.errors import UserError
from fge.metrics import paired_difference_over_seeds


def test_means_and_sample_deviations_are_over_seeds() -> None:
    row = compared(SINGLES, FGES).row("fge", 1)
    assert row is not None
    assert row.seeds == (0, 1, 2)
    # Errors of 16, 18 and 18 %.
    assert row.mean["error"] == pytest.approx(52 / 3, rel=1e-12)
    assert row.deviation["error"] == pytest.approx(math.sqrt((16 + 4 + 4) / 9 / 2), rel=1e-12)
    assert row.mean["calibrated_nll"] == pytest.approx(1.24 / 3, rel=1e-12)
    assert row.costs == {
        "train_epochs": 10,
        "images": 100,
        "members": 3,
        "forward_passes": 3,
        "weight_bytes": 12,
        "refresh_images": 0,
    }
    assert len(row.by_members) == len(row.by_members_deviation) == 3
    assert row.by_members[0]["error"] == row.mean["error"]
    assert not row.beyond


def test_one_seed_has_no_deviation_and_no_interval() -> None:
    found = compared(SINGLES[:1], FGES[:1])
    assert [row.deviation for row in found.rows] == [{}, {}]
    assert found.differences == ()
    assert [(best.method, best.sure, best.alike) for best in found.best] == [
        ("fge", False, ("single",)),
        ("fge", False, ("single",)),
    ]


def test_figures_that_some_cells_lack_have_no_mean() -> None:
    cells = list(FGES)
    cells[2] = replace(cells[2], figures=cells[2].figures | {"error_correlation": 0.5})
    row = compared(cells).row("fge", 1)
    assert row is not None
    assert "error_correlation" not in row.mean


def test_differences_are_paired_intervals_against_both_baselines() -> None:
    found = compared(SINGLES, FGES, CURVES, draws=300)
    keys = [(d.method, d.baseline, d.metric) for d in found.differences]
    methods = ("single", "fge", "curve-ensemble")
    pairs = [(m, b) for m in methods for b in BASELINES if m != b]
    assert keys == [
        (m, b, metric) for m, b in pairs for metric in ("error", "nll", "calibrated_nll")
    ]
    difference = found.difference("fge", "single", 1, "error")
    assert difference is not None
    wrong = [100.0 * np.stack([c.wrong for c in group]) for group in (FGES, SINGLES)]
    assert difference.interval == paired_difference_over_seeds(*wrong, draws=300)
    assert difference.seeds == 3
    assert difference.interval.difference == pytest.approx(100 * (26 - 33) / 150, rel=1e-12)
    nll = found.difference("fge", "curve-ensemble", 1, "nll")
    assert nll is not None
    assert nll.interval.difference == pytest.approx(2 * (1.24 - 1.26) / 3, rel=1e-5)
    assert found.difference("fge", "sse", 1, "nll") is None


def test_only_the_seeds_that_both_have_are_paired() -> None:
    others = [replace(c, seed=c.seed + 1) for c in SINGLES]  # seeds 1, 2, 3
    found = compared(FGES, others).difference("fge", "single", 1, "error")
    assert found is not None
    assert found.seeds == 2
    # Wrong on 9 and 9 of 50 against 10 and 12.
    assert found.interval.difference == pytest.approx(100 * (18 - 22) / 100, rel=1e-12)
    far = [replace(c, seed=c.seed + 2) for c in SINGLES]
    assert compared(FGES, far).differences == ()


def test_budgets_are_not_mixed() -> None:
    doubled = several("single", [5, 5, 6], [0.3, 0.31, 0.3], budget=2)
    found = compared(SINGLES, FGES, doubled)
    assert found.budgets == [1, 2]
    assert {d.budget for d in found.differences} == {1}
    assert [row.method for row in found.at(2)] == ["single"]
    assert [(best.budget, best.among) for best in found.best] == [
        (1, ("single",)),
        (1, ("single",)),
        (2, ()),
        (2, ()),
    ]
    assert not found.best[-1].sure  # nobody to be better than


def test_what_trains_longer_than_the_budget_is_compared_with_nobody() -> None:
    longer = several("curve-ensemble-2B", [1, 1, 1], [0.1, 0.1, 0.1], epochs=25, members=5)
    found = compared(SINGLES, FGES, longer)
    assert [row.method for row in found.beyond] == ["curve-ensemble-2B"]
    assert "curve-ensemble-2B" not in {d.method for d in found.differences}
    assert {best.method for best in found.best} == {"fge"}
    # Within three budgets it is.
    thrice = [replace(c, budget=3) for c in longer]
    assert not compared(SINGLES, thrice).beyond


def test_rounding_does_not_make_a_budget_exceeded() -> None:
    cells = several("fge", [8, 9], [0.4, 0.4], epochs=0.1 + 0.2)
    assert not compared(cells, budget_epochs=0.3).beyond


def test_the_best_is_marked_where_it_is_told_apart_from_every_other() -> None:
    far = several("sse", [20, 21, 20], [0.8, 0.8, 0.81], members=3)
    best = compared(SINGLES, FGES, far).best
    assert [(b.metric, b.method) for b in best] == [("error", "fge"), ("calibrated_nll", "fge")]
    calibrated = best[1]
    assert calibrated.level == pytest.approx(0.975)
    assert calibrated.among == ("single", "sse")
    assert calibrated.alike == ()
    assert calibrated.sure


def test_nobody_is_marked_where_one_other_is_not_told_apart() -> None:
    calibrated = compared(SINGLES, FGES, CURVES).best[1]
    assert calibrated.method == "fge"
    assert calibrated.alike == ("curve-ensemble",)
    assert not calibrated.sure
    assert calibrated.level == pytest.approx(0.975)


def test_more_methods_ask_for_more_certainty() -> None:
    """The difference of each seed is 0.1, with a little noise: sure among 2, not among 40."""
    rivals = [several(f"own-{k}", [30] * 3, [0.9, 0.91, 0.9]) for k in range(38)]
    near = several("sse", [8, 9, 9], [0.50, 0.51, 0.52])
    assert compared(FGES, near).best[1].sure
    many = compared(FGES, near, *rivals, draws=400).best[1]
    assert many.level == pytest.approx(1 - 0.05 / 39)
    assert many.alike == ("sse",)


def test_the_best_of_one_pass_is_among_those_of_one_pass() -> None:
    averaged = several("swa", [9, 9, 9], [0.44, 0.45, 0.44])
    found = compared(SINGLES, FGES, averaged)
    assert [(b.method, b.among) for b in found.best_of_one_pass] == [
        ("swa", ("single",)),
        ("swa", ("single",)),
    ]
    # The level of all: two intervals of one pair would say two things.
    levels = [b.level for b in (*found.best, *found.best_of_one_pass)]
    assert levels == pytest.approx([0.975] * 4)


def test_the_equivalent_is_read_off_the_deep_ensembles_among_the_cells() -> None:
    deep = [
        several("deep-ensemble", [9] * 3, [level] * 3, budget=k, members=k)
        for k, level in ((2, 0.45), (3, 0.41))
    ]
    found = compared(SINGLES, FGES, *deep)
    assert [k for k, _ in found.deep_ensembles] == [1, 2, 3]
    assert [v for _, v in found.deep_ensembles] == pytest.approx([-0.51, -0.45, -0.41])
    assert found.budgets == [1]
    equivalents = {(r.method, r.budget): r.equivalent for r in found.rows}
    # 1.24 / 3 lies between 0.45 and 0.41.
    share = (0.45 - 1.24 / 3) / 0.04
    assert equivalents["fge", 1] == pytest.approx(2 + share, rel=1e-12)
    assert equivalents["single", 1] == 1
    assert equivalents["deep-ensemble", 3] == pytest.approx(3)
    assert not any(row.equivalent_is_bound for row in found.rows)


def test_what_is_better_than_every_deep_ensemble_is_worth_at_least_the_largest() -> None:
    row = compared(FGES, deep_ensembles=[(1, -0.6), (4, -0.5)]).row("fge", 1)
    assert row is not None
    assert row.equivalent == 4
    assert row.equivalent_is_bound


def test_a_split_budget_and_other_members_are_no_deep_ensembles_of_singles() -> None:
    split = several("deep-ensemble", [9] * 3, [0.49] * 3, members=2)
    other = several("deep-ensemble", [9] * 3, [0.4] * 3, budget=2, members=3)
    found = compared(SINGLES, split, other)
    assert [k for k, _ in found.deep_ensembles] == [1]
    assert compared(split, other).deep_ensembles == ()
    assert compared(split, other).rows[0].equivalent is None


def test_cells_that_share_runs_have_wider_intervals_or_none() -> None:
    single = several("single", [10, 12, 11], [0.50, 0.52, 0.51], budget=2)
    alone = several("fge", [8, 9, 9], [0.40, 0.43, 0.41], budget=2)
    pooled = [replace(c, pooled=2) for c in alone]
    intervals = []
    for group in (alone, pooled):
        difference = compared(single, group).difference("fge", "single", 2, "calibrated_nll")
        assert difference is not None
        intervals.append(difference.interval)
    assert intervals[1].low < intervals[0].low < intervals[0].high < intervals[1].high
    whole = compared(single, [replace(c, pooled=3) for c in alone])
    assert whole.differences == whole.fge_differences == ()
    assert not whole.best[0].sure
    assert whole.best[0].untested == ("single",)


def test_pools_of_which_one_is_missing_have_no_interval() -> None:
    single = several("single", [10, 12, 11, 10], [0.50, 0.52, 0.51, 0.50], budget=2)
    pooled = several("deep-ensemble", [8, 9, 9, 8], [0.4, 0.43, 0.41, 0.4], budget=2, pooled=2)
    assert compared(single, pooled).difference("deep-ensemble", "single", 2, "error") is not None
    assert compared(single, pooled[:3]).difference("deep-ensemble", "single", 2, "error") is None


def test_cells_that_pool_all_seeds_are_one_value() -> None:
    pooled = several("deep-ensemble", [5, 5, 5], [0.3, 0.3, 0.3], budget=3, members=3, pooled=3)
    row = compared(SINGLES, pooled).row("deep-ensemble", 3)
    assert row is not None
    assert (row.seeds, row.values) == ((0, 1, 2), 1)
    assert row.mean["error"] == pytest.approx(10)
    assert row.deviation == {}
    assert row.by_members_deviation == [{}, {}, {}]
    assert row.note == "all seeds are pooled into one value, without deviation or interval"
    partly = compared(SINGLES, [replace(c, pooled=2) for c in pooled]).row("deep-ensemble", 3)
    assert partly is not None
    assert (partly.values, partly.note) == (3, "")
    assert partly.deviation["error"] == 0


def test_fge_is_told_from_the_baselines_at_the_level_of_the_best() -> None:
    found = compared(SINGLES, FGES, CURVES, draws=300)
    keys = [(d.method, d.baseline, d.metric) for d in found.fge_differences]
    assert keys == [("fge", b, metric) for b in BASELINES for metric in ("error", "calibrated_nll")]
    wider = found.fge_difference("single", 1, "error")
    one = found.difference("fge", "single", 1, "error")
    assert one is not None
    assert wider is not None
    assert (one.level, wider.level) == (0.95, found.best[0].level)
    wrong = [100.0 * np.stack([c.wrong for c in group]) for group in (FGES, SINGLES)]
    assert wider.interval == paired_difference_over_seeds(*wrong, draws=300, level=0.975)
    assert wider.interval.high > one.interval.high


def test_methods_are_shown_in_a_fixed_order_and_ones_own_behind() -> None:
    cells = [cell(method, 0, 9) for method in ("own", "curve-ensemble", "sse", "fge", "single")]
    assert compared(cells).methods == ["single", "fge", "sse", "curve-ensemble", "own"]
    assert [c.method for c in compared(cells).cells_of("fge", 1)] == ["fge"]


def test_notes_are_said_once() -> None:
    cells = [replace(c, note="2 runs pooled") for c in FGES]
    cells[0] = replace(cells[0], note="")
    row = compared(cells).row("fge", 1)
    assert row is not None
    assert row.note == "2 runs pooled"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to compare: no cells"):
        compare_cells([], budget_epochs=10)
    with pytest.raises(UserError, match="the cell fge-b1-s1 occurs twice"):
        compared(FGES, FGES[1:2])
    with pytest.raises(UserError, match=r"tested on 50 examples, but fge-b1-s2 on 4: they cannot"):
        compared(SINGLES, FGES[:2], [replace(FGES[2], wrong=np.zeros(4, bool))])


def test_a_deep_ensemble_within_the_budget_is_compared_if_all_single_networks_diverged() -> None:
    ensembles = several("deep-ensemble", [9, 10, 10], [0.45, 0.46, 0.45], members=2)
    pooled = several("deep-ensemble", [9, 10, 10], [0.45, 0.46, 0.45], budget=2, members=2)
    found = compared(ensembles, pooled)
    assert found.budgets == [1]
    assert [best.method for best in found.best] == ["deep-ensemble"] * 2
    first, *_ = comparison_verdict(found)
    assert first.startswith("At 1 B (10 epochs), deep-ensemble is the only method")


def test_a_method_with_views_follows_itself_and_needs_their_passes() -> None:
    viewed = several("single+tta", [9, 10, 10], [0.45, 0.46, 0.45])
    viewed = [replace(one, cost=replace(one.cost, forward_passes=3)) for one in viewed]
    own = several("own:a+tta", [9, 10, 10], [0.46, 0.47, 0.46])
    found = compared(own, FGES, viewed, several("own:a", [9] * 3, [0.5] * 3), SINGLES)
    assert found.methods == ["single", "single+tta", "fge", "own:a", "own:a+tta"]
    row = found.row("single+tta", 1)
    assert row is not None
    assert (row.costs["members"], row.costs["forward_passes"]) == (1, 3)
    assert {best.method for best in found.best_of_one_pass} <= {"single", "own:a", "own:a+tta"}
