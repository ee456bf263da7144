"""Curves on a GPU: points, gradients of bends, fits, and figures along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    SINGLE,
    Batch,
    assert_near,
    convnet,
    draw,
    image_batches,
    moved,
    perceptron,
    relative_distance,
    vector_batches,
)
from torch import Tensor, nn
from torch.func import functional_call

from fge import metrics
from fge.config.curves import Family
from fge.curves import (
    Bezier,
    Chain,
    Curve,
    Objective,
    PolyChain,
    evaluate_curve,
    fit_curve,
    gram_matrix,
    make_family,
    straight_points,
    stratified_uniform,
    summarise_curve,
)
from fge.curves.curve import elevate
from fge.curves.fit import CurveLearner, quick_gram
from fge.curves.objectives import OBJECTIVES, Draw, Shape, make_objective
from fge.networks import Layout, flatten, refresh_batch_norm, write_parameters
from fge.train import EpochEnd, Speed

pytestmark = pytest.mark.cuda

DOUBLE = torch.float64
REFERENCE_POINTS = torch.tensor([[0, 0, 1], [1, 2, 3], [4, 0, -1]], dtype=DOUBLE)


# ----------------------------------------------------------------------------------------- points


@pytest.mark.parametrize(
    ("family", "t", "expected"),
    [
        # The published reference implementation's.
        (Bezier(3), 0.25, [0.625, 0.75, 1.625]),
        (Bezier(3), 0.5, [1.5, 1, 1.5]),
        (PolyChain(3), 0.75, [2.5, 1, 1]),
    ],
)
def test_reference_points_and_length(
    accelerator: torch.device, family: Family, t: float, expected: list[float]
) -> None:
    curve = Curve(family, REFERENCE_POINTS.to(accelerator))
    assert curve.at(t).device == curve.velocity(t).device == accelerator
    assert curve.at(t).tolist() == pytest.approx(expected, abs=1e-14)
    for end in (0, 1):
        assert torch.equal(curve.at(end), curve.points[-end])
    if family == Bezier(3):
        assert curve.length() == pytest.approx(5.84993, abs=1e-5)


def test_a_curve_is_that_of_the_cpu_and_is_kept_bitwise(
    accelerator: torch.device, tmp_path: Path
) -> None:
    model = perceptron()
    points = draw(4, Layout.of(model).numel)
    theirs = Curve(Bezier(4), points, Layout.of(model))
    ours = Curve(Bezier(4), points.to(accelerator), Layout.of(model))
    for t in (0.0, 0.3, 1.0):  # sums of four float64 terms of size 1
        assert_near(ours.at(t), theirs.at(t), atol=1e-14)
        assert_near(ours.velocity(t), theirs.velocity(t), atol=1e-13)
        assert ours.speed(t) == pytest.approx(theirs.speed(t), rel=1e-12)
        for name, value in ours.state_dict(t).items():
            assert_near(value, theirs.state_dict(t)[name], atol=1e-14)
    assert ours.length() == pytest.approx(theirs.length(), rel=1e-12)
    assert_near(elevate(ours).at(0.3), ours.at(0.3), atol=1e-14)
    ours.save(tmp_path / "curve.safetensors")
    assert torch.equal(Curve.load(tmp_path / "curve.safetensors").points, points)
    chain = Chain.through(points[:3].to(accelerator), closed=True)
    assert torch.equal(chain.at(1 / 3).cpu(), points[1])
    assert chain.closed


def test_straight_points_are_evenly_spaced(accelerator: torch.device) -> None:
    ends = draw(2, 50).to(accelerator)
    points = straight_points(*ends, 5)
    for k in range(5):
        assert_near(points[k], ends[0] + k / 4 * (ends[1] - ends[0]), atol=1e-14)


def test_gram_matrices_are_those_of_float64(accelerator: torch.device) -> None:
    points = 1 + 0.05 * draw(4, 100_001, dtype=torch.float32)
    exact = (points[1:].double() - points[0].double()) @ (points[1:] - points[0]).double().T
    found = gram_matrix(points.to(accelerator))
    assert found.device.type == "cpu"
    assert_near(found[1:, 1:], exact, rtol=1e-12)
    # Differences of 0.05 between numbers of size 1 are good to 6e-8 / 0.05, products to twice that.
    quick = quick_gram(points.to(accelerator))
    assert_near(quick, found, atol=1e-5 * float(found.max()))


# ------------------------------------------------------------------------------ gradients of bends


class Recording(CurveLearner):
    """Keeps the bends' gradients of the last step, canonical."""

    def _update(self) -> None:
        grads = [bend.grad for bend in self.bends]
        self.seen = torch.stack([self.flat.unpack(g) for g in grads if g is not None])
        super()._update()


def autograd_gradients(
    model: nn.Module, points: Tensor, coefficients: Tensor, batch: Batch, decay: float
) -> tuple[Tensor, Tensor]:
    """Return L_t and its gradient with respect to every point, through the curve."""
    leaves = points.clone().requires_grad_()
    w = coefficients.to(points) @ leaves
    inputs, targets = moved(batch, points.device)
    outputs = functional_call(model.train(), Layout.of(model).split(w), (inputs,))
    loss = F.cross_entropy(outputs, targets) + decay / 2 * w.square().sum()
    (gradients,) = torch.autograd.grad(loss, leaves)
    return loss.detach(), gradients


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("family", "count"), [("bezier", 4), ("polychain", 3)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_closed_form_gradients_are_those_of_autograd_through_the_curve(
    accelerator: torch.device, name: str, family: str, count: int, channels_last: bool
) -> None:
    model, decay, steps = convnet().to(accelerator), 0.02, 9  # the losses of 8 are seen together
    batches = image_batches(*[6] * steps)
    shape = make_family(family, count)
    points = 0.4 * draw(count, Layout.of(model).numel, seed=2).to(accelerator)
    twin = make_objective(name)
    learner = Recording(
        model, shape, points.clone(), objective=make_objective(name), lr=0.0, weight_decay=decay,
        speed=Speed(channels_last=channels_last),
    )  # fmt: skip
    for step, batch in enumerate(batches):
        u = stratified_uniform(0, step, twin.strata)
        chosen = twin.draw(u, Shape(shape, gram_matrix(points)))
        learner.step(*batch)
        if step == 0:
            t = chosen.t
        loss, gradients = autograd_gradients(
            convnet().to(accelerator), points, shape.coefficients(chosen.t), batch, decay
        )
        baseline = twin.baseline()
        twin.observe(chosen, loss)
        if chosen.pull is not None and isinstance(baseline, Tensor):
            gradients = gradients + (loss - baseline) * (chosen.pull.to(points) @ points)
        # float64 in sums of up to 2000 terms; the Gram matrix that t hangs on is as good.
        scale = float(gradients.abs().max())
        assert_near(learner.seen, gradients[1:-1], rtol=1e-8, atol=1e-9 * scale)
    assert t != chosen.t
    assert torch.equal(learner.release_points(), points)


# ------------------------------------------------------------------------------------ known fits


class Point(nn.Module):
    """A network whose output is its only parameter, so that a loss of it is a toy surface."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=DOUBLE))

    def forward(self, _inputs: Tensor) -> Tensor:
        return self.w


class At(Objective):
    """A given t at every step."""

    name = "at"

    def __init__(self, t: float) -> None:
        super().__init__(strata=1)
        self.t = t

    def draw(self, u: float, shape: Shape) -> Draw:
        del u
        return super().draw(self.t, shape)


def bowl(minimum: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda w, _targets: ((w - minimum.to(w)) ** 2).sum() / 2


DUMMY = (torch.zeros(1), torch.zeros(1))
ENDS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=DOUBLE)
MINIMUM = torch.tensor([1.0, 2.0], dtype=DOUBLE)


@pytest.mark.parametrize(("family", "share"), [("bezier", 0.75), ("polychain", 0.25)])
def test_the_known_best_bend_of_a_bowl_has_no_mean_gradient(
    accelerator: torch.device, family: str, share: float
) -> None:
    best = MINIMUM - share * (ENDS[0] + ENDS[1] - 2 * MINIMUM)
    points = torch.stack([ENDS[0], best, ENDS[1]]).to(accelerator)
    nodes, weights = np.polynomial.legendre.leggauss(4)  # exact: the integrand is of degree 4
    total = torch.zeros(1, 2, dtype=DOUBLE, device=accelerator)
    for low in (0.0, 0.5):  # each straight piece by itself
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            learner = Recording(
                Point(0.0, 0.0).to(accelerator),
                make_family(family, 3),
                points.clone(),
                objective=At(low + 0.25 * (node + 1)),
                lr=0.0,
                weight_decay=0.0,
                loss_fn=bowl(MINIMUM),
            )
            learner.step(*DUMMY)
            total += weight / 4 * learner.seen
    assert_near(total, torch.zeros(1, 2), atol=1e-12)  # eight float64 terms of size 1


def test_a_fit_finds_the_known_best_bend_of_a_bowl(accelerator: torch.device) -> None:
    curve = fit_curve(
        Point(9.0, 9.0).to(accelerator),
        Point(*ENDS[0].tolist()),
        Point(*ENDS[1].tolist()),
        [DUMMY] * 50,
        epochs=16,
        lr=0.1,
        weight_decay=0.0,
        loss_fn=bowl(MINIMUM),
    )
    best = MINIMUM - 0.75 * (ENDS[0] + ENDS[1] - 2 * MINIMUM)
    assert curve.points.device == accelerator
    assert torch.equal(curve.points[[0, 2]].cpu(), ENDS)
    assert relative_distance(curve.points[1].cpu(), best) < 0.03, "the noise of the draws of t"


def test_a_fit_finds_the_bottom_of_the_valley(accelerator: torch.device) -> None:
    c = 0.8
    curve = fit_curve(
        Point(0.0, 0.0).to(accelerator),
        Point(-1.0, 0.0),
        Point(1.0, 0.0),
        [DUMMY] * 50,
        objective="arclength",
        epochs=16,
        lr=0.1,
        weight_decay=0.0,
        loss_fn=lambda w, _: 2 * (w[1] - c * (1 - w[0] ** 2)) ** 2,
    )
    # The loss is 0 along the whole curve there: the draws of t leave no noise.
    assert curve.points[1].tolist() == pytest.approx([0.0, 2 * c], abs=5e-3)
    exact = math.sqrt(1 + 4 * c * c) + math.asinh(2 * c) / (2 * c)
    assert curve.length() == pytest.approx(exact, rel=5e-3)


# ------------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fit_on_a_gpu_follows_the_one_on_the_cpu(
    accelerator: torch.device, objective: str, amp: str
) -> None:
    start, end = (convnet(seed, torch.float32) for seed in (1, 2))
    batches = image_batches(8, dtype=torch.float32) * 4
    options: dict[str, Any] = {"epochs": 2, "lr": 0.02, "objective": objective}
    exact = fit_curve(convnet(0, torch.float32), start, end, batches, **options)
    model = convnet(0, torch.float32).to(accelerator)
    speed = Speed(channels_last=True, amp=amp)
    other = fit_curve(model, start, end, batches, speed=speed, **options)
    straight = (exact.points[0] + exact.points[2]) / 2
    assert other.points.device == accelerator
    # fp16 is good to 2^-12, ten times that through four layers, and an activation may fall on the
    # other side of a ReLU. A step left out of the eight would be a tenth of the way and more.
    ends = (other.points[1].cpu(), exact.points[1], straight)
    assert relative_distance(*ends) < (1e-3 if amp == "off" else 0.1)


class Shuffled:
    """Batches in an order of their epoch: six, which is no multiple of a block of draws."""

    def __init__(self) -> None:
        self.parts = vector_batches(*[6] * 6, dtype=torch.float32)
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(self.epoch)
        for index in torch.randperm(len(self.parts), generator=rng).tolist():
            yield self.parts[index]


class _InterruptionError(Exception):
    pass


def interrupt_after(epoch: int) -> Callable[[EpochEnd], None]:
    def on_epoch(end: EpochEnd) -> None:
        if end.epoch == epoch:
            raise _InterruptionError

    return on_epoch


def noisy(seed: int, device: torch.device) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.3), *perceptron(seed, torch.float32)).to(device)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_interrupted_fit_ends_bitwise_as_an_uninterrupted_one(
    accelerator: torch.device, deterministic: None, objective: str, tmp_path: Path
) -> None:
    del deterministic
    model, start, end = (noisy(seed, accelerator) for seed in range(3))
    options: dict[str, Any] = {"objective": objective, "num_points": 4, "epochs": 5, "lr": 0.05}
    torch.manual_seed(4)
    expected = torch.rand(3, device=accelerator)
    torch.manual_seed(4)
    whole = fit_curve(model, start, end, Shuffled(), **options)
    assert torch.equal(torch.rand(3, device=accelerator), expected), "generators are left alone"
    options["checkpoint"] = tmp_path / "fit.safetensors"
    for epoch in (1, 3):
        with pytest.raises(_InterruptionError):
            fit_curve(
                noisy(9, accelerator), start, end, Shuffled(), on_epoch=interrupt_after(epoch),
                **options,
            )  # fmt: skip
        torch.rand(3, device=accelerator)  # what else a program may draw
    resumed = fit_curve(model, start, end, Shuffled(), **options)
    assert torch.equal(resumed.points, whole.points)
    assert not torch.equal(whole.points[1], straight_points(*whole.points[[0, 3]], 4)[1])


# ------------------------------------------------------------------------------- along a curve


TRAIN, TEST = image_batches(6, 6, 3, seed=1), image_batches(5, 2, seed=2)


def make_curve() -> Curve:
    model = convnet()
    vectors = torch.stack([flatten(convnet(seed), model) for seed in range(3)])
    return Curve(Bezier(3), vectors, Layout.of(model))


def by_hand(curve: Curve, t: float, split: list[Batch]) -> tuple[Tensor, float, Tensor]:
    """Return probabilities (N, C), mean cross-entropy and targets of a network of its own."""
    model = convnet(50)
    write_parameters(model, curve.at(t))
    refresh_batch_norm(model, TRAIN)
    model.eval()
    inputs, targets = (torch.cat([batch[part] for batch in split]) for part in (0, 1))
    with torch.no_grad():
        logits = model(inputs)
    return logits.softmax(1), float(F.cross_entropy(logits, targets)), targets


@pytest.mark.parametrize("points_there", [True, False], ids=["curve-there", "curve-on-cpu"])
def test_each_point_has_statistics_of_its_own(
    accelerator: torch.device, points_there: bool
) -> None:
    exact, seen = make_curve(), {}
    curve = exact
    if points_there:
        curve = Curve(exact.family, exact.points.to(accelerator), exact.layout)
    model = convnet(9).to(accelerator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    records = evaluate_curve(
        model,
        curve,
        {"train": TRAIN, "test": TEST},
        num_points=4,
        weight_decay=0.1,
        on_point=lambda t, probs: seen.update({t: probs}),
    )
    for record in records:
        t = record["t"]
        penalty = 0.05 * float(exact.at(t).square().sum())
        for name, split in (("train", TRAIN), ("test", TEST)):
            probs, loss, targets = by_hand(exact, t, split)
            assert_near(seen[t][name], probs, rtol=1e-10)  # float64, sums of 2000 terms
            assert record[f"{name}_loss"] == pytest.approx(loss + penalty, rel=1e-10)
            assert record[f"{name}_nll"] == pytest.approx(loss, rel=1e-10)
            assert record[f"{name}_error"] == metrics.error(probs, targets)
        distance = float((exact.at(t) - exact.at(0)).norm())
        assert record["distance"] == pytest.approx(distance, rel=1e-12)
    assert summarise_curve(records, "train_loss")["length"] == pytest.approx(records[-1]["arc"])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


# As tests of training steps say: 2^-9 a number in bf16, times ten through four layers.
SPEEDS = {
    "float32": (Speed(), 3 * 72 * SINGLE),
    "channels-last": (Speed(channels_last=True), 3 * 72 * SINGLE),
    "bf16": (Speed(channels_last=True, amp="bf16"), 10 * 2**-9),
    "fp16": (Speed(amp="fp16"), 10 * 2**-12),
}


@pytest.mark.parametrize(("speed", "tolerance"), SPEEDS.values(), ids=SPEEDS)
def test_faster_ways_to_run_change_little(
    accelerator: torch.device, speed: Speed, tolerance: float
) -> None:
    exact, model = make_curve(), convnet(9, torch.float32).to(accelerator)
    data = moved(TRAIN, torch.device("cpu"), torch.float32)
    curve = Curve(exact.family, exact.points.float(), exact.layout)
    for record in evaluate_curve(model, curve, data, num_points=3, speed=speed):
        _, loss, _ = by_hand(exact, record["t"], TRAIN)
        assert record["loss"] == pytest.approx(loss, rel=tolerance)
