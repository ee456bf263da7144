"""Rates per group: the head's is the recipe's, the rest keeps its ratio in every schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fge.config import TrainConfig
from fge.errors import UserError
from fge.networks import freeze
from fge.train import (
    endpoint_recipe,
    find_method,
    make_optimizer,
    parameter_groups,
    say_groups,
    warmed_up,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_the_groups_are_the_head_and_the_rest() -> None:
    model = network()
    recipe = endpoint_recipe(TrainConfig(lr=0.1, backbone_lr=0.01))
    optimizer = make_optimizer(recipe, parameter_groups(model, recipe))
    head, rest = optimizer.param_groups
    assert head["params"] == list(model[2].parameters())
    assert rest["params"] == list(model[0].parameters())
    assert (head["lr"], rest["lr"]) == pytest.approx((0.1, 0.01), rel=1e-12)
    assert say_groups(model, recipe) == (
        "learning rates: 0.1 for the head (2.weight, 2.bias), 0.01 for the other 2 parameters"
    )


def test_without_the_option_there_is_one_group() -> None:
    model = network()
    recipe = endpoint_recipe(TrainConfig())
    assert parameter_groups(model, recipe) == list(model.parameters())


@pytest.mark.parametrize(
    "method", ["single", "average", "fge", "fge-paper", "sse", "csgld", "star", "split"]
)
def test_every_schedule_keeps_the_ratio(method: str) -> None:
    config = TrainConfig(
        method=method, lr=0.1, backbone_lr=0.02, epochs=12, csgld_cycles=2, warmup_epochs=2
    )
    found = find_method(method)
    recipe, model = found.recipe(config), network()
    optimizer = make_optimizer(recipe, parameter_groups(model, recipe), examples=30)
    stages = found.stages(config)
    assert isinstance(stages, list)
    seen = 0
    for position, stage in enumerate(stages):
        schedule = warmed_up(stage, stages[:position], recipe.warmup_epochs).schedule(optimizer, 3)
        for _ in range(3 * (stage.last_epoch - stage.first_epoch)):
            head, rest = (group["lr"] for group in optimizer.param_groups)
            assert rest == pytest.approx(0.2 * head, rel=1e-12)
            assert schedule.get_last_lr()[0] == head
            seen += head > 0
            optimizer.step()
            schedule.step()
    assert seen >= 30


def test_a_ratio_without_two_trained_groups_is_refused() -> None:
    recipe = endpoint_recipe(TrainConfig(lr=0.1, backbone_lr=0.01))
    model = network()
    freeze(model, "^0")
    with pytest.raises(UserError, match=r"^--backbone-lr sets .* nothing but the head is trained"):
        parameter_groups(model, recipe)
    model = network()
    freeze(model, "^2")
    with pytest.raises(UserError, match=r"nothing in the head is trained; leave it out$"):
        parameter_groups(model, recipe)
    with pytest.raises(UserError, match="nothing but the head is trained"):
        parameter_groups(nn.Linear(2, 2), recipe)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"^backbone_lr must be finite and above 0, got "):
        TrainConfig(backbone_lr=rate)


def test_a_step_moves_each_group_at_its_own_rate() -> None:
    model = network().double()
    recipe = endpoint_recipe(TrainConfig(lr=0.1, backbone_lr=0.01, momentum=0, weight_decay=0))
    optimizer = make_optimizer(recipe, parameter_groups(model, recipe))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [(b - p).mean().item() for b, p in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.01, 0.01, 0.1, 0.1], rel=1e-12)
