"""Every option is checked, and the message names the value and what it may be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fge.config import FGEConfig, PredictConfig, RunConfig, check_import, is_factory
from fge.config.base import affects_result, saved_fields
from fge.config.training import AVERAGED_START, START_FRACTION
from fge.errors import UserError, check_learning_rates, unknown

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"train_size": 0}, "train_size must be >= 1, got 0"),
        ({"test_size": -5}, "test_size must be >= 1, got -5"),
        ({"eval_batch_size": 0}, "eval_batch_size must be >= 1, got 0"),
        ({"crop_padding": -1}, "crop_padding must be >= 0, got -1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"lr": 0.0}, "lr must be above 0, got 0"),
        ({"lr": -0.1}, "lr must be finite and >= 0, got -0.1"),
        ({"lr": NAN}, "lr must be finite and >= 0, got nan; give a finite number"),
        ({"weight_decay": -1e-4}, "weight_decay must be finite and >= 0, got -0.0001"),
        (
            {"weight_decay": INFINITY},
            "weight_decay must be finite and >= 0, got inf; give a finite number",
        ),
        ({"momentum": -0.5}, "momentum must be finite and >= 0, got -0.5"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"val_fraction": 1.0}, "val_fraction must be in [0, 1), got 1.0"),
        ({"val_fraction": -0.1}, "val_fraction must be in [0, 1), got -0.1"),
        ({"val_fraction": NAN}, "val_fraction must be in [0, 1), got nan"),
        ({"resume": True, "overwrite": True}, "give --resume or --overwrite, not both"),
    ],
)
@pytest.mark.parametrize("kind", [RunConfig, FGEConfig])
def test_shared_option_out_of_range(
    kind: type[RunConfig], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness_every": -1}, "sharpness_every must be >= 0, got -1"),
        ({"max_lr": -0.1}, "max_lr must be finite and >= 0, got -0.1"),
        ({"max_lr": 0.0, "min_lr": 0.0}, "max_lr must be above 0, got 0"),
        ({"max_lr": INFINITY}, "max_lr must be finite and >= 0, got inf; give a finite number"),
        ({"min_lr": -1e-3}, "min_lr must be finite and >= 0, got -0.001"),
        ({"min_lr": NAN}, "min_lr must be finite and >= 0, got nan; give a finite number"),
        (
            {"min_lr": 0.5, "max_lr": 0.1},
            "min_lr must not exceed max_lr, got min_lr 0.5 > max_lr 0.1",
        ),
        ({"cycle_epochs": 3}, "cycle_epochs must be even and >= 2, got 3"),
        ({"cycle_epochs": 1}, "cycle_epochs must be even and >= 2, got 1"),
        ({"cycle_epochs": 0}, "cycle_epochs must be even and >= 2, got 0"),
        ({"cycle_epochs": -2}, "cycle_epochs must be even and >= 2, got -2"),
        ({"epochs": 40, "start_epoch": 40}, "start_epoch must be in [0, epochs) = [0, 40), got 40"),
        ({"epochs": 40, "start_epoch": -1}, "start_epoch must be in [0, epochs) = [0, 40), got -1"),
        (
            {"epochs": 40, "start_epoch": 36, "cycle_epochs": 10},
            "cycle_epochs 10 is too long: the first snapshot would end epoch 41 of 40; "
            "use cycle_epochs <= 8 or epochs >= 41",
        ),
        (
            {"pretrained": Path("w.pt"), "start_epoch": 5},
            "--pretrained starts cycling at epoch 0, got start_epoch 5",
        ),
        (
            {"pretrained": Path("w.pt"), "single": True},
            "--single trains from initial weights, --pretrained from given ones",
        ),
    ],
)
def test_cycle_option_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        FGEConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"threads": -1}, "threads must be >= 1, got -1"),
    ],
)
def test_predict_option_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        PredictConfig(run=Path("run"), images=Path("images"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"min_lr": 0.0},
        {"min_lr": 0.1, "max_lr": 0.1},
        {"momentum": 0.0},
        {"weight_decay": 0.0},
        {"val_fraction": 0.0},
        {"crop_padding": 0},
        {"start_epoch": 0},
        {"epochs": 40, "start_epoch": 38, "cycle_epochs": 4},
        {"epochs": 1, "cycle_epochs": 2},
        {"pretrained": Path("w.pt"), "start_epoch": 0},
    ],
)
def test_values_at_the_edge_are_taken(options: dict[str, Any]) -> None:
    config = FGEConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


@given(epochs=st.integers(1, 300), half=st.integers(1, 40), start=st.none() | st.integers(0, 299))
def test_last_cycle_ends_at_the_last_minimum_within_the_budget(
    epochs: int, half: int, start: int | None
) -> None:
    try:
        config = FGEConfig(epochs=epochs, cycle_epochs=2 * half, start_epoch=start)
    except UserError:
        assume(False)
    first, last = config.first_cycle_epoch, config.last_cycle_epoch
    assert 0 <= first < last <= epochs
    assert (last - first) % (2 * half) == half
    assert last + 2 * half > epochs


@given(
    epochs=st.integers(1, 300),
    half=st.integers(1, 40),
    rule=st.sampled_from([(0.0, START_FRACTION), (None, AVERAGED_START)]),
)
def test_default_start_uses_the_whole_budget(
    epochs: int, half: int, rule: tuple[float | None, float]
) -> None:
    assume(half <= epochs)
    average, begin = rule
    config = FGEConfig(epochs=epochs, cycle_epochs=2 * half, average=average)
    assert config.last_cycle_epoch == epochs
    # Of the starts that end at a minimum, a cycle apart, the nearest to that part of the budget;
    # the last one leaves a single snapshot and is taken only where there is no other.
    first = config.first_cycle_epoch
    starts = list(range(epochs - half, -1, -2 * half))
    nearest = min(starts[1:] or starts, key=lambda e: abs(e - begin * epochs))
    assert abs(abs(first - begin * epochs) - abs(nearest - begin * epochs)) < 1e-9


@pytest.mark.parametrize(
    ("epochs", "length", "start"), [(100, 10, 75), (40, 4, 30), (10, 2, 7), (3, 2, 0), (1, 2, 0)]
)
def test_default_cycle_is_an_even_tenth_of_the_budget(epochs: int, length: int, start: int) -> None:
    config = FGEConfig(epochs=epochs, average=0.0)
    assert (config.cycle_length, config.first_cycle_epoch) == (length, start)
    assert config.last_cycle_epoch == epochs


@pytest.mark.parametrize(
    ("epochs", "length", "start"), [(100, 20, 50), (40, 8, 20), (10, 2, 5), (3, 2, 0), (1, 2, 0)]
)
def test_cycles_of_averages_start_earlier_and_take_longer(
    epochs: int, length: int, start: int
) -> None:
    config = FGEConfig(epochs=epochs)
    assert (config.cycle_length, config.first_cycle_epoch) == (length, start)
    assert (config.last_cycle_epoch, config.cycle_average) == (epochs, 0.3)


@given(epochs=st.integers(1, 60), start=st.integers(0, 59), half=st.integers(1, 60))
def test_remedies_for_a_cycle_that_is_too_long_are_remedies(
    epochs: int, start: int, half: int
) -> None:
    assume(start < epochs < start + half)
    with pytest.raises(UserError) as caught:
        FGEConfig(epochs=epochs, start_epoch=start, cycle_epochs=2 * half)
    shorter, longer = re.findall(r"[<>]= (\d+)", str(caught.value))
    assert FGEConfig(epochs=epochs, start_epoch=start, cycle_epochs=int(shorter))
    assert FGEConfig(epochs=int(longer), start_epoch=start, cycle_epochs=2 * half)


def test_pretrained_weights_start_the_cycles_at_once() -> None:
    config = FGEConfig(epochs=7, cycle_epochs=4, pretrained=Path("w.pt"))
    assert (config.first_cycle_epoch, config.last_cycle_epoch) == (0, 6)


@pytest.mark.parametrize("name", ["out", "config", "resume", "overwrite"])
def test_options_of_one_invocation_are_not_saved(name: str) -> None:
    assert name not in saved_fields(FGEConfig)
    assert not affects_result(FGEConfig(), name)


def test_data_dir_is_saved_but_does_not_affect_the_result() -> None:
    assert "data_dir" in saved_fields(FGEConfig)
    assert not affects_result(FGEConfig(), "data_dir")


@pytest.mark.parametrize("name", ["lr", "seed", "threads", "channels_last", "model", "single"])
def test_options_that_affect_the_result_are_marked_so(name: str) -> None:
    assert affects_result(FGEConfig(), name)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("package.module:factory", True), ("torchvision:resnet18", False), ("convnet", False)],
)
def test_factories_are_told_from_registered_models(model: str, expected: bool) -> None:
    assert is_factory(model) is expected


@pytest.mark.parametrize("given_model", [None, "other:factory"])
def test_factory_that_only_a_file_names_is_refused(given_model: str | None) -> None:
    with pytest.raises(UserError, match=r"config.json names .*'mine:net'.*add --model mine:net"):
        check_import("mine:net", given_model, "config.json")


@pytest.mark.parametrize(
    ("model", "given_model"),
    [("mine:net", "mine:net"), ("convnet", None), ("torchvision:resnet18", None)],
)
def test_factory_given_again_or_no_factory_is_allowed(model: str, given_model: str | None) -> None:
    check_import(model, given_model, "config.json")


def test_a_method_that_only_a_file_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"names the method .my:m.*add --methods my:m"):
        check_import("my:m", None, "config.json", option="methods")


def test_learning_rates_may_be_equal_but_not_crossed() -> None:
    check_learning_rates(0.1, 0.1)
    with pytest.raises(UserError, match=r"min_lr 0\.2 > max_lr 0\.1"):
        check_learning_rates(0.1, 0.2)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    message = str(unknown("model", "convnett", ["vgg16", "convnet"]))
    assert message == "unknown model 'convnett'; did you mean 'convnet'?"


def test_unknown_name_far_from_all_is_answered_with_all() -> None:
    message = str(unknown("model", "xyz", ["vgg16", "convnet"]))
    assert message == "unknown model 'xyz'; known: vgg16, convnet"


def test_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)
