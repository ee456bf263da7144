"""Distilling an ensemble: what the student learns, what it costs, and resuming it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLAIN

from fge.commands.train import train
from fge.config import TrainConfig
from fge.data import Normaliser, TrainBatches, load_dataset
from fge.networks import read_weights
from fge.runs import StagedTraining
from fge.train import TaughtBatches, mean_prediction


def config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": str(data),
        "out": out,
        "method": "split",
        "epochs": 4,
        "distill_epochs": 2,
        **PLAIN,
        "val_fraction": 0.25,
        **changes,
    }
    return TrainConfig(**values)


def lines_of(run: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads((run / "report.json").read_text())["methods"]}


def test_its_epochs_are_booked_and_it_needs_one_pass(data: Path, tmp_path: Path) -> None:
    run = train(config(data, tmp_path / "run"))
    line, ensemble = lines_of(run)["distilled"], lines_of(run)["split"]
    assert (ensemble["train_epochs"], ensemble["forward_passes"]) == (4, 2)
    assert (line["train_epochs"], line["forward_passes"], line["members"]) == (6, 1, 1)
    cost = json.loads((run / "report.json").read_text())["distilled"]
    views = 4
    assert cost == {"epochs": 2, "views": views, "teacher_images": 2 * views * 72}


def test_the_best_of_all_single_networks_on_validation_is_the_folded_one(
    data: Path, tmp_path: Path
) -> None:
    run = train(config(data, tmp_path / "run", distill_epochs=6))
    fold = json.loads((run / "report.json").read_text())["averages"]["fold"]
    index = json.loads((run / "snapshots" / "index.json").read_text())["snapshots"]
    student = json.loads((run / "distilled" / "snapshots" / "index.json").read_text())["snapshots"]
    candidates = [entry["val_nll"] for entry in (*index, *student)]
    assert fold["best_snapshot"]["nll"] == min(candidates)
    assert fold["nll"] <= min(candidates)
    assert len(fold["trials"]) == 2
    folded = read_weights(run / "folded.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in folded.values())


@pytest.mark.slow
def test_a_finished_run_is_distilled_later_and_nothing_else_changes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = train(config(data, tmp_path / "once"))
    out = tmp_path / "later"
    train(config(data, out, distill_epochs=0))
    before = {p.name: p.read_bytes() for p in (out / "snapshots").iterdir()}
    train(config(data, out, resume=True))
    assert before == {p.name: p.read_bytes() for p in (out / "snapshots").iterdir()}
    assert lines_of(out) == lines_of(at_once)
    with monkeypatch.context() as patch:  # a finished student needs no teacher
        patch.setattr("fge.commands.distill.mean_prediction", None)
        train(config(data, out, resume=True))
    assert lines_of(out) == lines_of(at_once)


@pytest.mark.slow
def test_interrupted_it_ends_bitwise_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, checkpoint = tmp_path / "whole", tmp_path / "cut", StagedTraining._checkpoint

    def interrupted(self: StagedTraining, *args: Any, **more: Any) -> None:
        checkpoint(self, *args, **more)
        if self.stages[0].name == "distilled":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StagedTraining, "_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(data, out))
    train(config(data, out, resume=True))
    train(config(data, whole))
    path = Path("distilled") / "snapshots" / "0001.safetensors"
    assert (out / path).read_bytes() == (whole / path).read_bytes()
    assert lines_of(out) == lines_of(whole)


def test_each_view_comes_again_with_the_prediction_that_the_teacher_made_of_it(data: Path) -> None:
    dataset = load_dataset(str(data), val_fraction=0.25)
    normaliser = Normaliser(dataset.mean, dataset.std, torch.device("cpu"))
    batches = TrainBatches(dataset.train, normaliser, 32, seed=3, crop_padding=2, flip=True)

    def predict(scale: float, given: Any) -> torch.Tensor:
        return torch.cat([scale * x.mean((1, 2, 3))[:, None].expand(-1, 2) for x, _ in given])

    taught = TaughtBatches(batches, 2)
    taught.learn_from(mean_prediction([1.0, 3.0], predict))
    assert taught.images == 2 * 72
    seen = []
    for epoch in range(4):
        taught.set_epoch(epoch)
        for inputs, targets in taught:
            expected = 2 * inputs.mean((1, 2, 3))[:, None].expand(-1, 2)
            torch.testing.assert_close(targets, expected, rtol=0, atol=1e-6)
        seen.append(torch.cat([inputs for inputs, _ in taught]))
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_the_student_comes_closer_to_the_ensemble_than_its_members_are(
    data: Path, tmp_path: Path
) -> None:
    run = train(config(data, tmp_path / "run", epochs=8, distill_epochs=10, lr=0.05))
    with np.load(run / "predictions" / "test.npz", allow_pickle=False) as archive:
        probs = dict(zip(archive["members"], archive["probabilities"], strict=True))
    ensemble = (probs["split-0001"] + probs["split-0002"]) / 2

    def distance(member: str) -> float:
        return float(np.abs(probs[member] - ensemble).mean())

    assert distance("distilled-0001") < distance("split-0001")
    assert distance("distilled-0001") < distance("split-0002")


def test_of_numbers_far_from_zero_the_student_learns_how_they_differ(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 160))
    seconds = 1.7e9 + 10 * a + 5 * b  # in float32 they are multiples of 128
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "y"], *np.stack([a, b, seconds], axis=1).tolist()])
    options: dict[str, Any] = {"task": "regression", "target": ("y",), "batch_size": 16}
    options |= {"method": "split", "epochs": 16, "distill_epochs": 8, "threads": 1}
    run = train(TrainConfig(data=str(tmp_path / "rows.csv"), out=tmp_path / "run", **options))
    lines = lines_of(run)
    assert lines["split"]["r2"] > 0.8
    assert lines["distilled"]["r2"] > 0.8
