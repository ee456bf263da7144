"""Whole numbers of all commands have bounds, checked before anything is loaded or made."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from conftest import ROOT
from curve_runs import run

from fge.commands import COMMANDS
from fge.compare import Plan
from fge.config import CompareConfig, FGEConfig
from fge.config.base import BOUNDS
from fge.errors import UserError

HUGE = "99999999999999999999"


def is_count(hint: Any) -> bool:
    """Whether an option is an int, perhaps None, or several."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0] is int
    return hint is int or int in get_args(hint)


COUNTS = [
    (command, option.name, option.metadata.get(BOUNDS))
    for command, (kind, *_) in COMMANDS.items()
    for hints in [get_type_hints(kind)]
    for option in fields(kind)
    if option.name not in kind.unused and is_count(hints[option.name])
]
NEEDED = {
    "connect": ["--weights", "a.pt", "b.pt"],
    "plane": ["--weights", "a.pt", "b.pt", "c.pt"],
    "sharpness": ["--weights", "a.pt"],
    "predict": ["--run", "r", "--images", "i"],
    "export": ["--run", "r"],
}


def test_every_command_s_whole_numbers_are_found() -> None:
    assert len(COUNTS) > 100
    named = {(command, name) for command, name, _ in COUNTS}
    assert {("curve-ensemble", "ensemble_points"), ("compare", "budgets")} <= named
    assert {("predict", "batch_size"), ("doctor", "threads"), ("plane", "snapshots")} <= named


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name", "bounds"), COUNTS, ids=[f"{command}-{name}" for command, name, _ in COUNTS]
)
def test_a_number_out_of_its_bounds_is_refused_when_it_is_parsed(
    command: str, name: str, bounds: tuple[int | None, int] | None
) -> None:
    assert bounds is not None, f"{name} has no bounds"
    low, high = bounds
    assert low in (None, 0, 1, 2)
    assert 100 <= high < int(HUGE) or name == "seed"  # which is hashed
    for value in (str(max(int(HUGE), high + 2)), str(high + 1)):
        flag = f"--{name.replace('_', '-')}"
        result = run([command, *NEEDED.get(command, []), flag, value])
        assert result.code == 2
        assert result.message == f"{flag} must be <= {high}, got {value}; give a smaller number"
    least = 0 if low is None else low
    result = run([command, *NEEDED.get(command, []), flag, str(least - 1)])
    assert result.code == 2
    assert re.match(rf"{flag} must be .*, got {least - 1}", result.message)


def test_the_check_comes_before_pytorch() -> None:
    script = (
        "import sys, fge.commands;"
        "code = fge.commands.main(['curve-ensemble', '--ensemble-points', '99999999999999999999']);"
        "assert code == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1


def test_bounds_hold_for_options_from_files_and_python_too() -> None:
    with pytest.raises(UserError, match=r"^epochs must be <= 1000000, got 1000001; give a smaller"):
        FGEConfig(epochs=1_000_001)
    with pytest.raises(UserError, match=r"^budgets must be <= 100, got 101; give a smaller number"):
        CompareConfig(budgets=(1, 101))


def test_as_many_seeds_as_are_allowed_can_be_planned(tmp_path: Any) -> None:
    plan = Plan(CompareConfig(seeds=100), tmp_path)
    pools = [cell for cell in plan.cells if cell.method == "deep-ensemble" and cell.budget == 100]
    assert [len(cell.parts) for cell in pools] == [100] * 100
    assert len({job.name for job in plan.jobs(pools)}) == 100
