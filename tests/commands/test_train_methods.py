"""The command ``train``: every method from data to report, on tiny data."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLAIN
from PIL import Image
from torch.optim import Optimizer

from fge.commands.predict import predict
from fge.commands.train import fge, train
from fge.config import FGEConfig, MethodConfig, PredictConfig, TrainConfig
from fge.data import load_dataset
from fge.ensemble import PredictionFile, SnapshotStore
from fge.errors import UserError
from fge.networks import read_weights
from fge.runs import StagedTraining
from fge.train import METHODS, EndpointLR, Method, Stage, sse_stages

BATCHES = 3
"""Steps per epoch: 72 training images in batches of 32."""


def config(data: Path, out: Path, method: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": str(data),
        "out": out,
        "method": method,
        "epochs": 4,
        "start_epoch": 0,
        "cycle_epochs": 2,
        "sse_cycles": 2,
        "csgld_cycles": 2,
        "csgld_samples": 2,
        "ema_decay": 0.5,
        "star_trunk": 0.5,
        "star_branches": 2,
        **PLAIN,
        "val_fraction": 0.25,
        **changes,
    }
    return TrainConfig(**values)


def lines_of(run: Path) -> dict[tuple[str, int], dict[str, Any]]:
    content = json.loads((run / "report.json").read_text())
    return {(line["name"], line["members"]): line for line in content["methods"]}


@pytest.mark.parametrize("method", ["fge", "swa"])
def test_one_snapshot_is_the_method_s_line(method: str, data: Path, tmp_path: Path) -> None:
    run = train(config(data, tmp_path / "run", method, cycle_epochs=4))
    lines = lines_of(run)
    assert set(lines) == {(method, 1)}
    assert lines[method, 1]["member_names"] == ["fge-0001"]


@pytest.mark.parametrize(
    ("method", "members", "epochs"),
    [
        *[("single", 1, 4), ("ema", 1, 4), ("sse", 2, 4), ("csgld", 4, 4), ("swa", 1, 3)],
        *[("fge", 2, 3), ("fge-paper", 2, 3), ("average", 1, 4), ("split", 2, 4), ("star", 2, 4)],
    ],
)
def test_each_method_ends_with_its_line_and_its_cost(
    method: str,
    members: int,
    epochs: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(config(data, tmp_path / "run", method))
    report = json.loads((run / "report.json").read_text())
    unused = [(u["method"], u["asked"], u["used"]) for u in report.get("unused_epochs", [])]
    assert unused == ([] if epochs == 4 else [(method, 4, 3)])
    said = capsys.readouterr().out.partition("epoch 1/")[0]  # before the training
    assert (f"{method} uses 3 of 4 epochs" in said) == bool(unused)
    assert (f"{method} uses 3 of 4 epochs" in report["verdict"]) == bool(unused)
    line = lines_of(run)[method, members]
    assert (line["train_epochs"], line["forward_passes"]) == (epochs, members)
    labels = load_dataset(str(data), val_fraction=0.25).test.labels
    predictions = PredictionFile(run / "predictions" / "test.npz", labels)
    mean = np.mean([predictions.probabilities(m).numpy() for m in line["member_names"]], axis=0)
    wrong = mean.argmax(axis=1) != labels.numpy()
    assert line["error"] == pytest.approx(100 * wrong.mean(), abs=1e-12)
    assert (run / "figures" / "training.png").is_file()
    assert f"| {method} |" in (run / "report.md").read_text()


def test_ema_keeps_another_network_than_single_from_the_same_training(
    data: Path, tmp_path: Path
) -> None:
    ema, single = (train(config(data, tmp_path / m, m)) for m in ("ema", "single"))
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (ema, single)
    ]
    losses = [[r["train_loss"] for r in log if r["event"] == "epoch"] for log in logs]
    assert losses[0] == losses[1]
    ours, theirs = (read_weights(run / "snapshots" / "0001.safetensors") for run in (ema, single))
    assert not any(torch.equal(ours[n], theirs[n]) for n in ours if n.endswith("weight"))


RARER = ("ema", "csgld", "star", "split", "sse")


@pytest.mark.parametrize(
    "method",
    ["average", "auto", *(pytest.param(m, marks=pytest.mark.slow) for m in RARER)],
)
def test_interrupted_and_resumed_it_ends_bitwise_the_same(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, checkpoint = tmp_path / "whole", tmp_path / "cut", StagedTraining._checkpoint
    left = iter([True, False])

    def interrupted(self: StagedTraining, *args: Any, **more: Any) -> None:
        checkpoint(self, *args, **more)
        if not next(left):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StagedTraining, "_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(data, out, method))
    train(config(data, out, method, resume=True))
    train(config(data, whole, method))
    for path in sorted((whole / "snapshots").glob("*")):
        assert path.read_bytes() == (out / "snapshots" / path.name).read_bytes(), path.name
    assert (whole / "log.jsonl").read_bytes() == (out / "log.jsonl").read_bytes()


def test_fge_with_the_plan_auto_is_the_method_auto(data: Path, tmp_path: Path) -> None:
    options = config(data, tmp_path / "method", "auto", start_epoch=None, cycle_epochs=None)
    by_method = train(options)
    shared = {
        f.name: getattr(options, f.name) for f in fields(FGEConfig) if hasattr(options, f.name)
    }
    by_plan = fge(FGEConfig(**{**shared, "out": tmp_path / "plan", "plan": "auto"}))
    assert (by_plan / "log.jsonl").read_bytes() == (by_method / "log.jsonl").read_bytes()
    assert lines_of(by_plan) == lines_of(by_method)
    plans = [r for r in map(json.loads, (by_plan / "log.jsonl").open()) if r["event"] == "plan"]
    assert plans[0]["epochs"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "--plan auto decides by validation data, got val_fraction 0"),
        ({"single": True}, "--single belongs to --plan cycles; leave it out with --plan auto"),
        ({"refit": "bezier"}, "--refit bezier belongs to --plan cycles"),
    ],
)
def test_what_a_plan_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        FGEConfig(plan="auto", **options)


def test_a_method_of_one_s_own_is_one_entry_more(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("my_methods")
    module.mine = Method("mine", "cosine cycles, weights averaged", sse_stages, combine="weights")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_methods", module)
    run = train(config(data, tmp_path / "run", "my_methods:mine"))
    lines = lines_of(run)
    assert {("ensemble", 2), ("mine", 1)} <= set(lines)
    assert lines["mine", 1]["train_epochs"] == 4
    assert "mine" not in METHODS


def branching_stages(config: MethodConfig) -> list[Stage]:
    """Return a start of 1 epoch and two branches of 2, of which the second keeps snapshots."""

    def schedule(optimizer: Optimizer, steps_per_epoch: int) -> EndpointLR:
        return EndpointLR(optimizer, epochs=config.epochs, steps_per_epoch=steps_per_epoch)

    return [
        Stage("start", 0, 1, schedule),
        Stage("tried", 1, 3, schedule, after="start"),
        Stage("kept", 1, 3, schedule, after="start", store="snapshots", keep="end"),
    ]


@pytest.mark.slow
def test_every_stage_of_a_method_of_one_s_own_counts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("branching_methods")
    module.mine = Method("mine", "two branches", branching_stages)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "branching_methods", module)
    run = train(config(data, tmp_path / "run", "branching_methods:mine"))
    assert SnapshotStore(run / "snapshots").facts(0)["epoch"] == 3
    assert lines_of(run)["mine", 1]["train_epochs"] == 1 + 2 + 2


@pytest.mark.parametrize("fraction", [0.25, 0.0])
def test_images_that_only_went_forward_are_counted(
    fraction: float, data: Path, tmp_path: Path
) -> None:
    validation, training = (24, 72) if fraction else (0, 96)
    ema = train(config(data, tmp_path / "ema", "ema", val_fraction=fraction))
    line = lines_of(ema)["ema", 1]
    assert (line["refresh_images"], line["validation_images"]) == (training, validation)
    options = config(data, tmp_path / "sse", "sse", val_fraction=fraction, average=0.0)
    sse = lines_of(train(options))
    assert (sse["sse", 2]["refresh_images"], sse["sse", 2]["validation_images"]) == (
        0,
        2 * validation,
    )
    swa = sse["swa", 1]
    assert (swa["refresh_images"], swa["validation_images"]) == (training, 3 * validation)
    if fraction:  # one member is tried beside the best
        fold = sse["fold", 1]
        assert (fold["refresh_images"], fold["validation_images"]) == (training, 3 * validation)


def test_a_single_network_at_its_end_is_no_ensemble_to_be_averaged(
    data: Path, tmp_path: Path
) -> None:
    run = train(config(data, tmp_path / "run", "single"))
    assert list(lines_of(run)) == [("single", 1)]
    assert not (run / "swa.safetensors").exists()


@pytest.mark.slow
def test_the_averaged_network_of_swa_predicts_new_images(data: Path, tmp_path: Path) -> None:
    run = train(config(data, tmp_path / "run", "swa"))
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "new.png")
    out = predict(PredictConfig(run=run, images=tmp_path / "new.png", threads=1))
    with np.load(out / "predictions.npz") as found:
        probs = found["probabilities"]
    assert probs.shape == (1, 3)
    every = predict(
        PredictConfig(
            run=train(config(data, tmp_path / "fge", "fge")),
            images=tmp_path / "new.png",
            threads=1,
        )
    )
    with np.load(every / "predictions.npz") as found:
        assert not np.allclose(probs, found["probabilities"], rtol=0, atol=1e-6)


def test_an_unknown_method_is_named_before_anything_is_made(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown method 'ssee'; did you mean 'sse'"):
        train(config(data, tmp_path / "run", "ssee"))
    assert not (tmp_path / "run").exists()


def test_auto_shows_its_plan_and_its_regime(data: Path, tmp_path: Path) -> None:
    run = train(config(data, tmp_path / "run", "auto", epochs=8))
    content = json.loads((run / "report.json").read_text())
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    plans = [record for record in records if record["event"] == "plan"]
    snapshots = [record for record in records if record["event"] == "snapshot"]
    assert [stage["stage"] for stage in content["plan"]] == [plan["stage"] for plan in plans]
    for stage, plan, kept in zip(content["plan"], plans, snapshots, strict=True):
        assert stage["forecast"] == plan.get("forecast")
        assert stage["measured"] == kept["ensemble_val_tempered_nll"]
    first = [kept for plan, kept in zip(plans, snapshots, strict=True) if plan["network"] == 1]
    assert content["regime"]["last"] == first[-1]["epoch"]
    fit = first[-1]["train_nll"] / first[-1]["val_tempered_nll"]
    assert content["regime"]["fit"] == pytest.approx(fit, rel=1e-6)
    assert content["next"] in ("continue", "others", "stop")
    text = (run / "report.md").read_text()
    assert "## Plan" in text
    assert text.count("One network is ") == 1
    assert "With more epochs, `train --method auto` would " in text
    # Averages are tried on the validation images, not on the training images that the plan reads.
    seen = sum(24 + snapshot["fitted_images"] for snapshot in snapshots)
    lines, tried = lines_of(run), len(content["averages"]["fold"]["trials"])
    assert tried
    assert lines["fold", 1]["validation_images"] == seen + 24 * tried
    members = max(count for name, count in lines if name == "auto")
    assert lines["auto", members]["validation_images"] == seen


@pytest.mark.parametrize(("average", "said"), [(None, 1), (0.0, 0)])
def test_fge_with_averages_says_its_regime(
    average: float | None, said: int, data: Path, tmp_path: Path
) -> None:
    run = train(config(data, tmp_path / "run", "fge", average=average))
    text = (run / "report.md").read_text()
    assert text.count("One network is ") == said
    assert text.count("The log has no training NLL") == said
    regime = json.loads((run / "report.json").read_text()).get("regime")
    if said:
        assert (regime["first"], regime["last"], regime["fit"]) == (1, 3, None)
