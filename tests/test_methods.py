"""The stages that an FGE run consists of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from fge.cycle_config import FGEConfig
from fge.errors import UserError
from fge.methods import Stage, fge_stages
from fge.schedule import EndpointLR, TriangularLR

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
    start, cycles = fge_stages(FGEConfig(epochs=24, start_epoch=10, cycle_epochs=4))
    assert (start.name, start.first_epoch, start.last_epoch) == ("start", 0, 10)
    assert (start.after, start.store) == (None, None)
    assert (cycles.name, cycles.first_epoch, cycles.last_epoch) == ("fge", 10, 24)
    assert (cycles.after, cycles.store, cycles.keep) == ("start", "snapshots", "minima")


def test_the_start_follows_the_schedule_of_the_whole_budget() -> None:
    config = FGEConfig(epochs=10, start_epoch=8, cycle_epochs=4, lr=0.2)
    rates = first_rates(fge_stages(config)[0], make_optimizer(config.base_lr))
    factors = [1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575]
    assert rates == pytest.approx([0.2 * f for f in factors], rel=0, abs=1e-12)


def test_the_cycles_begin_at_max_lr_and_end_at_min_lr() -> None:
    config = FGEConfig(epochs=10, start_epoch=4, cycle_epochs=4, max_lr=0.5, min_lr=0.1)
    stage, optimizer = fge_stages(config)[1], make_optimizer(config.base_lr)
    rates = first_rates(stage, optimizer)
    assert rates == pytest.approx([0.5, 0.3, 0.1, 0.3, 0.5, 0.3], rel=0, abs=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1, rel=0, abs=1e-12)


def test_the_schedules_are_those_of_the_paper() -> None:
    stages = fge_stages(FGEConfig(epochs=10, single=True))
    kinds = [type(stage.schedule(make_optimizer(0.1), PER_EPOCH)) for stage in stages]
    assert kinds == [EndpointLR, TriangularLR, EndpointLR]


@pytest.mark.parametrize(
    ("epochs", "last"), [(12, 12), (13, 12), (14, 12), (15, 12), (16, 16), (17, 16)]
)
def test_a_budget_that_ends_within_a_cycle_stops_at_the_last_minimum(
    epochs: int, last: int
) -> None:
    stage = fge_stages(FGEConfig(epochs=epochs, start_epoch=2, cycle_epochs=4))[1]
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
    config = FGEConfig(epochs=epochs, cycle_epochs=2 * half)
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
    start, cycles = fge_stages(FGEConfig(epochs=9, cycle_epochs=4, pretrained=Path("w.pt")))
    assert (start.first_epoch, start.last_epoch) == (0, 0)
    assert (cycles.first_epoch, cycles.last_epoch) == (0, 6)


def test_the_single_network_shares_the_start_and_keeps_its_end() -> None:
    stages = fge_stages(FGEConfig(epochs=20, start_epoch=8, cycle_epochs=4, single=True))
    single = stages[-1]
    assert [stage.name for stage in stages] == ["start", "fge", "single"]
    assert (single.first_epoch, single.last_epoch) == (8, 20)
    assert (single.after, single.store, single.keep) == ("start", "single", "end")


def test_the_single_networks_schedule_goes_on_after_cycles_on_the_same_optimizer() -> None:
    config = FGEConfig(epochs=10, start_epoch=4, cycle_epochs=4, lr=0.2, single=True)
    optimizer = make_optimizer(config.base_lr)
    for stage in fge_stages(config)[:-1]:
        first_rates(stage, optimizer)
    rates = first_rates(fge_stages(config)[-1], optimizer)
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
        ({"pretrained": Path("w.pt"), "single": True}, "--single .*--pretrained leaves out"),
        ({"max_lr": 0.1, "min_lr": 0.2}, r"min_lr 0\.2 > max_lr 0\.1"),
    ],
)
def test_options_that_make_no_run_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FGEConfig(**({"epochs": 24} | options))  # type: ignore[arg-type]


def test_the_remedies_of_a_cycle_that_is_too_long_work() -> None:
    assert FGEConfig(epochs=24, start_epoch=20, cycle_epochs=8).last_cycle_epoch == 24
    assert FGEConfig(epochs=25, start_epoch=20, cycle_epochs=10).last_cycle_epoch == 25
