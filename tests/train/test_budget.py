"""How much of a budget each method uses, and what would use all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fge.config import CompareConfig, FGEConfig, TrainConfig
from fge.errors import UserError
from fge.train import METHODS, Method, Stage, linear_tail, unused_epochs


def of(method: str, **options: Any) -> Any:
    return unused_epochs(TrainConfig(method=method, **options), METHODS[method])


def test_the_epoch_that_vanishes_is_named_with_what_would_use_it() -> None:
    config = FGEConfig(epochs=4, start_epoch=2, cycle_epochs=2)
    unused = unused_epochs(config, METHODS["fge"])
    assert unused is not None
    assert unused.sentence() == (
        "fge uses 3 of 4 epochs: the last minimum of the learning rate ends epoch 3. Each of these "
        "would use all: --epochs 3 or 5; --start-epoch 1 or 3; --cycle-epochs 4."
    )
    assert unused.facts() == {
        "method": "fge",
        "asked": 4,
        "used": 3,
        "to_use_all": {"epochs": [3, 5], "start_epoch": [1, 3], "cycle_epochs": [4]},
    }


def test_what_trains_beside_a_method_is_not_its_use_of_the_budget() -> None:
    config = FGEConfig(epochs=4, start_epoch=2, cycle_epochs=2, single=True)
    unused = unused_epochs(config, METHODS["fge"])
    assert unused is not None
    assert (unused.asked, unused.used) == (4, 3)


@pytest.mark.parametrize(
    ("method", "options", "used", "words", "remedies"),
    [
        ("sse", {"sse_cycles": 8}, 96, "8 cycles of 12 epochs", {"sse_cycles": [5, 10]}),
        ("csgld", {"csgld_cycles": 7}, 98, "7 cycles of 14 epochs", {"csgld_cycles": [5, 10]}),
        ("split", {"split": 3}, 99, "3 networks of 33 epochs", {"split": [2, 4]}),
        (
            *("star", {"star_branches": 3}, 99, "a trunk of 60 and 3 branches of 13 epochs"),
            {"star_branches": [2, 4]},
        ),
        (
            *("swa", {"start_epoch": 3, "cycle_epochs": 4}, 97, "ends epoch 97"),
            {"start_epoch": [2, 6], "cycle_epochs": [2]},
        ),
    ],
)
def test_each_method_says_on_what_it_spends_its_part(
    method: str, options: dict[str, Any], used: int, words: str, remedies: dict[str, list[int]]
) -> None:
    unused = of(method, epochs=100, **options)
    assert unused.sentence().startswith(f"{method} uses {used} of 100 epochs: ")
    assert words in unused.sentence()
    assert {k: v for k, v in unused.remedies.items() if k != "epochs"} == remedies


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m != "auto"])
@given(
    epochs=st.integers(12, 60),
    start=st.none() | st.integers(0, 20),
    cycle=st.none() | st.integers(1, 6).map(lambda half: 2 * half),
    parts=st.integers(1, 7),
    average=st.sampled_from([None, 0.0]),
)
def test_used_epochs_are_those_of_the_stages_and_every_remedy_uses_all(
    method: str,
    epochs: int,
    start: int | None,
    cycle: int | None,
    parts: int,
    average: float | None,
) -> None:
    options: dict[str, Any] = {"split": parts, "star_branches": parts, "sse_cycles": parts}
    options |= {"csgld_cycles": parts, "csgld_samples": 1, "average": average}
    try:
        config = TrainConfig(
            method=method, epochs=epochs, start_epoch=start, cycle_epochs=cycle, **options
        )
    except UserError:
        return
    stages: Any = METHODS[method].stages(config)
    spent = sum(stage.last_epoch - stage.first_epoch for stage in stages)
    unused = unused_epochs(config, METHODS[method])
    if unused is None:
        assert spent == epochs
        return
    assert (unused.asked, unused.used) == (epochs, spent)
    assert spent < epochs
    for option, values in unused.remedies.items():
        for value in values:
            changed: Any = replace(config, **{option: value})
            assert unused_epochs(changed, METHODS[method]) is None


@pytest.mark.parametrize("epochs", [2, 5, 24, 100, 101])
def test_by_default_all_is_used(epochs: int) -> None:
    for method in ("fge", "fge-paper", "swa", "single", "average", "ema"):
        assert of(method, epochs=epochs) is None
    preset = FGEConfig(epochs=epochs, average=0.0, val_fraction=0.0, cycle_epochs=2)
    assert unused_epochs(preset, METHODS["fge"]) is None


def test_given_weights_start_at_once_so_their_start_is_no_remedy() -> None:
    config = FGEConfig(epochs=9, pretrained=Path("w.safetensors"), cycle_epochs=4)
    unused = unused_epochs(config, METHODS["fge"])
    assert unused is not None
    assert unused.remedies == {"epochs": [6, 10], "cycle_epochs": [2, 6]}


def test_with_refit_a_remedy_keeps_two_snapshots() -> None:
    config = FGEConfig(epochs=9, start_epoch=2, cycle_epochs=4, refit="bezier")
    unused = unused_epochs(config, METHODS["fge"])
    assert unused is not None
    for option, values in unused.remedies.items():
        for value in values:
            changed: Any = replace(config, **{option: value})
            assert changed.last_cycle_epoch == changed.epochs
            assert changed.first_cycle_epoch + changed.cycle_length // 2 < changed.epochs


def test_a_remedy_of_a_comparison_is_one_that_it_takes() -> None:
    config = CompareConfig(methods=("fge",), epochs=5, start_epoch=1, cycle_epochs=2)
    unused = unused_epochs(config, METHODS["fge"], name="fold")
    assert unused is not None
    assert unused.sentence().startswith("fold uses 4 of 5 epochs")
    for option, values in unused.remedies.items():
        for value in values:
            changed: Any = replace(config, **{option: value})
            assert changed.last_cycle_epoch == changed.epochs


def test_of_a_method_of_one_s_own_the_epochs_are_said() -> None:
    def stages(config: Any) -> list[Stage]:
        last = config.epochs - 1
        return [Stage("mine", 0, last, lambda o, s: linear_tail(last, 0.1, o, s), store="mine")]

    own = Method("mine", "one epoch less", stages)
    unused = unused_epochs(TrainConfig(epochs=4), own)
    assert unused is not None
    assert unused.sentence() == "mine uses 3 of 4 epochs: its stages end there."
