"""Options that have no meaning for a task or a table are refused; defaults are replaced."""

from __future__ import annotations

from typing import Any

import pytest

from fge.config import (
    CompareConfig,
    ConnectConfig,
    FGEConfig,
    PlaneConfig,
    SharpnessConfig,
    TrainConfig,
    suited,
)
from fge.errors import UserError

TABLE: dict[str, Any] = {"data": "houses.csv", "target": ("price",)}


def test_images_of_classes_keep_their_options() -> None:
    for config in (FGEConfig(), TrainConfig(), CompareConfig()):
        assert suited(config) == config


def test_a_table_gets_its_network_and_no_crops() -> None:
    config = suited(FGEConfig(**TABLE, task="regression"))
    assert (config.model, config.augment, config.crop_padding) == ("mlp", "none", 0)
    assert (config.channels_last, config.amp, config.compile, config.stream) == ("off",) * 4
    assert suited(config) == config
    own = suited(FGEConfig(**TABLE, model="mine:make", amp="bf16"))
    assert (own.model, own.amp) == ("mine:make", "bf16")
    assert suited(CompareConfig(**TABLE)).ood == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 32}, "--image-size is for images, and houses.csv is a table; leave it out"),
        ({"tta": 4}, "--tta is for images"),
        ({"labels": "a.csv"}, "--labels is for images"),
        ({"skip_unreadable": True}, "--skip-unreadable is for images"),
        ({"normalize": "imagenet"}, "--normalize is for images"),
        ({"stream": "on"}, "--stream is for images"),
        ({"crop_padding": 2}, "--crop-padding is for images"),
        ({"augment": "randaugment"}, "--augment is for images"),
        ({"channels_last": "on"}, "--channels-last is for images"),
        ({"ood": ("noise",)}, "--ood is for images, and houses.csv is a table"),
        ({"target": ()}, "the table houses.csv needs --target COLUMN"),
    ],
)
def test_options_of_images_are_refused_for_a_table(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        suited(FGEConfig(**{**TABLE, **options}))


def test_a_target_needs_a_table() -> None:
    with pytest.raises(UserError, match=r"--target names columns of a \.csv or \.parquet table"):
        FGEConfig(target=("price",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FGEConfig(task="binary", mixup=0.2), "--mixup has no meaning for --task binary"),
        (FGEConfig(task="regression", label_smoothing=0.1), "--label-smoothing has no meaning"),
        (FGEConfig(task="multilabel", class_weights="balanced"), "--class-weights has no meaning"),
    ],
)
def test_what_a_task_does_not_have_is_refused(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suited(config)


def test_what_a_task_has_is_left_alone() -> None:
    for config in (
        FGEConfig(task="binary", label_smoothing=0.1, class_weights="balanced", ood=("noise",)),
        TrainConfig(task="binary", method="auto"),
        TrainConfig(task="multilabel", method="auto"),
        FGEConfig(task="multilabel", plan="auto", ood=("noise",)),
        TrainConfig(task="regression", method="auto"),
        FGEConfig(task="regression", plan="auto"),
        CompareConfig(task="regression", methods=("single", "auto")),
        FGEConfig(task="binary", refit="bezier", baseline="auto"),
        FGEConfig(task="regression", refit="polychain", baseline="auto"),
        ConnectConfig(task="multilabel", weights=("a", "b")),  # type: ignore[arg-type]
        PlaneConfig(task="regression", weights=("a", "b", "c")),  # type: ignore[arg-type]
        CompareConfig(task="regression", methods=("fge+refit", "curve-ensemble-2B"), ood=()),
        CompareConfig(task="binary"),
        FGEConfig(task="regression", distill_epochs=2, tta=3),
        SharpnessConfig(task="regression", weights=("a",)),  # type: ignore[arg-type]
    ):
        assert suited(config) == config


def test_methods_by_default_are_those_of_every_task() -> None:
    numbers = suited(CompareConfig(task="regression"))
    assert numbers.methods == CompareConfig().methods
    assert suited(CompareConfig(task="multilabel")).methods == CompareConfig().methods
    assert numbers.ood == CompareConfig().ood
    assert numbers.base_lr == CompareConfig().base_lr / 4
