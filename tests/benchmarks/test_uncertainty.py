"""The benchmark of coverage measures what reports measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, ROOT, write_tiny_npz

sys.path.append(str(ROOT / "benchmarks"))

import uncertainty

from fge.commands.train import train
from fge.config import TrainConfig

pytestmark = pytest.mark.slow  # a whole training


def test_its_figures_are_those_of_the_report(tmp_path: Path) -> None:
    data, out = str(write_tiny_npz(tmp_path / "tiny.npz")), tmp_path / "average-e4-s3"
    options = {"epochs": 4, "val_fraction": 0.25, "seed": 3, **PLAIN}
    train(TrainConfig(data=data, out=out, method="average", **options))
    tasks = {"T": uncertainty.run_task(tmp_path)}
    [found] = tasks["T"]["average"]
    [line] = json.loads((out / "report.json").read_text())["uncertainty"]["methods"]
    assert line["name"] == "average"
    assert (found["seed"], found["aurc"]) == (3, line["aurc"])
    assert found["lac"] == {key: line["conformal"][key] for key in found["lac"]}
    assert found["aps"]["empty"] == 0
    tasks["T"]["average"].append(found)
    covered, size = 100 * found["lac"]["coverage"], found["lac"]["size"]
    text = uncertainty.table({"coverage": 0.9, "tasks": tasks})
    assert f" | {covered:.1f} ± 0.0, {size:.2f} | " in text
    assert uncertainty.method_of(Path("fge-e20-s1")) == ("fge-paper", "fge", 1)


def test_its_intervals_are_those_that_reports_measured(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 2))
    y = x @ [2.0, -1.0] + generator.normal(size=120)
    rows = np.column_stack([x, y])
    np.savetxt(tmp_path / "table.csv", rows, delimiter=",", header="a,b,y", comments="")
    options = {"epochs": 4, "val_fraction": 0.25, "task": "regression", "target": ("y",)}
    for seed in (3, 4):
        out = tmp_path / "runs" / f"average-e4-s{seed}"
        data = str(tmp_path / "table.csv")
        train(TrainConfig(data=data, out=out, method="average", seed=seed, **options, **PLAIN))
    found = uncertainty.reports(tmp_path / "runs")
    [line] = json.loads((out / "report.json").read_text())["uncertainty"]["methods"]
    assert [own["seed"] for own in found] == [3, 4]
    own = line["conformal"]["targets"]["y"]
    assert {key: found[1][key] for key in ("coverage", "width")} == own
    assert (found[1]["target"], found[1]["val"], found[1]["test"]) == ("y", 24, 24)
    content = {"coverage": 0.9, "tasks": {}, "reports": {"made": found}}
    covered = uncertainty.spread([100 * one["coverage"] for one in found], 1)
    assert f"| average | 2 | 1 | y | {covered} | " in uncertainty.table(content)


def test_a_task_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no finished runs"):
        uncertainty.run_task(tmp_path)
    with pytest.raises(SystemExit, match="has no finished runs"):
        uncertainty.reports(tmp_path)
