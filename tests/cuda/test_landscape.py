"""Planes and lines through weights on a GPU, and the loss on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_tools import assert_near, convnet, draw, image_batches, moved
from torch import Tensor, nn

from fge.curves import BASELINES, Bezier, Curve, angle, distance, make_baseline, turning_angles
from fge.curves.baselines import SameGramArc
from fge.curves.geometry import cosine
from fge.landscape import Line, Plane, evaluate_line, evaluate_plane
from fge.landscape.directions import filter_normalised
from fge.networks import Layout, flatten, refresh_batch_norm, write_parameters
from fge.train import Speed

pytestmark = pytest.mark.cuda

DOUBLE = torch.float64
TRAIN, TEST = image_batches(5, 5, 3, seed=1), image_batches(5, 2, seed=2)
SPLITS = {"train": TRAIN, "test": TEST}


def test_the_reference_plane(accelerator: torch.device) -> None:
    points = torch.tensor([[0, 0, 0], [1, 2, 2], [4, 0, 0]], dtype=DOUBLE, device=accelerator)
    plane = Plane.through(*points)
    wanted = [[0, 0], [1, 2.8284271247461903], [4, 0]]
    assert plane.axes.device == accelerator
    assert plane.anchors.device.type == "cpu"
    assert_near(plane.anchors, wanted, atol=1e-9)
    assert_near([plane.coordinates(point) for point in points], wanted, atol=1e-9)
    (middle,) = plane.project(Curve(Bezier(3), points), [0.5]).tolist()
    assert middle == pytest.approx([1.5, 1.4142135623730951], rel=0, abs=1e-9)
    assert plane.bounds() == pytest.approx(
        (-0.8, 4.8, -0.2 * math.sqrt(8), 1.2 * math.sqrt(8)), rel=0, abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_plane_has_orthonormal_axes_and_gives_its_points_back(
    accelerator: torch.device, dtype: torch.dtype
) -> None:
    weights = (draw(3, 1000) + 2).to(accelerator, dtype)
    plane = Plane.through(*weights)
    # The maths is in float64 whatever the weights are; sums are of 1000 terms.
    assert_near(plane.gram, torch.eye(2), atol=1e-13)
    for w in weights:
        found = plane.point(*plane.coordinates(w))
        assert (found.dtype, found.device) == (dtype, accelerator)
        assert_near(found, w, rtol=torch.finfo(dtype).eps, atol=1e-13)
        assert plane.residual(w) < 1e-10
    assert plane.coordinates(weights[1].cpu()) == pytest.approx(plane.coordinates(weights[1]))


def test_principal_components_are_those_of_numpy(accelerator: torch.device) -> None:
    steps = (draw(7, 60, seed=5) + 2) * (torch.arange(7).double() + 1)[:, None] ** 2
    path = steps.cumsum(0)
    plane = Plane.principal(path.to(accelerator), center=path[-1].to(accelerator))
    _, sizes, right = np.linalg.svd((path - path[-1]).numpy())
    for axis in range(2):
        found = plane.axes[axis].cpu().numpy()
        assert abs(float(found @ right[axis])) == pytest.approx(1, rel=0, abs=1e-11)
        lengths = np.linalg.norm((path - path[-1]).numpy() @ found)
        assert float(lengths) == pytest.approx(sizes[axis], rel=1e-11)
    assert_near(plane.anchors, (path - path[-1]) @ plane.axes.cpu().T, atol=1e-9)


def test_random_directions_are_the_same_on_every_device(accelerator: torch.device) -> None:
    model = convnet()
    center, layout = flatten(model, model), Layout.of(model)
    there = center.to(accelerator)
    pairs = [
        (Plane.random(there, layout, 4).axes, Plane.random(center, layout, 4).axes),
        (Line.random(there, layout, 4).direction, Line.random(center, layout, 4).direction),
    ]
    for found, expected in pairs:
        assert found.device == accelerator
        assert_near(found, expected, rtol=1e-13)  # norms of at most 72 float64 terms
    other = draw(layout.numel, seed=8)
    expected = filter_normalised(other, center, layout, biases=True)
    found = filter_normalised(*moved((other, center), accelerator), layout, biases=True)
    assert_near(found, expected, rtol=1e-13)


def test_distances_and_angles_are_those_of_float64(accelerator: torch.device) -> None:
    a, b, c = draw(3, 500).to(accelerator)
    assert distance(a, b) == pytest.approx(float((a - b).norm()), rel=1e-13)
    expected = float(a @ b / a.norm() / b.norm())
    assert cosine(a, b) == pytest.approx(expected, rel=1e-12)
    assert turning_angles([a, b, c]).tolist() == pytest.approx([angle(b - a, c - b)])


def test_baselines_of_a_curve_keep_its_shape(accelerator: torch.device) -> None:
    points = draw(3, 200, seed=6)
    ours, theirs = (Curve(Bezier(3), points.to(device)) for device in (accelerator, "cpu"))
    for name in BASELINES:
        found, expected = (make_baseline(name, curve, seed=3) for curve in (ours, theirs))
        for t in (0.2, 0.5, 1.0):
            assert found.at(t).device == accelerator
            assert found.distance(t) == pytest.approx(float((ours.at(t) - ours.at(0)).norm()))
            if not isinstance(found, SameGramArc):  # the sign of its second axis is LAPACK's
                assert_near(found.at(t), expected.at(t), atol=1e-11)
        if isinstance(found, SameGramArc):
            assert torch.equal(found.arc.points[[0, 2]].cpu(), points[[0, 2]])
            assert_near(found.arc.gram(), theirs.gram(), rtol=1e-11)  # sums of 200 terms


# ------------------------------------------------------------------------------- the loss on them


class Vector(nn.Module):
    """Weights without a network around them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(size, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.expand(len(x), -1)


def bowl(outputs: Tensor, _: Any) -> Tensor:
    """Return half the squared distance of the weights from (1, 1, ...)."""
    return 0.5 * (outputs[0] - 1).square().sum()


@pytest.mark.parametrize("plane_there", [True, False], ids=["plane-there", "plane-on-cpu"])
def test_a_quadratic_bowl_is_what_it_is_in_the_coordinates_of_the_plane(
    accelerator: torch.device, tmp_path: Path, plane_there: bool
) -> None:
    points = draw(3, 8)
    plane = Plane.through(*(points.to(accelerator) if plane_there else points))
    lowest = torch.ones(8, dtype=DOUBLE)
    (x0, y0), height = plane.coordinates(lowest), plane.residual(lowest)
    calls: list[tuple[int, int]] = []
    for _ in range(2):  # the second time all points are in the store
        grid = evaluate_plane(
            Vector(8).to(accelerator),
            plane,
            [torch.zeros(1, 1)],
            resolution=4,
            margin=0.5,
            loss_fn=bowl,
            store=tmp_path / "grid.jsonl",
            on_point=lambda *call: calls.append(call),
        )
    assert len(calls) == 16
    x, y = np.meshgrid(grid.xs, grid.ys)
    wanted = 0.5 * ((x - x0) ** 2 + (y - y0) ** 2 + height**2)
    np.testing.assert_allclose(grid.values["loss"], wanted, rtol=1e-12)
    np.testing.assert_array_equal(grid.anchors, plane.anchors.numpy())


def directly(weights: Tensor, *, decay: float = 0.0) -> dict[str, float]:
    """Return what a plain evaluation of a network with these weights gives, on the CPU."""
    model = convnet()
    write_parameters(model, weights.cpu())
    refresh_batch_norm(model, TRAIN, num_images=None)
    model.eval()
    found = {}
    for name, batches in SPLITS.items():
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.no_grad():
            logits = model(x)
        nll = float(F.cross_entropy(logits, y))
        found[f"{name}_loss"] = nll + decay / 2 * float(weights.cpu() @ weights.cpu())
        found[f"{name}_error"] = 100 * float((logits.argmax(1) != y).double().mean())
        found[f"{name}_nll"] = nll
    return found


def three_networks() -> Tensor:
    return torch.stack([flatten(convnet(seed), convnet()) for seed in range(3)])


def test_each_point_of_the_grid_is_a_network_of_its_own(accelerator: torch.device) -> None:
    plane = Plane.through(*three_networks().to(accelerator))
    grid = evaluate_plane(
        convnet(7).to(accelerator), plane, SPLITS, resolution=3, num_images=None, weight_decay=0.01
    )
    for row, y in enumerate(grid.ys):
        for column, x in enumerate(grid.xs):
            expected = directly(plane.point(float(x), float(y)), decay=0.01)
            for key, value in expected.items():  # float64, sums of 2000 terms
                assert grid.values[key][row, column] == pytest.approx(value, rel=1e-9)


def test_bf16_changes_the_grid_little(accelerator: torch.device) -> None:
    plane = Plane.through(*three_networks().to(accelerator, torch.float32))
    data = moved(SPLITS, torch.device("cpu"), torch.float32)
    model = convnet(7, torch.float32).to(accelerator)
    speed = Speed(channels_last=True, amp="bf16")
    grid = evaluate_plane(model, plane, data, resolution=2, num_images=None, speed=speed)
    for row, y in enumerate(grid.ys):
        for column, x in enumerate(grid.xs):
            expected = directly(plane.point(float(x), float(y)).double())
            found = grid.values["train_loss"][row, column]
            # bf16 is good to 2^-9, ten times that through four layers.
            assert found == pytest.approx(expected["train_loss"], rel=10 * 2**-9)


def test_a_line_goes_on_beyond_its_networks(accelerator: torch.device) -> None:
    first, second, _ = three_networks()
    line = Line.through(first.to(accelerator), second.to(accelerator))
    records = evaluate_line(
        convnet(7).to(accelerator), line, SPLITS, bounds=(-0.5, 1.5), num_points=5, num_images=None
    )
    assert [record["t"] for record in records] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    for record in records:
        expected = directly(first + record["t"] * (second - first))
        for key, value in expected.items():
            assert record[key] == pytest.approx(value, rel=1e-9)
        away = abs(record["t"]) * float((second - first).norm())
        assert record["distance"] == pytest.approx(away, rel=1e-12, abs=1e-12)
