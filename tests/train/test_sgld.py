"""Langevin dynamics against closed forms of its noise and of what it samples from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from fge.config import MethodConfig
from fge.errors import UserError
from fge.landscape import top_eigenvalues
from fge.networks import build_model
from fge.tasks import make_task
from fge.train import SGLD

COUNT = 40_000


def parameters(values: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full((COUNT,), values, dtype=torch.float64))


def step(optimizer: SGD, weights: nn.Parameter, curvature: float = 0.0) -> None:
    weights.grad = curvature * weights.detach()
    optimizer.step()


def test_without_temperature_a_step_is_that_of_sgd() -> None:
    torch.manual_seed(0)
    start = torch.randn(COUNT, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"momentum": 0.9, "weight_decay": 1e-2}
    sgld, sgd = SGLD([ours], 0.1, examples=7, **options), SGD([theirs], lr=0.1, **options)
    for _ in range(5):
        step(sgld, ours, 0.3)
        step(sgd, theirs, 0.3)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_noise_of_a_step_has_the_variance_of_the_formula(momentum: float) -> None:
    torch.manual_seed(1)
    weights = parameters()
    optimizer = SGLD([weights], 0.2, examples=50, momentum=momentum)
    optimizer.param_groups[0]["temperature"] = 0.5
    step(optimizer, weights)
    expected = 2 * 0.2 * (1 - momentum) * 0.5 / 50
    # The standard error of a variance is its sqrt(2 / n): 0.7 % here.
    assert float(weights.detach().var()) == pytest.approx(expected, rel=0.03)
    before = weights.detach().clone()
    step(optimizer, weights)
    moved = weights.detach() - before
    slope = float((moved * before).mean() / before.square().mean())
    assert slope == pytest.approx(momentum, abs=0.03)


def test_a_quadratic_is_sampled_at_its_temperature() -> None:
    """For the loss a w^2 / 2 the chain is linear: its variance is 2 T / (N a (2 - l a))."""
    torch.manual_seed(2)
    weights, lr, curvature, temperature, examples = parameters(), 0.1, 2.0, 0.7, 30
    optimizer = SGLD([weights], lr, examples=examples)
    optimizer.param_groups[0]["temperature"] = temperature
    for _ in range(60):  # (1 - l a)^120 of the start is left in the variance: 2e-12
        step(optimizer, weights, curvature)
    expected = 2 * temperature / (examples * curvature * (2 - lr * curvature))
    assert float(weights.detach().var()) == pytest.approx(expected, rel=0.03)
    assert float(weights.detach().mean()) == pytest.approx(0, abs=4 * (expected / COUNT) ** 0.5)


def test_weight_decay_is_part_of_the_gradient() -> None:
    weights = parameters(1.0)
    optimizer = SGLD([weights], 0.1, examples=3, weight_decay=0.5)
    step(optimizer, weights)
    assert torch.allclose(weights, torch.full_like(weights, 0.95), rtol=0, atol=1e-15)


def test_parameters_without_gradient_stay() -> None:
    moved, still = parameters(), parameters(2.0)
    optimizer = SGLD([moved, still], 0.1, examples=3)
    optimizer.param_groups[0]["temperature"] = 1.0
    step(optimizer, moved)
    assert torch.equal(still, parameters(2.0))
    assert float(moved.detach().abs().max()) > 0


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    weights, calls = parameters(1.0), []

    def closure() -> torch.Tensor:
        calls.append(1)
        loss = weights.square().sum()
        loss.backward()
        return loss

    assert float(SGLD([weights], 0.1, examples=3).step(closure)) == COUNT
    assert len(calls) == 1


def test_a_number_of_examples_is_needed() -> None:
    with pytest.raises(UserError, match="examples must be >= 1, got 0"):
        SGLD([parameters()], 0.1, examples=0)


def test_the_rate_for_a_regression_is_stable_where_that_for_classes_is_not() -> None:
    """SGD without momentum is stable up to the curvature 2 / rate."""
    torch.manual_seed(0)
    rows = torch.randn(300, 10)
    targets = rows[:, :1].sin() + 0.3 * torch.randn(300, 1)
    task = make_task("regression", ["y"], mean=[0.0], std=[float(targets.std(correction=0))])
    model = build_model("mlp", in_channels=10, num_classes=1, image_size=None, task="regression")
    with torch.no_grad():
        for _ in range(30):
            model(rows)  # batch norm knows its statistics
    model.eval()
    loss = task.loss(torch.device("cpu"))
    top = float(top_eigenvalues(model, loss, [(rows, targets.double())]).values[0])
    rate = MethodConfig(task="regression").csgld_base_lr
    assert 2 / MethodConfig().csgld_base_lr < 2 / 0.125 < top < 2 / rate
