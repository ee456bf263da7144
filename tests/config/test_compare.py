"""Options of a comparison: what is too little is refused, and the least that works is named."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fge.config import (
    METHOD_NAMES,
    ORDER,
    CompareConfig,
    CurveEnsembleConfig,
    FGEConfig,
    TrainConfig,
    options_for,
)
from fge.config.compare import COMPARED
from fge.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("fgee",)}, "unknown method 'fgee'; did you mean 'fge'?"),
        ({"seeds": 1}, "seeds must be >= 2, because an interval needs 2, got 1"),
        ({"budgets": ()}, "budgets must be whole numbers >= 1, got none"),
        ({"budgets": (0, 1)}, "budgets must be >= 1, got 0"),
        ({"budgets": (1, 4), "seeds": 3}, "use --seeds 4 or more, got 3"),
        (
            {"methods": ("curve-ensemble-2B",), "freeze": "^0"},
            "curve-ensemble-2B connects single networks, whose frozen parameters differ without "
            "--pretrained, got freeze '^0'; drop it from --methods",
        ),
        ({"jobs": 0}, "jobs must be >= 1, got 0"),
        ({"split": 0}, "split must be >= 1, got 0"),
        ({"methods": ("sse",), "epochs": 4}, "sse needs epochs >= 5"),
        ({"methods": ("csgld",), "epochs": 11}, "csgld needs epochs >= 12"),
        ({"methods": ("fge+refit",), "epochs": 3}, "fge+refit needs epochs >= 8, got 3"),
        (
            {"methods": ("fge+refit",), "epochs": 30, "average": 0.0},
            "fge+refit needs epochs >= 32, got 30",
        ),
        (
            {"methods": ("fge+refit",), "epochs": 30, "start_epoch": 20, "cycle_epochs": 8},
            "fge+refit needs epochs >= 36, got 30",
        ),
        ({"methods": ("swa",), "epochs": 2}, "swa needs epochs >= 3, got 2"),
        (
            {"methods": ("fge",), "epochs": 30, "start_epoch": 20, "cycle_epochs": 8},
            "fge needs epochs >= 32, got 30",
        ),
        ({"methods": ("curve-ensemble",), "epochs": 2}, "curve-ensemble needs epochs >= 3, got 2"),
        (
            {"methods": ("deep-ensemble",), "epochs": 3, "split": 4},
            "deep-ensemble needs epochs >= 4, got 3",
        ),
        (
            {"methods": ("fold",), "val_fraction": 0.0},
            "fold needs validation data: set --val-fraction above 0, or drop fold",
        ),
        (
            {"methods": ("single", "single+tta")},
            "single+tta needs views of the test images; add --tta 2 or more, or drop it from",
        ),
        (
            {"methods": ("fge+refit+tta",), "tta": 3},
            "fge+refit cannot have views of the test images; drop fge+refit+tta from --methods",
        ),
        ({"methods": ("fgee+tta",), "tta": 3}, "unknown method 'fgee'; did you mean 'fge'?"),
        ({"methods": ("sse+tta",), "tta": 3, "epochs": 4}, "sse needs epochs >= 5"),
        ({"methods": ("auto",), "val_fraction": 0.0}, "auto decides by validation data"),
        ({"methods": ("fge-paper",), "epochs": 2}, "fge-paper needs epochs >= 3, got 2"),
        ({"methods": ("split",), "epochs": 2, "split": 3}, "split needs epochs >= 3"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        CompareConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ("fge+refit",), "epochs": 16},
        {"methods": ("fge+refit",), "epochs": 32},
        {"methods": ("fge+refit",), "epochs": 36, "start_epoch": 20, "cycle_epochs": 8},
        {"methods": ("fge+refit",), "epochs": 4, "start_epoch": 0, "cycle_epochs": 2},
        {"methods": ("swa",), "epochs": 3},
        {"methods": ("fge",), "epochs": 32, "start_epoch": 20, "cycle_epochs": 8},
        {"methods": ("curve-ensemble",), "epochs": 3},
        {"methods": ("deep-ensemble",), "epochs": 4, "split": 4},
        {"methods": ("sse",), "epochs": 5},
        {"methods": ("csgld",), "epochs": 12},
        {"budgets": (1, 4), "seeds": 4},
        {"methods": ("mine.module:method",)},
        {"methods": ("mine.module:method+tta", "fge+tta", "deep-ensemble+tta"), "tta": 2},
    ],
)
def test_the_least_that_is_named_works(options: dict[str, Any]) -> None:
    CompareConfig(**options)


def test_seeds_go_on_from_the_first() -> None:
    assert list(CompareConfig(seed=3, seeds=2).all_seeds) == [3, 4]


def test_other_commands_get_the_options_that_they_share() -> None:
    config = CompareConfig(
        epochs=50, lr=0.3, cycle_epochs=6, sse_cycles=2, ood=("noise",), batch_size=64, seed=5
    )
    fge = options_for(FGEConfig, config, single=True)
    assert (fge.epochs, fge.lr, fge.cycle_epochs, fge.ood, fge.seed) == (50, 0.3, 6, ("noise",), 5)
    assert fge.single
    sse = options_for(TrainConfig, config, method="sse")
    assert (sse.sse_cycles, sse.batch_size) == (2, 64)
    curve = options_for(CurveEnsembleConfig, config, epochs=20)
    assert (curve.epochs, curve.ood) == (20, ("noise",))


def test_every_method_has_a_place_in_the_order() -> None:
    assert set(METHOD_NAMES) < set(ORDER)
    assert set(COMPARED) == set(ORDER)
    assert len(ORDER) == len(set(ORDER)) == 17
    CompareConfig(methods=ORDER, epochs=100)


def test_the_default_methods_can_be_compared() -> None:
    config = CompareConfig()
    assert config.methods == (
        *("single", "average", "fge", "fge-paper", "swa", "sse", "split", "auto"),
        *("deep-ensemble", "curve-ensemble"),
    )


@pytest.mark.parametrize("method", ["fge-paper", "swa"])
def test_methods_as_published_have_the_papers_rates(method: str) -> None:
    config = TrainConfig(method=method, epochs=40)
    assert config.average_part == 0
    assert (config.cycle_lrs.max_lr, config.cycle_lrs.min_lr) == (0.05, 0.001)
    averaged = TrainConfig(method="fge", epochs=40)
    assert averaged.average_part == 0.2
    assert (averaged.cycle_lrs.max_lr, averaged.cycle_lrs.min_lr) == pytest.approx((0.1, 0.01))
