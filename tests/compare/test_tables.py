"""The tables, CSV and JSON of made-up comparisons, cell by cell."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from made_cells import CURVES, FGES, SINGLES, compared, several

from fge.compare import Cell, as_csv, as_json, comparison_tables
from fge.compare.tables import interval_text
from fge.metrics import Interval
from fge.report import Table

LONGER = several("curve-ensemble-2B", [1, 1, 1], [0.1, 0.1, 0.1], epochs=25, members=5)


def with_figures(cells: list[Cell], **figures: float) -> list[Cell]:
    return [replace(cell, figures=cell.figures | figures) for cell in cells]


def by_title(found: list[Table]) -> dict[str, Table]:
    for table in found:
        assert all(len(row) == len(table.headings) for row in table.rows)
    return {table.title: table for table in found}


def test_the_main_table_has_figures_costs_and_marks() -> None:
    far = several("sse", [30, 31, 30], [0.8, 0.8, 0.81], members=3, epochs=8)
    table = by_title(comparison_tables(compared(FGES, far, budget_epochs=12)))[
        "Methods at 1 B (12 epochs)"
    ]
    assert table.headings == (
        *("method", "seeds", "members", "epochs", "passes", "MB", "error %", "NLL", "cal. NLL"),
        *("Brier", "ECE", "cal. ECE", "DEE"),
    )
    # Errors of 16, 18 and 18 %: deviation sqrt(4/3) = 1.15; NLL twice 0.40, 0.43 and 0.41.
    assert table.rows[0] == [
        *("fge", "3", "3", "10", "3", "0.00"),
        *("**17.33 ± 1.15**", "0.8267 ± 0.0306", "**0.4133 ± 0.0153**"),
        *("0.1000", "0.0100", "-", "-"),
    ]
    assert table.rows[1][:4] == ["sse", "3", "3", "8"]
    assert not any("**" in cell for cell in table.rows[1])
    assert "on 50 test images" in table.note
    assert "(paired intervals of 95 %: 95 % for all together, Bonferroni)" in table.note


def test_nothing_is_bold_where_no_difference_is_significant() -> None:
    table = comparison_tables(compared(SINGLES, FGES, CURVES))[0]
    assert not any("**" in cell for row in table.rows for cell in row)


def test_one_seed_is_shown_without_a_deviation() -> None:
    table = comparison_tables(compared(SINGLES[:1], FGES[:1]))[0]
    assert table.rows[0][6:9] == ["20.00", "1.0000", "0.5000"]


def test_one_value_of_all_seeds_is_shown_without_a_deviation_and_why() -> None:
    pooled = [replace(cell, pooled=3, note="3 runs pooled") for cell in FGES]
    found = compared(SINGLES, pooled)
    main, differences = comparison_tables(found)[:2]
    assert main.rows[1][1] == "3 (1 value)"
    assert main.rows[1][6:9] == ["17.33", "0.8267", "0.4133"]
    assert "fge: 3 runs pooled; all seeds are pooled into one value" in main.note
    assert differences.rows[1][1:] == ["-", "-", "-"]
    assert "there is one value and no interval" in differences.note
    single, fge = as_json(found)["methods"]
    assert (single["values"], fge["values"]) == (3, 1)
    assert (fge["deviation"], fge["seeds"]) == ({}, [0, 1, 2])
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(row["method"], row["seed"], row["pooled"]) for row in rows[2:]] == [
        ("single", "2", "1"),
        ("fge", "", "3"),
    ]
    assert float(rows[3]["error"]) == pytest.approx(52 / 3)
    assert rows[3]["members"] == "3"
    assert rows[3]["note"].startswith("3 runs pooled; all seeds are pooled into one value")


def test_a_bound_is_shown_as_one() -> None:
    levels = [(1, -0.6), (3, -0.5)]
    table = comparison_tables(compared(SINGLES, FGES, deep_ensembles=levels))[0]
    assert [row[-1] for row in table.rows] == ["2.8", "≥ 3.0"]


def test_differences_have_their_intervals_and_nothing_against_itself() -> None:
    found = compared(SINGLES, FGES, CURVES)
    table = by_title(comparison_tables(found))["Differences at 1 B (10 epochs)"]
    assert table.headings == [
        *("method", "against single: error", "NLL", "cal. NLL"),
        *("against curve-ensemble: error", "NLL", "cal. NLL"),
    ]
    difference = found.difference("fge", "single", 1, "error")
    assert difference is not None
    assert table.rows[1][:2] == ["fge", interval_text("error", difference.interval)]
    assert table.rows[1][1].startswith("-4.67 [")
    assert table.rows[0][1:4] == table.rows[2][4:] == ["-", "-", "-"]
    assert "pooled" not in table.note


def test_pooled_runs_are_said() -> None:
    pooled = [replace(cell, pooled=2, note="2 runs pooled") for cell in FGES]
    again = [replace(cell, method="sse") for cell in pooled]
    main, differences = comparison_tables(compared(SINGLES, pooled, again))[:2]
    assert main.note.endswith(" fge, sse: 2 runs pooled.")
    assert "Pooled cells of neighbouring seeds share runs" in differences.note


@pytest.mark.parametrize(
    ("metric", "interval", "text"),
    [
        ("error", (-1.004, -2.0, -0.001), "-1.00 [-2.00, +0.00]"),
        ("nll", (0.00004, -0.1, 0.25), "+0.0000 [-0.1000, +0.2500]"),
    ],
)
def test_an_interval_is_rounded_to_its_metric(
    metric: str, interval: tuple[float, float, float], text: str
) -> None:
    assert interval_text(metric, Interval(*interval)) == text


def test_what_is_beyond_the_budget_has_a_table_of_its_own() -> None:
    found = by_title(comparison_tables(compared(SINGLES, FGES, LONGER)))
    assert [row[0] for row in found["Methods at 1 B (10 epochs)"].rows] == ["single", "fge"]
    table = found["Beyond the budget"]
    assert [row[0] for row in table.rows] == ["curve-ensemble-2B (at 1 B)"]
    assert table.rows[0][3] == "25"
    assert "no method is compared with them" in table.note
    assert "Beyond the budget" not in by_title(comparison_tables(compared(SINGLES, FGES)))


def test_members_are_shown_where_there_are_several() -> None:
    differing = {"disagreement": 6.0, "mean_member_error": 20.0, "mean_member_nll": 0.9}
    cells = with_figures(FGES, **differing)
    table = by_title(comparison_tables(compared(SINGLES, cells)))["Members at 1 B"]
    # 20 less 17.333 points, 0.9 less 0.8267 nats.
    assert table.rows == [["fge", "3", "6.00", "-", "20.00", "17.33", "2.67", "0.0733"]]
    assert "Members at 1 B" not in by_title(comparison_tables(compared(SINGLES)))


def test_ood_images_and_aurc_are_shown_where_measured() -> None:
    ood = {"ood_my_set_max_probability": 0.75, "ood_my_set_entropy": 0.8}
    cells = with_figures(FGES, aurc=0.05, **ood)
    found = by_title(comparison_tables(compared(with_figures(SINGLES, aurc=0.0625), cells)))
    table = found["Uncertainty at 1 B"]
    headings = ["my_set: AUROC by max probability", "my_set: AUROC by entropy"]
    assert table.headings == ["method", "AURC", *headings]
    assert table.rows == [["single", "0.0625", "-", "-"], ["fge", "0.0500", "0.750", "0.800"]]


def test_the_csv_has_a_line_for_each_cell_with_exact_figures() -> None:
    cells = [replace(cell, note='a, "b"') for cell in with_figures(FGES, aurc=0.1 + 0.2)]
    text = as_csv(compared(SINGLES, cells))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, str(seed)) for method in ("single", "fge") for seed in range(3)
    ]
    assert float(rows[3]["aurc"]) == 0.1 + 0.2
    assert rows[0]["aurc"] == ""
    assert (rows[3]["note"], rows[3]["pooled"]) == ('a, "b"', "1")
    assert {"train_epochs", "images", "members", "forward_passes", "weight_bytes"} < set(rows[0])


def test_the_json_has_methods_with_their_figures_and_costs_and_what_is_significant() -> None:
    found = compared(SINGLES, FGES, LONGER)
    content = json.loads(json.dumps(as_json(found), allow_nan=False))
    single, fge, longer = content["methods"]
    assert (fge["name"], fge["budget"], fge["seeds"]) == ("fge", 1, [0, 1, 2])
    assert (fge["members"], fge["train_epochs"], fge["forward_passes"]) == (3, 10, 3)
    row = found.row("fge", 1)
    assert row is not None
    assert fge["error"] == row.mean["error"]
    assert fge["deviation"]["error"] == row.deviation["error"]
    assert [one["beyond"] for one in (single, fge, longer)] == [False, False, True]
    first = content["differences"][0]
    assert (first["method"], first["baseline"], first["metric"]) == ("fge", "single", "error")
    assert set(first["interval"]) == {"difference", "low", "high"}
    assert first["level"] == 0.95
    corrected = content["fge_differences"][0]
    assert (corrected["method"], corrected["baseline"]) == ("fge", "single")
    assert corrected["level"] == content["best"][0]["level"]
    assert content["best"][1]["method"] == "fge"
    assert content["best"][1]["sure"] is True
    assert content["deep_ensembles"] == [[1, pytest.approx(-np.mean([0.5, 0.52, 0.51]))]]
    assert (content["budget_epochs"], content["test_images"]) == (10, 50)


def test_methods_of_one_name_and_size_differ_by_their_budget() -> None:
    split = several("deep-ensemble", [9] * 3, [0.49] * 3, members=2)
    whole = several("deep-ensemble", [9] * 3, [0.4] * 3, members=2, budget=2)
    methods = as_json(compared(SINGLES, split, whole))["methods"]
    keys = [(row["name"], row["members"], row["budget"]) for row in methods]
    assert keys == [("single", 1, 1), ("deep-ensemble", 2, 1), ("deep-ensemble", 2, 2)]


def test_deep_ensembles_of_whole_networks_have_a_table_of_their_own() -> None:
    pairs = several(
        "deep-ensemble", [7, 8, 7], [0.38, 0.39, 0.38], members=2, budget=2, epochs=20, pooled=2
    )
    found = by_title(comparison_tables(compared(SINGLES, FGES, pairs)))
    (row,) = found["Deep ensembles of whole networks"].rows
    assert row[:5] == ["deep-ensemble (at 2 B)", "3", "2", "20", "2"]
    assert "Methods at 2 B (20 epochs)" not in found
    assert "Deep ensembles of whole networks" not in by_title(
        comparison_tables(compared(SINGLES, FGES))
    )
