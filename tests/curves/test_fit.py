"""Curve fits: gradients against autograd, known best bends, ends, checkpoints and refusals."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, IterableDataset

from fge.curves import (
    Curve,
    Objective,
    evaluate_curve,
    fit_curve,
    gram_matrix,
    make_family,
    stratified_uniform,
)
from fge.curves.fit import CurveLearner, quick_gram
from fge.curves.objectives import OBJECTIVES, Draw, Shape, make_objective
from fge.errors import DivergenceError, UserError
from fge.networks import Layout, flatten, nothing_yielded, read_state, write_state
from fge.train import EndpointLR, EpochEnd, Speed

DOUBLE = torch.float64
KINDS = [("bezier", 3), ("bezier", 5), ("polychain", 3), ("polychain", 4)]


class Point(nn.Module):
    """A network whose output is its only parameter, so that a loss of it is a toy surface."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=DOUBLE))

    def forward(self, _inputs: Tensor) -> Tensor:
        return self.w


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(x + self.first(x).tanh())
        return outputs


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(x).tanh())[:, :3]
        return outputs


class Frozen(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        self[0].requires_grad_(False)


def convolutional() -> nn.Sequential:
    return (
        nn.Sequential(
            nn.Unflatten(1, (2, 1, 3)),
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, padding=1),
            nn.Flatten(2),
        )
        .append(nn.AvgPool1d(3))
        .append(nn.Flatten())
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "convolutional": convolutional,
    "batch-norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    "residual": Residual,
    "tied": Tied,
}


def build(make: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = DOUBLE) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def data(count: int = 8, seed: int = 1, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=rng, dtype=DOUBLE).to(dtype)
    return inputs, torch.randint(0, 3, (count,), generator=rng)


def random_points(model: nn.Module, count: int) -> Tensor:
    size = Layout.of(model).numel
    rng = torch.Generator().manual_seed(2)
    dtype = next(model.parameters()).dtype
    return torch.randn(count, size, generator=rng, dtype=DOUBLE).to(dtype) * 0.4


class At(Objective):
    """A given t at every step."""

    name = "at"

    def __init__(self, t: float) -> None:
        super().__init__(strata=1)
        self.t = t

    def draw(self, u: float, shape: Shape) -> Draw:
        del u
        return super().draw(self.t, shape)


class Recording(CurveLearner):
    """Keeps the bends' gradients of the last step, canonical."""

    def _update(self) -> None:
        grads = [bend.grad for bend in self.bends]
        self.seen = torch.stack([self.flat.unpack(g) for g in grads if g is not None])
        super()._update()


def autograd_gradients(
    model: nn.Module, points: Tensor, coefficients: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """Return L_t and its gradient with respect to every point, through the curve."""
    leaves = points.clone().requires_grad_()
    w = coefficients.to(points.dtype) @ leaves
    inputs, targets = data(dtype=points.dtype)
    outputs = functional_call(model.train(), Layout.of(model).split(w), (inputs,))
    loss = F.cross_entropy(outputs, targets) + decay / 2 * w.square().sum()
    (gradients,) = torch.autograd.grad(loss, leaves)
    return loss.detach(), gradients


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("family", "count"), KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_bend_gradients_are_those_of_autograd_through_the_curve(
    name: str, family: str, count: int, channels_last: bool
) -> None:
    model, t, decay = build(MODELS[name]), 0.37, 0.02
    shape, points = make_family(family, count), random_points(model, count)
    _, expected = autograd_gradients(model, points, shape.coefficients(t), decay)
    speed = Speed(channels_last=channels_last)
    learner = Recording(
        model, shape, points.clone(), objective=At(t), lr=0.0, weight_decay=decay, speed=speed
    )
    learner.step(*data())
    torch.testing.assert_close(learner.seen, expected[1:-1], rtol=1e-9, atol=1e-12)
    assert torch.equal(learner.release_points(), points)


def test_arclength_gradients_are_the_formula_with_autograds_gradient() -> None:
    model, decay = build(Residual), 0.02
    shape, points = make_family("bezier", 4), random_points(model, 4)
    objective = make_objective("arclength")
    learner = Recording(
        model, shape, points.clone(), objective=objective, lr=0.0, weight_decay=decay
    )
    learner.step(*data())
    baseline = objective.baseline()
    learner.step(*data())
    probe = make_objective("arclength")
    draw = probe.draw(stratified_uniform(0, 1, 8), Shape(shape, gram_matrix(points)))
    loss, gradients = autograd_gradients(model, points, shape.coefficients(draw.t), decay)
    assert draw.pull is not None
    assert isinstance(baseline, Tensor)
    expected = gradients + (loss - baseline) * (draw.pull @ points)
    torch.testing.assert_close(learner.seen, expected[1:-1], rtol=1e-9, atol=1e-12)
    assert (loss - baseline).abs() > 1e-3, "the second term counts"


def test_the_quick_gram_matrix_is_the_exact_one_to_float32() -> None:
    rng = torch.Generator().manual_seed(0)
    points = 1 + 0.05 * torch.randn(4, 100_001, generator=rng)
    exact = gram_matrix(points)
    torch.testing.assert_close(quick_gram(points), exact, rtol=1e-5, atol=1e-5 * float(exact.max()))
    torch.testing.assert_close(quick_gram(points.double()), exact, rtol=1e-12, atol=1e-12)


def bowl(minimum: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda w, _targets: ((w - minimum) ** 2).sum() / 2


DUMMY = (torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("family", "share"), [("bezier", 0.75), ("polychain", 0.25)])
def test_the_known_best_bend_of_a_bowl_has_no_mean_gradient(family: str, share: float) -> None:

    ends, m = (
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=DOUBLE),
        torch.tensor([1.0, 2.0]).double(),
    )
    best = m - share * (ends[0] + ends[1] - 2 * m)
    points = torch.stack([ends[0], best, ends[1]])
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = torch.zeros(1, 2, dtype=DOUBLE)
    for low in (0.0, 0.5):  # each straight piece by itself
        for node, weight in zip(nodes, weights, strict=True):
            learner = Recording(
                Point(0.0, 0.0),
                make_family(family, 3),
                points.clone(),
                objective=At(low + 0.25 * (node + 1)),
                lr=0.0,
                weight_decay=0.0,
                loss_fn=bowl(m),
            )
            learner.step(*DUMMY)
            total += weight / 4 * learner.seen
    assert total.abs().max() < 1e-12


@pytest.mark.parametrize(("family", "share"), [("bezier", 0.75), ("polychain", 0.25)])
def test_a_fit_finds_the_known_best_bend_of_a_bowl(family: str, share: float) -> None:
    start, end, m = Point(-1.0, 0.0), Point(1.0, 0.5), torch.tensor([1.0, 2.0], dtype=DOUBLE)
    curve = fit_curve(
        Point(9.0, 9.0),
        start,
        end,
        [DUMMY] * 100,
        family=family,
        epochs=30,
        lr=0.1,
        weight_decay=0.0,
        loss_fn=bowl(m),
    )
    best = m - share * (start.w + end.w - 2 * m)
    assert (curve.points[1] - best).norm() < 0.02 * best.norm(), "the last steps' noise"


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["uniform", "arclength"])
def test_a_fit_finds_the_bottom_of_the_valley(objective: str) -> None:
    c = 0.8
    curve = fit_curve(
        Point(0.0, 0.0),
        Point(-1.0, 0.0),
        Point(1.0, 0.0),
        [DUMMY] * 100,
        objective=objective,
        epochs=30,
        lr=0.05,
        weight_decay=0.0,
        loss_fn=lambda w, _: 2 * (w[1] - c * (1 - w[0] ** 2)) ** 2,
    )
    losses = [2 * (w[1] - c * (1 - w[0] ** 2)) ** 2 for w in map(curve.at, (0.2, 0.5, 0.7))]
    assert max(losses) < 1e-6
    assert curve.points[1].tolist() == pytest.approx([0.0, 2 * c], abs=2e-3)
    exact = math.sqrt(1 + 4 * c * c) + math.asinh(2 * c) / (2 * c)
    assert curve.length() == pytest.approx(exact, rel=2e-3)


def two_valleys(w: Tensor, _targets: Tensor) -> Tensor:
    """A bent valley with a hill in each half, passed on different sides."""

    def hill(x: Tensor, middle: float, width: float) -> Tensor:
        return (-(((x - middle) / width) ** 2) / 2).exp()

    x, y, z = w
    valley = (y - 0.8 * (1 - x * x).clamp_min(0)) ** 2 + 0.3 * z * z
    first = hill(x, -0.5, 0.15) * hill(y, 0.5, 0.3)
    second = hill(x, 0.4, 0.2) * hill(y, 0.8, 0.2) * hill(z, 0.1, 0.3)
    return valley + 0.7 * (first + second)


@pytest.mark.slow
def test_minmax_reaches_a_lower_maximum_than_uniform() -> None:
    def fitted(objective: str) -> list[float]:
        curve = fit_curve(
            Point(0.0, 0.0, 0.0),
            Point(-1.0, 0.0, 0.0),
            Point(1.0, 0.0, 0.0),
            [DUMMY] * 100,
            objective=objective,
            epochs=20,
            lr=0.1,
            weight_decay=0.0,
            loss_fn=two_valleys,
        )
        return [float(two_valleys(curve.at(k / 100), DUMMY[1])) for k in range(101)]

    uniform, minmax = fitted("uniform"), fitted("minmax")
    assert max(minmax) < max(uniform) - 0.04, "0.55 against 0.63"
    assert sum(minmax) > sum(uniform), "at the cost of the mean"


class Shuffled:
    """Batches in an order of their epoch; may raise in the middle."""

    def __init__(self, batches: int = 6) -> None:
        self.parts = [data(6, seed) for seed in range(batches)]
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(self.epoch)
        for index in torch.randperm(len(self.parts), generator=rng).tolist():
            yield self.parts[index]


class Counting(nn.Module):
    """Training depends on a buffer, as with spectral normalisation."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * (1 + self.count / 50)


def noisy() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), Counting(), nn.Linear(8, 3)
    )


class InterruptionError(Exception):
    pass


def interrupt_after(epoch: int) -> Callable[[EpochEnd], None]:
    def on_epoch(end: EpochEnd) -> None:
        if end.epoch == epoch:
            raise InterruptionError

    return on_epoch


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_interrupted_fit_ends_bitwise_as_an_uninterrupted_one(
    objective: str, tmp_path: Path
) -> None:
    model, start, end = (build(noisy, seed) for seed in range(3))
    options: dict[str, Any] = {"objective": objective, "num_points": 4, "epochs": 5, "lr": 0.05}
    whole = fit_curve(model, start, end, Shuffled(), **options)
    file = tmp_path / "fit.safetensors"
    for epoch in (1, 3):
        with pytest.raises(InterruptionError):
            fit_curve(
                build(noisy, 9),
                start,
                end,
                Shuffled(),
                checkpoint=file,
                on_epoch=interrupt_after(epoch),
                **options,
            )
        torch.rand(3)  # what else a program may draw
    resumed = fit_curve(model, start, end, Shuffled(), checkpoint=file, **options)
    assert torch.equal(resumed.points, whole.points)
    assert not torch.equal(whole.points[1], build_straight(start, end, model))


def build_straight(start: nn.Module, end: nn.Module, model: nn.Module) -> Tensor:
    return flatten(start, model) * (2 / 3) + flatten(end, model) / 3


def test_a_finished_fit_returns_at_once(tmp_path: Path) -> None:
    start, end, ends = build(noisy, 1), build(noisy, 2), []
    file = str(tmp_path / "fit")
    options: dict[str, Any] = {"epochs": 2, "checkpoint": file, "on_epoch": ends.append}
    curve = fit_curve(build(noisy), start, end, Shuffled(), **options)
    again = fit_curve(build(noisy), start, end, Shuffled(), **options)
    assert torch.equal(curve.points, again.points)
    assert [e.epoch for e in ends] == [0, 1]
    assert ends[0].images == 36


def longer(optimizer: torch.optim.Optimizer, steps: int) -> EndpointLR:
    return EndpointLR(optimizer, epochs=9, steps_per_epoch=steps)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_points": 4}, "num_points was 3, is now 4"),
        ({"family": "polychain"}, "family was 'bezier', is now 'polychain'"),
        ({"objective": "minmax"}, "objective was "),
        ({"epochs": 4}, "epochs was 3, is now 4"),
        ({"momentum": 0.5}, "momentum was 0.9, is now 0.5"),
        ({"weight_decay": 0.0}, "weight_decay was 0.0005, is now 0.0"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"lr": 0.02}, "lr was 0.01, is now 0.02"),
        ({"schedule": longer}, r"the schedule's lr was \[0.005875"),
        ({"start": build(noisy, 3)}, "start was "),
        ({"end": build(noisy, 3)}, "end was "),
        ({"batches": Shuffled(5)}, "steps_per_epoch was 6, is now 5"),
        ({"speed": Speed(amp="bf16")}, "speed was "),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "start": build(noisy, 1),
        "end": build(noisy, 2),
        "batches": Shuffled(),
        "epochs": 3,
        "lr": 0.01,
        "checkpoint": tmp_path / "fit",
    }
    with pytest.raises(InterruptionError):
        fit_curve(build(noisy), **options, on_epoch=interrupt_after(1))
    with pytest.raises(UserError, match=f"belongs to another fit: {named}"):
        fit_curve(build(noisy), **{**options, **change})


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "state", {"epoch": 3})
    with pytest.raises(UserError, match="is not a checkpoint of a curve fit; give another file"):
        fit_curve(
            build(noisy),
            build(noisy, 1),
            build(noisy, 2),
            Shuffled(),
            checkpoint=tmp_path / "state",
        )


def damage_of(*path: Any, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Return what replaces a part of a state, or drops it without a value."""

    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        if value is None:
            del state[path[-1]]
        else:
            state[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "damage",
    [
        *(damage_of(key) for key in ("epoch", "rates", "learner", "schedule")),
        *(damage_of("learner", key) for key in ("bends", "buffers", "optimizer", "steps")),
        damage_of("epoch", value=-1),
        damage_of("epoch", value="2"),
        damage_of("fit", value=[]),
        damage_of("learner", "bends", 0),
        damage_of("learner", "bends", 0, value=torch.zeros(3)),
        damage_of("learner", "buffers", "more", value=torch.zeros(3)),
        damage_of("learner", "steps", value=1.5),
        damage_of("learner", "optimizer", 0, value={}),
        damage_of("schedule", value={"last_epoch": "x"}),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_named(
    damage: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    file = tmp_path / "fit.safetensors"
    fit: Any = partial(fit_curve, build(noisy), build(noisy, 1), build(noisy, 2), Shuffled())
    with pytest.raises(InterruptionError):
        fit(checkpoint=file, epochs=3, on_epoch=interrupt_after(1))
    state = read_state(file)
    damage(state)
    write_state(file, state)
    with pytest.raises(UserError, match=f"^{file}.* is damaged: .*; restore it from a copy$"):
        fit(checkpoint=file, epochs=3)


@pytest.mark.parametrize("speed", [Speed(), Speed(channels_last=True)])
def test_the_ends_stay_bitwise_and_the_model_as_it_was(speed: Speed) -> None:
    model, start, end = (build(convolutional, seed, torch.float32) for seed in range(3))
    model.eval()
    model[2].train()
    nn.init.constant_(model[2].running_mean, 0.25)  # type: ignore[arg-type]
    model[1].weight.grad = torch.full_like(model[1].weight, 3.0)
    parameters = [(p, p.data_ptr(), p.stride(), p.grad) for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    batches = [data(dtype=torch.float32)] * 3
    curve = fit_curve(model, start, end, batches, epochs=2, lr=0.1, speed=speed)
    for t, network in ((0.0, start), (1.0, end)):
        for name, tensor in network.named_parameters():
            assert torch.equal(curve.state_dict(t)[name], tensor), name
    assert not torch.equal(curve.points[1], (curve.points[0] + curve.points[2]) / 2)
    for parameter, pointer, stride, grad in parameters:
        assert (parameter.data_ptr(), parameter.stride()) == (pointer, stride)
        assert parameter.grad is grad
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


class Stream(IterableDataset[Any]):
    """Examples whose number nobody knows before."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(*data(dtype=torch.float32), strict=True)))


def test_counting_batches_without_a_length_draws_nothing() -> None:
    model, start, end = (build(convolutional, seed, torch.float32) for seed in range(3))
    loader, generator = DataLoader(Stream(), batch_size=3), torch.get_rng_state()
    fit_curve(model, start, end, loader, epochs=1)
    assert torch.equal(torch.get_rng_state(), generator)


def test_empty_batches_move_nothing() -> None:
    model, start, end = (build(convolutional, seed) for seed in range(3))
    whole = data()
    empty = tuple(part[:0] for part in whole)
    ends: list[EpochEnd] = []
    options: dict[str, Any] = {"epochs": 1, "lr": 0.1, "on_epoch": ends.append}
    found = fit_curve(model, start, end, [whole, empty], **options)
    assert ends[0].images == len(whole[0])
    assert math.isfinite(ends[0].train_loss)
    assert not torch.equal(found.points[1], (found.points[0] + found.points[2]) / 2)


def test_channels_last_is_the_same_fit() -> None:
    start, end = build(convolutional, 1), build(convolutional, 2)
    options: dict[str, Any] = {"epochs": 2, "lr": 0.1, "objective": "arclength"}
    plain, other = (
        fit_curve(build(convolutional), start, end, [data()] * 3, speed=speed, **options)
        for speed in (Speed(), Speed(channels_last=True))
    )
    torch.testing.assert_close(other.points, plain.points, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_stay_on_the_straight_line() -> None:
    model, start, end = (build(Frozen, seed) for seed in range(3))
    curve = fit_curve(model, start, end, [data()] * 4, epochs=2, objective="arclength", lr=0.1)
    middle = curve.layout.split(curve.points[1])  # type: ignore[union-attr]
    straight = curve.layout.split((curve.points[0] + curve.points[2]) / 2)  # type: ignore[union-attr]
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(middle[name], straight[name], rtol=0, atol=1e-15)
    assert (middle["2.weight"] - straight["2.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_gives_nearly_the_same_fit(amp: str) -> None:
    start, end = (build(Residual, seed, torch.float32) for seed in (1, 2))
    batches = [data(dtype=torch.float32)] * 4

    def fitted(speed: Speed) -> Tensor:
        return fit_curve(
            build(Residual, 0, torch.float32),
            start,
            end,
            batches,
            epochs=3,
            lr=0.1,
            speed=speed,
            objective="arclength",
        ).points[1]

    straight = (flatten(start, start) + flatten(end, end)) / 2
    exact, rounded = fitted(Speed()), fitted(Speed(amp=amp))
    assert (rounded - exact).norm() < 0.03 * (exact - straight).norm()
    assert not torch.equal(rounded, exact)


def test_full_batches_go_through_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def compile_model(model: nn.Module, *, dynamic: bool) -> Any:
        assert not dynamic

        def forward(inputs: Tensor) -> Tensor:
            sizes.append(len(inputs))
            outputs: Tensor = model(inputs)
            return outputs

        return forward

    monkeypatch.setattr(torch, "compile", compile_model)
    batches = [data(8), data(8, 2), data(5)]
    fit_curve(
        build(Residual),
        build(Residual, 1),
        build(Residual, 2),
        batches,
        epochs=1,
        speed=Speed(compile=True),
    )
    assert sizes == [8, 8]


def test_forward_fn_and_loss_fn_make_sense_of_any_batch() -> None:
    start, end = build(Residual, 1), build(Residual, 2)
    inputs, targets = data()
    plain = fit_curve(build(Residual), start, end, [(inputs, targets)] * 3, epochs=2)
    other = fit_curve(
        build(Residual),
        start,
        end,
        [{"x": inputs, "y": targets, "note": "any"}] * 3,
        epochs=2,
        forward_fn=lambda model, batch: model(batch["x"]),
        loss_fn=lambda outputs, batch: F.cross_entropy(outputs, batch["y"]),
    )
    three = fit_curve(
        build(Residual),
        start,
        end,
        [(inputs, targets, torch.ones(3))] * 3,
        epochs=2,
        forward_fn=lambda model, batch: model(batch[0]) * batch[2],
        target_fn=lambda batch: batch[1],
    )
    assert torch.equal(other.points, plain.points)
    assert torch.equal(three.points, plain.points)


def test_batches_without_a_length_are_counted() -> None:
    class Endless:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([data(), data(8, 2)])

    start, end = build(Residual, 1), build(Residual, 2)
    plain = fit_curve(build(Residual), start, end, [data(), data(8, 2)], epochs=3)
    other = fit_curve(build(Residual), start, end, Endless(), epochs=3)
    assert torch.equal(other.points, plain.points)


def test_a_fit_can_start_from_a_curve() -> None:
    start, end, model = build(Residual, 1), build(Residual, 2), build(Residual)
    curve = fit_curve(model, start, end, [data()], epochs=1, family="polychain", num_points=4)
    before = curve.points.clone()
    further = fit_curve(model, start, end, [data()], epochs=1, lr=0.0, initial=curve)
    assert further.family == make_family("polychain", 4)
    assert torch.equal(further.points, before)
    fit_curve(model, start, end, [data()], epochs=1, initial=curve)
    assert torch.equal(curve.points, before), "it is not changed"
    with pytest.raises(
        UserError, match="the initial curve does not end at 'end'; give the ends of the curve"
    ):
        fit_curve(model, start, build(Residual, 3), [data()], initial=curve)
    before[1, 0] = math.nan
    broken = Curve(curve.family, before)
    with pytest.raises(UserError, match="initial curve has points that are not finite; give"):
        fit_curve(model, start, end, [data()], initial=broken)


def test_the_schedule_and_its_learning_rates_are_ones_own() -> None:
    rates = []

    class Telling(EndpointLR):
        def step(self, epoch: int | None = None) -> None:
            super().step(epoch)
            rates.append(self.get_last_lr()[0])

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> EndpointLR:
        return Telling(optimizer, epochs=10, steps_per_epoch=steps)

    start, end = build(Residual, 1), build(Residual, 2)
    fit_curve(build(Residual), start, end, [data()] * 2, epochs=9, lr=0.5, schedule=schedule)
    assert rates[0] == 0.5
    assert rates[16] == pytest.approx(0.005)


def test_weights_may_be_files_and_state_dicts(tmp_path: Path) -> None:
    start, end = build(Residual, 1), build(Residual, 2)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    plain = fit_curve(build(Residual), start, end, [data()], epochs=1)
    other = fit_curve(
        build(Residual), tmp_path / "start.safetensors", end.state_dict(), [data()], epochs=1
    )
    assert torch.equal(other.points, plain.points)


def spoiled() -> dict[str, Tensor]:
    state = build(Residual, 2).state_dict()
    state["second.bias"][1] = math.nan
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_points": 2}, "must be >= 3 for a fit, got 2"),
        ({"family": "bezir"}, "unknown curve family 'bezir'; did you mean 'bezier'"),
        ({"objective": "uniforn"}, "unknown objective 'uniforn'; did you mean 'uniform'"),
        ({"end": build(Residual, 1)}, "start and end are the same weights"),
        ({"end": spoiled()}, "'second.bias' holds values that are not finite"),
        ({"end": nn.Linear(6, 3)}, "no tensor 'first.weight'"),
        ({"batches": iter([data()])}, "batches must be iterable more than once"),
        ({"batches": []}, f"^{nothing_yielded()}$"),
        ({"batches": [data()[0]]}, r"batches must yield \(inputs, targets, ...\), got a Tensor"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"lr": -1.0}, "lr must be finite and >= 0, got -1.0"),
        ({"momentum": math.nan}, "momentum must be finite and >= 0, got nan"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and >= 0, got inf"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, Any], message: str) -> None:
    options = {"start": build(Residual, 1), "end": build(Residual, 2), "batches": [data()]}
    with pytest.raises(UserError, match=message):
        fit_curve(build(Residual), **{**options, "epochs": 1, **change})


def test_batches_that_are_used_up_in_a_later_epoch_are_found_out() -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter([data()])

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            return self.batches

    with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
        fit_curve(build(Residual), build(Residual, 1), build(Residual, 2), Once(), epochs=2)


def test_divergence_names_the_step_and_the_learning_rate_and_leaves_the_model_alone() -> None:
    model = build(Residual)
    before = flatten(model, model)
    calls = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return F.cross_entropy(outputs, targets) * (math.nan if len(calls) == 6 else 1.0)

    with pytest.raises(
        DivergenceError, match=r"loss is nan at step 5 with learning rate 0\.017625;"
    ):
        fit_curve(
            model,
            build(Residual, 1),
            build(Residual, 2),
            [data()] * 4,
            epochs=3,
            lr=0.03,
            loss_fn=loss_fn,
        )
    assert torch.equal(flatten(model, model), before)


def test_bends_that_the_last_step_ruined_are_not_returned(tmp_path: Path) -> None:
    def loss_fn(outputs: Tensor, _targets: Tensor) -> Tensor:
        return (outputs * 0).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(DivergenceError, match="the bends are not finite after step 0 with"):
        fit_curve(
            build(Residual),
            build(Residual, 1),
            build(Residual, 2),
            [data()],
            epochs=1,
            loss_fn=loss_fn,
            checkpoint=tmp_path / "fit",
        )
    assert not (tmp_path / "fit").exists()


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_with_batch_norm_a_last_batch_of_one_image_is_left_out() -> None:
    start, end, ends = build(batch_normed, 1), build(batch_normed, 2), list[EpochEnd]()
    batches = [data(8), data(8, 2)]
    plain = fit_curve(build(batch_normed), start, end, batches, epochs=3)
    other = fit_curve(
        build(batch_normed), start, end, [*batches, data(1)], epochs=3, on_epoch=ends.append
    )
    assert torch.equal(other.points, plain.points)
    assert [epoch.images for epoch in ends] == [16, 16, 16]
    ends = []
    fit_curve(
        build(Residual),
        build(Residual, 1),
        build(Residual, 2),
        [data(8), data(1)],
        epochs=1,
        on_epoch=ends.append,
    )
    assert ends[0].images == 9


def test_batches_of_one_image_alone_are_refused_by_batch_norm() -> None:
    with pytest.raises(UserError, match=r"^batch norm cannot normalise a batch of a single image"):
        fit_curve(
            build(batch_normed), build(batch_normed, 1), build(batch_normed, 2), [data(1)], epochs=1
        )


def test_frozen_networks_are_refused() -> None:
    model = build(Residual).requires_grad_(False)
    with pytest.raises(UserError, match=r"^no parameter of the model requires a gradient; set req"):
        fit_curve(model, build(Residual, 1), build(Residual, 2), [data()], epochs=1)


def test_targets_may_be_anywhere_in_a_batch() -> None:
    start, end = build(Residual, 1), build(Residual, 2)
    inputs, targets = data()
    plain = fit_curve(build(Residual), start, end, [(inputs, targets)], epochs=2)
    for batch, forward, target in (
        (UserDict(x=inputs, y=targets), lambda m, b: m(b["x"]), lambda b: b["y"]),
        (Parts(inputs[:, :3], inputs[:, 3:], targets), joined, lambda b: b.y),
        ((inputs[:, :3], inputs[:, 3:], targets), joined, lambda b: b[2]),
    ):
        options: dict[str, Any] = {"forward_fn": forward, "target_fn": target}
        found = fit_curve(build(Residual), start, end, [batch], epochs=2, **options)
        assert torch.equal(found.points, plain.points)
        records = evaluate_curve(start, plain, [batch], ts=[0.5], **options)
        assert records == evaluate_curve(start, plain, [(inputs, targets)], ts=[0.5])
        del options["target_fn"]
        for call in (
            lambda b, o: fit_curve(build(Residual), start, end, [b], epochs=2, **o),
            lambda b, o: evaluate_curve(start, plain, [b], ts=[0.5], **o),
        ):
            with pytest.raises(UserError, match=r"give target_fn|target_fn=lambda batch"):
                call(batch, options)


class Parts(NamedTuple):
    left: Tensor
    right: Tensor
    y: Tensor


def joined(model: nn.Module, batch: Any) -> Tensor:
    """Apply a model to inputs in two parts; a named tuple keeps its names."""
    left, right = batch[:2] if isinstance(batch, list) else (batch[0], batch[1])
    outputs: Tensor = model(torch.cat([left, right], dim=1))
    return outputs
