"""Optimizers, warm-up, accumulation and clipping, through whole runs of every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAIN
from curve_runs import run as run_line
from interrupting import interrupted
from promised import promised
from torch.optim import AdamW

from fge.commands.build import settle_options
from fge.commands.curves import curve_ensemble
from fge.commands.loading import load_data
from fge.commands.train import fge, train
from fge.config import CurveEnsembleConfig, FGEConfig, TrainConfig
from fge.ensemble import SnapshotStore
from fge.train import Learner

LEARNING: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 0.01,
    "warmup_epochs": 1.5,
    "accumulate": 2,
    "clip_norm": 0.5,
}
SHORT: dict[str, Any] = {
    **PLAIN,
    "batch_size": 16,
    "epochs": 4,
    "cycle_epochs": 2,
    "sse_cycles": 2,
    "csgld_cycles": 2,
    "csgld_samples": 2,
    "ema_decay": 0.5,
    "star_trunk": 0.5,
    "star_branches": 2,
    "val_fraction": 0.25,
}
"""72 training images: two steps of 32 images and one of 8 with accumulation."""
METHODS = ("single", "average", "fge", "fge-paper", "sse", "swa", "ema", "star", "split", "auto")


def options(data: Path, out: Path, method: str, **changes: Any) -> TrainConfig:
    values = {**SHORT, **LEARNING, "data": str(data), "out": out, "method": method, **changes}
    return TrainConfig(**values)


def epochs_of(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "csgld"])
def test_every_method_trains_so_and_resumes_bitwise(
    method: str, data: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"optimizer": "sgd"} if method == "csgld" else {}
    whole = train(options(data, tmp_path / "whole", method, **more))
    with interrupted(2):
        train(options(data, tmp_path / "cut", method, **more))
    cut = train(options(data, tmp_path / "cut", method, **more, resume=True))
    ours, theirs = promised(cut), promised(whole)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def test_the_rate_in_the_log_is_the_one_of_the_warm_up(data: Path, tmp_path: Path) -> None:
    used: list[float] = []
    original = Learner._update

    def spy(self: Learner) -> None:
        assert isinstance(self.optimizer, AdamW)
        used.append(self.optimizer.param_groups[0]["lr"])
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "_update", spy)
        run = train(options(data, tmp_path / "run", "average", warmup_epochs=2.5))
    steps = 3  # of 32, 32 and 8 images
    assert len(used) == 4 * steps
    held = steps  # a quarter of the budget
    falling = [max(0, step - held) / (4 * steps - held) for step in range(4 * steps)]
    base = [0.01 * (1 - 0.95 * part) for part in falling]
    ramp = [min(1.0, (step + 1) / round(2.5 * steps)) for step in range(4 * steps)]
    assert used == pytest.approx([b * r for b, r in zip(base, ramp, strict=True)], rel=1e-12)
    logged = [record["next_lr"] for record in epochs_of(run)]
    assert logged[:-1] == used[steps::steps]
    saved = json.loads((run / "config.json").read_text())["options"]
    assert (saved["optimizer"], saved["weight_decay"]) == ("adamw", 0.05)


def test_accumulation_leaves_the_weights_of_the_joint_batch(data: Path, tmp_path: Path) -> None:
    plain = {"model": "my_linear:make", "optimizer": "sgd", "lr": 0.05, "clip_norm": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        (tmp_path / "my_linear.py").write_text(
            "from torch import nn\n"
            "def make(num_classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        )
        parts = train(options(data, tmp_path / "parts", "single", **plain))
        joint_options = {**plain, "accumulate": 1, "batch_size": 32}
        joint = train(options(data, tmp_path / "joint", "single", **joint_options))
    ours, theirs = (SnapshotStore(folder / "snapshots")[0] for folder in (parts, joint))
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=1e-5, atol=1e-6), name
    losses = [[record["train_loss"] for record in epochs_of(folder)] for folder in (parts, joint)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_the_commands_fge_and_curve_ensemble_take_the_optimizer_too(
    data: Path, tmp_path: Path
) -> None:
    short = {**PLAIN, "batch_size": 16, "val_fraction": 0.25, "data": str(data), **LEARNING}
    run = fge(FGEConfig(out=tmp_path / "fge", epochs=4, sharpness_every=2, **short))
    report = json.loads((run / "report.json").read_text())
    assert report["sharpness"]["optimizer"] == "adamw"
    assert report["sharpness"]["momentum"] is None
    run = curve_ensemble(
        CurveEnsembleConfig(out=tmp_path / "pair", epochs=2, eval_points=3, **short)
    )
    assert json.loads((run / "report.json").read_text())["methods"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--batch-size", "32", "--accumulate", "3"],
            "--batch-size 32 x accumulate 3 is larger than the 72 training images; lower one of ",
        ),
        (
            ["--optimizer", "lion"],
            "invalid choice 'lion' for argument '--optimizer'. Expected one of (",
        ),
        (["--method", "csgld", "--optimizer", "adamw"], "csgld has an optimizer of its own"),
        (["--clip-norm", "-1"], "--clip-norm must be finite and above 0, got -1.0"),
        (["--warmup-epochs", "5"], "--warmup-epochs must be at most epochs, 4, got 5"),
    ],
)
def test_bad_options_end_with_one_line(
    given: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    usual = ["--data", str(data), "--epochs", "4", "--val-fraction", "0.25", "--batch-size", "16"]
    result = run_line(["train", "--out", str(tmp_path / "run"), *usual, *given])
    assert result.code == 2
    assert result.message.startswith(message)
    assert not (tmp_path / "run").exists()


def test_accumulated_steps_replay_no_cuda_graphs(data: Path, tmp_path: Path) -> None:
    config = options(data, tmp_path / "run", "single", cuda_graphs="auto")
    dataset = load_data(config)
    assert settle_options(config, dataset).cuda_graphs == "off"
    plain = options(data, tmp_path / "run", "single", cuda_graphs="auto", accumulate=1)
    assert settle_options(plain, dataset).cuda_graphs == "auto"
    settled = settle_options(plain, dataset)
    assert (settled.lr, settled.weight_decay) == (0.01, 0.05)
