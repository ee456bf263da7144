"""What ``sharpness`` measures by default, from what a network costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fge.commands.effort import KRYLOV, OPERATIONS, Effort, _operations, settled
from fge.config import SharpnessConfig

OPEN = SharpnessConfig(weights=(Path("a.safetensors"),))
STEPS = sum(KRYLOV) // 2


def chosen(
    width: int, *, networks: int = 1, images: int = 10_000, options: SharpnessConfig = OPEN
) -> tuple[int, ...]:
    """Return the effort for a linear network, whose forward pass is 2 x 100 x width operations."""
    model = nn.Sequential(nn.Linear(100, width, bias=False))
    found = settled(options, model, torch.zeros(1, 100), networks, images)
    return tuple(Effort.of(found))


def test_a_small_network_is_measured_with_all() -> None:
    assert chosen(10) == (1024, 32, 4, 60)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("networks", [1, 5])
def test_the_effort_is_the_largest_within_the_operations(position: int, networks: int) -> None:
    efforts = [(1024, 32, 4, 60), (512, 16, 2, 60), (256, 16, 2, 40), (128, 8, 1, 40)]
    examples, samples, vectors, lanczos = efforts[position]
    products = networks * (3 * STEPS + samples) + vectors * lanczos
    width = int(OPERATIONS / (6 * 2 * 100 * examples * products))
    assert chosen(width, networks=networks) == efforts[position]
    later = [*efforts, (64, 8, 1, 30)][position + 1]
    assert chosen(width + 1, networks=networks) == later


@pytest.mark.slow
def test_the_least_is_measured_whatever_it_costs() -> None:
    assert chosen(10**6) == (16, 8, 1, 30)


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_fused_layers_are_counted(kind: str) -> None:
    """In evaluation they are computed by operations that the counter does not see through."""
    width, tokens = 256, 49
    if kind == "attention":
        module: nn.Module = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        weights = 12 * width * width  # of queries, keys, values, their output, and two layers
        expected = 2 * tokens * weights + 2 * 2 * tokens * tokens * width
    else:
        module = nn.LSTM(width, width, batch_first=True)
        expected = 2 * tokens * 8 * width * width  # four gates, of inputs and of states
    found = _operations(module, torch.zeros(1, tokens, width))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_what_is_given_stays() -> None:
    given = replace(OPEN, examples=7, spectrum_steps=9)
    assert chosen(10**6, options=given) == (7, 32, 4, 9)
    assert chosen(10**6, options=replace(given, examples=0))[0] == 0


def test_images_that_are_not_there_cost_nothing() -> None:
    assert chosen(10**4, images=10) == (1024, 32, 4, 60)
    assert chosen(10**4, images=10, options=replace(OPEN, examples=0)) == (0, 32, 4, 60)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(100, 5), nn.BatchNorm1d(5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settled(OPEN, model, torch.zeros(1, 100), 1, 10)
    assert model.training
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
