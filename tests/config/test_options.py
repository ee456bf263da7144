"""Commands are composed of options: which they have, and what files of earlier versions hold."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fge.config import (
    GROUPS,
    CommandConfig,
    CompareConfig,
    ConnectConfig,
    CurveEnsembleConfig,
    DoctorConfig,
    FGEConfig,
    OptionHelp,
    Options,
    PlaneConfig,
    PredictConfig,
    ReportConfig,
    SharpnessConfig,
    TrainConfig,
    VerifyConfig,
    help_of,
    options_of_run,
    read_config,
    to_options,
    write_config,
)
from fge.config.base import saved_fields
from fge.errors import UserError

COMMANDS = (
    *(FGEConfig, CompareConfig, TrainConfig, CurveEnsembleConfig, ConnectConfig, PlaneConfig),
    *(SharpnessConfig, PredictConfig, ReportConfig, DoctorConfig),
)
# As runs of `plane` and `sharpness` had it before they were told apart from training.
EARLIER: dict[str, Any] = {
    "epochs": 1,
    "lr": 0.2,
    "batch_size": 128,
    "momentum": 0.9,
    "compile": "off",
    "cuda_graphs": "off",
}


def of(options: list[OptionHelp], name: str) -> OptionHelp:
    return next(option for option in options if option.name == name)


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_option_is_described_once_in_a_known_group(kind: type[Options]) -> None:
    groups = help_of(kind)
    assert [group for group in GROUPS if group in groups] == list(groups)
    described = [option for options in groups.values() for option in options]
    used = {f.name for f in fields(kind)} - kind.unused.keys()
    assert sorted(o.name for o in described) == sorted(used)
    for option in described:
        assert option.text[0].isupper() or option.text.split()[0].rstrip(",:") in option.text
        assert option.text.endswith("."), option
        assert "\n" not in option.text


def test_options_are_described_with_type_and_default() -> None:
    groups = help_of(FGEConfig)
    assert of(groups["schedule"], "epochs") == OptionHelp(
        "epochs", "--epochs INT", "Training budget in epochs.", "100"
    )
    assert of(groups["schedule"], "max_lr").flags == "--max-lr FLOAT"
    assert of(groups["schedule"], "max_lr").default == ""
    assert of(groups["data"], "flip").flags == "--flip, --no-flip"
    assert of(groups["data"], "ood").flags == "--ood NAME ..."
    assert of(groups["speed"], "amp").flags == "--amp {auto,off,bf16,fp16}"
    assert of(groups["output"], "out").flags == "--out PATH"
    compared = help_of(CompareConfig)
    assert of(compared["data"], "ood").default == "noise digits"
    assert of(compared["comparison"], "budgets").flags == "--budgets INT ..."
    assert help_of(ReportConfig)["page"] == [
        OptionHelp("runs", "RUNS ...", "Run folders.", required=True)
    ]
    assert help_of(VerifyConfig)["run"][0] == OptionHelp("run", "RUN", "Run folder.", required=True)
    assert of(help_of(PredictConfig)["data"], "images").required


def test_a_command_says_of_a_shared_option_what_it_means_there() -> None:
    assert (
        of(help_of(PlaneConfig)["model"], "seed").text == "Seed of random directions and vectors."
    )
    schedule = help_of(ConnectConfig)["schedule"]
    assert of(schedule, "epochs").default == "40"
    assert not re.search("Adam", str(schedule))
    assert of(schedule, "momentum").text == "Momentum of SGD, which fits the curves."
    assert "AdamW" in of(help_of(FGEConfig)["schedule"], "momentum").text


@pytest.mark.parametrize("kind", [PlaneConfig, SharpnessConfig, ConnectConfig])
def test_options_that_a_command_does_not_use_are_no_options_of_it(
    kind: type[CommandConfig],
) -> None:
    kept = {"test_size"}  # by sharpness of a run, whose images stay the same
    assert not {*kind.unused, *kind.instead} & {f.name for f in fields(kind)} - kept
    known = {f.name for command in COMMANDS for f in fields(command)}
    assert {*kind.unused, *kind.instead} <= known


@pytest.mark.parametrize(
    ("command", "kind", "more"),
    [
        ("plane", PlaneConfig, {}),
        ("sharpness", SharpnessConfig, {"channels_last": "off", "amp": "off"}),
    ],
)
def test_options_that_a_command_had_once_are_passed_over_in_its_files(
    tmp_path: Path, command: str, kind: type[PlaneConfig | SharpnessConfig], more: dict[str, Any]
) -> None:
    file = tmp_path / "config.json"
    config = kind(weights=(tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"))
    write_config(file, command, config)
    content = json.loads(file.read_text())
    assert not {*EARLIER, *more} & set(content["options"])
    content["options"] |= EARLIER | more
    file.write_text(json.dumps(content))
    assert read_config(file, command, kind)[0] == config
    content["options"]["tensorboard"] = False  # which it never had
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="unknown option 'tensorboard'"):
        read_config(file, command, kind)


def test_files_are_flat_and_hold_every_saved_option() -> None:
    options = to_options(FGEConfig())
    assert sorted(options) == sorted(saved_fields(FGEConfig))
    assert not any(isinstance(value, dict) for value in options.values())


@pytest.mark.parametrize("kind", [PlaneConfig, SharpnessConfig])
def test_a_run_that_is_looked_at_gives_data_model_and_what_else_is_shared(
    tmp_path: Path, kind: type[PlaneConfig | SharpnessConfig]
) -> None:
    shared: dict[str, Any] = {
        "data": "cifar10",
        "train_size": 500,
        "val_fraction": 0.2,
        "model": "vgg16",
        "seed": 3,
        "weight_decay": 0.01,
        "eval_batch_size": 7,
    }
    own: dict[str, Any] = {"device": "cpu", "threads": 3, "amp": "bf16", "channels_last": "on"}
    write_config(tmp_path / "config.json", "fge", FGEConfig(**shared, **own, lr=0.3, epochs=50))
    config = options_of_run(kind, tmp_path)
    assert {name: getattr(config, name) for name in shared} == shared
    assert (config.run, config.device, config.threads) == (tmp_path, "auto", None)
    if isinstance(config, PlaneConfig):
        assert (config.channels_last, config.amp) == ("on", "off")


@pytest.mark.parametrize("kind", [PlaneConfig, SharpnessConfig])
def test_the_files_that_a_run_connects_are_not_studied_again(
    tmp_path: Path, kind: type[PlaneConfig | SharpnessConfig]
) -> None:
    connected = ConnectConfig(weights=(Path("a.pt"), Path("b.pt")), data="cifar10")
    write_config(tmp_path / "config.json", "connect", connected)
    config = options_of_run(kind, tmp_path)
    assert (config.run, config.weights, config.data) == (tmp_path, (), "cifar10")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta": 1}, "tta must be >= 2 views, got 1; leave it out for one view"),
        ({"tta": 0}, "tta must be >= 2 views, got 0"),
        (
            {"tta": 3, "crop_padding": 0, "flip": False},
            "tta 3 needs the augmentation of training, but crop_padding is 0 and flip is off; "
            "leave out --tta, or use --crop-padding 1 or more, or --flip",
        ),
    ],
)
@pytest.mark.parametrize("kind", [FGEConfig, TrainConfig, CompareConfig])
def test_views_that_cannot_be_made_are_refused(
    kind: type[FGEConfig | TrainConfig | CompareConfig], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        kind(**options)
    kind(**{**options, "tta": 2, "flip": True})
