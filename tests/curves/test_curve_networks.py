"""The networks on a curve: their buffers, state dicts, modules and ensembles."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fge
from fge.curves import (
    Bezier,
    Chain,
    Curve,
    InterpolatedWarning,
    evaluate_curve,
    fit_curve,
    straight_curve,
)
from fge.errors import UserError
from fge.landscape import evaluate_line
from fge.networks import Layout, flatten, refresh_batch_norm, write_parameters

DOUBLE = torch.float64


class Centred(nn.Module):
    """Subtracts a running mean, a buffer that it assigns anew in training."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0, dtype=DOUBLE))
        self.register_buffer("scale", torch.tensor(2.0, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return (x - self.mean) / self.scale


def centred() -> nn.Module:
    return nn.Sequential(Centred(), nn.Linear(6, 3))


def by_instance() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def by_batch() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def plain() -> nn.Module:
    return nn.Linear(6, 3)


def trained(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network whose buffers have followed data of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().to(DOUBLE).train()
        for _ in range(3):
            model(3 * seed + (seed + 1) * torch.randn(8, 6, dtype=DOUBLE))
    return model.eval()


RNG = torch.Generator().manual_seed(0)
DATA = [
    (
        torch.randn(n, 6, generator=RNG, dtype=DOUBLE) + 1,
        torch.randint(0, 3, (n,), generator=RNG),
    )
    for n in (8, 8, 4)
]


def loss_of(model: nn.Module) -> float:
    x, y = (torch.cat(parts) for parts in zip(*DATA, strict=True))
    with torch.no_grad():
        return float(F.cross_entropy(model.eval()(x), y))


def curve_of(build: Callable[[], nn.Module], **options: Any) -> tuple[Curve, nn.Module, nn.Module]:
    first, second = trained(build, 1), trained(build, 2)
    fitted = fit_curve(first, first, second, DATA, epochs=1, lr=0.01, **options)
    return fitted, first, second


def test_a_fit_leaves_buffers_that_forward_assigns_anew_as_they_were() -> None:
    model = trained(centred, 1)
    layer: Any = model[0]  # type: ignore[index]
    layer.mean.fill_(5.0)
    buffer, state = layer.mean, {n: t.clone() for n, t in model.state_dict().items()}
    fit_curve(model, model, trained(centred, 2), DATA, epochs=2)
    assert layer.mean is buffer
    assert float(layer.mean) == 5.0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:buffers that differ")
@pytest.mark.parametrize("build", [centred, by_instance, plain])
def test_ends_are_measured_with_their_own_buffers(build: Callable[[], nn.Module]) -> None:
    curve, first, second = curve_of(build)
    for model in (first, second):  # whichever is the architecture
        records = evaluate_curve(model, curve, DATA, num_points=3)
        assert records[0]["loss"] == pytest.approx(loss_of(first), rel=1e-12)
        assert records[-1]["loss"] == pytest.approx(loss_of(second), rel=1e-12)


def test_in_between_instance_norm_is_estimated_and_other_buffers_are_interpolated() -> None:
    curve, first, _ = curve_of(by_instance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = evaluate_curve(first, curve, DATA, ts=[0.25])[0]
    by_hand = trained(by_instance, 3)
    write_parameters(by_hand, curve.at(0.25))
    x = torch.cat([x for x, _ in DATA]).reshape(-1, 2, 3)
    by_hand[1].running_mean.copy_(x.mean((0, 2)))  # type: ignore[index, union-attr, operator]
    by_hand[1].running_var.copy_(x.var(2).mean(0))  # type: ignore[index, union-attr, operator]
    assert record["loss"] == pytest.approx(loss_of(by_hand), rel=1e-12)

    curve, first, second = curve_of(centred)
    with pytest.warns(
        UserWarning, match=r"^buffers that differ at the ends \('0.mean'\) are inter"
    ):
        record = evaluate_curve(first, curve, DATA, ts=[0.25])[0]
    by_hand = trained(centred, 3)
    write_parameters(by_hand, curve.at(0.25))
    ends = [model[0].mean for model in (first, second)]  # type: ignore[index]
    by_hand[0].mean = 0.75 * ends[0] + 0.25 * ends[1]  # type: ignore[index]
    assert record["loss"] == pytest.approx(loss_of(by_hand), rel=1e-12)


def test_without_an_estimate_the_models_buffers_are_kept() -> None:
    curve, first, _ = curve_of(by_instance)
    by_hand = trained(by_instance, 1)
    write_parameters(by_hand, curve.at(1.0))
    record = evaluate_curve(first, curve, DATA, ts=[1.0], num_images=0)[0]
    assert record["loss"] == pytest.approx(loss_of(by_hand), rel=1e-12)


@pytest.mark.parametrize("build", [centred, by_instance, by_batch, plain])
def test_the_state_of_an_end_is_that_of_its_network(build: Callable[[], nn.Module]) -> None:
    curve, first, second = curve_of(build)
    for t, model in ((0, first), (1, second)):
        other = trained(build, 3)
        other.load_state_dict(curve.state_dict(t))
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


def test_a_tied_parameter_has_all_its_names() -> None:
    def tied() -> nn.Module:
        layers = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)
        model = nn.Sequential(*layers).double()
        model[2].weight = model[0].weight
        return model

    first, second = tied(), tied()
    curve = fit_curve(first, first, second, DATA, epochs=1)
    for t, model in ((0, first), (1, second)):
        other = tied()
        other.load_state_dict(curve.state_dict(t))
        assert other[2].weight is other[0].weight
        assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_between_the_ends_batch_norm_needs_data() -> None:
    curve, first, _ = curve_of(by_batch)
    message = (
        r"^the running statistics at t = 0.5 \('1.running_mean', ...\) have to be estimated; use "
        r"curve.module\(model, 0.5, refresh=batches\).state_dict\(\), or curve.parameters\(0.5\) "
    )
    with pytest.raises(UserError, match=message):
        curve.state_dict(0.5)
    assert set(curve.parameters(0.5)) == {n for n, _ in first.named_parameters()}
    with pytest.raises(UserError, match=r"^the running statistics at t = 0.5 have to be estimated"):
        curve.module(first, 0.5)
    network = curve.module(first, 0.5, refresh=DATA)
    by_hand = trained(by_batch, 3)
    write_parameters(by_hand, curve.at(0.5))
    refresh_batch_norm(by_hand, DATA)
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, msg=name)
    assert not network.training
    record = evaluate_curve(first, curve, DATA, ts=[0.5])[0]
    assert loss_of(network) == pytest.approx(record["loss"], rel=1e-12)


def test_networks_without_statistics_need_no_data() -> None:
    curve, first, _ = curve_of(plain)
    network = curve.module(first, 0.3)
    network.load_state_dict(curve.state_dict(0.3))
    assert torch.equal(flatten(network, first), curve.at(0.3))
    assert network is not first


def test_an_ensemble_of_points_is_the_mean_of_their_modules() -> None:
    curve, first, _ = curve_of(by_batch)
    ts, x = (0.0, 0.4, 1.0), DATA[0][0]
    ensemble = curve.ensemble(first, ts, refresh=DATA, combine="logits")
    assert isinstance(ensemble, fge.Ensemble)
    with torch.no_grad():
        logits = [curve.module(first, t, refresh=DATA)(x) for t in ts]
    torch.testing.assert_close(ensemble(x), torch.stack(logits).mean(0).softmax(1))


def test_modules_leave_model_and_random_state_alone() -> None:
    class Shuffled:
        def __iter__(self) -> Any:
            return (DATA[int(k)] for k in torch.randperm(len(DATA)))

    curve, first, _ = curve_of(by_batch)
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    state = torch.get_rng_state()
    curve.module(first, 0.5, refresh=Shuffled())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in first.state_dict().items())
    with pytest.raises(UserError, match=r"^the curve is of another architecture than the model"):
        curve.module(plain().to(DOUBLE), 0.5)


def test_buffers_of_the_ends_are_in_the_file(tmp_path: Path) -> None:
    for build in (by_batch, plain):
        curve, _, second = curve_of(build)
        curve.save(tmp_path / "c.safetensors")
        loaded = Curve.load(tmp_path / "c.safetensors")
        assert torch.equal(loaded.points, curve.points)
        assert (loaded.buffers is None) == (build is plain)
        for name, tensor in second.state_dict().items():
            assert torch.equal(loaded.state_dict(1)[name], tensor)
            assert loaded.state_dict(1)[name].dtype == tensor.dtype


def test_a_chain_has_the_buffers_of_all_its_networks() -> None:
    first, middle, last = (trained(by_instance, seed) for seed in (1, 2, 3))
    chain = Chain(
        [fit_curve(a, a, b, DATA, epochs=1) for a, b in ((first, middle), (middle, last))]
    )
    records = evaluate_curve(first, chain, DATA, num_points=5)
    for position, model in ((0, first), (2, middle), (4, last)):
        assert records[position]["loss"] == pytest.approx(loss_of(model), rel=1e-12)
    middle_state = chain.module(first, 0.5).state_dict()
    assert all(torch.equal(middle_state[n], t) for n, t in middle.state_dict().items())


def test_networks_at_even_steps_along_a_chain_have_their_own_buffers() -> None:
    networks = [trained(by_instance, seed) for seed in range(1, 7)]
    pairs = itertools.pairwise(networks)
    chain = Chain([straight_curve(networks[0], a, b) for a, b in pairs])
    records = evaluate_line(networks[0], chain, DATA, num_points=6)
    found = [record["loss"] for record in records]
    assert found == pytest.approx([loss_of(network) for network in networks], rel=1e-12)


def test_weights_without_buffers_give_a_curve_without() -> None:
    first, second = trained(by_batch, 1), dict(trained(by_batch, 2).named_parameters())
    curve = fit_curve(first, first, second, DATA, epochs=1)
    assert curve.buffers is None
    assert set(curve.state_dict(0.5)) == set(curve.parameters(0.5)) == set(second)
    with pytest.raises(UserError, match=r"^the running statistics at t = 1 have to be estimated"):
        curve.module(first, 1)


def test_odd_buffers_are_refused() -> None:
    layout, points = Layout(("w",), ((2,),)), torch.zeros(3, 2)
    one, two = {"mean": torch.zeros(2)}, {"mean": torch.zeros(3)}
    with pytest.raises(UserError, match=r"^buffers need the names of the parameters too"):
        Curve(Bezier(3), points, None, (one, one))
    for other in (two, {}, {"var": torch.zeros(2)}):
        with pytest.raises(UserError, match=r"^the ends of the curve differ in the buffer 'mean'"):
            Curve(Bezier(3), points, layout, (one, other))


@pytest.mark.filterwarnings("ignore:buffers that differ")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (by_batch, "statistics of batch norm are estimated at every t, the ends included"),
        (
            by_instance,
            "statistics of instance norm are estimated in between, and at the ends they are the "
            "networks' own",
        ),
        (centred, "the buffers '0.mean' are the networks' own at the ends, and linear in between"),
        (plain, "the networks have no statistics that differ"),
    ],
)
def test_a_curve_and_its_records_say_which_statistics_the_networks_have(
    build: Callable[[], nn.Module], words: str
) -> None:
    curve, first, _ = curve_of(build)
    records = evaluate_curve(first, curve, DATA, num_points=3)
    assert str(records.statistics) == str(curve.statistics(first)) == words
    assert repr(records) == f"CurveRecords(3 records, t = 0 to 1; {words})"
    assert records == list(records)
    ends = "no buffers of its ends" if build is plain else "own buffers at the ends"
    assert repr(curve).endswith(f", {ends})")
    assert repr(Chain([curve])).endswith(f", {ends})")


def test_buffers_that_the_curve_does_not_have_are_said_to_be_the_models() -> None:
    curve, first, _ = curve_of(by_instance)
    bare = Curve(curve.family, curve.points, curve.layout)
    records = evaluate_curve(first, bare, DATA, num_points=3)
    assert str(records.statistics) == "statistics of instance norm are estimated at every t"
    kept = evaluate_curve(first, curve, DATA, num_points=3, num_images=0)
    assert str(kept.statistics) == (
        "the buffers '1.running_mean', '1.running_var', '1.num_batches_tracked' are the model's at "
        "every t"
    )
    curve, first, _ = curve_of(centred)
    bare = Curve(curve.family, curve.points, curve.layout)
    records = evaluate_curve(first, bare, DATA, num_points=3)
    assert str(records.statistics) == "the buffers '0.mean', '0.scale' are the model's at every t"
    assert records.statistics.facts()["own_ends"] is False


def test_a_segment_has_the_buffers_of_its_networks() -> None:
    first, second = trained(by_instance, 1), trained(by_instance, 2)
    segment = straight_curve(first, first, second.state_dict())
    assert torch.equal(segment.at(0.5), (flatten(first, first) + flatten(second, first)) / 2)
    for t, model in ((0, first), (1, second)):
        state = segment.state_dict(t)
        assert all(torch.equal(state[n], tensor) for n, tensor in model.state_dict().items())


class Masked(nn.Module):
    """Adds a mask, a buffer that is infinite by design."""

    mask: Tensor

    def __init__(self, *mask: float) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4, dtype=DOUBLE)
        self.register_buffer("mask", torch.tensor(mask, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x) + self.mask
        return outputs


INFINITY = float("inf")


def test_infinite_buffers_stay_infinite_between_the_ends() -> None:
    first, second = Masked(-INFINITY, 1, 0, -INFINITY), Masked(-INFINITY, 2, 0, 5)
    curve = straight_curve(first, first, second)
    for t, wanted in [(0.25, 1.25), (0.5, 1.5), (0.75, 1.75)]:
        assert curve.buffers_at(t)["mask"].tolist() == [-INFINITY, wanted, 0, -INFINITY]
    assert curve.buffers_at(1.0)["mask"].tolist() == [-INFINITY, 2, 0, 5]
    with pytest.warns(InterpolatedWarning):
        outputs = curve.module(first, 0.5)(torch.zeros(1, 6, dtype=DOUBLE))
    bias = (first.linear.bias + second.linear.bias) / 2
    wanted_outputs = bias + torch.tensor([-INFINITY, 1.5, 0, -INFINITY])
    torch.testing.assert_close(outputs[0], wanted_outputs)
