"""``fge --preset``: options of a publication, over which the command line is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curve_runs import assert_same, done, flags, job, methods, run

from fge.commands.cli import _with_config_file
from fge.config import FGEConfig, preset_options, write_config
from fge.errors import UserError

PRESET = ["--preset", "garipov2018"]


def parsed(*arguments: str) -> FGEConfig:
    return _with_config_file("fge", FGEConfig, list(arguments))


def without_preset(config: FGEConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name != "preset"}


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("convnet", []),
        ("vgg16-bn", ["--cycle-epochs", "2", "--weight-decay", "0.0005"]),
        ("preresnet164", ["--cycle-epochs", "2", "--weight-decay", "0.0003"]),
        ("wrn28-10", ["--cycle-epochs", "2", "--weight-decay", "0.0005"]),
        ("my_models:vgg16", []),
    ],
)
def test_a_preset_is_its_options_written_out(model: str, written: list[str]) -> None:
    given = ["--model", model, "--epochs", "200"]
    out = parsed(*given, "--average", "0", "--val-fraction", "0", *written)
    assert without_preset(parsed(*given, *PRESET)) == without_preset(out)
    assert without_preset(parsed("--preset=garipov2018", *given)) == without_preset(out)


def test_the_papers_rates_are_those_of_the_model() -> None:
    rates = {"vgg16": (0.05, 0.01, 0.01), "preresnet110": (0.1, 0.05, 0.01)}
    for model, (lr, high, low) in rates.items():
        found = parsed("--model", model, *PRESET).cycle_lrs
        assert (found.lr, found.max_lr, found.min_lr) == (lr, high, low)


def test_the_command_line_overrides_a_preset() -> None:
    config = parsed(*PRESET, "--val-fraction", "0.2", "--model", "vgg16", "--cycle-epochs", "4")
    assert (config.average, config.val_fraction, config.cycle_epochs) == (0.0, 0.2, 4)
    assert parsed(*PRESET, "--average", "0.3").average == 0.3


def test_a_preset_and_a_file_are_not_given_together(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", "fge", FGEConfig())
    with pytest.raises(UserError, match=r"^give --preset or --config, not both$"):
        parsed(*PRESET, "--config", str(tmp_path / "config.json"))


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UserError, match="unknown preset 'garipov'; did you mean 'garipov2018'"):
        parsed("--preset", "garipov")
    with pytest.raises(UserError, match="unknown preset 'x'"):
        preset_options("x", "convnet")


@pytest.mark.slow
def test_a_run_has_the_result_of_the_options(data: Path, tmp_path: Path) -> None:
    options = job(data, tmp_path / "preset", epochs=4, preset="garipov2018")
    folder = done("fge", options)
    written = job(data, tmp_path / "written", epochs=4, average=0, val_fraction=0)
    assert_same(folder, done("fge", written))
    assert [key for key in methods(folder) if key.startswith("best-snapshot")] == []
    again = ["fge", "--out", str(folder), "--resume"]
    assert run([*again, *PRESET]).code == 0  # equal to what it was started with
    assert_same(folder, tmp_path / "written")


def test_a_run_with_other_options_is_not_resumed_with_a_preset(data: Path, tmp_path: Path) -> None:
    options = job(data, tmp_path / "run", epochs=2)
    folder = done("fge", options)
    result = run(["fge", "--out", str(folder), "--resume", *PRESET])
    assert result.code == 2
    assert result.message == (
        "cannot resume with --val-fraction 0.0: the run was started with 0.1; drop the option, or "
        "give another --out"
    )
    assert run(flags("compare", {"preset": "garipov2018"})).code == 2
