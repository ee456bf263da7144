"""What methods of a comparison are worth in networks: laws put in, numbers of networks out."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from made_cells import cell, compared, several

from fge.compare import Cell, Comparison, as_csv, as_json, comparison_tables, comparison_verdict
from fge.compare.worth import scales_of, worth_on
from fge.metrics import PowerLaw

CONVENTIONAL = PowerLaw(0.4, 0.12, 1.0)
AVERAGED = PowerLaw(0.4, 0.06, 1.0)
SIZES = 1, 2, 3


def pools(network: str, pool: str, law: PowerLaw) -> list[Cell]:
    """Cells of one network and of the ensembles of 2 and 3, whose NLL is that of the law."""
    groups = [
        several(network if k == 1 else pool, [9] * 4, [law.nll(k)] * 4, budget=k, members=k)
        for k in SIZES
    ]
    return [one for group in groups for one in group]


SINGLES = pools("single", "deep-ensemble", CONVENTIONAL)
AVERAGES = pools("average", "deep-ensemble-averaged", AVERAGED)
# Worth 2.4 conventional networks, 1.2 averaged ones: 0.45 = 0.4 + 0.12 / 2.4 = 0.4 + 0.06 / 1.2.
FGES = several("fge", [8] * 4, [0.45] * 4, members=5)


def worth_of(comparison: Comparison, method: str, budget: int = 1) -> dict[str, tuple[float, ...]]:
    row = comparison.row(method, budget)
    assert row is not None
    return {w.pool: (w.linear, w.power_law or 0.0, w.gain_share or 0.0) for w in row.worths}


def test_a_method_is_measured_by_both_kinds_of_networks() -> None:
    found = compared(SINGLES, AVERAGES, FGES)
    assert [(s.pool, s.largest, s.cap) for s in found.scales] == [
        ("deep-ensemble", 3, 6),
        ("deep-ensemble-averaged", 3, 6),
    ]
    for scale, law in zip(found.scales, (CONVENTIONAL, AVERAGED), strict=True):
        assert scale.law == pytest.approx(law, rel=1e-6)
    worth = worth_of(found, "fge")
    # 0.45 lies between 0.46 of two networks and 0.44 of three; a gain of 0.07 of 0.08.
    assert worth["deep-ensemble"] == pytest.approx((2.5, 2.4, 87.5), rel=1e-6)
    # Between 0.46 of one average and 0.43 of two; 0.01 of 0.04.
    assert worth["deep-ensemble-averaged"] == pytest.approx((1 + 1 / 3, 1.2, 25.0), rel=1e-6)
    assert worth_of(found, "average")["deep-ensemble"] == pytest.approx((2, 2, 75), rel=1e-6)
    assert found.budgets == [1]


def test_pools_are_worth_their_own_sizes() -> None:
    found = compared(SINGLES, AVERAGES)
    for pool in ("deep-ensemble", "deep-ensemble-averaged"):
        for size in (2, 3):
            assert worth_of(found, pool, size)[pool][:2] == pytest.approx((size, size), rel=1e-6)


def test_without_averages_there_is_one_scale_and_without_ensembles_none() -> None:
    found = compared(SINGLES, FGES)
    assert [scale.pool for scale in found.scales] == ["deep-ensemble"]
    none = compared(SINGLES[:4], AVERAGES[:4], FGES)
    assert none.scales == ()
    assert all(row.worths == () for row in none.rows)
    assert "Worth in networks" not in {table.title for table in comparison_tables(none)}
    assert "is worth" not in " ".join(comparison_verdict(none))


def test_two_sizes_have_no_law_and_what_is_beyond_is_a_bound() -> None:
    (scale,) = scales_of({"deep-ensemble": [(1, -0.5), (2, -0.4)]})
    worth = worth_on(scale, -0.3)
    assert (worth.linear, worth.linear_is_bound) == (2.0, True)
    assert (worth.power_law, worth.power_law_is_bound) == (None, False)
    assert worth.gain_share == pytest.approx(200)
    (scale,) = scales_of({"deep-ensemble": [(k, -CONVENTIONAL.nll(k)) for k in SIZES]})
    worth = worth_on(scale, -0.41)  # by the law 12 networks
    assert (worth.linear, worth.linear_is_bound) == (3.0, True)
    assert (worth.power_law, worth.power_law_is_bound) == (6.0, True)
    worth = worth_on(scale, -0.43)
    assert (worth.linear_is_bound, worth.power_law_is_bound) == (True, False)
    assert worth.power_law == pytest.approx(4, rel=1e-6)


def test_the_table_shows_worth_and_says_what_it_is_read_off() -> None:
    best = several("sse", [7] * 4, [0.405] * 4, members=5)
    longer = several("curve-ensemble-2B", [7] * 4, [0.44] * 4, members=5, epochs=25)
    found = compared(SINGLES, AVERAGES, FGES, best, longer)
    (table,) = (one for one in comparison_tables(found) if one.title == "Worth in networks")
    part = ["DEE", "by power law", "gain %"]
    assert table.headings == [
        "method",
        *(
            f"{name}: DEE" if k == 0 else part[k]
            for name in ("conventional", "averaged")
            for k in range(3)
        ),
    ]
    assert table.rows == [
        ["single", "1.0", "1.0", "0", "1.0", "1.0", "-150"],
        ["average", "2.0", "2.0", "75", "1.0", "1.0", "0"],
        ["fge", "2.5", "2.4", "88", "1.3", "1.2", "25"],
        ["sse", "≥ 3.0", "≥ 6.0", "all", "≥ 3.0", "≥ 6.0", "all"],
        ["curve-ensemble-2B (at 1 B)", "3.0", "3.0", "all", "1.7", "1.5", "50"],
    ]
    assert table.note.endswith(
        "Conventional: 1 to 3 networks, L(m) = 0.4000 + 0.1200 m^-1.00. Averaged: 1 to 3 networks, "
        "L(m) = 0.4000 + 0.0600 m^-1.00."
    )


def test_several_budgets_are_told_apart_in_the_table() -> None:
    doubled = several("fge", [8] * 4, [0.43] * 4, members=10, budget=2)
    found = compared(SINGLES, FGES, doubled)
    (table,) = (one for one in comparison_tables(found) if one.title == "Worth in networks")
    assert [row[0] for row in table.rows] == [
        "single (at 1 B)",
        "fge (at 1 B)",
        "fge (at 2 B)",
        "deep-ensemble (at 2 B)",
    ]


def test_the_verdict_says_it_in_a_sentence() -> None:
    found = compared(SINGLES, AVERAGES, FGES)
    (sentence,) = (one for one in comparison_verdict(found) if "is worth" in one)
    assert sentence == (
        "In calibrated NLL, fge is worth this many networks of 1 B each: 2.5 conventional (2.4 by "
        "the power law; 88 % of the gain of 3) and 1.3 averaged (1.2 by the power law; 25 % of the "
        "gain of 3)."
    )
    best = [cell("sse", seed, 7, 0.405, members=5) for seed in range(4)]
    text = " ".join(comparison_verdict(compared(SINGLES, best)))
    assert (
        "sse is worth this many networks of 1 B each: at least 3.0 conventional (at least 6.0 by "
        "the power law; all of the gain of 3)."
    ) in text


@pytest.mark.parametrize("pooled", [1, 2])
def test_a_gain_that_is_not_significant_has_no_shares(pooled: int) -> None:
    signs = np.resize([1.0, -1.0], 50)
    rival = several("average", [5] * 2, [0.3] * 2)
    for noise, sure in ((1e-4, True), (1.0, False)):
        pair = several("deep-ensemble", [9] * 2, [0.499] * 2, budget=2, members=2, pooled=pooled)
        pair = [replace(c, calibrated_nll=0.499 + noise * signs) for c in pair]
        found = compared(several("single", [9] * 2, [0.5] * 2), pair, rival)
        assert [scale.gains for scale in found.scales] == [sure]
        row = found.row("average", 1)
        assert row is not None
        (worth,) = row.worths
        assert worth.gain_share == (pytest.approx(20_000) if sure else None)
        (table,) = (one for one in comparison_tables(found) if one.title == "Worth in networks")
        assert {line[0]: line[-1] for line in table.rows}["average"] == ("all" if sure else "-")
        (said,) = (one for one in comparison_verdict(found) if "is worth" in one)
        share = " (all of the gain of 2)" if sure else ""
        assert said.endswith(f"1 B each: at least 2.0 conventional{share}.")


def test_json_and_csv_hold_the_same() -> None:
    found = compared(SINGLES, AVERAGES, FGES)
    content = json.loads(json.dumps(as_json(found), allow_nan=False))
    (fge,) = (row for row in content["methods"] if row["name"] == "fge")
    first, second = fge["worths"]
    assert first["pool"] == "deep-ensemble"
    assert (first["linear"], first["power_law"], first["gain_share"]) == pytest.approx(
        (2.5, 2.4, 87.5), rel=1e-6
    )
    assert (first["linear_is_bound"], first["power_law_is_bound"]) == (False, False)
    assert second["pool"] == "deep-ensemble-averaged"
    assert content["scales"][0]["law"] == pytest.approx({"c": 0.4, "b": 0.12, "a": 1.0})
    assert content["scales"][1]["levels"][0] == pytest.approx([1, -0.46])
    rows = [row for row in csv.DictReader(io.StringIO(as_csv(found))) if row["method"] == "fge"]
    assert len(rows) == 4
    for row in rows:
        assert float(row["dee"]) == first["linear"]
        assert float(row["dee_power_law_averaged"]) == second["power_law"]
        assert float(row["gain_share_averaged"]) == second["gain_share"]
