"""Learning rates by the name of a model."""

from __future__ import annotations

import pytest

from fge.config import MethodConfig, curve_rate_of
from fge.config.base import Rates, rates_of
from fge.networks.build import MODELS

USUAL = Rates(0.05, 0.05, 0.0005)
RESIDUAL = Rates(0.1, 0.05, 0.01)
VGG = Rates(0.05, 0.01, 0.01)


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        ("convnet", Rates(0.2, 0.05, 0.001)),
        ("vgg16", VGG),
        ("vgg16-bn", VGG),
        ("preresnet20", RESIDUAL),
        ("preresnet164", RESIDUAL),
        ("wrn28-10", RESIDUAL),
        ("torchvision:resnet18", USUAL),
        ("torchvision:vgg16", USUAL),
        ("package.module:factory", USUAL),
    ],
)
def test_each_model_has_the_rates_that_suit_it(model: str, rates: Rates) -> None:
    assert rates_of(model) == rates


def test_every_built_in_model_has_rates_of_its_own() -> None:
    assert [name for name in MODELS if rates_of(name) == USUAL] == []


def test_the_rate_of_a_cycle_falls_from_its_start_to_its_middle() -> None:
    for name in (*MODELS, "torchvision:resnet18"):
        rates = rates_of(name)
        assert rates.lr > 0
        assert 0 < rates.min_lr <= rates.max_lr


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("vgg16", 0.015),
        ("vgg16-bn", 0.015),
        ("preresnet164", 0.03),
        ("wrn28-10", 0.03),
        ("convnet", 0.1),
        ("torchvision:vgg16", 0.03),
        ("package.module:factory", 0.03),
    ],
)
def test_curves_are_fitted_with_the_papers_rates(model: str, rate: float) -> None:
    assert curve_rate_of(model) == rate
    assert curve_rate_of(model, "regression") == rate / 4


@pytest.mark.parametrize("model", ["convnets.zoo:make", "vgg16_variants:make"])
def test_an_own_factory_is_not_taken_for_a_built_in_model(model: str) -> None:
    assert rates_of(model) == USUAL


def test_csgld_is_slower_for_a_regression_unless_its_rate_is_given() -> None:
    assert MethodConfig().csgld_base_lr == 0.5
    assert MethodConfig(task="binary").csgld_base_lr == 0.5
    assert MethodConfig(task="regression").csgld_base_lr == 0.03
    assert MethodConfig(task="regression", csgld_lr=0.5).csgld_base_lr == 0.5
