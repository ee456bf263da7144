"""What the callbacks share, without the libraries that they are for."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import fge
from fge.errors import UserError
from fge.integrations import CycleCallback, Progress
from fge.integrations.rates import at_rest
from fge.train.schedules import triangular

pytestmark = pytest.mark.filterwarnings("ignore:the last . of .* optimizer steps:UserWarning")
OPTIONS: dict[str, Any] = {"cycle_steps": 4, "max_lr": 0.5, "min_lr": 0.1, "average": 0}


class Training:
    """A training of one weight, whose gradient is 1 in each step, with a callback in it."""

    def __init__(self, steps: int, rate: float = 0.25, **scheduler: Any) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        kind = scheduler.pop("kind", None)
        self.schedulers = [kind(self.optimizer, **scheduler)] if kind else []
        self.steps, self.step, self.rates = steps, 0, list[float]()

    def progress(self) -> Progress:
        return Progress(self.step, self.step // 3, self.steps, 3)

    def prepare(self, callback: CycleCallback, **saved: Any) -> None:
        callback._prepare(
            self.model, self.optimizer, self.progress(), schedulers=self.schedulers, **saved
        )

    def run(self, callback: CycleCallback, until: int) -> list[int]:
        """Train; return the steps that left a snapshot."""
        kept = []
        while self.step < until:
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.model.weight.grad = torch.ones(1, 1)
            self.optimizer.step()
            for scheduler in self.schedulers:
                scheduler.step()
            self.step += 1
            if callback._advance(self.progress()):
                kept.append(self.step)
        return kept


def expected_rates(start: int, steps: int, rate: float = 0.25) -> list[float]:
    cycle = {"max_lr": 0.5, "min_lr": 0.1, "cycle_steps": 4}
    return [rate] * start + [triangular(step, **cycle) for step in range(steps - start)]


@pytest.mark.parametrize("start", [{}, {"start_step": 3}, {"start_epoch": 1}, {"start_epoch": 0}])
@pytest.mark.parametrize("rests", [False, True])
def test_cycles_begin_at_a_step_or_an_epoch(
    tmp_path: Path, start: dict[str, int], rests: bool
) -> None:
    """A scheduler that has come to rest sets its rate at each step, and says that of the cycle."""
    scheduler = {"kind": LambdaLR, "lr_lambda": lambda _: 1.0} if rests else {}
    training = Training(9, **scheduler)
    callback = CycleCallback(out=tmp_path, **OPTIONS, **start)
    training.prepare(callback)
    first = 3 * bool(sum(start.values()))
    assert training.run(callback, 9) == list(range(first + 2, 10, 4))
    assert training.rates == expected_rates(first, 9)
    for scheduler in training.schedulers:
        assert scheduler.get_last_lr() == [expected_rates(first, 10)[-1]]
    assert len(callback.ensemble(output="identity")) == len(range(first + 2, 10, 4))


def test_a_rate_that_nobody_set_is_refused(tmp_path: Path) -> None:
    training = Training(9, kind=LambdaLR, lr_lambda=lambda _: 1.0)
    callback = CycleCallback(out=tmp_path, **OPTIONS)
    training.prepare(callback)
    training.run(callback, 2)
    training.schedulers[0].step = lambda: training.optimizer.param_groups[0].update(lr=0.01)
    with pytest.raises(UserError, match=r"is 0\.01, but FGE set it to 0\.1: leave the rates"):
        training.run(callback, 3)


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 6])
def test_a_training_that_continues_ends_as_the_whole(tmp_path: Path, stop: int) -> None:
    """Before the cycles, at their start, within a tail, at and after a snapshot."""
    options = {**OPTIONS, "average": 1.0, "start_epoch": 1}
    whole = Training(9)
    callback = CycleCallback(out=tmp_path / "whole", **options)
    whole.prepare(callback)
    weights = whole.model.weight.detach().clone()
    whole.run(callback, 9)

    first = Training(9)
    first.model.weight.data.copy_(weights)
    callback = CycleCallback(out=tmp_path / "parts", **options)
    first.prepare(callback)
    first.run(callback, stop)
    saved = callback._state(), first.optimizer.state_dict(), first.model.weight.detach().clone()
    first.run(callback, 8)  # snapshots later than the checkpoint, which are dropped

    second = Training(9)
    second.step = stop
    second.optimizer.load_state_dict(saved[1])
    second.model.weight.data.copy_(saved[2])
    callback = CycleCallback(out=tmp_path / "parts", **options, overwrite=True)
    second.prepare(callback, saved=saved[0])
    second.run(callback, 9)
    assert second.rates == expected_rates(3, 9)[stop:]
    assert torch.equal(second.model.weight, whole.model.weight)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("stop", [4, 5])
def test_a_checkpoint_from_between_step_and_callback_is_caught_up(
    tmp_path: Path, stop: int
) -> None:
    """It is of a training that failed there; the snapshot of that step is kept all the same."""
    states = {}
    for name in ("whole", "parts"):
        training = Training(9)
        training.model.weight.data.fill_(1.0)
        callback = CycleCallback(out=tmp_path / name, **{**OPTIONS, "start_step": 3})
        training.prepare(callback)
        training.run(callback, stop - (name == "parts"))
        states[name] = callback._state()
    training.model.weight.grad = torch.ones(1, 1)
    training.optimizer.step()
    training.step += 1
    callback = CycleCallback(out=tmp_path / "parts", **{**OPTIONS, "start_step": 3})
    training.prepare(callback, saved=states["parts"])
    assert callback._state() == states["whole"]
    assert training.optimizer.param_groups[0]["lr"] == expected_rates(3, stop + 1)[-1]
    whole = list((tmp_path / "whole").glob("*"))
    assert bool(whole) == (stop == 5)
    for file in whole:
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()
    training.step += 2
    with pytest.raises(UserError, match=rf"of step {stop + 2}, but .* of step {stop}: resume from"):
        training.prepare(callback, saved=states["whole"])


def test_what_does_not_fit_is_named_before_the_training(tmp_path: Path) -> None:
    def prepare(steps: int, step: int = 0, **options: Any) -> None:
        training = Training(steps)
        training.step = step
        training.prepare(CycleCallback(out=tmp_path / "new", **{**OPTIONS, **options}))
        assert training.optimizer.param_groups[0]["lr"] in (0.25, 0.5)

    with pytest.raises(UserError, match=r"ends after 9 .* after 11: .* or give cycle_steps=6$"):
        prepare(9, start_step=6, cycle_steps=10)
    with pytest.raises(UserError, match=r"ends after 6 optimizer steps, .* after 8: .* longer$"):
        prepare(6, start_epoch=2)
    with pytest.raises(UserError, match=r"continues at step 5, after .* at step 3, .*start_step=5"):
        prepare(9, step=5, start_epoch=1)
    with pytest.raises(UserError, match="cycle_steps must be even"):
        prepare(9, cycle_steps=3)
    with pytest.warns(UserWarning, match=r"last 3 of 9 .*: train for 6 or 10 steps$"):
        prepare(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(10)
    fge.SnapshotStore(tmp_path / "new").append(nn.Linear(1, 1))
    with pytest.raises(UserError, match="already holds 1 snapshots; resume the training from"):
        prepare(10, start_step=4)
    prepare(10, overwrite=True)
    assert len(fge.SnapshotStore(tmp_path / "new")) == 0


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give start_epoch=1 or start_step=2, and not both"):
        CycleCallback(out=tmp_path, **OPTIONS, start_epoch=1, start_step=2)
    with pytest.raises(UserError, match="start_step must be >= 0, got -1"):
        CycleCallback(out=tmp_path, **OPTIONS, start_step=-1)
    with pytest.raises(UserError, match="has not been in a training yet"):
        CycleCallback(out=tmp_path, **OPTIONS).ensemble()


def test_only_schedules_that_are_constant_from_the_start_on_are_at_rest() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    warm_up = LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    assert at_rest(warm_up, 5, 9)
    assert not at_rest(warm_up, 4, 9)
    assert not at_rest(CosineAnnealingLR(optimizer, 5), 5, 9)
    late = LambdaLR(optimizer, lambda step: float(step < 9))
    assert at_rest(late, 0, 8)
    assert not at_rest(late, 0, 9)


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"fge.integrations.{library}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs the package {library}, .*'\.\[{library}\]'$"):
        importlib.import_module(f"fge.integrations.{library}")


def test_the_package_imports_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("lightning", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "fge.integrations")
    assert importlib.import_module("fge.integrations").CycleCallback
    with pytest.raises(AttributeError, match="has no attribute 'keras'"):
        _ = importlib.import_module("fge.integrations").keras
