"""Options that depend on the machine and on the number of processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fge.commands import build, loading
from fge.commands.build import Setup, settle_machine, settle_speed
from fge.commands.loading import load_data
from fge.config import FGEConfig, RunConfig
from fge.errors import UserError
from fge.observer import Observer
from fge.parallel import Ranks
from fge.train import Choice, Speed

FIXED: dict[str, Any] = {"channels_last": "off", "compile": "off", "amp": "off"}


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


class Notes(Observer):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def settle(data: Path, found: Speed, **options: Any) -> tuple[FGEConfig, list[str]]:
    """Return the options settled where a measurement finds a speed, and what was said."""
    plain: dict[str, Any] = {"device": "cpu", "batch_size": 32, "compile": "off", **options}
    config = FGEConfig(data=str(data), **plain)
    notes = Notes()
    dataset = load_data(config)
    model = Setup.of(config, dataset).new_model()
    with pytest.MonkeyPatch.context() as patch:
        choice = Choice(found, ["amp bf16: it was measured"])
        patch.setattr(build, "choose_speed", lambda *_, **__: choice)
        return settle_speed(config, dataset, model, notes, epochs=3), notes.said


FAST = Speed(channels_last=True, amp="bf16")
SHOWN = "speed: channels_last {}, amp {}, compile off, cuda_graphs off (measured "


def test_a_run_says_in_a_line_what_was_chosen_and_from_when(tiny_npz: Path) -> None:
    settled, first = settle(tiny_npz, FAST)
    assert (settled.channels_last, settled.amp, settled.compile) == ("on", "bf16", "off")
    assert first[:-1] == [
        "measuring memory formats and precisions ...",
        "  amp bf16: it was measured",
    ]
    assert first[-1].startswith(SHOWN.format("on", "bf16") + "now and kept in ")
    for seed in (0, 1):  # what is found now would be another choice
        again, said = settle(tiny_npz, Speed(), seed=seed)
        assert again == replace(settled, seed=seed)
        (line,) = said
        assert line.startswith(SHOWN.format("on", "bf16") + "on 20")
        assert line.endswith("; --speed-cache refresh measures again)")


def test_what_was_chosen_can_be_measured_again_or_set_aside(tiny_npz: Path) -> None:
    settle(tiny_npz, FAST)
    assert settle(tiny_npz, Speed(), speed_cache="off")[0].amp == "off"
    assert settle(tiny_npz, Speed())[0].amp == "bf16"
    assert settle(tiny_npz, Speed(), speed_cache="refresh")[0].amp == "off"
    assert settle(tiny_npz, FAST)[0].amp == "off"
    assert settle(tiny_npz, FAST, amp="bf16", channels_last="on")[0].amp == "bf16"


def test_threads_and_batch_have_choices_of_their_own(tiny_npz: Path) -> None:
    settle(tiny_npz, FAST)
    assert settle(tiny_npz, Speed(), batch_size=16)[0].amp == "off"
    assert settle(tiny_npz, FAST)[0].amp == "bf16"


def test_a_default_number_of_threads_is_set_as_a_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run begun with the default is resumed with the number: MKL has to be told in both."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    number = torch.get_num_threads()
    assert settle_machine(RunConfig(device="cpu", **FIXED)).threads == number
    assert settle_machine(RunConfig(device="cpu", threads=number, **FIXED)).threads == number
    assert told == [number, number]


def test_a_gpu_must_hold_all_images_and_the_padded_copy(
    tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FGEConfig(data=str(tiny_npz), device="cuda:0", batch_size=32, crop_padding=1)
    needed = (96 + 48) * 8 * 8 + 2 * 86 * 10 * 10
    asked: list[torch.device] = []

    def free(device: torch.device) -> int:
        asked.append(device)
        return needed - len(asked) + 1

    monkeypatch.setattr(loading, "choose_device", torch.device)
    monkeypatch.setattr(loading, "free_memory", free)
    assert len(load_data(config).test) == 48
    with pytest.raises(UserError, match=r"^on cuda:0, the data needs 26\.4 kB of memory, but "):
        load_data(config)
    assert asked == [torch.device("cuda:0")] * 2
