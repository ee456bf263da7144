"""The stages that an FGE run consists of."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from fge.config import FGEConfig, TrainConfig
from fge.errors import UserError
from fge.train import (
    METHODS,
    SGLD,
    EndpointLR,
    Method,
    Stage,
    TriangularLR,
    fge_paper_stages,
    find_method,
)
from fge.train import make_optimizer as make_recipe_optimizer

PER_EPOCH = 3


def make_optimizer(lr: float) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def first_rates(stage: Stage, optimizer: SGD) -> list[float]:
    """Return the learning rate in each epoch's first step."""
    schedule = stage.schedule(optimizer, PER_EPOCH)
    rates = []
    for _ in range(stage.first_epoch, stage.last_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in range(PER_EPOCH):
            optimizer.step()
            schedule.step()
    return rates


def test_an_fge_run_is_a_conventional_start_and_cycles_that_go_on_from_it() -> None:
    start, cycles = fge_paper_stages(FGEConfig(epochs=24, start_epoch=10, cycle_epochs=4))
    assert (start.name, start.first_epoch, start.last_epoch) == ("start", 0, 10)
    assert (start.after, start.store) == (None, None)
    assert (cycles.name, cycles.first_epoch, cycles.last_epoch) == ("fge", 10, 24)
    assert (cycles.after, cycles.store, cycles.keep) == ("start", "snapshots", "minima")


def test_the_start_follows_the_schedule_of_the_whole_budget() -> None:
    config = FGEConfig(epochs=10, start_epoch=8, cycle_epochs=4, lr=0.2)
    rates = first_rates(fge_paper_stages(config)[0], make_optimizer(config.base_lr))
    factors = [1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575]
    assert rates == pytest.approx([0.2 * f for f in factors], rel=0, abs=1e-12)


def test_the_cycles_begin_at_max_lr_and_end_at_min_lr() -> None:
    config = FGEConfig(epochs=10, start_epoch=4, cycle_epochs=4, max_lr=0.5, min_lr=0.1)
    stage, optimizer = fge_paper_stages(config)[1], make_optimizer(config.base_lr)
    rates = first_rates(stage, optimizer)
    assert rates == pytest.approx([0.5, 0.3, 0.1, 0.3, 0.5, 0.3], rel=0, abs=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1, rel=0, abs=1e-12)


def test_the_schedules_are_those_of_the_paper() -> None:
    stages = fge_paper_stages(FGEConfig(epochs=10, single=True))
    kinds = [type(stage.schedule(make_optimizer(0.1), PER_EPOCH)) for stage in stages]
    assert kinds == [EndpointLR, TriangularLR, EndpointLR]


@pytest.mark.parametrize(
    ("epochs", "last"), [(12, 12), (13, 12), (14, 12), (15, 12), (16, 16), (17, 16)]
)
def test_a_budget_that_ends_within_a_cycle_stops_at_the_last_minimum(
    epochs: int, last: int
) -> None:
    stage = fge_paper_stages(FGEConfig(epochs=epochs, start_epoch=2, cycle_epochs=4))[1]
    assert stage.last_epoch == last
    schedule = stage.schedule(make_optimizer(0.1), PER_EPOCH)
    schedule.load_state_dict({"last_epoch": (last - 2) * PER_EPOCH})
    assert schedule.at_minimum


@given(epochs=st.integers(1, 400), half=st.integers(1, 60))
def test_the_default_start_leaves_no_epoch_unused(epochs: int, half: int) -> None:
    if half > epochs:
        with pytest.raises(UserError, match=f"cycle_epochs {2 * half} is too long"):
            FGEConfig(epochs=epochs, cycle_epochs=2 * half)
        return
    config = FGEConfig(epochs=epochs, cycle_epochs=2 * half, average=0.0)
    assert config.last_cycle_epoch == epochs
    assert (epochs - config.first_cycle_epoch - half) % (2 * half) == 0
    if epochs >= 3 * half:  # room for two snapshots
        assert config.first_cycle_epoch <= max(0.75 * epochs + half, epochs - 3 * half)
        assert config.first_cycle_epoch >= min(0.75 * epochs - half, epochs - 3 * half) - 1e-9


@given(data=st.data(), epochs=st.integers(1, 200), half=st.integers(1, 30))
def test_any_start_ends_at_the_last_minimum_within_the_budget(
    data: st.DataObject, epochs: int, half: int
) -> None:
    if half > epochs:
        return
    start = data.draw(st.integers(0, epochs - half))
    config = FGEConfig(epochs=epochs, cycle_epochs=2 * half, start_epoch=start)
    minima = [e for e in range(start, epochs + 1) if (e - start) % (2 * half) == half]
    assert config.last_cycle_epoch == minima[-1]


def test_pretrained_weights_are_cycled_from_the_first_epoch() -> None:
    start, cycles = fge_paper_stages(FGEConfig(epochs=9, cycle_epochs=4, pretrained=Path("w.pt")))
    assert (start.first_epoch, start.last_epoch) == (0, 0)
    assert (cycles.first_epoch, cycles.last_epoch) == (0, 6)


def test_the_single_network_shares_the_start_and_keeps_its_end() -> None:
    stages = fge_paper_stages(FGEConfig(epochs=20, start_epoch=8, cycle_epochs=4, single=True))
    single = stages[-1]
    assert [stage.name for stage in stages] == ["start", "fge", "single"]
    assert (single.first_epoch, single.last_epoch) == (8, 20)
    assert (single.after, single.store, single.keep) == ("start", "single", "end")


def test_the_single_networks_schedule_goes_on_after_cycles_on_the_same_optimizer() -> None:
    config = FGEConfig(epochs=10, start_epoch=4, cycle_epochs=4, lr=0.2, single=True)
    optimizer = make_optimizer(config.base_lr)
    for stage in fge_paper_stages(config)[:-1]:
        first_rates(stage, optimizer)
    rates = first_rates(fge_paper_stages(config)[-1], optimizer)
    factors = [1, 0.7525, 0.505, 0.2575, 0.01, 0.01]
    assert rates == pytest.approx([0.2 * f for f in factors], rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_epoch": 24}, r"start_epoch must be in \[0, epochs\) = \[0, 24\), got 24"),
        ({"start_epoch": -1}, r"start_epoch must be in .*, got -1"),
        ({"cycle_epochs": 3}, "cycle_epochs must be even and >= 2, got 3"),
        ({"cycle_epochs": 0}, "cycle_epochs must be even and >= 2, got 0"),
        (
            {"start_epoch": 20, "cycle_epochs": 10},
            "cycle_epochs 10 is too long: the first snapshot would end epoch 25 of 24; "
            "use cycle_epochs <= 8 or epochs >= 25",
        ),
        ({"pretrained": Path("w.pt"), "start_epoch": 2}, "--pretrained .* got start_epoch 2"),
        ({"pretrained": Path("w.pt"), "single": True}, "--single trains from initial weights"),
        ({"max_lr": 0.1, "min_lr": 0.2}, r"min_lr 0\.2 > max_lr 0\.1"),
    ],
)
def test_options_that_make_no_run_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FGEConfig(**({"epochs": 24} | options))  # type: ignore[arg-type]


def test_the_remedies_of_a_cycle_that_is_too_long_work() -> None:
    assert FGEConfig(epochs=24, start_epoch=20, cycle_epochs=8).last_cycle_epoch == 24
    assert FGEConfig(epochs=25, start_epoch=20, cycle_epochs=10).last_cycle_epoch == 25


def train_config(**changes: object) -> TrainConfig:
    return TrainConfig(**changes)  # type: ignore[arg-type]


def kept_epochs(stage: Stage, optimizer: SGD) -> list[float]:
    """Return after how many epochs the stage keeps a snapshot."""
    schedule = stage.schedule(optimizer, PER_EPOCH)
    kept = []
    for done in range(1, (stage.last_epoch - stage.first_epoch) * PER_EPOCH + 1):
        optimizer.step()
        schedule.step()
        kept += [stage.first_epoch + done / PER_EPOCH] if schedule.at_minimum else []
    return kept


def test_methods_are_described_under_their_own_names() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}


def test_a_snapshot_ensemble_keeps_a_network_per_cosine_cycle() -> None:
    (stage,) = METHODS["sse"].stages(train_config(method="sse", epochs=17, sse_cycles=3))
    assert (stage.first_epoch, stage.last_epoch) == (0, 15)
    assert kept_epochs(stage, make_optimizer(0.1)) == [5, 10, 15]


def test_csgld_keeps_samples_of_the_last_epochs_of_each_cycle() -> None:
    config = train_config(method="csgld", epochs=21, csgld_cycles=2, csgld_samples=3)
    (stage,) = METHODS["csgld"].stages(config)
    recipe = METHODS["csgld"].recipe(config)
    optimizer = make_recipe_optimizer(recipe, [nn.Parameter(torch.zeros(1))], examples=40)
    assert isinstance(optimizer, SGLD)
    assert kept_epochs(stage, optimizer) == [8, 9, 10, 18, 19, 20]
    assert (recipe.lr, recipe.momentum) == (0.5, 0)


@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        ({}, 1 / 40),
        ({"csgld_temperature": 0.5}, 0.5),
        ({"csgld_temperature": 0.5, "csgld_noise_scale": 2.0}, 2.0),
        ({"csgld_noise_scale": 0.0}, 0.0),
    ],
)
def test_the_last_tenth_of_a_csgld_cycle_is_noisy(
    options: dict[str, float], temperature: float
) -> None:
    config = train_config(method="csgld", epochs=20, csgld_cycles=1, csgld_samples=2, **options)
    (stage,) = METHODS["csgld"].stages(config)
    optimizer = SGLD([nn.Parameter(torch.zeros(1))], 0.5, examples=40)
    schedule = stage.schedule(optimizer, PER_EPOCH)
    found = []
    for _ in range(20 * PER_EPOCH):
        found.append(optimizer.param_groups[0]["temperature"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0.0] * 18 * PER_EPOCH + [temperature] * 2 * PER_EPOCH)


def test_swa_averages_the_weights_of_the_snapshots_of_fge() -> None:
    config = train_config(method="swa", epochs=20, start_epoch=8, cycle_epochs=4)
    ours, theirs = METHODS["swa"].stages(config), fge_paper_stages(config)
    names = [(stage.name, stage.first_epoch, stage.last_epoch) for stage in ours]
    assert names == [(stage.name, stage.first_epoch, stage.last_epoch) for stage in theirs]
    assert METHODS["swa"].combine == "weights"


def test_ema_trains_as_the_single_network_does() -> None:
    config = train_config(method="ema", epochs=10, lr=0.2, ema_decay=0.9)
    (ema,), (single,) = (METHODS[name].stages(config) for name in ("ema", "single"))
    assert first_rates(ema, make_optimizer(0.2)) == first_rates(single, make_optimizer(0.2))
    assert (ema.keep, ema.last_epoch) == ("end", 10)
    assert METHODS["ema"].ema_decay is not None
    assert METHODS["ema"].ema_decay(config) == 0.9


MINE = Method("mine", "one network more", METHODS["single"].stages)


def test_a_method_of_one_s_own_is_found_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_methods")
    module.mine, module.number = MINE, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_methods", module)
    assert find_method("own_methods:mine") is MINE
    with pytest.raises(UserError, match=r"must be an fge\.methods\.Method, got a int"):
        find_method("own_methods:number")


@pytest.mark.parametrize("name", ["best-snapshot", "fold", "swa", "ensemble"])
def test_a_method_of_one_s_own_is_not_called_as_another_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("own_methods")
    module.mine = replace(MINE, name=name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_methods", module)
    with pytest.raises(
        UserError, match=f"own_methods:mine has the name '{name}', which is another row"
    ):
        find_method("own_methods:mine")


def test_swa_is_a_name_for_weights_that_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_methods")
    module.mine = replace(MINE, name="swa", combine="weights")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_methods", module)
    assert find_method("own_methods:mine").combine == "weights"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sgd"}, "unknown method 'sgd'"),
        ({"method": "sse", "epochs": 4}, r"sse needs epochs >= 5 \(5 cycles of 1 epoch\), got 4"),
        (
            {"method": "csgld", "epochs": 11},
            r"csgld needs epochs >= 12 \(4 cycles of 3 samples, one an epoch\), got 11",
        ),
        ({"sse_cycles": 0}, "sse_cycles must be >= 1, got 0"),
        ({"csgld_cycles": 0}, "csgld_cycles must be >= 1, got 0"),
        ({"csgld_samples": 0}, "csgld_samples must be >= 1, got 0"),
        ({"csgld_lr": 0.0}, "csgld_lr must be finite and above 0, got 0"),
        ({"csgld_temperature": -1.0}, "csgld_temperature must be finite and >= 0, got -1"),
        ({"csgld_noise_scale": -1.0}, "csgld_noise_scale must be finite and >= 0, got -1"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \(0, 1\), got 1"),
    ],
)
def test_methods_that_cannot_be_run_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_config(**options)


def test_the_least_budgets_named_are_enough() -> None:
    assert train_config(method="sse", epochs=5).epochs == 5
    assert train_config(method="csgld", epochs=12).epochs == 12
