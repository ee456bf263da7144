"""Planes, lines and chains through whole networks, which have buffers of their own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.curves import Chain, InterpolatedWarning, evaluate_curve
from fge.errors import UserError
from fge.landscape import Line, Plane, evaluate_line, evaluate_plane
from fge.networks import Layout, flatten, write_parameters

DOUBLE = torch.float64
RNG = torch.Generator().manual_seed(0)
DATA = [
    (torch.randn(n, 4, generator=RNG, dtype=DOUBLE), torch.randint(0, 3, (n,), generator=RNG))
    for n in (6, 5)
]
USUAL_WARNING = pytest.mark.filterwarnings("ignore:buffers that differ")


class Centred(nn.Module):
    """Subtracts a mean that is a buffer; ``seen`` is one of whole numbers."""

    mean: Tensor
    seen: Tensor

    def __init__(self, mean: float, seen: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=DOUBLE))
        self.register_buffer("seen", torch.tensor(seen))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean + self.seen


def network(seed: int, mean: float) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Centred(mean, seed), nn.Linear(4, 3, dtype=DOUBLE)).eval()


NETWORKS = [network(1, -1.0), network(2, 2.0), network(3, 7.0)]


def loss_of(model: nn.Module) -> float:
    x, y = (torch.cat(parts) for parts in zip(*DATA, strict=True))
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def loss_at(vector: Tensor, mean: float, seen: int) -> float:
    """Return the loss of weights (P,) with these buffers, found by hand."""
    model = network(seen, mean)
    write_parameters(model, vector)
    return loss_of(model)


def losses_at(plane: Plane, points: list[tuple[float, float]], model: nn.Module) -> list[float]:
    """Return the losses that a plane has at points, each the corner of a grid."""
    found = []
    for x, y in points:
        grid = evaluate_plane(model, plane, DATA, resolution=2, bounds=(x, x + 1, y, y + 1))
        found.append(float(grid.values["loss"][0, 0]))
    return found


@USUAL_WARNING
@pytest.mark.parametrize("model", NETWORKS)
def test_a_plane_has_at_its_networks_their_losses(model: nn.Module) -> None:
    plane = Plane.through(*NETWORKS)
    anchors = [(float(x), float(y)) for x, y in plane.anchors]
    wanted = [loss_of(each) for each in NETWORKS]
    assert losses_at(plane, anchors, model) == pytest.approx(wanted, rel=1e-12)
    states: list[Any] = [each.state_dict() for each in NETWORKS]
    given = Plane.through(*states, model=network(0, 0.0))
    assert losses_at(given, anchors, model) == pytest.approx(wanted, rel=1e-12)


@USUAL_WARNING
def test_within_the_triangle_buffers_are_linear_and_beyond_it_convex() -> None:
    plane = Plane.through(*NETWORKS)
    x, y = (torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE) @ plane.anchors).tolist()
    buffers = plane.buffers_at(x, y)
    assert float(buffers["0.mean"]) == pytest.approx(0.5 * -1 + 0.3 * 2 + 0.2 * 7, rel=1e-12)
    assert int(buffers["0.seen"]) == 1
    wanted = loss_at(plane.point(x, y), 1.5, 1)
    assert losses_at(plane, [(x, y)], NETWORKS[1]) == pytest.approx([wanted], rel=1e-12)
    beyond = (torch.tensor([-1.0, 1.5, 0.5], dtype=DOUBLE) @ plane.anchors).tolist()
    mean = float(plane.buffers_at(*beyond)["0.mean"])
    assert mean == pytest.approx(0.75 * 2 + 0.25 * 7, rel=1e-12)


def test_a_plane_says_which_buffers_its_points_have() -> None:
    plane, model = Plane.through(*NETWORKS), NETWORKS[0]
    assert str(plane.statistics(model)) == (
        "the buffers '0.mean', '0.seen' are the networks' own at the networks of the plane, and "
        "linear in between"
    )
    message = (
        r"^buffers that differ at the networks of the plane \('0.mean', ...\) are interpolated in "
        "between, because they cannot be estimated from data$"
    )
    with pytest.warns(InterpolatedWarning, match=message):
        evaluate_plane(model, plane, DATA, resolution=2)
    vectors = [flatten(each, model) for each in NETWORKS]
    bare = Plane.through(*vectors)
    assert bare.buffers_at(0.0, 0.0) == {}
    assert str(bare.statistics(model)) == (
        "the buffers '0.mean', '0.seen' are the model's at every point"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = evaluate_plane(model, bare, DATA, resolution=2, bounds=(0, 1, 0, 1))
    assert float(grid.values["loss"][0, 0]) == pytest.approx(loss_of(model), rel=1e-12)


def test_a_plane_of_batch_norm_says_that_it_is_estimated() -> None:
    models = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double() for _ in range(3)]
    assert str(Plane.through(*models).statistics(models[0])) == (
        "statistics of batch norm are estimated at every point, the networks of the plane included"
    )


@USUAL_WARNING
@pytest.mark.parametrize("model", NETWORKS[:2])
def test_a_line_has_the_buffers_of_its_networks_also_beyond_them(model: nn.Module) -> None:
    first, second = NETWORKS[:2]
    line = Line.through(first, second)
    records = evaluate_line(model, line, DATA, bounds=(-1.0, 2.0), num_points=7)
    wanted = [
        loss_at(line.at(-1.0), -1.0, 1),
        loss_at(line.at(-0.5), -1.0, 1),
        loss_of(first),
        loss_at(line.at(0.5), 0.5, 1),
        loss_of(second),
        loss_at(line.at(1.5), 2.0, 2),
        loss_at(line.at(2.0), 2.0, 2),
    ]
    assert [record["loss"] for record in records] == pytest.approx(wanted, rel=1e-12)
    assert loss_of(line.module(model, 1.0)) == pytest.approx(loss_of(second), rel=1e-12)
    assert torch.equal(line.state_dict(0.0)["0.mean"], first.state_dict()["0.mean"])


@USUAL_WARNING
def test_a_chain_through_networks_has_their_buffers() -> None:
    chain = Chain.through(NETWORKS, closed=True)
    assert chain.layout == Layout.of(NETWORKS[0])
    records = evaluate_curve(NETWORKS[2], chain, DATA, ts=[0, 1 / 3, 2 / 3, 1])
    wanted = [loss_of(model) for model in (*NETWORKS, NETWORKS[0])]
    assert [record["loss"] for record in records] == pytest.approx(wanted, rel=1e-12)
    states = [model.state_dict() for model in NETWORKS]
    other = Chain.through(states, closed=True, model=NETWORKS[0])
    assert torch.equal(other.at(0.4), chain.at(0.4))
    with pytest.raises(UserError, match=r"does not say which tensors are parameters; give model="):
        Chain.through(states)


def test_random_directions_take_networks_as_they_are() -> None:
    model = NETWORKS[0]
    vector, layout = flatten(model, model), Layout.of(model)
    for kind in (Plane, Line):
        expected, where = kind.random(vector, layout, 3), (0.3, 0.2)[: 2 if kind is Plane else 1]
        for found in (
            kind.random(model, seed=3),
            kind.random(model.state_dict(), seed=3, model=model),
            kind.random(vector, seed=3, model=model),
        ):
            at: Any = found.point if isinstance(found, Plane) else found.at
            point: Any = expected.point if isinstance(expected, Plane) else expected.at
            assert torch.equal(at(*where), point(*where))
        with pytest.raises(UserError, match=r"^a vector does not say where its filters are; give"):
            kind.random(vector)
        with pytest.raises(UserError, match=r"^a dict does not say which .* give model="):
            kind.random(dict(model.state_dict()))


def test_around_one_network_all_points_have_its_buffers() -> None:
    center, model = NETWORKS[1], NETWORKS[2]
    plane = Plane.random(center)
    found = losses_at(plane, [(0.0, 0.0), (0.5, -1.0)], model)
    wanted = [loss_of(center), loss_at(plane.point(0.5, -1.0), 2.0, 2)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert "no statistics that differ" in str(plane.statistics(model))
    line = Line.random(center.state_dict(), model=model)
    records = evaluate_line(model, line, DATA, bounds=(-1.0, 1.0), num_points=3)
    wanted = [loss_at(line.at(-1.0), 2.0, 2), loss_of(center), loss_at(line.at(1.0), 2.0, 2)]
    assert [record["loss"] for record in records] == pytest.approx(wanted, rel=1e-12)


def test_coordinates_and_trajectories_take_networks_as_they_are() -> None:
    plane, model = Plane.through(*NETWORKS), NETWORKS[1]
    vectors = [flatten(each, model) for each in NETWORKS]
    middle = network(4, 0.0)
    vector = flatten(middle, middle)
    wanted = plane.coordinates(vector), plane.residual(vector)
    assert (plane.coordinates(middle), plane.residual(middle)) == wanted
    state = middle.state_dict()
    assert plane.coordinates(state, model=model) == wanted[0]
    assert plane.residual(state, model=model) == wanted[1]
    expected = Plane.principal(vectors, center=vectors[2])
    found = Plane.principal(NETWORKS, center=NETWORKS[2].state_dict())
    assert torch.equal(found.axes, expected.axes)
    assert torch.equal(found.origin, expected.origin)


@pytest.mark.parametrize("wrong", [3, None, [1.0, 2.0]])
def test_what_is_no_network_is_named(wrong: Any) -> None:
    kind = type(wrong).__name__
    message = rf"^a network is a vector \(P,\), a module, a state dict or a path, got a {kind}$"
    plane = Plane.through(*NETWORKS)
    asked: list[Any] = [
        lambda: Plane.through(NETWORKS[0], NETWORKS[1], wrong),
        lambda: Line.through(wrong, NETWORKS[0]),
        lambda: Plane.random(wrong),
        lambda: plane.coordinates(wrong),
        lambda: Chain.through([NETWORKS[0], wrong]),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=message):
            ask()


def test_a_plane_of_coordinates_off_by_rounding_shows_zero() -> None:
    plane = Plane.through(*(torch.eye(3, dtype=DOUBLE) * 0.1))
    left, right, bottom, top = plane.extent
    assert -1e-15 < bottom < 1e-15
    assert "y 0 to" in repr(Plane(plane.origin, plane.axes, extent=(left, right, -5e-17, top)))


def test_infinite_buffers_of_planes_and_lines_are_no_nan() -> None:
    """All three networks have the first infinity, one the second, which only it may spread."""
    infinity = float("inf")
    networks = [network(k, 0.0) for k in range(3)]
    for each, mask in zip(networks, ([1.0, 2.0], [3.0, 4.0], [5.0, -infinity]), strict=True):
        each.register_buffer("mask", torch.tensor([-infinity, *mask], dtype=DOUBLE))
    plane, line = Plane.through(*networks), Line.through(networks[0], networks[1])
    x, y = (torch.tensor([0.5, 0.25, 0.25], dtype=DOUBLE) @ plane.anchors).tolist()
    inside = plane.buffers_at(x, y)["mask"].tolist()
    assert inside == [-infinity, pytest.approx(0.5 + 0.75 + 1.25), -infinity]
    beyond = (torch.tensor([0.75, 0.75, -0.5], dtype=DOUBLE) @ plane.anchors).tolist()
    assert plane.buffers_at(*beyond)["mask"].tolist() == pytest.approx([-infinity, 2, 3])
    assert line.buffers_at(0.5)["mask"].tolist() == [-infinity, 2, 3]


def extended(seed: int, *names: str) -> nn.Module:
    """Return a network with more buffers, one number each."""
    model = network(seed, 0.0)
    for name in names:
        model.register_buffer(name, torch.zeros((), dtype=DOUBLE))
    return model


def test_a_buffer_that_only_one_of_networks_and_model_has_is_refused() -> None:
    bare, full = ([extended(k, *names) for k in range(3)] for names in ((), ("scale",)))
    remedy = "give the model that it was made with$"
    for networks, model, words in [
        (full, bare[0], "{} has a buffer 'scale', which the model lacks"),
        (bare, full[0], "the model has a buffer 'scale', which {} lacks"),
    ]:
        plane, line = Plane.through(*networks), Line.through(*networks[:2])
        chain = Chain.through(networks)
        with pytest.raises(UserError, match=f"^{words.format('the plane')}; {remedy}"):
            evaluate_plane(model, plane, DATA, resolution=2)
        for path in (line, chain):
            with pytest.raises(UserError, match=f"^{words.format('the curve')}; {remedy}"):
                evaluate_curve(model, path, DATA, num_points=2)
            with pytest.raises(UserError, match=f"^{words.format('the curve')}; {remedy}"):
                path.module(model, 0.5)
        # Without an estimate all buffers are the model's, whatever their names.
        records = evaluate_curve(model, line, DATA, ts=[1.0], num_images=0)
        wanted = loss_at(flatten(networks[1], networks[1]), 0.0, 0)
        assert records[0]["loss"] == pytest.approx(wanted, rel=1e-12)


def test_a_buffer_shared_under_two_names_is_written_under_both() -> None:
    """Moving a model to another dtype parts its shared buffers, so a curve may have either."""

    def shared(seed: int, mean: float) -> nn.Module:
        model = network(seed, 0.0)
        model[0].register_buffer("again", model[0].mean.fill_(mean))
        return model

    apart = [shared(k, k + 1.0).float().double() for k in range(2)]
    line, model = Line.through(*apart), shared(7, 9.0)
    with pytest.warns(InterpolatedWarning):
        records = evaluate_curve(model, line, DATA, ts=[0.0, 0.5, 1.0])
    wanted = [loss_of(apart[0]), loss_at(line.at(0.5), 1.5, 0), loss_of(apart[1])]
    assert [record["loss"] for record in records] == pytest.approx(wanted, rel=1e-12)
