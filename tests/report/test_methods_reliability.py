"""The reliability diagram of a run shows the bins of its predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fge_runs import config

from fge import metrics
from fge.commands.train import fge, train
from fge.config import TrainConfig
from fge.ensemble import PredictionFile
from fge.report import MethodResult, ReportBuilder, add_reliability, method_result
from fge.report.reliability import reliability_bins
from fge.runs import RunFolder

TARGETS = torch.arange(40) % 2


def probabilities(confidence: float, wrong: int) -> torch.Tensor:
    """Probabilities (40, 2) of one confidence, in favour of the wrong class at first."""
    favoured = TARGETS.clone()
    favoured[:wrong] = 1 - favoured[:wrong]
    probs = torch.full((40, 2), 1 - confidence, dtype=torch.float64)
    probs[torch.arange(40), favoured] = confidence
    return probs


@pytest.fixture
def test_file(tmp_path: Path) -> PredictionFile:
    file = PredictionFile(tmp_path / "test.npz", TARGETS)
    for name, confidence, wrong in (("a", 0.9, 4), ("b", 0.7, 10), ("c", 0.55, 20)):
        file.add(name, name, probabilities(confidence, wrong))
    return file


def lines(file: PredictionFile, **members: tuple[str, ...]) -> list[MethodResult]:
    return [
        method_result(
            name.rstrip("_").replace("_", "-"), file, names, train_epochs=1, weight_bytes=4
        )
        for name, names in members.items()
    ]


def test_each_method_has_confidence_and_accuracy_of_its_largest_ensemble(
    test_file: PredictionFile,
) -> None:
    found = lines(test_file, single=("c",), last_snapshot=("b",), best_snapshot=("b",))
    found += lines(test_file, fge=("a",), fge_=("a", "b"), fold=("a",), swa=("a",))
    series = {one.name: one for one in reliability_bins(found, test_file)}
    assert list(series) == ["single", "fge", "swa"]
    assert [*series["swa"].confidence, *series["swa"].accuracy] == pytest.approx([0.9, 0.9])
    assert series["swa"].counts == [40]
    assert [*series["single"].confidence, *series["single"].accuracy] == pytest.approx([0.55, 0.5])
    # Of the mean of a and b: 30 examples right at 0.8, 6 undecided at 0.6 for a, 4 wrong at 0.8.
    assert series["fge"].counts == [34]
    assert series["fge"].confidence == pytest.approx([0.8])
    assert series["fge"].accuracy == pytest.approx([30 / 34])


def test_the_last_snapshot_stands_in_for_a_single_network(test_file: PredictionFile) -> None:
    found = lines(test_file, last_snapshot=("b",), sse=("a", "b"))
    assert [one.name for one in reliability_bins(found, test_file)] == ["last-snapshot", "sse"]


def test_bins_of_few_predictions_are_left_out_and_with_them_the_figure(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "test.npz", TARGETS[:9])
    file.add("a", "a", probabilities(0.9, 2)[:9])
    report = ReportBuilder(RunFolder(tmp_path))
    add_reliability(report, lines(file, fge=("a",)), file)
    assert report.page("").figures == {}
    assert not list(tmp_path.glob("figures/*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fge", "train"])
def test_a_run_draws_its_own_predictions(command: str, tiny_npz: Path, tmp_path: Path) -> None:
    options = config(tiny_npz, tmp_path / "run", epochs=4)
    if command == "fge":
        run, names = fge(options), ["last-snapshot", "fge", "swa"]
    else:
        shared = {k: v for k, v in vars(options).items() if k in vars(TrainConfig())}
        run = train(TrainConfig(**{**shared, "method": "sse", "sse_cycles": 2}))
        names = ["last-snapshot", "sse", "swa"]
    plot = json.loads((run / "page.json").read_text())["plots"]["reliability.png"]
    assert [trace["name"] for trace in plot["data"]] == [*names, *names]
    assert (run / "figures" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    methods = json.loads((run / "report.json").read_text())["methods"]
    members = next(m for m in reversed(methods) if m["name"] == names[1])["member_names"]
    with np.load(run / "predictions" / "test.npz") as stored:
        rows = dict(zip(stored["members"].tolist(), stored["probabilities"], strict=True))
        probs = np.mean([rows[member].astype(float) for member in members], axis=0)
        bins = metrics.reliability(probs, stored["targets"])
    held = bins.counts >= 10
    gap = (bins.accuracy - bins.confidence)[held]
    assert plot["data"][1]["y"] == pytest.approx(gap, rel=1e-4, abs=1e-6)
    assert "Reliability on the test set" in (run / "report.html").read_text()
