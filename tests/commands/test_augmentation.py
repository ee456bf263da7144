"""Augmentation by name, mixup and label smoothing in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLAIN, tiny_arrays
from curve_runs import run as run_line
from interrupting import interrupted
from promised import promised

from fge.commands.build import Setup, settle_options
from fge.commands.loading import load_data
from fge.commands.train import fge, train
from fge.config import FGEConfig, TrainConfig
from fge.ensemble import SnapshotStore
from fge.train import endpoint_recipe

SHORT: dict[str, Any] = {**PLAIN, "epochs": 3, "val_fraction": 0.25}
VARIED: dict[str, Any] = {"augment": "trivial", "mixup": 0.4, "label_smoothing": 0.1}


def options(data: Path, out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(data=str(data), out=out, **{**SHORT, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return SnapshotStore(run / "snapshots")[0]


@pytest.mark.slow
def test_each_option_changes_the_training_and_the_default_names_what_it_does(
    data: Path, tmp_path: Path
) -> None:
    found = {}
    for name, change in {
        "plain": {},
        "crop-flip": {"augment": "crop-flip", "mixup": 0.0, "label_smoothing": 0.0},
        "none": {"augment": "none"},
        "neither": {"crop_padding": 0, "flip": False},
        "trivial": {"augment": "trivial"},
        "randaugment": {"augment": "randaugment"},
        "mixup": {"mixup": 0.4},
        "smoothing": {"label_smoothing": 0.1},
    }.items():
        run = train(options(data, tmp_path / name, epochs=1, **change))  # type: ignore[arg-type]
        found[name] = weights(run)["0.weight"]
    assert torch.equal(found.pop("crop-flip"), found["plain"])
    assert torch.equal(found.pop("none"), found["neither"])
    values = list(found.values())
    assert not any(torch.equal(a, b) for n, a in enumerate(values) for b in values[:n])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["average", "star", "auto", "csgld"])
def test_a_varied_training_resumes_bitwise(method: str, data: Path, tmp_path: Path) -> None:
    more = {"star_trunk": 0.34, "star_branches": 2, "csgld_cycles": 1, **VARIED}
    more |= {"method": method, "class_weights": "balanced", "accumulate": 2, "batch_size": 16}
    whole = train(options(data, tmp_path / "whole", **more))
    with interrupted(1):
        train(options(data, tmp_path / "cut", **more))
    cut = train(options(data, tmp_path / "cut", **more, resume=True))
    ours, theirs = promised(cut), promised(whole)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.mark.slow
def test_a_student_learns_from_unmixed_views(data: Path, tmp_path: Path) -> None:
    config = FGEConfig(
        data=str(data),
        out=tmp_path / "run",
        distill_epochs=1,
        tta=2,
        **{**SHORT, **VARIED, "epochs": 4, "class_weights": "balanced"},
    )
    run = fge(config)
    assert (run / "distilled").is_dir()
    assert "fge+tta" in (run / "report.md").read_text()


def test_batches_have_the_augmentation_of_the_options(data: Path, tmp_path: Path) -> None:
    config = options(data, tmp_path, **VARIED)
    dataset = load_data(config)
    setup = Setup.of(settle_options(config, dataset), dataset)
    batches = setup.train_batches(endpoint_recipe(config))
    assert batches.policy is not None
    assert batches.mixup is not None
    assert (batches.mixup.alpha, batches.mixup.seed) == (0.4, config.seed)
    inputs, targets = next(iter(batches))
    assert targets.shape == (len(inputs), 3)
    plain = setup.shuffled(8, augment=False)
    assert (plain.policy, plain.mixup) == (None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--augment", "autoaugment"], "invalid choice 'autoaugment' for argument '--augment'."),
        (["--label-smoothing", "1"], "--label-smoothing must be in [0, 1), got 1.0"),
        (["--label-smoothing", "nan"], "--label-smoothing must be in [0, 1), got nan"),
        (["--mixup", "-0.1"], "--mixup must be finite and >= 0, got -0.1"),
        (
            ["--augment", "none", "--crop-padding", "2"],
            "--augment none leaves images as they are, got --crop-padding 2; leave out one of",
        ),
        (
            ["--augment", "none", "--tta", "2"],
            "tta 2 needs the augmentation of training, got augment none; leave out --tta, or use",
        ),
    ],
)
def test_bad_options_end_with_one_line(
    given: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    result = run_line(["train", "--data", str(data), "--out", str(tmp_path / "run"), *given])
    assert result.code == 2
    assert result.message.startswith(message)
    assert not (tmp_path / "run").exists()


def test_images_that_a_policy_does_not_take_are_refused_before_the_run(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    for part in ("train", "test"):
        images = arrays[f"{part}_images"]
        arrays[f"{part}_images"] = np.repeat(images[..., None], 4, axis=3)
    np.savez(tmp_path / "four.npz", **arrays)
    line = ["train", "--data", str(tmp_path / "four.npz"), "--augment", "randaugment"]
    result = run_line([*line, "--out", str(tmp_path / "run"), "--batch-size", "16"])
    assert result.code == 2
    assert result.message.startswith(
        "augment randaugment takes grey images and those of 3 colours, these have 4 channels; use "
    )
    assert not (tmp_path / "run").exists()
