"""Parameters that are the same at both ends, such as frozen ones: bitwise so on the whole curve."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fge.curves import (
    BASELINES,
    Chain,
    Curve,
    evaluate_curve,
    fit_curve,
    make_baseline,
    straight_curve,
)
from fge.curves.curve import elevate
from fge.networks import flatten, freeze

TS = [k / 30 for k in range(31)]
PATTERN = r"^0\."
HELD = 4 * 6 + 3 * 4
"""Numbers of the frozen part: a linear layer and the weights and biases of two batch norms."""


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    return nn.Sequential(body, nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def pair() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a frozen model and two networks with its body, whose statistics are all their own."""
    model = network(0)
    nn.init.normal_(model[0][1].weight)  # type: ignore[index]
    model[0][1].running_mean += torch.randn(4)  # type: ignore[index]
    freeze(model, PATTERN)
    ends = []
    for seed in (1, 2):
        end = network(seed)
        end[0].load_state_dict(model[0].state_dict())
        end[2].running_mean += torch.randn(4)
        ends.append(end)
    return model, *ends


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(7)
    return [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(3)]


def body(model: nn.Module) -> Tensor:
    return flatten(model, model)[:HELD]


@pytest.fixture
def seen() -> list[Tensor]:
    return []


@pytest.mark.parametrize("family", ["bezier", "polychain"])
@pytest.mark.parametrize("objective", ["uniform", "arclength", "minmax"])
@pytest.mark.parametrize("num_points", [3, 6])
def test_a_fit_and_every_point_of_the_curve_leave_frozen_parameters(
    family: str, objective: str, num_points: int, seen: list[Tensor]
) -> None:
    model, start, end = pair()
    model[0].register_forward_hook(lambda module, *_: seen.append(body(module).clone()))  # type: ignore[index]
    options: dict[str, Any] = {"family": family, "objective": objective, "num_points": num_points}
    before = copy.deepcopy(model[0].state_dict())  # type: ignore[index]
    curve = fit_curve(model, start, end, batches(), epochs=2, lr=0.1, **options)
    frozen = body(start)
    assert len(seen) == 6
    assert all(torch.equal(point, frozen) for point in seen)
    assert all(torch.equal(point[:HELD], frozen) for point in curve.points)
    assert all(torch.equal(curve.at(t)[:HELD], frozen) for t in TS)
    straight = straight_curve(model, start, end, num_points=num_points)
    assert (curve.points[1] - straight.points[1])[HELD:].abs().max() > 1e-3
    assert all(torch.equal(straight.at(t)[:HELD], frozen) for t in TS)
    for name, value in curve.buffers_at(0.3).items():
        if name.startswith("0."):
            assert torch.equal(value, before[name.removeprefix("0.")])


def test_what_is_made_of_the_curve_leaves_them_too() -> None:
    model, start, end = pair()
    curve = fit_curve(model, start, end, batches(), epochs=1, lr=0.1, num_points=4)
    frozen = body(start)
    paths: list[Any] = [elevate(elevate(curve)), Chain([curve])]
    paths += [make_baseline(name, curve, seed=3) for name in BASELINES]
    for path in paths:
        assert all(torch.equal(path.at(t)[:HELD], frozen) for t in TS), path
        assert not torch.equal(path.at(0.4)[HELD:], curve.points[0, HELD:]), path
    ends = [flatten(part, model) for part in (start, end)]
    assert curve.layout is not None
    through = Chain.through(ends, num_points=6, layout=curve.layout)
    assert all(torch.equal(through.at(t)[:HELD], frozen) for t in TS)


def test_networks_on_the_curve_keep_the_statistics_of_frozen_modules() -> None:
    model, start, end = pair()
    curve = fit_curve(model, start, end, batches(), epochs=1, lr=0.1)
    kept, other = "0.1.running_mean", "2.running_mean"
    wanted = start.state_dict()
    ensemble = curve.ensemble(model, [0, 0.5, 1], refresh=batches())
    states = [curve.module(model, 0.5, refresh=batches()).state_dict(), *list(ensemble.members)]
    assert all(torch.equal(state[kept], wanted[kept]) for state in states)
    assert not torch.equal(states[0][other], wanted[other])
    found: list[Tensor] = []
    model[0][1].register_forward_hook(  # type: ignore[index]
        lambda module, *_: found.append(module.running_mean.clone())
    )
    evaluate_curve(model, curve, batches(), num_points=4)
    assert len(found) > 4
    assert all(torch.equal(mean, wanted[kept]) for mean in found)


def test_parameters_that_differ_at_the_ends_are_not_held() -> None:
    model, start, end = pair()
    with torch.no_grad():
        end[0][0].weight[-1, -1] += 0.25  # type: ignore[index]
    curve = straight_curve(model, start, end, num_points=3)
    # The bias of the body, and batch norm: that of the rest has its initial 1 and 0 at both ends.
    assert [part.stop - part.start for part in curve.held] == [4] * 5
    assert curve.held[0].start == 24
    wanted = torch.lerp(curve.points[0], curve.points[-1], 0.4)
    torch.testing.assert_close(curve.at(0.4), wanted)
    assert Curve(curve.family, curve.points).held == []
