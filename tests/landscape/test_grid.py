"""Loss surfaces on planes and lines, against closed forms and direct evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.curves import Bezier, Chain, Curve
from fge.errors import UserError
from fge.landscape import Line, Plane, PlaneGrid, evaluate_line, evaluate_plane
from fge.networks import Layout, flatten, nothing_yielded, refresh_batch_norm, write_parameters


class Vector(nn.Module):
    """Weights without a network around them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.expand(len(x), -1)


def bowl(outputs: Tensor, _: Any) -> Tensor:
    """Return half the squared distance of the weights from (1, 1, ...)."""
    return 0.5 * (outputs[0] - 1).square().sum()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double()  # fmt: skip


def data(seed: int, sizes: tuple[int, ...] = (5, 5, 3)) -> list[list[Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(size, 3, generator=rng, dtype=torch.float64),
            torch.randint(3, (size,), generator=rng),
        ]
        for size in sizes
    ]


SPLITS = {"train": data(1), "test": data(2)}


def three_networks() -> Tensor:
    rng = torch.Generator().manual_seed(4)
    size = Layout.of(network()).numel
    return torch.randn(3, size, generator=rng, dtype=torch.float64)


def directly(weights: Tensor, *, decay: float = 0.0) -> dict[str, float]:
    """Return what a plain evaluation of a network with these weights gives."""
    model = network()
    write_parameters(model, weights)
    refresh_batch_norm(model, SPLITS["train"], num_images=None)
    model.eval()
    found = {}
    for name, batches in SPLITS.items():
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        logits = model(x).detach()
        nll = float(F.cross_entropy(logits, y))
        found[f"{name}_loss"] = nll + decay / 2 * float(weights @ weights)
        found[f"{name}_error"] = 100 * float((logits.argmax(1) != y).double().mean())
        found[f"{name}_nll"] = nll
    return found


def test_a_quadratic_bowl_is_what_it_is_in_the_coordinates_of_the_plane() -> None:
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(3, 8, generator=rng, dtype=torch.float64)
    plane = Plane.through(*points)
    lowest = torch.ones(8, dtype=torch.float64)
    x0, y0 = plane.coordinates(lowest)
    height = plane.residual(lowest)
    grid = evaluate_plane(
        Vector(8), plane, [torch.zeros(1, 1)], resolution=5, margin=0.5, loss_fn=bowl
    )
    assert list(grid.values) == ["loss"]
    left, right, bottom, top = plane.bounds(0.5)
    assert grid.xs.tolist() == np.linspace(left, right, 5).tolist()
    assert grid.ys.tolist() == np.linspace(bottom, top, 5).tolist()
    x, y = np.meshgrid(grid.xs, grid.ys)
    wanted = 0.5 * ((x - x0) ** 2 + (y - y0) ** 2 + height**2)
    np.testing.assert_allclose(grid.values["loss"], wanted, rtol=1e-12)
    np.testing.assert_array_equal(grid.anchors, plane.anchors.numpy())
    np.testing.assert_allclose(grid.gram, np.eye(2), atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_value_at_each_defining_point_is_that_of_direct_evaluation(decay: float) -> None:
    points = three_networks()
    plane = Plane.through(*points)
    (x1, y1), (x2, _) = plane.anchors[1:].tolist()
    for corner, row, weights in (((x1, y1), 1, points[1]), ((x2, 1.0), 0, points[2])):
        grid = evaluate_plane(
            network(),
            plane,
            SPLITS,
            resolution=2,
            bounds=(min(0.0, corner[0]), max(0.0, corner[0]), 0.0, corner[1]),
            num_images=None,
            weight_decay=decay,
        )
        column = int(corner[0] > 0)
        for key, value in directly(points[0], decay=decay).items():
            assert grid.values[key][0, 1 - column] == pytest.approx(value, rel=0, abs=1e-12)
        for key, value in directly(weights, decay=decay).items():
            assert grid.values[key][row, column] == pytest.approx(value, rel=0, abs=1e-12)


def test_statistics_are_estimated_at_each_point_from_the_data_asked_for() -> None:
    plane = Plane.through(*three_networks())
    options: dict[str, Any] = {"resolution": 2, "num_images": None}
    own = evaluate_plane(network(), plane, SPLITS, **options)
    same = evaluate_plane(network(), plane, SPLITS, refresh=SPLITS["train"], **options)
    other = evaluate_plane(network(), plane, SPLITS, refresh=data(3), **options)
    stale = evaluate_plane(network(), plane, SPLITS, resolution=2, num_images=0)
    np.testing.assert_array_equal(own.values["train_loss"], same.values["train_loss"])
    for grid in (other, stale):
        assert np.abs(grid.values["train_loss"] - own.values["train_loss"]).min() > 1e-6


def test_the_model_is_afterwards_as_before() -> None:
    model = network()
    model[0].eval()
    flatten(model, model)
    model(SPLITS["train"][0][0]).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad for p in model.parameters()]
    plane = Plane.through(*three_networks())
    evaluate_plane(model, plane, SPLITS, resolution=2)
    evaluate_line(model, Line.through(*three_networks()[:2]), SPLITS, num_points=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [p.grad for p in model.parameters()] == gradients
    assert [m.training for m in model] == [False, True, True, True]


class StopError(Exception):
    """Ends a grid before it is complete."""


def stop_at(count: int) -> Callable[[int, int], None]:
    def on_point(done: int, total: int) -> None:
        assert total == 9
        if done == count:
            raise StopError

    return on_point


def test_an_interrupted_grid_goes_on_and_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    plane = Plane.through(*three_networks())
    store = tmp_path / "new" / "plane.jsonl"
    passes: list[int] = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        passes.append(len(batch[0]))
        outputs: Tensor = model(batch[0])
        return outputs

    options: dict[str, Any] = {"resolution": 3, "forward_fn": forward}
    whole = evaluate_plane(network(), plane, SPLITS, **options)
    per_point = len(passes) // 9
    for count in (2, 7):
        with pytest.raises(StopError):
            evaluate_plane(
                network(), plane, SPLITS, store=store, on_point=stop_at(count), **options
            )
    store.write_bytes(store.read_bytes()[:-5])  # as if killed while it wrote the seventh
    passes.clear()
    seen: list[tuple[int, int]] = []
    grid = evaluate_plane(
        network(),
        plane,
        SPLITS,
        store=store,
        on_point=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert len(passes) == 3 * per_point
    assert seen == [(7, 9), (8, 9), (9, 9)]
    assert list(grid.values) == list(whole.values)
    for key, values in whole.values.items():
        np.testing.assert_array_equal(grid.values[key], values)
    passes.clear()
    again = evaluate_plane(network(), plane, SPLITS, store=str(store), **options)
    assert passes == []
    np.testing.assert_array_equal(again.values["test_nll"], whole.values["test_nll"])


def test_a_loss_that_overflows_is_kept_as_what_it_is(tmp_path: Path) -> None:
    plane = Plane.through(*torch.eye(3, 8, dtype=torch.float64))

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return torch.where(bowl(outputs, targets) > 4, math.inf, 1.0)

    options: dict[str, Any] = {"resolution": 3, "bounds": (0.0, 9.0, 0.0, 9.0), "loss_fn": loss}
    for _ in range(2):  # measured, and read back
        grid = evaluate_plane(
            Vector(8), plane, [torch.zeros(1, 1)], store=tmp_path / "p.jsonl", **options
        )
        assert grid.values["loss"].tolist() == [[1, math.inf, math.inf]] + [[math.inf] * 3] * 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"margin": 0.1}, "xs"),
        ({"resolution": 4}, "xs"),
        ({"bounds": (-1.0, 1.0, -1.0, 2.0)}, "ys"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"num_images": 4}, "num_images"),
        ({"loss_fn": nn.CrossEntropyLoss()}, "loss_fn"),
        ({"batches": SPLITS["train"]}, "splits"),
        ({"plane": Plane.random(three_networks()[0], Layout.of(network()), 1)}, "plane"),
        ({"plane": Plane.random(three_networks()[1], Layout.of(network()), 0)}, "plane"),
    ],
)
def test_the_store_of_another_grid_is_refused(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    plane = Plane.random(three_networks()[0], Layout.of(network()), 0)
    store = tmp_path / "plane.jsonl"
    options = {"plane": plane, "batches": SPLITS, "resolution": 2, "margin": 0.0}
    if name == "ys":
        options["bounds"] = (-1.0, 1.0, -1.0, 1.0)
    evaluate_plane(network(), **options, store=store)
    with pytest.raises(UserError, match=rf"plane.jsonl holds another grid, its '{name}' differ"):
        evaluate_plane(network(), **{**options, **changes}, store=store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1}, "resolution, the points along each axis, must be >= 2, got 1"),
        ({"margin": -0.1}, "margin must be >= 0, a fraction of the extent, got -0.1"),
        ({"bounds": (0, 0, 0, 1)}, r"bounds must be the lowest and highest x, .* \(0, 0, 0, 1\)"),
        ({"bounds": (0, 1, 2, 1)}, r"bounds must be the lowest and highest x, .* \(0, 1, 2, 1\)"),
        ({"bounds": (0, math.inf, 0, 1)}, "bounds must be the lowest and highest x"),
        ({"bounds": (0, 1, math.nan, 1)}, "bounds must be the lowest and highest x"),
        ({"batches": iter(SPLITS["train"])}, "batches must be iterable more than once, got"),
        ({"refresh": iter(SPLITS["train"])}, "batches must be iterable more than once, got"),
        ({"batches": {}}, "batches must name at least one split"),
        ({"batches": [], "num_images": 0}, f"^{nothing_yielded()}$"),
        (
            {"model": Vector(8)},
            "the model has 8 parameters, the plane has 57; give a plane of the model's archi",
        ),
    ],
)
def test_what_makes_no_grid_is_refused(options: dict[str, Any], message: str) -> None:
    given = {"model": network(), "plane": Plane.through(*three_networks()), "batches": SPLITS}
    with pytest.raises(UserError, match=f"^{message}"):
        evaluate_plane(**{**given, **options})


def test_a_grid_is_saved_as_it_was_measured(tmp_path: Path) -> None:
    plane = Plane.random(three_networks()[0], Layout.of(network()), 0)
    grid = evaluate_plane(network(), plane, SPLITS, resolution=2)
    grid.save(tmp_path / "plane.npz")
    loaded = PlaneGrid.load(tmp_path / "plane.npz")
    for key, values in grid.values.items():
        np.testing.assert_array_equal(loaded.values[key], values)
    np.testing.assert_array_equal(loaded.gram, (plane.axes @ plane.axes.T).numpy())


def test_the_bowl_along_a_line_is_a_parabola() -> None:
    start = torch.zeros(4, dtype=torch.float64)
    line = Line(start, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    records = evaluate_line(
        Vector(4), line, [torch.zeros(1, 1)], bounds=(-1, 2), num_points=4, loss_fn=bowl
    )
    for record, t in zip(records, (-1.0, 0.0, 1.0, 2.0), strict=True):
        assert record["t"] == t
        assert record["loss"] == pytest.approx((1 - t) ** 2 + 1, rel=1e-14)
        assert record["distance"] == pytest.approx(abs(t) * math.sqrt(2), rel=1e-14)
        assert record["arc"] == pytest.approx((t + 1) * math.sqrt(2), rel=1e-14, abs=1e-14)


def test_curves_and_chains_are_measured_as_lines_are() -> None:
    points = three_networks()
    options: dict[str, Any] = {"num_points": 3, "num_images": None}
    straight = evaluate_line(network(), Line.through(points[0], points[1]), SPLITS, **options)
    curve = evaluate_line(network(), Curve(Bezier(2), points[:2]), SPLITS, **options)
    chain = evaluate_line(network(), Chain.through(points), SPLITS, **options)
    for key, value in directly(points[1]).items():
        found = (straight[-1][key], curve[-1][key], chain[1][key])
        assert found == pytest.approx([value] * 3, rel=0, abs=1e-12)
    assert curve[1]["train_loss"] == pytest.approx(straight[1]["train_loss"], rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 1}, "num_points must be >= 2, got 1"),
        ({"bounds": (1.0, 1.0)}, r"bounds must be two finite numbers that ascend, got \(1.0, 1.0"),
        ({"bounds": (0.0, math.nan)}, "bounds must be two finite numbers that ascend"),
        ({"bounds": (-1.0, 1.0)}, r"t must be in \[0, 1\], got -1"),
    ],
)
def test_steps_that_lead_nowhere_are_refused(options: dict[str, Any], message: str) -> None:
    curve = Curve(Bezier(3), three_networks())
    with pytest.raises(UserError, match=f"^{message}"):
        evaluate_line(network(), curve, SPLITS, **options)


def test_targets_may_be_anywhere_in_a_batch() -> None:
    plane = Plane.through(*three_networks())
    splits = {n: [{"x": x, "y": y} for x, y in batches] for n, batches in SPLITS.items()}
    options: dict[str, Any] = {"resolution": 2, "forward_fn": lambda m, batch: m(batch["x"])}
    found = evaluate_plane(network(), plane, splits, target_fn=lambda b: b["y"], **options)
    expected = evaluate_plane(network(), plane, SPLITS, resolution=2)
    for key, values in expected.values.items():
        assert np.array_equal(found.values[key], values), key
    with pytest.raises(
        UserError, match=r"^batches must yield \(inputs, targets, ...\), got a dict"
    ):
        evaluate_plane(network(), plane, splits, **options)
