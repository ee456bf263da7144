"""The networks whose sharpness is measured: whose statistics they have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fge.commands.sharpness import _set_up
from fge.commands.studied import RunCurve
from fge.curves import straight_curve
from fge.networks import canonical_state

DATA = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)), torch.zeros(8))]


def network(seed: int) -> nn.Module:
    """Return a network whose statistics have followed data of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Unflatten(1, (2, 3)),
            nn.InstanceNorm1d(2, track_running_stats=True),
            nn.Flatten(),
            nn.Linear(6, 3),
            nn.BatchNorm1d(3),
        )
        for _ in range(3):
            model(seed + (seed + 1) * torch.randn(8, 6))
    return model.eval()


def statistics(model: nn.Module, layer: int) -> Tensor:
    mean = model.state_dict()[f"{layer}.running_mean"]
    assert isinstance(mean, Tensor)
    return mean.clone()


def test_ends_of_a_curve_keep_statistics_of_instance_norm_as_where_the_curve_is_measured() -> None:
    ends = [network(1), network(2)]
    model = network(0)
    curve = RunCurve("pair", straight_curve(model, *ends), canonical_state(ends[0]))
    run: Any = SimpleNamespace(
        dataset=SimpleNamespace(train=SimpleNamespace(first=lambda _count: None)),
        setup=SimpleNamespace(refresh_batches=lambda _images: DATA),
    )
    found = []
    for t in (0.0, 0.5, 1.0):
        _set_up(run, model, curve.network(f"t = {t}", curve.curve.at(t), model, t=t))
        found.append(statistics(model, 1))
        if t in (0, 1):
            expected = model[:4](DATA[0][0]).mean(0)  # type: ignore[index]
            torch.testing.assert_close(statistics(model, 4), expected)
    assert torch.equal(found[0], statistics(ends[0], 1))
    assert torch.equal(found[2], statistics(ends[1], 1))
    images = DATA[0][0].unflatten(1, (2, 3)).mean((0, 2))
    torch.testing.assert_close(found[1], images)
