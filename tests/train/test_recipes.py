"""Training recipes: the reference strategy, what differs from it, and the objects they make."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from fge.config import FGEConfig, RunConfig
from fge.config.base import rates_of
from fge.errors import UserError
from fge.train import (
    RECIPES,
    ClosedFormLR,
    EndpointLR,
    LinearDecayLR,
    Recipe,
    Stage,
    StepsLR,
    average_recipe,
    batch_size,
    endpoint_recipe,
    make_optimizer,
    recipe,
    recipe_stages,
    scale_initialisation,
)
from fge.train.recipes import (
    ADAM_LR,
    INIT_VARIANCE,
    LARGE_BATCH_LR,
    OPTION_OF,
    SMALLER_WEIGHT_DECAY,
    make_schedule,
)

G = RECIPES["G"]


def differing(one: Recipe, other: Recipe) -> dict[str, Any]:
    """Return the fields of ``one`` that differ, other than what it is called."""
    return {
        f.name: getattr(one, f.name)
        for f in fields(Recipe)
        if getattr(one, f.name) != getattr(other, f.name) and f.name not in ("name", "description")
    }


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))]


def advance(optimizer: Optimizer, schedule: ClosedFormLR, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        schedule.step()


def rates(stage: Stage, optimizer: Optimizer, per_epoch: int) -> list[float]:
    schedule = stage.schedule(optimizer, per_epoch)
    found = []
    for _ in range((stage.last_epoch - stage.first_epoch) * per_epoch):
        found.append(float(optimizer.param_groups[0]["lr"]))
        advance(optimizer, schedule, 1)
    return found


def test_g_is_the_reference_strategy() -> None:
    assert (G.optimizer, G.lr, G.batch_size, G.momentum) == ("sgd", 0.05, 100, 0.9)
    assert (G.weight_decay, G.schedule, G.init_scale, G.augment) == (5e-4, "step", 1.0, True)


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("A", {"batch_size": 4000}),
        ("B", {"optimizer": "adam", "lr": 1e-3}),  # a rate of SGD means nothing to Adam
        ("C", {"schedule": "linear"}),
        ("D", {"weight_decay": 5e-6}),
        ("E", {"init_scale": math.sqrt(2)}),
        ("F", {"augment": False}),
    ],
)
def test_each_recipe_differs_from_g_in_its_one_thing(name: str, difference: dict[str, Any]) -> None:
    assert differing(RECIPES[name], G) == difference
    assert recipe(name) == RECIPES[name]


def test_recipes_go_by_their_names_and_are_described() -> None:
    assert list(RECIPES) == ["G", "A", "B", "C", "D", "E", "F"]
    assert [r.name for r in RECIPES.values()] == list(RECIPES)
    assert len({r.description for r in RECIPES.values()}) == len(RECIPES)


def test_the_defaults_of_open_values_are_those_that_are_named() -> None:
    assert RECIPES["A"].lr == LARGE_BATCH_LR == G.lr
    assert RECIPES["B"].lr == ADAM_LR
    assert RECIPES["D"].weight_decay == SMALLER_WEIGHT_DECAY
    assert RECIPES["E"].init_scale ** 2 == pytest.approx(INIT_VARIANCE, rel=1e-15)


@pytest.mark.parametrize(
    ("name", "options", "difference"),
    [
        ("A", {"large_batch_lr": 2.0}, {"lr": 2.0}),
        ("B", {"adam_lr": 3e-4}, {"lr": 3e-4}),
        ("D", {"weight_decay": 0.0}, {"weight_decay": 0.0}),
        ("D", {"weight_decay": 1e-4}, {"weight_decay": 1e-4}),
        ("E", {"init_variance": 9.0}, {"init_scale": 3.0}),
    ],
)
def test_what_the_source_leaves_open_is_an_option(
    name: str, options: dict[str, float], difference: dict[str, Any]
) -> None:
    assert differing(recipe(name, **options), RECIPES[name]) == difference
    assert recipe(name) == RECIPES[name]


@pytest.mark.parametrize("option", OPTION_OF)
@pytest.mark.parametrize("name", RECIPES)
def test_an_option_of_another_recipe_is_refused(name: str, option: str) -> None:
    value = 0.0 if option == "weight_decay" else 3.0
    if OPTION_OF[option] == name:
        assert recipe(name, **{option: value}) != RECIPES[name]
        return
    message = f"^{option} is an option of recipe {OPTION_OF[option]}, not of {name}; leave it out$"
    with pytest.raises(UserError, match=message):
        recipe(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("H", {}, "unknown recipe 'H'; known: G, A, B, C, D, E, F"),
        ("g", {}, "unknown recipe 'g'; did you mean 'G'"),
        ("A", {"large_batch_lr": 0.0}, "large_batch_lr must be finite and above 0, got 0.0"),
        ("B", {"adam_lr": -1.0}, "adam_lr must be finite and above 0, got -1.0"),
        ("B", {"adam_lr": math.inf}, "adam_lr must be finite and above 0, got inf"),
        ("D", {"weight_decay": 5e-4}, r"weight_decay of D must be in \[0, 0.0005\), got 0.0005"),
        ("D", {"weight_decay": -1e-4}, r"weight_decay of D must be in .*, got -0.0001"),
        ("D", {"weight_decay": math.nan}, r"weight_decay of D must be in .*, got nan"),
        ("E", {"init_variance": 1.0}, "init_variance must be finite and above 1, got 1.0"),
        ("E", {"init_variance": math.inf}, "init_variance must be finite and above 1, got inf"),
    ],
)
def test_unknown_names_and_values_out_of_range_are_refused(
    name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        recipe(name, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adams"}, "unknown optimizer 'adams'; did you mean 'adam'"),
        ({"schedule": "steps"}, "unknown schedule 'steps'; did you mean 'step'"),
        ({"lr": 0.0}, "lr must be finite and above 0, got 0.0"),
        ({"lr": math.nan}, "lr must be finite and above 0, got nan"),
        ({"init_scale": 0.0}, "init_scale must be finite and above 0, got 0.0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1.0"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and >= 0, got inf"),
    ],
)
def test_fields_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        replace(G, **change)


def test_conventional_training_is_a_recipe_too() -> None:
    config = RunConfig(model="preresnet20", momentum=0.8, weight_decay=3e-4)
    made = endpoint_recipe(config)
    assert differing(made, G) == {
        "lr": rates_of("preresnet20").lr,
        "batch_size": 128,
        "momentum": 0.8,
        "weight_decay": 3e-4,
        "schedule": "endpoint",
    }
    assert endpoint_recipe(RunConfig(lr=0.3, batch_size=50)).lr == 0.3
    assert endpoint_recipe(FGEConfig(batch_size=50)).batch_size == 50


def test_an_average_is_conventional_training_with_a_linear_descent_and_a_mean() -> None:
    config = RunConfig(model="preresnet20", momentum=0.8, weight_decay=3e-4, lr=0.3)
    difference = {"schedule": "tail", "average": 0.2}
    assert differing(average_recipe(config), endpoint_recipe(config)) == difference
    (stage,) = recipe_stages(average_recipe(config), 4)
    assert (stage.average, stage.keep, stage.last_epoch) == (0.2, "end", 4)
    assert recipe_stages(endpoint_recipe(config), 5)[0].average == 0
    found = rates(stage, make_optimizer(average_recipe(config), parameters()), 2)
    # A quarter of the steps at the base rate, then down to a twentieth, which no step has.
    expected = [0.3] * 2 + [0.3 * (1 - 0.95 * step / 6) for step in range(6)]
    assert found == pytest.approx(expected, rel=1e-12)
    for part in (-0.1, 1.1):
        with pytest.raises(UserError, match=rf"^average must be in \[0, 1\], got {part}$"):
            replace(G, average=part)


@pytest.mark.parametrize(
    ("flip", "crop_padding", "augment"),
    [(True, 0, True), (False, None, True), (False, 2, True), (False, 0, False)],
)
def test_conventional_training_augments_unless_both_ways_are_off(
    flip: bool, crop_padding: int | None, augment: bool
) -> None:
    config = RunConfig(flip=flip, crop_padding=crop_padding)
    assert endpoint_recipe(config).augment is augment


def test_the_optimizers_have_the_recipes_options() -> None:
    sgd, adam = (make_optimizer(recipe(name), parameters()) for name in "GB")
    assert isinstance(sgd, SGD)
    assert isinstance(adam, Adam)
    of_sgd, of_adam = sgd.param_groups[0], adam.param_groups[0]
    assert (of_sgd["lr"], of_sgd["momentum"], of_sgd["weight_decay"]) == (0.05, 0.9, 5e-4)
    assert (of_sgd["dampening"], of_sgd["nesterov"]) == (0, False)
    assert (of_adam["lr"], of_adam["betas"], of_adam["weight_decay"]) == (1e-3, (0.9, 0.999), 5e-4)


@pytest.mark.parametrize("name", ["G", "B"])
def test_two_steps_are_those_of_the_textbook(name: str) -> None:
    made = replace(recipe(name), weight_decay=0.1)
    (parameter,) = weights = parameters()
    optimizer = make_optimizer(made, weights)
    w, first, second = parameter.detach().clone(), torch.zeros(2), torch.zeros(2)
    for step, gradient in enumerate(([0.3, -0.1], [0.2, 0.4]), start=1):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        g = torch.tensor(gradient, dtype=torch.float64) + 0.1 * w
        if name == "G":
            first = 0.9 * first + g
            w = w - made.lr * first
        else:
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
            w = w - made.lr * mean / (square.sqrt() + 1e-8)
        assert torch.allclose(parameter.detach(), w, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("made", "kind", "factor"),
    [
        (recipe("G"), StepsLR, 0.04),
        (recipe("C"), LinearDecayLR, 0.3),
        (endpoint_recipe(RunConfig()), EndpointLR, 1 - 0.3 / 0.4 * 0.99),
        (average_recipe(RunConfig()), LinearDecayLR, 1 - (21 - 8) / (30 - 8) * 0.95),
    ],
    ids=["step", "linear", "endpoint", "tail"],
)
def test_the_schedules_are_those_of_the_recipe(
    made: Recipe, kind: type[ClosedFormLR], factor: float
) -> None:
    optimizer = make_optimizer(made, parameters())
    schedule = make_schedule(made, optimizer, epochs=10, steps_per_epoch=3)
    assert type(schedule) is kind
    advance(optimizer, schedule, 7 * 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(made.lr * factor, rel=1e-12)


@pytest.mark.parametrize("schedule", ["step", "linear", "endpoint", "tail"])
@pytest.mark.parametrize("option", ["epochs", "steps_per_epoch"])
def test_a_budget_of_nothing_is_refused(schedule: Any, option: str) -> None:
    made = replace(G, schedule=schedule)
    options = {"epochs": 2, "steps_per_epoch": 2} | {option: 0}
    with pytest.raises(UserError, match=f"^{option} must be >= 1, got 0$"):
        make_schedule(made, make_optimizer(made, parameters()), **options)


class Net(nn.Module):
    """One layer of each kind that matters, the last linear one tied to an embedding's twin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 5)
        self.norm = nn.BatchNorm2d(64)
        self.up = nn.ConvTranspose1d(64, 32, 9)
        self.linear = nn.Linear(100, 90)
        self.twin = nn.Linear(100, 90)
        self.twin.weight = self.linear.weight
        self.embedding = nn.Embedding(10, 7)
        self.layer_norm = nn.LayerNorm(5)


SCALED = ("conv.weight", "up.weight", "linear.weight")


def test_the_variance_of_the_initial_weights_grows_by_the_factor() -> None:
    torch.manual_seed(0)
    model = Net().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scale_initialisation(model, recipe("E", init_variance=3.0))
    for name, parameter in model.named_parameters():
        if name in SCALED:
            ratio = float(parameter.detach().var() / before[name].var())
            assert ratio == pytest.approx(3.0, rel=1e-12)
            expected = before[name] * math.sqrt(3.0)
            assert torch.allclose(parameter, expected, rtol=1e-15, atol=0)
        else:
            assert torch.equal(parameter, before[name]), name
    assert model.twin.weight is model.linear.weight


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "E"])
def test_other_recipes_leave_the_initial_weights_alone(name: str) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    scale_initialisation(model, recipe(name))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    scale_initialisation(nn.ReLU(), recipe(name))


def test_wrapped_models_are_scaled_and_go_on_training() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    scale_initialisation(nn.DataParallel(model), recipe("E", init_variance=4.0))
    assert torch.equal(model.weight, 2 * before)
    assert model.weight.requires_grad
    assert model.weight.is_leaf


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(weight_normed, "ParametrizedLinear"), (lambda: nn.LazyLinear(3), "LazyLinear")],
)
def test_weights_that_cannot_be_scaled_are_named_and_nothing_is_scaled(
    layer: Any, kind: str
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), layer())
    before = model[0].weight.detach().clone()
    for given in (model, nn.DataParallel(model)):
        message = rf"^the weights of layer '1' \({kind}\) cannot be scaled, they are not plain"
        with pytest.raises(UserError, match=message):
            scale_initialisation(given, recipe("E"))
    assert torch.equal(model[0].weight, before)


def test_a_model_with_nothing_to_scale_is_refused() -> None:
    with pytest.raises(UserError, match=r"^recipe E scales .* the model has none"):
        scale_initialisation(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), recipe("E"))


@pytest.mark.parametrize(
    ("name", "train_size", "expected"),
    [("A", 50_000, 4000), ("A", 4000, 4000), ("A", 3999, 3999), ("G", 99, 99), ("G", 101, 100)],
)
def test_batches_are_no_larger_than_the_data(name: str, train_size: int, expected: int) -> None:
    assert batch_size(recipe(name), train_size) == expected


def test_batches_of_no_data_are_refused() -> None:
    with pytest.raises(UserError, match=r"^train_size must be >= 1, got 0$"):
        batch_size(G, 0)


def test_the_one_stage_trains_the_whole_budget_and_keeps_its_end() -> None:
    (stage,) = recipe_stages(G, 10)
    assert (stage.name, stage.first_epoch, stage.last_epoch) == ("network", 0, 10)
    assert (stage.after, stage.store, stage.keep) == (None, "network", "end")
    assert recipe_stages(G, 10, store="first")[0].store == "first"
    expected = [0.05] * 6 + [0.01] * 6 + [0.002] * 4 + [0.0004] * 4
    found = rates(stage, make_optimizer(G, parameters()), per_epoch=2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_stages_of_conventional_training_follow_the_endpoint_schedule() -> None:
    made = endpoint_recipe(RunConfig(lr=0.2))
    found = rates(recipe_stages(made, 10)[0], make_optimizer(made, parameters()), per_epoch=1)
    factors = [1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01, 0.01]
    assert found == pytest.approx([0.2 * f for f in factors], rel=0, abs=1e-12)


def test_a_stage_of_no_epochs_is_refused() -> None:
    with pytest.raises(UserError, match=r"^epochs must be >= 1, got 0$"):
        recipe_stages(G, 0)


@pytest.mark.parametrize("name", RECIPES)
def test_stages_hold_no_closures(name: str) -> None:
    (stage,) = pickle.loads(pickle.dumps(recipe_stages(recipe(name), 4)))
    optimizer = make_optimizer(recipe(name), parameters())
    assert isinstance(stage.schedule(optimizer, 2), ClosedFormLR)


@pytest.mark.parametrize("name", ["G", "B", "C"])
def test_training_that_goes_on_midway_ends_as_uninterrupted(name: str) -> None:
    made, total, done = recipe(name), 20, 13

    def build() -> tuple[nn.Parameter, Optimizer, ClosedFormLR]:
        weights = parameters()
        optimizer = make_optimizer(made, weights)
        return weights[0], optimizer, recipe_stages(made, 10)[0].schedule(optimizer, 2)

    def run(weight: Tensor, optimizer: Optimizer, schedule: ClosedFormLR, steps: int) -> None:
        for _ in range(steps):
            weight.grad = torch.cos(weight.detach())
            advance(optimizer, schedule, 1)

    whole, part, resumed = build(), build(), build()
    run(*whole, total)
    run(*part, done)
    with torch.no_grad():
        resumed[0].copy_(part[0])
    state = {
        "state": copy.deepcopy(part[1].state_dict()["state"]),
        "param_groups": resumed[1].state_dict()["param_groups"],
    }
    resumed[1].load_state_dict(state)
    resumed[2].load_state_dict(part[2].state_dict())
    run(*resumed, total - done)
    assert torch.equal(resumed[0], whole[0])
    assert not torch.equal(part[0], whole[0])
