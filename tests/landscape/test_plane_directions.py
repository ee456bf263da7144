"""Lines and random directions: filter normalisation against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape import Line
from fge.landscape.directions import filter_normalised, random_direction
from fge.networks import Layout, flatten


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)
    ).double()


def parts_of(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    return Layout.of(model).split(vector)


def test_each_filter_is_as_long_as_that_of_the_weights() -> None:
    model = network()
    weights = flatten(model, model)
    raw = torch.randn(len(weights), dtype=torch.float64)
    own, given = parts_of(model, weights), parts_of(model, raw)
    found = parts_of(model, filter_normalised(raw, weights, Layout.of(model)))
    for name in ("0.weight", "3.weight"):
        for k in range(len(own[name])):
            direction = given[name][k]
            wanted = direction / direction.norm() * own[name][k].norm()
            torch.testing.assert_close(found[name][k], wanted, rtol=1e-14, atol=0)
    for name in ("0.bias", "1.weight", "1.bias", "3.bias"):
        assert not found[name].any()


def test_biases_and_norm_layers_count_as_one_filter_each_where_they_are_wanted() -> None:
    model = network()
    weights = flatten(model, model)
    raw = torch.randn(len(weights), dtype=torch.float64)
    own, given = parts_of(model, weights), parts_of(model, raw)
    found = parts_of(model, filter_normalised(raw, weights, Layout.of(model), biases=True))
    for name in ("0.bias", "1.weight", "3.bias"):
        wanted = given[name] / given[name].norm() * own[name].norm()
        torch.testing.assert_close(found[name], wanted, rtol=1e-14, atol=0)
    assert not found["1.bias"].any()  # those of the network are 0


def test_filters_of_length_0_stay_where_they_are() -> None:
    layout = Layout(("w", "none", "scalar"), ((2, 2), (0, 3), ()))
    weights = torch.tensor([3.0, 4.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    raw = torch.tensor([1.0, 0.0, 0.0, 0.0, -5.0], dtype=torch.float64)
    assert filter_normalised(raw, weights, layout).tolist() == [5.0, 0.0, 0.0, 0.0, 0.0]
    scaled = filter_normalised(raw, weights, layout, biases=True)
    assert scaled.tolist() == [5.0, 0.0, 0.0, 0.0, -2.0]


def test_random_directions_follow_from_the_seed_and_have_nothing_in_common() -> None:
    layout = Layout(("w",), ((100, 100),))
    weights = torch.ones(10_000)
    first = random_direction(weights, layout, 0, 0)
    assert first.dtype == torch.float64
    assert torch.equal(first, random_direction(weights, layout, 0, 0))
    for seed, axis in ((0, 1), (1, 0)):
        other = random_direction(weights, layout, seed, axis)
        # Cosines of independent directions have a standard deviation of 1/sqrt(P) = .01.
        assert abs(float(first @ other)) / 10_000 < 0.05


def test_a_random_direction_of_zero_weights_is_refused() -> None:
    layout = Layout(("bias",), ((3,),))
    with pytest.raises(
        UserError, match=r"^a random direction .* all weights of two or more dimensions"
    ):
        random_direction(torch.ones(3), layout, 0, 0)
    with pytest.raises(
        UserError, match=r"^a random direction .* but all weights are 0; give a trained network$"
    ):
        random_direction(torch.zeros(3), layout, 0, 0, biases=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_line_goes_through_two_networks_and_on(dtype: torch.dtype) -> None:
    start, end = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([2.0, 0.0], dtype=dtype)
    line = Line.through(start, end)
    assert line.at(0.0).dtype == dtype
    assert torch.equal(line.at(0.0), start)
    assert torch.equal(line.at(1.0), end)
    assert line.at(0.5).tolist() == [1.5, 1.0]
    assert line.at(-2.0).tolist() == [-1.0, 6.0]


def test_a_random_line_follows_the_filter_normalised_direction() -> None:
    model = network()
    center, layout = flatten(model, model), Layout.of(model)
    line = Line.random(center, layout, 7)
    assert torch.equal(line.at(0.0), center)
    direction = random_direction(center, layout, 7, 0)
    torch.testing.assert_close(line.at(2.0) - center, 2 * direction, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (torch.ones(3), "end has 3 weights, start has 2; give networks of one architecture"),
        (torch.ones(2, 1), r"end must be a floating-point vector \(P,\), got .* \(2, 1\)"),
        (
            torch.ones(2, dtype=torch.int64),
            r"end must be a floating-point vector \(P,\), got torch",
        ),
        (torch.tensor([1.0, math.inf]), "end holds values that are not finite"),
        (torch.tensor([1.0, 2.0]), "the direction of a line is 0; give two networks that differ"),
    ],
)
def test_ends_that_make_no_line_are_refused(end: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Line.through(torch.tensor([1.0, 2.0]), end)
