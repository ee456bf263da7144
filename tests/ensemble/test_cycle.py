"""``FGE`` in somebody's own training loop."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.errors import UserError
from fge.train.schedules import triangular

CYCLE = 8
OPTIONS: dict[str, Any] = {"cycle_steps": CYCLE, "max_lr": 0.05, "min_lr": 0.0005}
MAKE_OPTIMIZER: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3),
    "adam": lambda model: Adam(model.parameters(), lr=1.0),
}


def make_model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def data(count: int = 24) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 4, generator=rng)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()


def one_step(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    inputs, targets = data()
    part = torch.arange(step * 5, step * 5 + 6) % len(inputs)
    F.cross_entropy(model(inputs[part]), targets[part]).backward()
    optimizer.step()
    optimizer.zero_grad()


def run(
    cycle: fge.FGE, model: nn.Module, optimizer: Optimizer, first: int, last: int
) -> list[tuple[int, list[float], bool]]:
    """Take the steps [first, last); return the rates that each used and what it kept."""
    history = []
    for step in range(first, last):
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        one_step(model, optimizer, step)
        history.append((step, rates, cycle.step()))
    return history


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_three_lines_make_an_ensemble_of_any_loop(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True)
    epochs, kept = 10, []

    cycle = fge.FGE(
        model,
        optimizer,
        cycle_steps=4 * len(loader),
        max_lr=0.05,
        min_lr=0.0005,
        out=tmp_path / "run" / "snapshots",
    )
    for epoch in range(epochs):
        for x, y in loader:
            loss_fn(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if cycle.step():
                kept.append((epoch, copy.deepcopy(model).eval()))
    ensemble = cycle.ensemble()

    assert [epoch for epoch, _ in kept] == [1, 5, 9]
    store = fge.SnapshotStore(tmp_path / "run" / "snapshots")
    assert [store.facts(n)["step"] for n in range(len(store))] == [6, 18, 30]
    assert [store.facts(n)["lr"] for n in range(len(store))] == [0.0005] * 3
    inputs = data()[0]
    with torch.no_grad():
        expected = torch.stack([m(inputs).double().softmax(1) for _, m in kept]).mean(0)
        assert torch.equal(ensemble(inputs), expected.float())
    assert torch.allclose(ensemble.predict_proba([inputs]), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("make_optimizer", MAKE_OPTIMIZER.values(), ids=MAKE_OPTIMIZER)
def test_each_step_uses_its_rate_and_each_minimum_is_kept(
    tmp_path: Path, make_optimizer: Callable[[nn.Module], Optimizer]
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    for step, rates, kept in run(cycle, model, optimizer, 0, 3 * CYCLE):
        expected = triangular(step, max_lr=0.05, min_lr=0.0005, cycle_steps=CYCLE)
        assert rates == pytest.approx([expected], rel=0, abs=1e-12)
        assert kept == ((step + 1) % CYCLE == CYCLE // 2)
    assert len(cycle.store) == 3


def test_a_snapshot_holds_the_weights_before_the_step_that_uses_the_minimum(
    tmp_path: Path,
) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, CYCLE // 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0005, rel=0, abs=1e-15)
    for name, tensor in model.state_dict().items():
        assert torch.equal(cycle.store[0][name], tensor), name


def test_each_parameter_group_has_a_rate_of_its_own(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[3].parameters()}], lr=1.0)
    cycle = fge.FGE(
        model, optimizer, cycle_steps=4, max_lr=[0.4, 0.04], min_lr=[0.2, 0.0], out=tmp_path
    )
    rates = [rates for _, rates, _ in run(cycle, model, optimizer, 0, 5)]
    expected = [[0.4, 0.04], [0.3, 0.02], [0.2, 0.0], [0.3, 0.02], [0.4, 0.04]]
    for given, wanted in zip(rates, expected, strict=True):
        assert given == pytest.approx(wanted, rel=0, abs=1e-12)
    assert cycle.store.facts(0)["lr"] == pytest.approx(0.2, rel=0, abs=1e-15)


def test_an_optimizer_with_a_tensor_rate_is_cycled_too(tmp_path: Path) -> None:
    model = make_model()
    rate = torch.tensor(1.0, dtype=torch.float64)  # as capturable optimizers keep it
    optimizer = SGD(model.parameters(), lr=rate)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, CYCLE // 2)
    assert float(rate) == pytest.approx(0.0005, rel=0, abs=1e-12)
    assert cycle.store.facts(0)["lr"] == pytest.approx(0.0005, rel=0, abs=1e-12)


def test_models_of_any_signature_are_ensembled_with_forward_fn(tmp_path: Path) -> None:
    class Keyworded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model()

        def forward(self, *, values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(values)}

    def forward(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = module(values=batch["values"])["logits"]
        return logits

    model, (inputs, targets) = Keyworded(), data()
    optimizer = SGD(model.parameters(), lr=1.0)
    cycle = fge.FGE(
        model, optimizer, cycle_steps=2, max_lr=0.5, min_lr=0.1, out=tmp_path, forward_fn=forward
    )
    kept = []
    for _ in range(3):
        F.cross_entropy(model(values=inputs)["logits"], targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if cycle.step():
            kept.append(copy.deepcopy(model.inner).eval())
    with torch.no_grad():
        expected = torch.stack([m(inputs).double().softmax(1) for m in kept]).mean(0)
    assert len(kept) == 2
    probs = cycle.ensemble().predict_proba([{"values": inputs}])
    assert torch.allclose(probs, expected, rtol=0, atol=1e-15)


def test_a_wrapped_model_leaves_snapshots_of_the_model_itself(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    cycle = fge.FGE(nn.DataParallel(model), optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, CYCLE)
    assert set(cycle.store[0]) == set(model.state_dict())
    probs = fge.Ensemble(make_model(), cycle.store).predict_proba([data()[0]])
    assert torch.equal(cycle.ensemble().predict_proba([data()[0]]), probs)


@pytest.mark.parametrize("make_optimizer", MAKE_OPTIMIZER.values(), ids=MAKE_OPTIMIZER)
@pytest.mark.parametrize("cut", [2, CYCLE // 2, 13, 2 * CYCLE])
def test_a_resumed_loop_ends_bitwise_where_the_uninterrupted_one_does(
    tmp_path: Path, make_optimizer: Callable[[nn.Module], Optimizer], cut: int
) -> None:
    steps = 3 * CYCLE
    model = make_model()
    optimizer = make_optimizer(model)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, cut)
    saved = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        | {"cycle": json.loads(json.dumps(cycle.state_dict()))}
    )
    history = run(cycle, model, optimizer, cut, steps)
    files = contents(tmp_path)

    resumed_model = make_model(seed=1)
    resumed_optimizer = make_optimizer(resumed_model)
    resumed = fge.FGE(resumed_model, resumed_optimizer, **OPTIONS, out=tmp_path)
    resumed_model.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["cycle"])
    assert len(resumed.store) == saved["cycle"]["snapshots"] < len(files) - 1
    assert run(resumed, resumed_model, resumed_optimizer, cut, steps) == history
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed_model.state_dict()[name], tensor), name
    assert contents(tmp_path) == files


def test_later_snapshots_are_dropped_when_a_state_is_loaded(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, CYCLE)
    state, before = cycle.state_dict(), contents(tmp_path)
    run(cycle, model, optimizer, CYCLE, 3 * CYCLE)
    assert len(cycle.store) == 3
    resumed = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    resumed.load_state_dict(state)
    assert contents(tmp_path) == before


def test_a_state_from_before_the_first_snapshot_empties_the_folder(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, 2)
    state = cycle.state_dict()
    run(cycle, model, optimizer, 2, CYCLE)
    resumed = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    resumed.load_state_dict(state)
    assert len(resumed.store) == 0
    assert [kept for _, _, kept in run(resumed, model, optimizer, 2, 4)] == [False, True]


def test_loading_sets_the_rate_of_the_next_step(tmp_path: Path) -> None:
    optimizer = SGD(make_model().parameters(), lr=1.0)
    cycle = fge.FGE(make_model(), optimizer, **OPTIONS, out=tmp_path)
    cycle.load_state_dict({"scheduler": {"last_epoch": 6}, "snapshots": 0})
    expected = triangular(6, max_lr=0.05, min_lr=0.0005, cycle_steps=CYCLE)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=0, abs=1e-15)


def test_a_folder_that_holds_snapshots_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    fge.SnapshotStore(tmp_path).append(make_model())
    before = contents(tmp_path)
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    message = "already holds 1 snapshots; load the saved state to continue from them, give"
    with pytest.raises(UserError, match=message):
        run(fge.FGE(model, optimizer, **OPTIONS, out=tmp_path), model, optimizer, 0, CYCLE)
    assert contents(tmp_path) == before


def test_a_state_that_speaks_of_more_snapshots_than_there_are_is_refused(tmp_path: Path) -> None:
    cycle = fge.FGE(make_model(), SGD(make_model().parameters()), **OPTIONS, out=tmp_path)
    state = {"scheduler": {"last_epoch": 13}, "snapshots": 2}
    with pytest.raises(UserError, match="holds 0 snapshots, the state speaks of 2: give the fold"):
        cycle.load_state_dict(state)
    assert cycle.scheduler.last_epoch == 0


def test_an_ensemble_does_not_change_as_training_goes_on(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    cycle = fge.FGE(model, optimizer, **OPTIONS, out=tmp_path)
    run(cycle, model, optimizer, 0, CYCLE)
    ensemble = cycle.ensemble()
    before = ensemble(data()[0])
    run(cycle, model, optimizer, CYCLE, 2 * CYCLE)
    assert len(cycle.store) == 2
    assert len(ensemble) == 1
    assert torch.equal(ensemble(data()[0]), before)


def test_an_ensemble_before_the_first_snapshot_is_refused(tmp_path: Path) -> None:
    cycle = fge.FGE(make_model(), SGD(make_model().parameters()), **OPTIONS, out=tmp_path)
    with pytest.raises(UserError, match="at least one member, got none"):
        cycle.ensemble()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cycle_steps": 7}, "cycle_steps must be even and >= 2, got 7"),
        ({"cycle_steps": 0}, "cycle_steps must be even and >= 2, got 0"),
        ({"min_lr": 0.5}, r"min_lr must not exceed max_lr, got min_lr 0\.5 > max_lr 0\.05"),
        ({"max_lr": [0.1, 0.2]}, "max_lr must be one number or one per parameter group"),
    ],
)
def test_cycles_that_cannot_be_are_refused_at_once(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = make_model()
    with pytest.raises(UserError, match=message):
        fge.FGE(model, SGD(model.parameters(), lr=1.0), **(OPTIONS | change), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_state_that_no_snapshot_can_hold_is_refused_before_any_training(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 0}

        def set_extra_state(self, state: Any) -> None:
            del state

    model = nn.Sequential(nn.LazyLinear(4), Counting(4, 3))
    with pytest.raises(UserError, match=r"'1\._extra_state' is a dict; only tensors can be saved"):
        fge.FGE(model, SGD(model.parameters(), lr=1.0), **OPTIONS, out=tmp_path)
