"""The benchmark of coverage measures what reports measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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


def test_a_task_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no finished runs"):
        uncertainty.run_task(tmp_path)
