"""Options that a method does not use are refused, by name and with the remedy."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from fge.commands import cli
from fge.config import (
    METHOD_NAMES,
    OF_METHODS,
    FGEConfig,
    MethodConfig,
    TrainConfig,
    check_of_method,
)
from fge.errors import UserError


def config(method: str, **options: Any) -> TrainConfig:
    return TrainConfig(method=method, epochs=40, **options)


@pytest.mark.parametrize(
    ("method", "option", "value", "reason"),
    [
        ("sse", "cycle_epochs", 4, "--sse-cycles sets how many it has"),
        ("csgld", "cycle_epochs", 4, "--csgld-cycles sets how many it has"),
        ("csgld", "max_lr", 0.1, "--csgld-lr is its rate"),
        ("star", "start_epoch", 3, "--star-trunk sets where its branches begin"),
        ("single", "sse_cycles", 3, "it is for --method sse; leave it out"),
        ("fge", "ema_decay", 0.9, "it is for --method ema; leave it out"),
        ("ema", "min_lr", 0.001, "it is for --method fge, fge-paper or swa; leave it out"),
        (
            "swa",
            "average",
            0.1,
            "it is for --method average, fge, sse, star, split or auto; leave it out",
        ),
    ],
)
def test_an_option_of_other_methods_is_refused(
    method: str, option: str, value: float, reason: str
) -> None:
    flag = f"--{option.replace('_', '-')} {value}"
    message = f"{flag} is not used by --method {method}: {reason}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_of_method(config(method, **{option: value}), ["epochs", option])


def test_a_plan_that_decides_by_itself_has_no_cycles() -> None:
    plan = FGEConfig(epochs=40, plan="auto", cycle_epochs=4)
    message = (
        "--cycle-epochs 4 is not used by --plan auto: it decides by itself how long a descent is"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        check_of_method(plan, ["plan", "cycle_epochs"])
    check_of_method(FGEConfig(epochs=40, cycle_epochs=4), ["cycle_epochs"])
    check_of_method(plan, ["plan", "epochs", "final_factor"])


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_options_of_a_method_are_accepted(method: str) -> None:
    given = [name for name, methods in OF_METHODS.items() if method in methods]
    values = {"start_epoch": 10, "cycle_epochs": 4, "max_lr": 0.1, "min_lr": 0.01, "average": 0.1}
    options = {name: value for name, value in values.items() if name in given}
    check_of_method(config(method, **options), ["method", "lr", "tta", *given])


def test_the_published_methods_may_be_told_that_they_average_nothing() -> None:
    for method in ("fge-paper", "swa"):
        check_of_method(config(method, average=0.0), ["average"])
    with pytest.raises(UserError, match=r"^--average 0\.0 is not used by --method single"):
        check_of_method(config("single", average=0.0), ["average"])


def test_every_option_of_methods_is_known() -> None:
    own = {field.name for field in dataclasses.fields(MethodConfig) if field.name in OF_METHODS}
    assert own == set(OF_METHODS)
    assert {name for methods in OF_METHODS.values() for name in methods} == {*METHOD_NAMES} - {
        "single"
    }


def test_the_command_refuses_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--method", "sse", "--cycle-epochs=4", "--out", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: --cycle-epochs 4 is not used by --method sse: --sse-cycles sets how many it has\n"
    )
