"""Curves and planes of labels and numbers: their figures against NumPy, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fge import metrics
from fge.curves import (
    Bezier,
    Curve,
    WeightsEvaluator,
    evaluate_curve,
    fit_curve,
    stratified_uniform,
)
from fge.landscape import Plane, evaluate_plane
from fge.networks import Layout, flatten
from fge.tasks import MANY_CLASSES, Binary, Multilabel, Regression, Task

Array = NDArray[np.float64]
INPUTS, OUTPUTS = 4, 2
NUMBERS = Regression(("a", "b"), (7.0, -6.0), (3.0, 20.0))
LABELS = Multilabel(("up", "wide"))
TASKS: dict[str, Task] = {"regression": NUMBERS, "multilabel": LABELS}


def network(seed: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(INPUTS, OUTPUTS).double()


def batches(task: Task, sizes: tuple[int, ...], seed: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        x = torch.randn(size, INPUTS, generator=rng, dtype=torch.float64)
        noise = torch.randn(size, OUTPUTS, generator=rng, dtype=torch.float64)
        labels = (x[:, :OUTPUTS] + noise > 0).long()
        numbers = (x[:, :OUTPUTS] + noise) * torch.tensor([3.0, 20.0]) + 7
        made.append((x, labels if task is LABELS else numbers))
    return made


def by_hand(task: Task, vector: Tensor, data: list[Any]) -> tuple[float, float, float, Array]:
    """Return loss, measure and NLL of the network with weights (P,), and its predictions."""
    inputs, y = (torch.cat(part).numpy() for part in zip(*data, strict=True))
    weight, bias = vector[: INPUTS * OUTPUTS].reshape(OUTPUTS, INPUTS), vector[INPUTS * OUTPUTS :]
    out = inputs @ weight.numpy().T + bias.numpy()
    if task is LABELS:
        probs = 1 / (1 + np.exp(-out))
        nll = -(y * np.log(probs) + (1 - y) * np.log(1 - probs)).sum(axis=1).mean()
        return nll, 100 * np.mean((probs > 0.5) != y), nll, probs
    mean, std = np.array(NUMBERS.mean), np.array(NUMBERS.std)
    residuals = out * std + mean - y
    variance = (residuals**2).mean(axis=0)  # of highest likelihood
    nll = 0.5 * (np.log(2 * math.pi * variance) + 1).sum()
    loss = np.mean((out - (y - mean) / std) ** 2)
    return float(loss), float(np.sqrt((residuals**2).mean())), float(nll), out * std + mean


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_along_a_curve(task: Task) -> None:
    model, ends = network(0), [flatten(network(seed), network(0)) for seed in (1, 2, 3)]
    curve = Curve(Bezier(3), torch.stack(ends), Layout.of(model))
    data = {"train": batches(task, (16, 5), 0), "test": batches(task, (8, 8, 3), 1)}
    seen: dict[float, dict[str, Tensor]] = {}
    records = evaluate_curve(
        model, curve, data, ts=(0.0, 0.3, 1.0), task=task, on_point=seen.__setitem__
    )
    key = "error" if task is LABELS else "rmse"
    for record in records:
        t = record["t"]
        vector = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        for split, part in data.items():
            loss, measure, nll, predictions = by_hand(task, vector, part)
            assert record[f"{split}_loss"] == pytest.approx(loss, rel=1e-12)
            assert record[f"{split}_{key}"] == pytest.approx(measure, rel=1e-12)
            assert record[f"{split}_nll"] == pytest.approx(nll, rel=1e-10)
            np.testing.assert_allclose(seen[t][split].numpy(), predictions, rtol=1e-10)
    names = ("loss", key, "nll")
    expected = {"t", "distance", "arc", *(f"{s}_{name}" for s in data for name in names)}
    assert all(set(record) == expected for record in records)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_on_a_plane_with_weight_decay(task: Task) -> None:
    model, weights = network(0), [network(seed) for seed in (1, 2, 3)]
    plane, data = Plane.through(*weights), batches(task, (16, 5), 0)
    grid = evaluate_plane(model, plane, data, resolution=2, task=task, weight_decay=0.1)
    key = "error" if task is LABELS else "rmse"
    assert set(grid.values) == {"loss", key, "nll"}
    for row, y in enumerate(grid.ys):
        for column, x in enumerate(grid.xs):
            vector = plane.point(float(x), float(y))
            loss, measure, nll, _ = by_hand(task, vector, data)
            penalty = 0.05 * float(vector.square().sum())
            found = {name: values[row, column] for name, values in grid.values.items()}
            assert found["loss"] == pytest.approx(loss + penalty, rel=1e-12)
            assert found[key] == pytest.approx(measure, rel=1e-12)
            assert found["nll"] == pytest.approx(nll, rel=1e-10)


def test_predictions_that_are_not_finite_have_no_figures() -> None:
    evaluate = WeightsEvaluator(network(0), batches(NUMBERS, (4,), 0), task=NUMBERS)
    record, predictions = evaluate(torch.full((INPUTS * OUTPUTS + OUTPUTS,), math.inf).double())
    assert math.isnan(record["rmse"])
    assert math.isnan(record["nll"])
    assert predictions[""].shape == (4, OUTPUTS)


def test_without_a_task_numbers_have_a_loss_and_no_figures() -> None:
    """As before tasks were known: outputs and targets tell whether it is classification."""
    curve = Curve(
        Bezier(3),
        torch.stack([flatten(network(k), network(0)) for k in (1, 2, 3)]),
        Layout.of(network(0)),
    )
    data = batches(NUMBERS, (8,), 0)
    (record, _) = evaluate_curve(network(0), curve, data, num_points=2, loss_fn=NUMBERS.loss(CPU))
    assert set(record) == {"t", "distance", "arc", "loss"}
    known = evaluate_curve(network(0), curve, data, num_points=2, task=NUMBERS)[0]
    assert known["loss"] == record["loss"]


CPU = torch.device("cpu")


def test_two_classes_are_measured_by_two_logits() -> None:
    """Their loss is the cross-entropy, and their figures are those of classes."""
    task = Binary(("no", "yes"))
    model = nn.Linear(INPUTS, 1).double()
    data = [(x, y[:, 0]) for x, y in batches(LABELS, (16, 5), 0)]
    points = torch.stack([flatten(model, model) + k for k in (0.0, 0.1, 0.3)])
    curve = Curve(Bezier(3), points, Layout.of(model))
    (record, _) = evaluate_curve(model, curve, data, num_points=2, task=task)
    with torch.no_grad():
        p = model(torch.cat([x for x, _ in data])).sigmoid()[:, 0].numpy()
    y = torch.cat([y for _, y in data]).numpy()
    assert record["error"] == pytest.approx(100 * np.mean((p > 0.5) != y))
    expected = -np.log(np.where(y == 1, p, 1 - p)).mean()
    assert record["loss"] == pytest.approx(expected, rel=1e-12)
    assert record["nll"] == pytest.approx(expected, rel=1e-12)
    assert MANY_CLASSES.path_loss(CPU) is task.path_loss(CPU) is torch.nn.functional.cross_entropy


def test_a_curve_is_fitted_by_the_loss_of_the_task() -> None:
    """One step moves the bend by the gradient of the squared error at w(t), times c(t)."""
    data, lr = batches(NUMBERS, (64,), 0), 0.2
    # The last epoch of a fit has a hundredth of the rate.
    options: dict[str, Any] = {"epochs": 1, "lr": 100 * lr, "momentum": 0.0, "weight_decay": 0.0}
    loss = NUMBERS.path_loss(CPU)
    curve = fit_curve(network(0), network(1), network(2), data, loss_fn=loss, **options)
    first, last = (flatten(network(seed), network(0)) for seed in (1, 2))
    t = stratified_uniform(0, 0, 8)
    vector = (1 - t) * first + t * last  # the initial curve is straight
    weight, bias = vector[:-OUTPUTS].reshape(OUTPUTS, INPUTS), vector[-OUTPUTS:]
    inputs, y = data[0]
    wanted = (y - torch.tensor(NUMBERS.mean)) / torch.tensor(NUMBERS.std)
    residuals = inputs @ weight.T + bias - wanted
    slope = 2 / residuals.numel() * residuals
    gradient = torch.cat([(slope.T @ inputs).reshape(-1), slope.sum(dim=0)])
    bend = (first + last) / 2 - lr * 2 * t * (1 - t) * gradient
    torch.testing.assert_close(curve.points[1], bend, rtol=0, atol=1e-7)


def test_the_nll_of_two_members_counts_their_spread() -> None:
    rng = np.random.default_rng(0)
    mean, y, spread = rng.normal(size=(3, 30, 2))
    spread = spread**2
    rmse, nll = NUMBERS.scores(mean, y, spread)
    noise = metrics.fit_noise(mean, y, spread)
    assert rmse == pytest.approx(np.sqrt(np.mean((mean - y) ** 2)))
    variance = noise + spread
    expected = 0.5 * (np.log(2 * math.pi * variance) + (mean - y) ** 2 / variance).sum(axis=1)
    assert nll == pytest.approx(expected.mean())
    assert NUMBERS.scores(mean, y, np.zeros_like(y)) == NUMBERS.scores(mean, y)
