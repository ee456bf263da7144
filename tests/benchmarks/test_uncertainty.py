"""The benchmark of coverage measures what reports measure, and keeps to runs of its own options."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAIN, ROOT, write_tiny_npz

sys.path.append(str(ROOT / "benchmarks"))

import uncertainty

from fge.commands.train import train
from fge.config import TrainConfig

pytestmark = pytest.mark.slow  # a whole training


def test_its_figures_are_those_of_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = str(write_tiny_npz(tmp_path / "tiny.npz")), tmp_path / "average-0"
    train(TrainConfig(data=data, out=out, method="average", epochs=4, val_fraction=0.25, **PLAIN))
    assert uncertainty.finished(tmp_path, "average", 0, 4) == out  # and nothing is trained
    found = uncertainty.measured(out, "average", 0)
    [line] = json.loads((out / "report.json").read_text())["uncertainty"]["methods"]
    assert line["name"] == "average"
    assert found["aurc"] == line["aurc"]
    assert found["lac"] == {key: line["conformal"][key] for key in found["lac"]}
    assert found["aps"]["empty"] == 0
    with pytest.raises(SystemExit, match="give another --work"):
        uncertainty.finished(tmp_path, "average", 0, 100)
    results = tmp_path / "results.json"
    methods: dict[str, Any] = {"average": [found, found], "split": []}
    results.write_text(json.dumps({"epochs": 4, "coverage": 0.9, "methods": methods}))
    capsys.readouterr()
    uncertainty.table(argparse.Namespace(results=results))
    covered, size = 100 * found["lac"]["coverage"], found["lac"]["size"]
    assert f" | {covered:.2f} ± 0.00, {size:.3f} | " in capsys.readouterr().out
