"""The networks whose sharpness is measured: their weights, and whose statistics they have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from curve_runs import done, job
from torch import Tensor, nn

from fge.commands.sharpness import _set_up
from fge.commands.studied import RunCurve, refresh_batches
from fge.curves import straight_curve
from fge.networks import canonical_state, flatten, load_weights

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
        config=SimpleNamespace(run=None),
        dataset=SimpleNamespace(train=SimpleNamespace(first=lambda _count: None)),
        setup=SimpleNamespace(refresh_batches=lambda _images, **_varied: DATA),
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


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = (nn.Linear(6, 6, bias=False) for _ in range(2))
        self.second.weight = self.first.weight


def test_tied_weights_on_a_curve_are_those_of_its_points() -> None:
    model, start, end = (Tied(seed) for seed in range(3))
    curve = RunCurve("pair", straight_curve(model, start, end), canonical_state(start))
    for t in (0.0, 0.5, 1.0):
        found = curve.network(f"t = {t}", curve.curve.at(t), model, t=t)
        load_weights(model, found.state, found.name)
        assert torch.equal(flatten(model, model), curve.curve.at(t))
        assert torch.equal(found.vector(model), curve.curve.at(t))


def test_a_study_varies_images_as_the_recipe_of_the_snapshots_did(
    tmp_path: Path, data: Path
) -> None:
    mixed: dict[str, Any] = {"method": "average", "epochs": 2, "mixup": 0.4}
    folder = done("train", job(data, tmp_path / "mixed", **mixed))
    given: list[dict[str, Any]] = []
    run: Any = SimpleNamespace(
        config=SimpleNamespace(run=folder),
        dataset=SimpleNamespace(train=SimpleNamespace(first=lambda count: count)),
        setup=SimpleNamespace(refresh_batches=lambda _, **varied: given.append(varied)),
    )
    refresh_batches(run, 20)
    assert given == [{"augment": True, "mixup": 0.4}]
    run.config.run = None  # networks in files
    refresh_batches(run, 20)
    assert given[1:] == [{"augment": True, "mixup": 0.0}]
