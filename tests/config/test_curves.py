"""Options of the curve commands: what they default to, what is refused, the way through a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fge.config import (
    ConnectConfig,
    CurveConfig,
    CurveEnsembleConfig,
    as_stored,
    check_unchanged,
    check_used,
    pairs_of,
    read_config,
    to_options,
    write_config,
)
from fge.config.base import affects_result, saved_fields
from fge.errors import UserError

TWO = (Path("a.safetensors"), Path("b.pt"))
THREE = (*TWO, Path("c.safetensors"))


def test_defaults_are_the_papers() -> None:
    config = CurveConfig()
    assert (config.family, config.num_points, config.objective) == ("bezier", 3, "uniform")
    assert (config.eval_points, config.eval_images) == (61, 5120)


@pytest.mark.parametrize(
    ("model", "rate"), [("vgg16", 0.015), ("preresnet164", 0.03), ("convnet", 0.1)]
)
def test_the_fits_rate_is_that_given_or_what_suits_the_model(model: str, rate: float) -> None:
    assert CurveConfig(model=model).curve_base_lr == rate
    assert CurveConfig(model=model, curve_lr=0.5).curve_base_lr == 0.5
    assert CurveEnsembleConfig(model=model, lr=0.7).curve_base_lr == rate


def test_a_fit_takes_the_epochs_given_or_half_of_a_networks() -> None:
    assert CurveEnsembleConfig(epochs=41).fit_epochs == 20
    assert CurveEnsembleConfig(epochs=1).fit_epochs == 1
    assert CurveEnsembleConfig(epochs=41, curve_epochs=7).fit_epochs == 7
    assert ConnectConfig(weights=TWO, epochs=41).fit_epochs == 41


def test_networks_are_averages_unless_a_recipe_is_given() -> None:
    assert CurveEnsembleConfig().recipes == ("average", "average")
    assert CurveEnsembleConfig(second="endpoint").recipes == ("average", "endpoint")
    assert CurveEnsembleConfig(strategies="all").recipes == ("G", "G")
    check_used(CurveEnsembleConfig(strategies="all"))
    check_used(CurveEnsembleConfig(first_weights=TWO[0], second="endpoint", lr=0.1))
    check_used(CurveEnsembleConfig(lr=0.1))
    check_used(CurveEnsembleConfig(first="G", first_weights=TWO[0]))  # as old files have it
    with pytest.raises(UserError, match="--first endpoint is not used: --first-weights gives"):
        check_used(CurveEnsembleConfig(first="endpoint", first_weights=TWO[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 2}, r"num_points must be >= 3, got 2: with only the two ends"),
        ({"num_points": -1}, r"num_points must be >= 3, got -1"),
        ({"eval_points": 1}, r"eval_points must be >= 2, got 1$"),
        ({"eval_images": -1}, r"eval_images must be >= 0, got -1$"),
        ({"curve_lr": -0.1}, r"curve_lr must be finite and above 0, got -0\.1$"),
        (
            {"curve_lr": float("nan")},
            r"curve_lr must be finite and above 0, got nan; give a finite number$",
        ),
        (
            {"curve_lr": float("inf")},
            r"curve_lr must be finite and above 0, got inf; give a finite number$",
        ),
        ({"curve_lr": 0.0}, r"curve_lr must be finite and above 0, got 0.0$"),
        ({"epochs": 0}, r"epochs must be >= 1, got 0$"),
    ],
)
@pytest.mark.parametrize("kind", [CurveConfig, CurveEnsembleConfig, ConnectConfig])
def test_a_bad_option_of_a_fit_is_named(
    kind: type[CurveConfig], options: dict[str, Any], message: str
) -> None:
    more: dict[str, Any] = {"weights": TWO} if kind is ConnectConfig else {}
    with pytest.raises(UserError, match=f"^{message}"):
        kind(**options, **more)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve_epochs": 0}, r"curve_epochs must be >= 1, got 0$"),
        ({"ensemble_points": 1}, r"ensemble_points must be >= 2, got 1$"),
        (
            {"strategies": "all", "first_weights": Path("a.pt")},
            r"--strategies all trains its networks; leave out the weights files$",
        ),
        (
            {"strategies": "all", "second_weights": Path("a.pt")},
            r"--strategies all trains its networks; leave out the weights files$",
        ),
    ],
)
def test_a_bad_option_of_a_curve_ensemble_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        CurveEnsembleConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pretrained": Path("w.pt"), "first_weights": TWO[0], "second_weights": TWO[1]},
            "--pretrained w.pt is not used: --first-weights and --second-weights give both "
            "networks",
        ),
        (
            {"pretrained": Path("w.pt"), "second": "G"},
            "--pretrained w.pt is for the recipes average and endpoint, got G; the others start "
            "from initial weights and train all of them",
        ),
        (
            {"freeze": "^0", "strategies": "all"},
            "--freeze ^0 is for the recipes average and endpoint, got A; the others start from "
            "initial weights and train all of them",
        ),
    ],
)
def test_weights_to_start_from_are_refused_where_nothing_starts_from_them(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_used(CurveEnsembleConfig(**options))


def test_weights_to_start_from_are_of_the_recipes_that_train_as_the_options_say() -> None:
    given: dict[str, Any] = {"pretrained": Path("w.pt"), "freeze": "^0"}
    check_used(CurveEnsembleConfig(**given))
    check_used(CurveEnsembleConfig(**given, first="endpoint", second="endpoint"))
    # The other network starts from them; a curve between two files leaves what is frozen.
    check_used(CurveEnsembleConfig(**given, first="G", first_weights=TWO[0]))
    check_used(CurveEnsembleConfig(freeze="^0", first_weights=TWO[0], second_weights=TWO[1]))
    with pytest.raises(UserError, match=r"^--pretrained library needs --model timm:NAME or "):
        CurveEnsembleConfig(pretrained="library")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"large_batch_lr": 0.0}, "large_batch_lr"),
        ({"adam_lr": float("nan")}, "adam_lr"),
        ({"small_weight_decay": -1e-6}, "small_weight_decay"),
        ({"init_variance": 1.0}, "init_variance"),
    ],
)
def test_a_bad_option_of_a_recipe_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CurveEnsembleConfig(**options)


@pytest.mark.parametrize(
    ("weights", "closed", "message"),
    [
        ((), False, "--weights needs two files or more, got 0"),
        (TWO[:1], True, "--weights needs two files or more, got 1"),
        (TWO, True, "--closed needs three files or more, got 2"),
    ],
)
def test_too_few_networks_cannot_be_connected(
    weights: tuple[Path, ...], closed: bool, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        ConnectConfig(weights=weights, closed=closed)


def test_enough_networks_can_be_connected() -> None:
    assert ConnectConfig(weights=TWO).weights == TWO
    assert ConnectConfig(weights=THREE, closed=True).closed


def test_neighbours_are_paired_in_a_chain_and_in_a_loop() -> None:
    assert pairs_of(TWO, closed=False) == [(0, 1)]
    assert pairs_of(THREE, closed=False) == [(0, 1), (1, 2)]
    assert pairs_of(THREE, closed=True) == [(0, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("connect", ConnectConfig(weights=THREE, closed=True, num_points=5, curve_lr=0.5)),
        (
            "curve",
            CurveEnsembleConfig(
                first="endpoint",
                second="F",
                second_weights=Path("b.pt"),
                family="polychain",
                objective="minmax",
                pretrained=Path("w.pt"),
                freeze="^0",
                curve_epochs=3,
                ensemble_points=9,
                eval_points=7,
                eval_images=0,
                large_batch_lr=0.1,
                adam_lr=0.01,
                small_weight_decay=0.0,
                init_variance=3.0,
            ),
        ),
    ],
)
def test_a_curve_config_survives_the_file(
    tmp_path: Path, command: str, config: CurveConfig
) -> None:
    write_config(tmp_path / "config.json", command, config)
    read, _ = read_config(tmp_path / "config.json", command, type(config))
    for name in saved_fields(config):  # paths alone are changed: they are absolute
        assert as_stored(name, getattr(read, name)) == as_stored(name, getattr(config, name))
    types = {name: type(getattr(read, name)) for name in vars(read)}
    assert types == {name: type(getattr(config, name)) for name in vars(config)}


def test_a_tuple_of_paths_is_a_list_of_strings_in_the_file() -> None:
    options = to_options(ConnectConfig(weights=TWO))
    assert options["weights"] == [str(path.absolute()) for path in TWO]
    assert json.loads(json.dumps(options)) == options


def test_paths_read_from_the_file_are_paths(tmp_path: Path) -> None:
    config = read_weights_option(tmp_path, ["a.safetensors", "b.pt"])
    assert config.weights == TWO
    assert all(isinstance(path, Path) for path in config.weights)


def read_weights_option(folder: Path, weights: Any) -> ConnectConfig:
    (folder / "config.json").write_text(json.dumps({"options": {"weights": weights}}))
    return read_config(folder / "config.json", "connect", ConnectConfig)[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("a.pt b.pt", r"weights must be a list, got 'a\.pt b\.pt'"),
        (None, "weights must be a list, got None"),
        ({"a": "b"}, r"weights must be a list, got \{'a': 'b'\}"),
        (["a.pt", 3], "weights must be a Path, got 3"),
        (["a.pt", ["b.pt"]], r"weights must be a Path, got \['b\.pt'\]"),
    ],
)
def test_a_list_of_the_wrong_type_is_named(tmp_path: Path, weights: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {message}$"):
        read_weights_option(tmp_path, weights)


def test_other_weights_cannot_be_resumed_with() -> None:
    saved = ConnectConfig(weights=TWO)
    check_unchanged(saved, ConnectConfig(weights=TWO, resume=True))
    with pytest.raises(UserError, match="cannot resume with weights"):
        check_unchanged(saved, ConnectConfig(weights=TWO[::-1]))


def test_every_option_of_a_curve_affects_the_result() -> None:
    config = CurveEnsembleConfig()
    own = set(vars(config)) - set(vars(CurveConfig()))
    assert own
    assert [name for name in own if not affects_result(config, name)] == ["tensorboard"]


def test_the_rate_that_runs_of_earlier_versions_hold_is_passed_over(tmp_path: Path) -> None:
    options = {"weights": ["a.safetensors", "b.pt"], "lr": 0.2}
    (tmp_path / "config.json").write_text(json.dumps({"options": options}))
    read, _ = read_config(tmp_path / "config.json", "connect", ConnectConfig)
    assert read == ConnectConfig(weights=TWO)
