"""Cycles, snapshots, averages and ensembles of a model on a GPU."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from cuda_tools import (
    SINGLE,
    assert_bitwise,
    assert_near,
    convnet,
    draw,
    image_batches,
    moved,
    perceptron,
    vector_batches,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import fge
from fge.ensemble import SnapshotStore, fold
from fge.networks import (
    ExponentialAverage,
    average_weights,
    load_weights,
    predict_proba,
    read_state,
    write_state,
)
from fge.train import SGLD, EndpointLR, TriangularLR
from fge.train.schedules import triangular

pytestmark = pytest.mark.cuda

REFERENCE: dict[str, Any] = json.loads((ROOT / "tests" / "reference.json").read_text("utf-8"))
CYCLE: dict[str, Any] = {"cycle_steps": 6, "max_lr": 0.05, "min_lr": 0.0005}


# ------------------------------------------------------------------------------------- schedules


def advance(optimizer: Optimizer, schedule: TriangularLR | EndpointLR, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", ["float", "tensor"])
def test_the_triangular_schedule_has_the_reference_values(
    accelerator: torch.device, kind: str
) -> None:
    (case,) = REFERENCE["triangular_lr"]
    rate: Any = 0.123 if kind == "float" else torch.tensor(0.123, device=accelerator)
    optimizer = SGD([nn.Parameter(torch.zeros(3, device=accelerator))], lr=rate)
    per_epoch = case["steps_per_epoch"]
    rates = {"max_lr": case["max_lr"], "min_lr": case["min_lr"]}
    steps = case["cycle_epochs"] * per_epoch
    schedule = TriangularLR(optimizer, **rates, cycle_steps=steps)
    # A tensor that holds the rate is of float32.
    tolerance = case["atol"] if kind == "float" else SINGLE * case["max_lr"]
    done = 0
    for epoch, step, expected in case["values"]:
        advance(optimizer, schedule, epoch * per_epoch + step - done)
        done = epoch * per_epoch + step
        found = float(optimizer.param_groups[0]["lr"])
        assert found == pytest.approx(expected, rel=0, abs=tolerance)


def test_the_endpoint_schedule_has_the_reference_values(accelerator: torch.device) -> None:
    case = REFERENCE["endpoint_lr"]
    optimizer = SGD([nn.Parameter(torch.zeros(3, device=accelerator))], lr=case["base_lr"])
    schedule = EndpointLR(optimizer, epochs=case["epochs"], steps_per_epoch=1)
    done = 1
    for epoch, expected in case["values"]:
        advance(optimizer, schedule, epoch - done)
        done = epoch
        found = optimizer.param_groups[0]["lr"]
        assert found == pytest.approx(expected, rel=0, abs=case["atol"])


# ------------------------------------------------------------------- cycles in a loop of one's own


def make_optimizer(name: str, model: nn.Module) -> Optimizer:
    if name == "adam":
        return Adam(model.parameters(), lr=1.0)
    return SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)


def run(
    cycle: fge.FGE, model: nn.Module, optimizer: Optimizer, first: int, last: int
) -> list[tuple[int, dict[str, Tensor]]]:
    """Take the steps [first, last), checking their rates; return the weights at each minimum."""
    device, kept = next(model.parameters()).device, []
    batches = moved(vector_batches(*[8] * last, dtype=torch.float32), device)
    for step in range(first, last):
        expected = triangular(step, **CYCLE)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=0, abs=1e-12)
        inputs, targets = batches[step]
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if cycle.step():
            kept.append((step, copy.deepcopy(model.state_dict())))
    return kept


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_each_minimum_of_the_cycle_is_kept_bitwise_and_averaged(
    accelerator: torch.device, tmp_path: Path, name: str
) -> None:
    model = perceptron(0, torch.float32).to(accelerator)
    optimizer = make_optimizer(name, model)
    cycle = fge.FGE(model, optimizer, **CYCLE, out=tmp_path)
    kept = run(cycle, model, optimizer, 0, 16)
    assert [step for step, _ in kept] == [2, 8, 14]
    store = SnapshotStore(tmp_path)
    for (_, expected), found in zip(kept, store, strict=True):
        assert_bitwise(found, dict(expected))
    inputs = moved(vector_batches(9, seed=5, dtype=torch.float32)[0][0], accelerator)
    probs = []
    for _, state in kept:
        member = perceptron(0, torch.float32).to(accelerator).eval()
        member.load_state_dict(state)
        with torch.no_grad():
            probs.append(member(inputs).double().softmax(1).cpu())
    ensemble = cycle.ensemble()
    found, expected = ensemble(inputs), torch.stack(probs).mean(0)
    assert found.device == accelerator
    assert_near(found, expected, atol=SINGLE)  # rounded to float32 at the end alone
    assert_near(ensemble.predict_proba([inputs]), expected, atol=1e-15)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_loop_of_ones_own_is_resumed_bitwise(
    accelerator: torch.device, deterministic: None, tmp_path: Path, name: str
) -> None:
    del deterministic
    model = perceptron(0, torch.float32).to(accelerator)
    optimizer = make_optimizer(name, model)
    cycle = fge.FGE(model, optimizer, **CYCLE, out=tmp_path)
    run(cycle, model, optimizer, 0, 7)
    state = {"model": model, "optimizer": optimizer, "cycle": cycle}
    file = io.BytesIO()
    torch.save({key: part.state_dict() for key, part in state.items()}, file)
    run(cycle, model, optimizer, 7, 16)
    whole = [*cycle.store]

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = perceptron(4, torch.float32).to(accelerator)
    other_optimizer = make_optimizer(name, other)
    resumed = fge.FGE(other, other_optimizer, **CYCLE, out=tmp_path)
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["cycle"])
    assert len(resumed.store) == 1
    run(resumed, other, other_optimizer, 7, 16)
    assert_bitwise(dict(other.state_dict()), dict(model.state_dict()))
    assert len(resumed.store) == len(whole) == 3
    for one, two in zip(resumed.store, whole, strict=True):
        assert_bitwise(one, two)


def test_members_follow_the_model_to_its_device_and_back(
    accelerator: torch.device, tmp_path: Path
) -> None:
    models = [perceptron(seed, torch.float64) for seed in range(3)]
    store = SnapshotStore(tmp_path)
    for model in models:
        store.append(model)
    inputs = vector_batches(9, seed=5)[0][0]
    expected = fge.Ensemble(models[0], models).uncertainty([inputs])
    for kept in (True, False):
        ensemble = fge.Ensemble(models[0], store, in_memory=kept)
        for device in (accelerator, torch.device("cpu")):
            ensemble.to(device)
            if kept:
                assert {t.device for state in ensemble.members for t in state.values()} == {device}
            assert ensemble(inputs.to(device)).device == device
            for name, figure in ensemble.uncertainty([inputs]).items():
                assert figure.device.type == "cpu"
                assert_near(figure, expected[name], atol=1e-12)
    ensemble = fge.Ensemble(models[0], store).to(accelerator)
    ensemble.load_state_dict(fge.Ensemble(models[0], models[::-1]).state_dict())
    assert_near(ensemble.predict([inputs]), expected["mean"], atol=1e-12)
    ensemble.save(tmp_path / "all.safetensors")
    loaded = fge.Ensemble.load(tmp_path / "all.safetensors", models[0].to(accelerator))
    assert_near(loaded.predict([inputs]), expected["mean"], atol=1e-12)


def test_a_changed_rate_on_the_device_is_found_out_by_the_next_minimum(
    accelerator: torch.device, tmp_path: Path
) -> None:
    model = perceptron(0, torch.float32).to(accelerator)
    rate = torch.tensor(1.0, device=accelerator)
    optimizer = SGD(model.parameters(), lr=rate)
    cycle = fge.FGE(model, optimizer, **CYCLE, out=tmp_path)
    for _ in range(2):
        optimizer.step()
        cycle.step()
    optimizer.step()
    rate.mul_(0.5)
    with pytest.raises(ValueError, match="but FGE set it to"):
        cycle.step()
    assert len(cycle.store) == 0


# ------------------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_snapshot_comes_back_bitwise_in_any_memory_format(
    accelerator: torch.device, tmp_path: Path, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = convnet(0, torch.float32).to(accelerator).to(memory_format=layout)
    model(moved(image_batches(8, dtype=torch.float32)[0][0], accelerator))  # moves statistics
    store = SnapshotStore(tmp_path)
    store.append(model, step=3)
    assert_bitwise(store[0], dict(model.state_dict()))
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in store[0].values())
    other = convnet(1, torch.float32).to(accelerator).to(memory_format=layout)
    load_weights(other, store[0], "the store")
    assert_bitwise(dict(other.state_dict()), dict(model.state_dict()))
    for parameter, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert (parameter.device, parameter.stride()) == (accelerator, expected.stride())


def test_a_state_on_the_device_comes_back_bitwise(
    accelerator: torch.device, tmp_path: Path
) -> None:
    weights = draw(2, 3, 4, 4).to(accelerator).to(memory_format=torch.channels_last)
    state = {"a": {"weights": weights, "rates": [0.5, 1]}, "half": weights.half(), "none": None}
    write_state(tmp_path / "state", state)
    found = read_state(tmp_path / "state")
    assert_bitwise(found, state)
    assert found["half"].dtype == torch.float16


# -------------------------------------------------------------------------------------- averages


def test_the_average_of_networks_on_the_device_is_that_in_float64(
    accelerator: torch.device, tmp_path: Path
) -> None:
    models = [convnet(seed, torch.float32) for seed in range(3)]
    store = SnapshotStore(tmp_path)
    on_device = [copy.deepcopy(model).to(accelerator) for model in models]
    for model in on_device:
        store.append(model)
    for states in (on_device, store):
        average = average_weights(states)
        for name, value in average.items():
            expected = [model.state_dict()[name].double() for model in models]
            assert value.device.type == "cpu"
            # Summed in float64, rounded to float32 once: half a unit in the last place.
            assert_near(value, torch.stack(expected).mean(0), rtol=SINGLE, atol=1e-12)
    assert average_weights([{"w": torch.tensor([1.0, 4.0], device=accelerator)}] * 3)[
        "w"
    ].tolist() == [1.0, 4.0]


def test_the_exponential_average_is_the_weighted_sum_of_the_iterates(
    accelerator: torch.device,
) -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64, device=accelerator)
    average = ExponentialAverage(model, decay=0.75)
    for value in (4.0, 8.0, 16.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
    expected = 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 16  # exact in binary
    other = ExponentialAverage(model, decay=0.75)
    other.load_state_dict(moved(average.state_dict(), torch.device("cpu")))  # as it is on disk
    for each in (average, other):
        assert each.averages["weight"].device == accelerator
        with each.swapped(model):
            assert model.weight.item() == expected
        assert model.weight.item() == 16.0


def test_averages_of_low_precision_are_kept_in_float32(accelerator: torch.device) -> None:
    model = nn.Linear(3, 2).to(accelerator, torch.bfloat16)
    average = ExponentialAverage(model, decay=0.5)
    first = model.weight.detach().float()
    average.update(model)
    nn.init.zeros_(model.weight)
    average.update(model)
    assert average.averages["weight"].dtype == torch.float32
    assert_near(average.averages["weight"], first / 2)  # halves are exact


# ------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_members_on_the_device_are_averaged_in_float64(
    accelerator: torch.device, combine: Any
) -> None:
    members = [perceptron(seed, torch.float32).eval() for seed in range(4)]
    inputs = vector_batches(10, dtype=torch.float32)[0][0]
    with torch.no_grad():
        logits = torch.stack([copy.deepcopy(m).double()(inputs.double()) for m in members])
    expected = logits.softmax(2).mean(0) if combine == "probs" else logits.mean(0).softmax(1)
    model = perceptron(9, torch.float32).to(accelerator)
    kinds: list[list[Any]] = [
        [copy.deepcopy(m).to(accelerator) for m in members],
        [m.state_dict() for m in members],  # on the CPU, as a store's are
    ]
    for given in kinds:
        ensemble = fge.Ensemble(model, given, combine=combine)
        probs = ensemble.predict_proba([inputs[:6], inputs[6:].to(accelerator)])
        assert (probs.dtype, probs.device.type) == (torch.float64, "cpu")
        # Logits are float32 sums of 6 and 5 terms, of size 1; their errors do not grow.
        assert_near(probs, expected, atol=20 * SINGLE)
        assert_near(probs.sum(1), torch.ones(10), atol=1e-14)
        assert ensemble(inputs.to(accelerator)).device == accelerator


def test_one_model_predicts_the_softmax_of_its_logits(accelerator: torch.device) -> None:
    model, batches = perceptron(0).eval(), vector_batches(6, 4)
    with torch.no_grad():
        expected = torch.cat([model(x).softmax(1) for x, _ in batches])
    probs = predict_proba(copy.deepcopy(model).to(accelerator), batches)
    assert_near(probs, expected, atol=1e-14)


def test_members_are_folded_as_on_the_cpu(accelerator: torch.device) -> None:
    batches, train = vector_batches(40, 20, seed=2), vector_batches(50, seed=3)
    members = [perceptron(0), perceptron(1)]
    halfway = average_weights(members)
    members[1].load_state_dict(halfway)
    expected = fold(perceptron(0), members, batches, refresh=train)
    model = perceptron(0).to(accelerator)
    on_device = [copy.deepcopy(member).to(accelerator) for member in members]
    found = fold(model, on_device, batches, refresh=train)
    assert found.folded == expected.folded
    for figures, wanted in ((found.after, expected.after), (found.ensemble, expected.ensemble)):
        assert figures.error == wanted.error
        assert figures.nll == pytest.approx(wanted.nll, rel=1e-12)
    for name, value in expected.state.items():
        assert found.state[name].device.type == "cpu"
        assert_near(found.state[name], value, rtol=1e-12, atol=1e-12)


def test_the_deployable_form_is_on_the_device_and_has_gradients_there(
    accelerator: torch.device,
) -> None:
    models = [convnet(seed).eval() for seed in range(2)]
    [(inputs, _)] = image_batches(5)
    given = inputs.requires_grad_()
    expected = fge.Ensemble(models[0], models)(given)
    [slope] = torch.autograd.grad(expected[:, 0].sum(), given)
    ensemble = fge.Ensemble(models[0].to(accelerator), models)
    deployed = ensemble.deployable(preprocess=fge.Normalise([0.0] * 3, [1.0] * 3))
    moved_inputs = given.detach().to(accelerator).requires_grad_()
    for form in (deployed, ensemble):
        found = form(moved_inputs)
        assert found.device.type == accelerator.type
        assert_near(found, expected, atol=1e-6)
        assert_near(torch.autograd.grad(found[:, 0].sum(), moved_inputs)[0], slope, atol=1e-6)


# ------------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_langevin_noise_has_the_variance_of_the_formula(
    accelerator: torch.device, momentum: float
) -> None:
    torch.manual_seed(1)
    count = 40_000
    weights = nn.Parameter(torch.zeros(count, device=accelerator))
    optimizer = SGLD([weights], 0.2, examples=50, momentum=momentum)
    optimizer.param_groups[0]["temperature"] = 0.5
    weights.grad = torch.zeros_like(weights)
    optimizer.step()
    expected = 2 * 0.2 * (1 - momentum) * 0.5 / 50
    # The standard error of a variance is its sqrt(2 / n): 0.7 % here, of a mean sqrt(v / n).
    assert float(weights.detach().var()) == pytest.approx(expected, rel=0.03)
    assert float(weights.detach().mean()) == pytest.approx(0, abs=4 * (expected / count) ** 0.5)


def test_without_temperature_langevin_dynamics_is_sgd(accelerator: torch.device) -> None:
    start = draw(1000, dtype=torch.float32)
    ours = nn.Parameter(start.to(accelerator))
    theirs = nn.Parameter(start.double())
    options = {"momentum": 0.9, "weight_decay": 1e-2}
    pairs = [
        (SGLD([ours], 0.1, examples=7, **options), ours),
        (SGD([theirs], lr=0.1, **options), theirs),
    ]
    for _ in range(5):
        for optimizer, weights in pairs:
            weights.grad = 0.3 * weights.detach()
            optimizer.step()
    assert_near(ours, theirs, rtol=20 * SINGLE, atol=20 * SINGLE)  # four operations a step
