"""Cells, tables, charts and verdicts of tasks that are not of several classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fge import metrics
from fge.compare import (
    Comparison,
    Cost,
    as_csv,
    as_json,
    caption_of,
    compare_cells,
    comparison_charts,
    comparison_tables,
    comparison_verdict,
    load_cells,
    make_cell,
)
from fge.tasks import Binary, Multilabel, Regression, Task

COUNT, SEEDS = 40, 3
TASKS: dict[str, Task] = {
    "binary": Binary(("no", "yes")),
    "multilabel": Multilabel(("a", "b")),
    "regression": Regression(("y",), (0.0,), (1.0,)),
}


def targets_of(task: Task) -> torch.Tensor:
    draw = np.random.default_rng(0)
    if task.name == "binary":
        return torch.from_numpy(np.arange(COUNT) % 2)
    if task.name == "multilabel":
        return torch.from_numpy((draw.random((COUNT, 2)) < 0.4).astype(int))
    return torch.from_numpy(draw.normal(size=(COUNT, 1)))


def member(task: Task, noise: float, seed: int) -> torch.Tensor:
    """Predictions that are the more wrong, the more noise there is."""
    draw, y = np.random.default_rng(seed), targets_of(task).numpy()
    if task.uses_noise:
        return torch.from_numpy(y + noise * draw.normal(size=y.shape))
    logits = torch.from_numpy(2.0 * y - 1 + noise * draw.normal(size=y.shape))
    probs = logits.sigmoid()
    return torch.stack([1 - probs, probs], dim=1) if task.of_classes else probs


def cells(task: Task) -> list[Any]:
    found = []
    for seed in range(SEEDS):
        for method, size in (("single", 1), ("fge", 2)):
            members = [member(task, 0.5, 10 * seed + k) for k in range(size)]
            held_out = (members, targets_of(task)) if task.uses_noise else None
            cost = Cost(10, 100, size, size, 8 * size)
            found.append(
                make_cell(
                    *(method, 1, seed, members, targets_of(task)),
                    cost=cost,
                    task=task,
                    held_out=held_out,
                )
            )
    return found


@pytest.mark.parametrize("name", TASKS)
def test_cells_hold_their_figures_and_can_be_loaded(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    for cell in cells(task):
        cell.save(tmp_path)
    loaded = {(cell.method, cell.seed): cell for cell in load_cells(tmp_path)}
    cell, y = loaded["fge", 0], targets_of(task).numpy()
    mean = np.mean([member(task, 0.5, k).numpy() for k in (0, 1)], axis=0)
    if name == "regression":
        spread = np.var([member(task, 0.5, k).numpy() for k in (0, 1)], axis=0)
        noise = metrics.fit_noise(mean, y, spread)
        expected = metrics.gaussian_nll_per_example(mean, y, noise, spread).mean()
        assert cell.figures["mse"] == pytest.approx(cell.figures["rmse"] ** 2)
        np.testing.assert_allclose(cell.wrong, metrics.squared_residuals(mean, y))
    elif name == "multilabel":
        expected = metrics.labels_nll_per_example(mean, y).mean()
        np.testing.assert_allclose(cell.wrong, 100 * ((mean > 0.5) != y).mean(axis=1))
        assert cell.bin_counts.sum() == y.size
    else:
        expected = metrics.nll(mean, y)
        assert cell.wrong.dtype == bool
    assert cell.figures["nll"] == pytest.approx(expected)
    assert cell.by_members[-1]["nll"] == pytest.approx(expected)
    assert cell.figures["calibrated_log_likelihood"] == -cell.figures["calibrated_nll"]


@pytest.mark.parametrize("name", TASKS)
def test_a_comparison_speaks_the_words_of_the_task(name: str) -> None:
    task = TASKS[name]
    comparison = compare_cells(cells(task), budget_epochs=10, task=task, example="row", draws=50)
    first = "mse" if name == "regression" else "error"
    assert {d.metric for d in comparison.differences} == {first, "nll", "calibrated_nll"}
    measured = comparison.difference("fge", "single", 1, first)
    assert measured is not None
    values = [[c.figures[first] for c in comparison.cells_of(m, 1)] for m in ("fge", "single")]
    assert measured.interval.difference == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    table, *others = comparison_tables(comparison)
    assert len({len(row) for row in (table.headings, *table.rows)}) == 1
    headings = {"regression": "RMSE", "multilabel": "error per label %", "binary": "error %"}
    assert headings[name] in table.headings
    text = " ".join([table.note, *(t.note for t in others), *comparison_verdict(comparison)])
    assert "image" not in text
    assert "40 test rows" in text
    charts = comparison_charts(comparison)
    assert ("rmse_by_epochs.png" if name == "regression" else "error_by_epochs.png") in charts
    assert ("reliability.png" in charts) == (name != "regression")
    assert all(caption_of(chart) for chart in charts)
    if name == "regression":
        words = text.lower().replace("squared error", "").replace("standard error", "")
        assert " error" not in words
        assert "RMSE" in caption_of("rmse_by_epochs.png")
        members = next(table for table in others if table.title.startswith("Members"))
        assert "spread" in members.headings
    content = as_json(comparison)
    assert content["methods"][0]["nll"] > -5
    assert as_csv(comparison).count("\n") == 2 * SEEDS + 1


def test_the_gain_of_an_ensemble_of_numbers_is_its_spread() -> None:
    comparison: Comparison = compare_cells(
        cells(TASKS["regression"]), budget_epochs=10, task=TASKS["regression"], draws=50
    )
    for cell in comparison.cells_of("fge", 1):
        gain = cell.figures["mean_member_mse"] - cell.figures["mse"]
        assert gain == pytest.approx(cell.figures["spread"] ** 2)
