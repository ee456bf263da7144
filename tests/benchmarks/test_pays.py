"""What pays: ``auto`` against the best fixed plan, by hand, and the tables in the docs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from fge.compare import Comparison, Cost, compare_cells, make_cell

SEEDS = (0, 1, 2)
WRONG = {"single": (4, 5, 3), "average": (3, 3, 3), "split": (5, 2, 1), "auto": (2, 3, 4)}
"""How many of ten images each seed of a method predicts wrongly."""


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pays as module

    return module


def comparison() -> Comparison:
    targets = torch.zeros(10, dtype=torch.long)
    cells = []
    for method, counts in WRONG.items():
        for seed, count in zip(SEEDS, counts, strict=True):
            sure = torch.tensor([0.3] * count + [0.6 + 0.1 * seed] * (10 - count))
            members = [torch.stack([sure, 1 - sure], dim=1).double()]
            cost = Cost(4, 40, 1, 1, 8)
            cells.append(make_cell(method, 1, seed, members, targets, cost=cost))
    return compare_cells(cells, budget_epochs=4)


def test_auto_is_compared_with_the_plan_of_the_lowest_error(pays: ModuleType) -> None:
    found = pays.against_fixed(comparison())
    error = found["error"]
    assert (error["method"], error["seeds"]) == ("split", 3)
    # 20, 30 and 40 % wrong against 50, 20 and 10 %.
    assert error["interval"]["difference"] == pytest.approx(30 - 80 / 3)
    assert error["interval"]["low"] < error["interval"]["difference"] < error["interval"]["high"]
    assert set(found) == {"error", "calibrated_nll"}


def test_the_table_has_the_kept_figures_of_a_task(
    pays: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pays.write_comparison(tmp_path, comparison())
    kept = json.loads((tmp_path / "compare.json").read_text())
    assert kept["verdict"]
    pays.print_table(tmp_path / "compare.json")
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| auto |")).split(" | ")
    assert row[1:5] == ["3", "4", "1", "30.00 ± 10.00"]
    assert row[7].startswith("-10.00 [")


PAGE = ROOT / "docs" / "results" / "pays.md"


@pytest.mark.parametrize("task", ["U", "S", "L", "F", "A", "C", "R"])
def test_the_docs_show_a_task_as_measured(
    pays: ModuleType, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pays.print_table(pays.RESULTS / task / "compare.json")
    assert capsys.readouterr().out.strip() in PAGE.read_text(encoding="utf-8")


def test_the_docs_show_auto_against_fixed_plans_as_measured(
    pays: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pays.print_against_fixed()
    assert capsys.readouterr().out.strip() in PAGE.read_text(encoding="utf-8")
