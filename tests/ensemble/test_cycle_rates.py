"""``FGE`` where something else changes the optimizer, and where a snapshot cannot be written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

import fge
from fge.errors import UserError
from fge.train.schedules import triangular

OPTIONS: dict[str, Any] = {"cycle_steps": 8, "max_lr": 0.5, "min_lr": 0.1}
MESSAGE = r"the learning rate of parameter group 0 is .*, but FGE set it to .*: leave the"


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def make_cycle(out: Path, **options: Any) -> fge.FGE:
    model = make_model()
    return fge.FGE(model, SGD(model.parameters(), lr=1.0), out=out, **{**OPTIONS, **options})


def train(cycle: fge.FGE) -> None:
    """Take an optimizer step."""
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    loss: Tensor = cycle.model(inputs).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    cycle.scheduler.optimizer.step()
    cycle.scheduler.optimizer.zero_grad()


def run(cycle: fge.FGE, steps: int) -> list[bool]:
    kept = []
    for _ in range(steps):
        train(cycle)
        kept.append(cycle.step())
    return kept


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def expected_rate(step: int) -> float:
    return triangular(step, max_lr=0.5, min_lr=0.1, cycle_steps=8)


# ----------------------------------------------------------------------------------- other rates


def test_another_scheduler_is_found_out_at_the_next_step_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    cycle = make_cycle(tmp_path)
    other = ExponentialLR(cycle.scheduler.optimizer, gamma=0.1)
    run(cycle, 5)
    other.step()
    train(cycle)
    message = (
        r"the learning rate of parameter group 0 is 0\.02, but FGE set it to 0\.2: leave the rates "
        r"to FGE, without another scheduler; to resume, load the optimizer's state before that of"
    )
    with pytest.raises(UserError, match=message):
        cycle.step()
    assert (cycle.scheduler.last_epoch, len(cycle.store)) == (5, 1)
    cycle.scheduler.optimizer.param_groups[0]["lr"] = expected_rate(5)
    assert run(cycle, 7) == [False] * 6 + [True]


def test_a_rate_of_the_loops_own_is_found_out_in_every_group(tmp_path: Path) -> None:
    model = make_model()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = Adam(groups, lr=1.0)
    cycle = fge.FGE(
        model, optimizer, cycle_steps=4, max_lr=[0.4, 0.04], min_lr=[0.2, 0], out=tmp_path
    )
    run(cycle, 2)
    optimizer.param_groups[1]["lr"] = 0.5
    with pytest.raises(UserError, match=r"group 1 is 0\.5, but FGE set it to 0: leave"):
        cycle.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_tensor_rate_is_compared_in_its_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model()
    rate = torch.tensor(1.0, dtype=dtype)
    cycle = fge.FGE(model, SGD(model.parameters(), lr=rate), out=tmp_path, **OPTIONS)
    run(cycle, 20)
    assert len(cycle.store) == 3
    rate.mul_(0.9)
    with pytest.raises(UserError, match=MESSAGE):
        cycle.step()


def test_resuming_takes_the_rates_of_the_new_options(tmp_path: Path) -> None:
    cycle = make_cycle(tmp_path)
    run(cycle, 5)
    states = copy.deepcopy((cycle.scheduler.optimizer.state_dict(), cycle.state_dict()))
    resumed = make_cycle(tmp_path, max_lr=0.05, min_lr=0.01)
    resumed.scheduler.optimizer.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert rates(resumed.scheduler.optimizer) == pytest.approx([expected_rate(5) / 10])
    assert run(resumed, 7)[-1]


def test_an_optimizers_state_loaded_last_is_found_out(tmp_path: Path) -> None:
    cycle = make_cycle(tmp_path)
    run(cycle, 5)
    states = copy.deepcopy((cycle.scheduler.optimizer.state_dict(), cycle.state_dict()))
    resumed = make_cycle(tmp_path, max_lr=0.05, min_lr=0.01)
    resumed.load_state_dict(states[1])
    resumed.scheduler.optimizer.load_state_dict(states[0])
    with pytest.raises(UserError, match="load the optimizer's state before that of FGE"):
        run(resumed, 1)
    forgotten = make_cycle(tmp_path, overwrite=True)
    forgotten.scheduler.optimizer.load_state_dict(states[0])  # and FGE's not at all
    with pytest.raises(UserError, match=MESSAGE):
        run(forgotten, 1)


# ------------------------------------------------------------------------------ parameter groups


def with_head_frozen(out: Path, **options: Any) -> tuple[fge.FGE, nn.Sequential]:
    model = make_model()
    optimizer = SGD(model[0].parameters(), lr=1.0)
    return fge.FGE(model, optimizer, out=out, **{**OPTIONS, **options}), model


@pytest.mark.parametrize("average", [0.0, 1.0])
@pytest.mark.parametrize("when", [0, 2, 3, 5])
def test_a_group_added_during_the_cycle_joins_it(when: int, average: float, tmp_path: Path) -> None:
    cycle, model = with_head_frozen(tmp_path, average=average)
    optimizer = cycle.scheduler.optimizer
    run(cycle, when)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    before = model[2].weight.detach().clone()
    assert run(cycle, 12 - when) == [step in (4, 12) for step in range(when + 1, 13)]
    assert rates(optimizer) == pytest.approx([expected_rate(12)] * 2)
    assert cycle.scheduler.get_last_lr() == rates(optimizer)
    assert len(cycle.store) == len(cycle.ensemble()) == 2
    assert not torch.equal(cycle.store[1]["2.weight"], before)


def test_rates_per_group_need_one_for_an_added_group_and_no_snapshot_is_lost(
    tmp_path: Path,
) -> None:
    cycle, model = with_head_frozen(tmp_path, max_lr=[0.5], min_lr=[0.1])
    optimizer = cycle.scheduler.optimizer
    run(cycle, 3)
    train(cycle)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    message = (
        "the optimizer has 2 parameter groups, but max_lr and min_lr were given for 1: make an FGE "
        r"with rates for all and the same folder, and load this one's state_dict\(\) into it$"
    )
    with pytest.raises(UserError, match=message):
        cycle.step()
    assert (cycle.scheduler.last_epoch, len(cycle.store)) == (3, 0)
    options = {**OPTIONS, "max_lr": [0.5, 0.05], "min_lr": [0.1, 0.01]}
    wider = fge.FGE(model, optimizer, out=tmp_path, **options)
    wider.load_state_dict(cycle.state_dict())
    assert wider.step()  # the snapshot that was due
    assert rates(optimizer) == pytest.approx([0.1, 0.01])
    assert run(wider, 8)[-1]


def test_a_group_may_be_added_before_the_state_is_loaded(tmp_path: Path) -> None:
    cycle, model = with_head_frozen(tmp_path)
    cycle.scheduler.optimizer.add_param_group({"params": list(model[2].parameters())})
    run(cycle, 5)
    state = cycle.state_dict()
    resumed, model = with_head_frozen(tmp_path)
    resumed.scheduler.optimizer.add_param_group({"params": list(model[2].parameters())})
    resumed.load_state_dict(state)
    assert rates(resumed.scheduler.optimizer) == pytest.approx([expected_rate(5)] * 2)
    assert run(resumed, 7)[-1]


# ------------------------------------------------------------------------------- a failed write


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_snapshot_that_could_not_be_written_is_kept_by_the_next_call(
    average: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (make_cycle(tmp_path / name, average=average) for name in "ab")
    run(whole, 12)
    run(cut, 11)
    train(cut)
    with monkeypatch.context() as patch:
        patch.setattr("fge.disk.os.fsync", _full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                cut.step()
    assert (len(cut.store), cut.scheduler.last_epoch) == (1, 11)
    assert cut.step()
    assert rates(cut.scheduler.optimizer) == rates(whole.scheduler.optimizer)
    assert cut.store.facts(1) == whole.store.facts(1)  # the SHA-256 among them


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")
