"""Figures along a curve against figures taken by hand, and what they are summed up to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge import metrics
from fge.curves import (
    Bezier,
    Chain,
    Curve,
    WeightsEvaluator,
    bound,
    evaluate_curve,
    make_family,
    straight_curve,
    summarise_curve,
)
from fge.errors import UserError
from fge.networks import Layout, flatten, nothing_yielded, refresh_batch_norm, write_parameters
from fge.train import Speed

DOUBLE = torch.float64


class Point(nn.Module):
    """A network whose output is its only parameter."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=DOUBLE))

    def forward(self, _inputs: Tensor) -> Tensor:
        return self.w


def network(seed: int, dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ).to(dtype)


def batches(sizes: tuple[int, ...], seed: int, dtype: torch.dtype = DOUBLE) -> list[Any]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 1, 4, 4, generator=rng, dtype=DOUBLE).to(dtype),
            torch.randint(0, 3, (size,), generator=rng),
        )
        for size in sizes
    ]


TRAIN, TEST = batches((6, 6, 3), 1), batches((5, 2), 2)


def make_curve(kind: str = "bezier", points: int = 3, dtype: torch.dtype = DOUBLE) -> Curve:
    model = network(0, dtype)
    vectors = torch.stack([flatten(network(seed, dtype), model) for seed in range(points)])
    return Curve(make_family(kind, points), vectors, Layout.of(model))


def by_hand(curve: Curve, t: float, split: list[Any], refresh: list[Any], **options: Any) -> Any:
    """Return probabilities (N, C), mean cross-entropy and targets of a network of its own."""
    model = network(50)
    write_parameters(model, curve.at(t))
    refresh_batch_norm(model, refresh, **options)
    model.eval()
    inputs, targets = (torch.cat([batch[part] for batch in split]) for part in (0, 1))
    with torch.no_grad():
        logits = model(inputs)
    return logits.softmax(1), float(F.cross_entropy(logits, targets)), targets


@pytest.mark.parametrize(("kind", "points"), [("bezier", 3), ("polychain", 4)])
def test_each_record_is_that_of_a_network_of_its_own(kind: str, points: int) -> None:
    curve, seen = make_curve(kind, points), {}
    records = evaluate_curve(
        network(9),
        curve,
        {"train": TRAIN, "test": TEST},
        num_points=4,
        weight_decay=0.1,
        on_point=lambda t, probs: seen.update({t: probs}),
    )
    assert [record["t"] for record in records] == [0, 1 / 3, 2 / 3, 1]
    for record in records:
        t = record["t"]
        penalty = 0.05 * float(curve.at(t).square().sum())
        for name, split in (("train", TRAIN), ("test", TEST)):
            probs, loss, targets = by_hand(curve, t, split, TRAIN)
            np.testing.assert_allclose(seen[t][name], probs, rtol=1e-12)
            assert record[f"{name}_loss"] == pytest.approx(loss + penalty, rel=1e-12)
            assert record[f"{name}_nll"] == pytest.approx(loss, rel=1e-12)
            assert record[f"{name}_error"] == metrics.error(probs, targets)
        distance = float((curve.at(t) - curve.at(0)).norm())
        assert record["distance"] == pytest.approx(distance, rel=1e-12)
    chords = [float((curve.at((k + 1) / 3) - curve.at(k / 3)).norm()) for k in range(3)]
    assert [r["arc"] for r in records] == pytest.approx([0, *np.cumsum(chords)], rel=1e-12)


def test_stale_statistics_would_read_otherwise() -> None:
    curve, model = make_curve(), network(9)
    fresh = evaluate_curve(model, curve, TEST, ts=[0.5], refresh=TRAIN)
    stale = evaluate_curve(model, curve, TEST, ts=[0.5], num_images=0)
    assert abs(fresh[0]["loss"] - stale[0]["loss"]) > 1e-3
    own = network(9).eval()
    write_parameters(own, curve.at(0.5))
    with torch.no_grad():
        logits = torch.cat([own(x) for x, _ in TEST])
    targets = torch.cat([y for _, y in TEST])
    assert stale[0]["loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-12)


def test_statistics_are_of_as_many_images_as_asked_for() -> None:
    curve = make_curve()
    some = evaluate_curve(network(9), curve, TEST, ts=[0.4], refresh=TRAIN, num_images=9)
    _, loss, _ = by_hand(curve, 0.4, TEST, TRAIN, num_images=9)
    assert some[0]["loss"] == pytest.approx(loss, rel=1e-12)
    assert abs(loss - by_hand(curve, 0.4, TEST, TRAIN)[1]) > 1e-4


def assert_untouched(model: nn.Module, state: dict[str, Tensor], pointers: list[int]) -> None:
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True, True]


@pytest.mark.parametrize("speed", [Speed(), Speed(channels_last=True, amp="bf16")])
def test_the_model_is_as_it_was_even_when_something_raises(speed: Speed) -> None:
    model, curve = network(9, torch.float32).train(), make_curve(dtype=torch.float32)
    model[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    data = batches((6, 3), 1, torch.float32)
    evaluate_curve(model, curve, data, num_points=3, speed=speed)
    assert_untouched(model, state, pointers)

    def stop(_t: float, _probs: Any) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        evaluate_curve(model, curve, data, num_points=3, speed=speed, on_point=stop)
    assert_untouched(model, state, pointers)


def test_autocast_and_channels_last_change_little() -> None:
    curve, data = make_curve(dtype=torch.float32), batches((6, 6), 1, torch.float32)
    plain = evaluate_curve(network(9, torch.float32), curve, data, num_points=3)
    fast = evaluate_curve(
        network(9, torch.float32),
        curve,
        data,
        num_points=3,
        speed=Speed(channels_last=True, amp="bf16"),
    )
    for one, other in zip(plain, fast, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
        assert other["loss"] != one["loss"]


def test_records_that_are_there_are_not_measured_again() -> None:
    curve, model, told = make_curve(), network(9), []
    whole = evaluate_curve(model, curve, TEST, num_points=7)
    kept: list[dict[str, float]] = []

    def interrupt(record: dict[str, float]) -> None:
        kept.append(record)
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_curve(model, curve, TEST, num_points=7, on_record=interrupt)
    assert kept == whole[:3]
    rest = evaluate_curve(
        model, curve, TEST, num_points=7, done=kept, on_point=lambda t, _probs: told.append(t)
    )
    assert rest == whole
    assert told == [record["t"] for record in whole[3:]]


def test_records_of_fewer_points_get_the_length_along_all() -> None:
    curve, model = make_curve(), network(9)
    few = evaluate_curve(model, curve, TEST, num_points=3)
    more = evaluate_curve(model, curve, TEST, num_points=9, done=few)
    assert more == evaluate_curve(model, curve, TEST, num_points=9)
    assert few[-1]["arc"] < more[-1]["arc"] == pytest.approx(curve.length(8), rel=1e-9)


def test_a_chain_through_several_networks_can_be_measured() -> None:
    points = make_curve("polychain", 4).points
    chain = Chain.through(list(points), family="polychain", num_points=2)
    pieces = evaluate_curve(network(9), chain, TEST, num_points=7)
    curve = evaluate_curve(network(9), make_curve("polychain", 4), TEST, num_points=7)
    for one, other in zip(pieces, curve, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_any_loss_of_any_output_can_be_measured() -> None:
    points = torch.tensor([[-1.0, 0.0], [0.0, 1.6], [1.0, 0.0]], dtype=DOUBLE)
    records = evaluate_curve(
        Point(0.0, 0.0),
        Curve(Bezier(3), points),
        [{"inputs": torch.zeros(3), "weight": 2.0}, {"inputs": torch.zeros(1), "weight": 6.0}],
        num_points=5,
        forward_fn=lambda model, batch: model(batch["inputs"]),
        loss_fn=lambda w, batch: batch["weight"] * w.square().sum(),
    )
    for record in records:
        t = record["t"]
        w = np.array([2 * t - 1, 3.2 * t * (1 - t)])
        assert record["loss"] == pytest.approx(3 * float(w @ w), rel=1e-12)
        assert set(record) == {"t", "distance", "arc", "loss"}


class TwoHeads(nn.Module):
    """Returns logits of classes and a number."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.classes, self.number = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(x), self.number(x)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_loss_of_several_outputs_can_be_measured(amp: str) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 4, generator=rng), torch.randint(0, 3, (7,), generator=rng)

    def loss_fn(outputs: Any, targets: Tensor) -> Tensor:
        logits, number = outputs
        return (F.cross_entropy(logits, targets) + number.square().mean())[None]

    model, end = TwoHeads(0), TwoHeads(1)
    curve = straight_curve(model, model, end)
    options: Any = {"ts": [0.0, 1.0], "loss_fn": loss_fn, "speed": Speed(amp=amp)}
    records = evaluate_curve(TwoHeads(2), curve, [(x[:5], y[:5]), (x[5:], y[5:])], **options)
    assert all(set(record) == {"t", "distance", "arc", "loss"} for record in records)
    for record, own in zip(records, (model, end), strict=True):
        expected = loss_fn(own(x), y).item()
        assert record["loss"] == pytest.approx(expected, rel=1e-6 if amp == "off" else 2e-2)


def test_figures_of_outputs_that_are_not_finite_are_not_numbers() -> None:
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    batch = (torch.full((3, 2), 1e200, dtype=torch.float64), torch.tensor([0, 1, 0]))
    evaluate = WeightsEvaluator(model, [batch], num_images=0)
    record, _ = evaluate(torch.full((4,), 1e200, dtype=torch.float64))
    assert sorted(record) == ["error", "loss", "nll"]
    assert all(math.isnan(value) for value in record.values())


def test_a_plane_or_a_direction_may_use_the_evaluator_alone() -> None:
    curve = make_curve()
    record, probs = WeightsEvaluator(network(9), TEST)(curve.at(0.25))
    (expected,) = evaluate_curve(network(9), curve, TEST, ts=[0.25])
    assert record == {key: expected[key] for key in ("loss", "error", "nll")}
    assert probs[""].shape == (7, 3)


class Once:
    def __init__(self) -> None:
        self.batches = iter(TEST)

    def __iter__(self) -> Iterator[Any]:
        return self.batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": iter(TEST)}, "batches must be iterable more than once, got a list_iterator"),
        ({"refresh": iter(TEST)}, "batches must be iterable more than once"),
        ({"batches": {}}, "at least one split, got an empty mapping"),
        ({"batches": {"train": TRAIN, "test": []}}, str(nothing_yielded("batches 'test'"))),
        ({"batches": Once(), "refresh": TRAIN}, f"^{nothing_yielded()}$"),
        ({"num_points": 1}, "num_points must be >= 2, got 1"),
        ({"ts": [0.5, 1.5]}, "1.5"),
        (
            {"loss_fn": nn.CrossEntropyLoss(reduction="none")},
            r"loss_fn must return one number, the mean over a batch, got \(5,\)",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_curve(network(9), make_curve(), **{"batches": TEST, "num_points": 3, **options})


def test_a_curve_of_another_architecture_is_refused() -> None:
    with pytest.raises(UserError):
        evaluate_curve(nn.Linear(3, 2).double(), make_curve(), TEST, num_points=3)


def test_a_curve_of_the_same_size_but_other_names_is_refused() -> None:
    curve = make_curve()
    other = nn.Linear(curve.points.shape[1] - 1, 1).double()
    chain = Chain.through(list(curve.points), layout=curve.layout)
    for path in (curve, chain):
        with pytest.raises(UserError, match="the curve is of another architecture than the model"):
            evaluate_curve(other, path, TEST, num_points=3)


def test_empty_batches_have_no_part_in_the_mean() -> None:
    (x, y), *_ = TEST
    empty = (x[:0], y[:0])
    found = evaluate_curve(network(9), make_curve(), [empty, *TEST, empty], num_points=3)
    assert found == evaluate_curve(network(9), make_curve(), TEST, num_points=3, refresh=TEST)
    assert all(math.isfinite(value) for value in found[0].values())
    with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
        evaluate_curve(network(9), make_curve(), [empty], num_points=3, refresh=TEST)


def known(count: int = 2001) -> list[dict[str, float]]:
    """Records of L(t) = 1 + t + 4 sin(pi t)^2 on a curve whose length to t is t^2 * 3."""
    ts = np.linspace(0, 1, count)
    return [
        {"t": t, "arc": 3 * t * t, "loss": 1 + t + 4 * math.sin(math.pi * t) ** 2}
        for t in ts.tolist()
    ]


def test_a_summary_of_a_known_function() -> None:
    summary = summarise_curve(known())
    assert summary["barrier"] == pytest.approx(4, abs=1e-12)
    assert summary["t_barrier"] == 0.5
    assert (summary["min"], summary["t_min"]) == (1, 0)
    t = 1 - math.asin(1 / (4 * math.pi)) / 2 / math.pi  # 4 pi sin(2 pi t) = -1 beyond the hill
    peak = 0.5 + (1 - t)
    assert summary["t_max"] == pytest.approx(peak, abs=5e-4)
    assert summary["max"] == pytest.approx(1 + peak + 4 * math.sin(math.pi * peak) ** 2, abs=1e-5)
    assert summary["mean"] == pytest.approx(3.5, abs=1e-6)
    # integral of L * 2t dt: 1 + 2/3 + 8 * integral of t sin(pi t)^2 = 8/4
    assert summary["arc_mean"] == pytest.approx(1 + 2 / 3 + 2, abs=1e-5)
    assert summary["length"] == pytest.approx(3, rel=1e-12)


def test_a_summary_does_not_mind_the_order_of_the_records() -> None:
    assert summarise_curve(known(21)[::-1]) == summarise_curve(known(21))


def test_the_lowest_loss_met_is_at_most_the_mean() -> None:
    sides = bound(known())
    assert sides == {"lowest": 1.0, "mean": pytest.approx(3.5, abs=1e-6)}
    below = [{**record, "loss": 2 - record["loss"]} for record in known(21)]
    assert bound(below)["lowest"] < bound(below)["mean"]
    assert summarise_curve(below)["barrier"] == pytest.approx(0.0, abs=1e-12)


def test_a_summary_may_be_of_any_key() -> None:
    records = [{**record, "test_error": 10 * record["loss"]} for record in known(21)]
    assert summarise_curve(records, "test_error")["max"] == pytest.approx(
        10 * summarise_curve(records)["max"]
    )


@pytest.mark.parametrize(
    ("records", "key", "message"),
    [
        (known(5), "los", "unknown key of the records 'los'; did you mean 'loss'"),
        (known(5)[1:], "loss", "from t = 0 to t = 1, got 4 from 0.25 to 1"),
        (known(5)[:1], "loss", "got 1 from 0 to 0"),
        ([], "loss", "needs records, got none"),
    ],
)
def test_what_cannot_be_summed_up_is_refused(
    records: list[dict[str, float]], key: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        summarise_curve(records, key)


def test_one_logit_has_a_loss_of_its_own_and_no_error() -> None:
    model = nn.Linear(3, 1).double()
    points = torch.stack([flatten(model, model) + k for k in range(3)])
    x, y = torch.randn(8, 3, dtype=DOUBLE), torch.arange(8) % 2

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.double())

    (record,) = evaluate_curve(model, Curve(Bezier(3), points), [(x, y)], ts=[0.0], loss_fn=loss_fn)
    assert set(record) == {"t", "distance", "arc", "loss"}
    assert record["loss"] == pytest.approx(loss_fn(model(x), y).item())


def test_a_loss_may_leave_targets_out() -> None:
    model, curve = network(0), make_curve()
    x, y = TEST[0]
    odd = torch.where(y == 0, -100, y)
    (record,) = evaluate_curve(model, curve, [(x, odd)], ts=[0.5])
    assert "error" not in record
    assert math.isfinite(record["loss"])
