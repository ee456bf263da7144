"""Options of the optimizer: defaults for each, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fge.config import (
    CompareConfig,
    ConnectConfig,
    CurveEnsembleConfig,
    FGEConfig,
    TrainConfig,
    check_used,
)
from fge.errors import UserError
from fge.train import endpoint_recipe


def test_each_optimizer_has_rates_and_a_decay_of_its_own() -> None:
    found = {
        name: (config.base_lr, config.decay)
        for name in ("sgd", "adamw", "adam")
        for config in [TrainConfig(optimizer=name)]
    }
    assert found == {"sgd": (0.2, 5e-4), "adamw": (1e-3, 0.05), "adam": (1e-3, 5e-4)}
    given = TrainConfig(optimizer="adamw", lr=3e-4, weight_decay=0.0)
    assert (given.base_lr, given.decay) == (3e-4, 0.0)


@pytest.mark.parametrize("average", [None, 0.0])
def test_cycles_of_adamw_lie_below_its_rate(average: float | None) -> None:
    rates = FGEConfig(optimizer="adamw", lr=2e-3, average=average).cycle_lrs
    assert (rates.max_lr, rates.min_lr) == pytest.approx((1e-3, 1e-4), rel=1e-12)


def test_curves_are_fitted_by_sgd_with_an_l2_penalty_whatever_trained_the_ends() -> None:
    assert CurveEnsembleConfig(optimizer="adamw").l2_penalty == 5e-4
    assert CurveEnsembleConfig(weight_decay=1e-3).l2_penalty == 1e-3
    assert ConnectConfig(weights=(Path("a"), Path("b"))).l2_penalty == 5e-4


def test_the_recipe_has_the_options_of_the_run() -> None:
    config = TrainConfig(
        optimizer="adamw", warmup_epochs=2.5, accumulate=3, clip_norm=1.0, batch_size=10
    )
    recipe = endpoint_recipe(config)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == ("adamw", 1e-3, 0.05)
    assert (recipe.warmup_epochs, recipe.accumulate, recipe.clip_norm) == (2.5, 3, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": -1.0}, r"warmup_epochs must be finite and >= 0, got -1\.0"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs must be finite and >= 0, got nan"),
        ({"warmup_epochs": 9.0, "epochs": 8}, "warmup_epochs must be at most epochs, 8, got 9"),
        ({"clip_norm": 0.0}, r"clip_norm must be finite and above 0, got 0\.0"),
        ({"clip_norm": float("inf")}, "clip_norm must be finite and above 0, got inf"),
        ({"accumulate": 0}, "accumulate must be >= 1, got 0"),
        (
            {"accumulate": 2, "cuda_graphs": "on"},
            "--cuda-graphs on replays a step as one pass, got accumulate 2; leave out one",
        ),
        (
            {"method": "csgld", "optimizer": "adamw"},
            "csgld has an optimizer of its own, SGD with noise, got optimizer adamw; leave out",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_a_comparison_refuses_csgld_with_another_optimizer_too() -> None:
    with pytest.raises(UserError, match=r"^csgld has an optimizer of its own"):
        CompareConfig(methods=("single", "csgld"), optimizer="adam")


def test_a_pair_refuses_an_optimizer_that_none_of_its_trainings_uses() -> None:
    check_used(CurveEnsembleConfig(optimizer="adamw"))
    pair: dict[str, Any] = {"first": "G", "second": "B"}
    check_used(CurveEnsembleConfig(**pair))
    for name, value, shown in (
        ("optimizer", "adamw", "--optimizer adamw"),
        ("warmup_epochs", 1.0, r"--warmup-epochs 1\.0"),
        ("clip_norm", 2.0, r"--clip-norm 2\.0"),
        ("mixup", 0.2, r"--mixup 0\.2"),
        ("class_weights", "balanced", "--class-weights balanced"),
    ):
        with pytest.raises(UserError, match=rf"^{shown} is for the recipes average and endpoint, "):
            check_used(CurveEnsembleConfig(**pair, **{name: value}))
