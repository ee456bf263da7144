"""``FGE`` with members that are means of the weights over the last part of each descent."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.errors import UserError
from fge.networks import StatisticsWarning

OPTIONS: dict[str, Any] = {"cycle_steps": 8, "max_lr": 0.05, "min_lr": 0.005}


def make_model(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(5) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 5), middle, nn.ReLU(), nn.Linear(5, 3)).double()


def inputs() -> Tensor:
    return torch.randn(24, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def run(cycle: fge.FGE, first: int, last: int) -> list[dict[str, Tensor]]:
    """Take the steps [first, last); return the parameters after each."""
    model, optimizer = cycle.model, cycle.scheduler.optimizer
    x, history = inputs(), []
    y = (x[:, 0] > 0).long()
    for step in range(first, last):
        part = torch.arange(step * 5, step * 5 + 6) % len(x)
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
        cycle.step()
        history.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return history


def make_cycle(out: Path, model: nn.Module, **options: Any) -> fge.FGE:
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    return fge.FGE(model, optimizer, out=out, **{**OPTIONS, **options})


def test_a_member_is_the_mean_over_the_last_part_of_its_descent(tmp_path: Path) -> None:
    cycle = make_cycle(tmp_path, make_model(norm=False), average=0.5)
    history = run(cycle, 0, 16)
    # Descents of 4 steps end after steps 4 and 12; their last halves are 2 steps.
    for position, end in enumerate((4, 12)):
        for name in history[0]:
            mean = (history[end - 2][name] + history[end - 1][name]) / 2
            torch.testing.assert_close(cycle.store[position][name], mean, rtol=0, atol=1e-14)
    index = json.loads((tmp_path / "index.json").read_text())["snapshots"]
    assert [entry["averaged_steps"] for entry in index] == [2, 2]


def test_members_have_batch_norm_statistics_of_their_own(tmp_path: Path) -> None:
    batches = [(inputs()[:12],), (inputs()[12:],)]
    cycle = make_cycle(tmp_path, make_model(), average=0.5, refresh=batches)
    run(cycle, 0, 8)
    expected = make_model()
    expected.load_state_dict(cycle.store[0])
    fge.refresh_batch_norm(expected, batches)
    for name, value in expected.state_dict().items():
        assert torch.equal(cycle.store[0][name], value), name


def test_layers_that_are_trained_in_evaluation_mode_keep_their_statistics(tmp_path: Path) -> None:
    model = make_model().append(nn.BatchNorm1d(3).double())
    cycle = make_cycle(tmp_path, model, average=0.5, refresh=[inputs()])
    model[1].eval()  # that of a backbone, say, whose weights came with these statistics
    before = {name: value.clone() for name, value in model[1].named_buffers()}
    run(cycle, 0, 4)
    tail = fge.TailAverage(model, first_step=0)
    tail.step()
    for state in (cycle.store[0], tail.module(refresh=[inputs()]).state_dict()):
        assert all(torch.equal(state[f"1.{name}"], value) for name, value in before.items())
        assert not torch.equal(state["4.running_mean"], model[4].running_mean)
    assert fge.refresh_batch_norm(model, [inputs()]) == len(inputs())
    assert not torch.equal(model[1].running_mean, before["running_mean"])


def test_averaging_leaves_the_training_alone(tmp_path: Path) -> None:
    """A shuffling loader draws from PyTorch's global generator, and so does dropout."""
    results = []
    for part in (0.0, 0.5):
        model = make_model()
        model.append(nn.Dropout(0.2))
        loader = DataLoader(TensorDataset(inputs()), batch_size=8, shuffle=True)
        cycle = make_cycle(tmp_path / str(part), model, average=part, refresh=loader)
        torch.manual_seed(5)
        run(cycle, 0, 20)
        results.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("workers", [0, 1])
def test_statistics_from_the_loader_in_use_leave_its_passes_alone(
    tmp_path: Path, workers: int
) -> None:
    """Its order comes from a generator of its own, and its workers persist."""
    passes: list[list[Tensor]] = []
    for part in (0.0, 0.5):
        loader = DataLoader(
            TensorDataset(inputs()),
            batch_size=4,
            shuffle=True,
            generator=torch.Generator().manual_seed(3),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        cycle = make_cycle(tmp_path / str(part), make_model(), average=part, refresh=loader)
        seen = []
        for _ in range(3):  # the minima after steps 4 and 12 are in the midst of a pass
            for (x,) in loader:
                seen.append(x)
                cycle.scheduler.optimizer.step()
                cycle.step()
        passes.append(seen)
    assert len(passes[0]) == len(passes[1]) == 18
    assert all(map(torch.equal, *passes))


def test_a_resumed_loop_ends_bitwise_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = make_cycle(tmp_path / "whole", make_model(norm=False), average=0.75)
    run(whole, 0, 16)
    part = make_cycle(tmp_path / "cut", make_model(norm=False), average=0.75)
    run(part, 0, 11)  # within a tail
    state = copy.deepcopy((part.model.state_dict(), part.scheduler.optimizer.state_dict()))
    saved = copy.deepcopy(part.state_dict())
    model = make_model(norm=False)
    resumed = make_cycle(tmp_path / "cut", model, average=0.75)
    model.load_state_dict(state[0])
    resumed.scheduler.optimizer.load_state_dict(state[1])
    resumed.load_state_dict(saved)
    run(resumed, 11, 16)
    assert len(whole.store) == len(resumed.store) == 2
    for position in range(2):
        for name, value in whole.store[position].items():
            assert torch.equal(value, resumed.store[position][name]), name


def test_a_state_saved_after_a_failed_step_counts_its_weights_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a library saves one when a training fails."""

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    failed = make_cycle(tmp_path, make_model(norm=False), average=1.0)
    with monkeypatch.context() as patched:
        patched.setattr(failed.store, "append", full_disk)
        history = run(failed, 0, 3)
        with pytest.raises(OSError, match="No space left"):
            run(failed, 3, 4)
    history.append({n: p.detach().clone() for n, p in failed.model.named_parameters()})
    states = failed.scheduler.optimizer.state_dict(), failed.state_dict()
    resumed = make_cycle(tmp_path, failed.model, average=1.0)
    resumed.scheduler.optimizer.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert resumed.step()
    assert resumed.store.facts(0)["averaged_steps"] == 4
    for name in history[0]:
        mean = torch.stack([weights[name] for weights in history]).mean(0)
        torch.testing.assert_close(resumed.store[0][name], mean, rtol=0, atol=1e-14)


def test_by_default_a_mean_is_kept_where_it_needs_no_more_data(tmp_path: Path) -> None:
    norms = [nn.InstanceNorm1d(3, affine=True, track_running_stats=kept) for kept in (False, True)]
    parts = [
        make_cycle(tmp_path / str(number), model).average
        for number, model in enumerate((make_model(norm=False), make_model(), *norms))
    ]
    assert parts == [0.3, 0.0, 0.3, 0.0]
    refreshed = make_cycle(tmp_path / "c", make_model(), refresh=[inputs()])
    assert refreshed.average == 0.3
    assert "average=0.3" in repr(refreshed)


def test_where_statistics_cannot_be_estimated_the_last_weights_are_kept(tmp_path: Path) -> None:
    """A layer of the user's own collects them, as its buffers' names say."""
    model = make_model(norm=False)
    model[1].register_buffer("running_var", torch.ones(5))
    assert make_cycle(tmp_path / "a", model).average == 0
    assert make_cycle(tmp_path / "b", model, refresh=[inputs()]).average == 0
    with pytest.warns(StatisticsWarning, match="^the running statistics in Identity") as caught:
        assert make_cycle(tmp_path / "c", model, average=0.3).average == 0.3
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": 0.3}, "average is 0.3 and the model has batch norm.*give refresh=batches"),
        ({"average": 1.5}, r"average must be in \[0, 1\], got 1.5"),
    ],
)
def test_what_would_make_a_wrong_network_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make_cycle(tmp_path, make_model(), **options)


def test_a_state_without_a_mean_continues_with_last_weights_only(tmp_path: Path) -> None:
    old = make_cycle(tmp_path, make_model(norm=False), average=0.0)
    run(old, 0, 5)
    state = old.state_dict()
    assert set(state) == {"scheduler", "snapshots"}
    make_cycle(tmp_path, make_model(norm=False), average=0.0).load_state_dict(state)
    with pytest.raises(UserError, match="saved without a mean of weights; give average=0"):
        make_cycle(tmp_path, make_model(norm=False), average=0.3).load_state_dict(state)


def test_a_lazy_model_is_averaged_once_it_has_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(2)).double()
    cycle = make_cycle(tmp_path, model, average=0.5)
    assert cycle.state_dict()["mean"] is None
    run(cycle, 0, 5)
    assert cycle.store.facts(0)["averaged_steps"] == 2


def test_inputs_that_can_be_read_once_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="iterable more than once"):
        make_cycle(tmp_path, make_model(), average=0.5, refresh=iter([inputs()]))


def test_snapshots_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    run(make_cycle(tmp_path, make_model(norm=False)), 0, 5)
    with pytest.raises(UserError, match="or overwrite=True to drop them"):
        run(make_cycle(tmp_path, make_model(norm=False)), 0, 1)
    again = make_cycle(tmp_path, make_model(norm=False), overwrite=True)
    run(again, 0, 5)
    assert len(again.store) == 1
