"""Options that depend on the machine and on the number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fge.commands import build
from fge.commands.build import settle_machine, settle_speed
from fge.config import FGEConfig, RunConfig
from fge.errors import UserError
from fge.observer import Observer
from fge.parallel import Ranks

FIXED = {"channels_last": "off", "compile": "off", "amp": "off"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that each process has a GPU."""
    monkeypatch.setattr(build, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(Ranks, "take_device", lambda *_: None)


@pytest.mark.usefixtures("gpu")
def test_cuda_graphs_are_refused_for_several_processes() -> None:
    config = RunConfig(cuda_graphs="on", threads=1, **FIXED)
    assert settle_machine(config, Ranks()).cuda_graphs == "on"
    with pytest.raises(UserError, match=r"^--cuda-graphs on needs a single process, got 2; use "):
        settle_machine(config, Ranks(0, 2))


def test_with_several_processes_auto_switches_cuda_graphs_off() -> None:
    config = FGEConfig(device="cuda", cuda_graphs="auto", **FIXED)
    untouched: Any = None
    settled = settle_speed(config, untouched, untouched, Observer(), epochs=1, ranks=Ranks(0, 2))
    assert settled.cuda_graphs == "off"
