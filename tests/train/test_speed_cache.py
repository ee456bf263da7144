"""Speed choices that are kept: the same setting chooses the same, whatever the machine does."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from torch import nn

from fge import __version__
from fge.config import FGEConfig
from fge.networks import build_model
from fge.train import Choice, Speed, SpeedCache, speed_setting, typical_steps
from fge.train import speed_cache as cache_module
from fge.train.speed_cache import architecture_digest, cache_folder

FAST, PLAIN = Speed(channels_last=True, amp="bf16"), Speed()
AUTO = FGEConfig(channels_last="auto", amp="auto", compile="off")
IMAGES = torch.zeros(8, 1, 28, 28)


def network() -> nn.Module:
    return build_model("convnet", in_channels=1, num_classes=3, image_size=(28, 28))


def setting(**changes: Any) -> dict[str, Any]:
    return speed_setting(replace(AUTO, **changes), network(), IMAGES, steps=1000)


class Measuring:
    """A measurement that finds another speed each time: a machine that is busy now and then."""

    def __init__(self, *speeds: Speed) -> None:
        self.speeds = itertools.cycle(speeds or (FAST, PLAIN))
        self.count = 0

    def __call__(self) -> Choice:
        self.count += 1
        return Choice(next(self.speeds), ["amp bf16: measured"])


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(notes: list[str]) -> SpeedCache:
    return SpeedCache("on", notes.append)


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("speed/*.json")
    return file


# ----------------------------------------------------------------------------- the same again


def test_a_choice_is_measured_once_and_then_taken(
    cache: SpeedCache, notes: list[str], own_cache: Path
) -> None:
    measure = Measuring(FAST, PLAIN)
    first, second = cache.choice(setting(), measure), cache.choice(setting(), measure)
    assert first.choice == second.choice == Choice(FAST, ["amp bf16: measured"])
    assert measure.count == 1
    assert first.source == f"measured now and kept in {only_file(own_cache)}"
    content = json.loads(only_file(own_cache).read_text())
    assert second.source == (
        f"measured on {content['measured']}; --speed-cache refresh measures again"
    )
    assert notes == []


def test_a_plain_choice_is_kept_too(cache: SpeedCache) -> None:
    measure = Measuring(PLAIN, FAST)
    for _ in range(2):
        assert cache.choice(setting(), measure).choice.speed == PLAIN


def test_refresh_measures_again_and_replaces(cache: SpeedCache, notes: list[str]) -> None:
    measure = Measuring(FAST, PLAIN)
    cache.choice(setting(), measure)
    renewed = SpeedCache("refresh", notes.append).choice(setting(), measure)
    assert renewed.choice.speed == PLAIN
    assert renewed.source.startswith("measured now and kept in ")
    assert cache.choice(setting(), measure).choice.speed == PLAIN
    assert measure.count == 2


def test_off_neither_reads_nor_keeps(cache: SpeedCache, notes: list[str], own_cache: Path) -> None:
    measure = Measuring(FAST, PLAIN)
    without = SpeedCache("off", notes.append)
    source = "measured now and not kept, by --speed-cache off"
    assert without.choice(setting(), measure).source == source
    assert not own_cache.exists()
    assert cache.choice(setting(), Measuring(FAST)).choice.speed == FAST
    assert without.choice(setting(), measure).choice.speed == PLAIN


def test_what_is_kept_can_be_read(cache: SpeedCache, own_cache: Path) -> None:
    cache.choice(setting(), Measuring(FAST))
    text = only_file(own_cache).read_text()
    content = json.loads(text)
    assert len(text.splitlines()) > 20
    assert content["choices"] == {
        "channels_last": "on",
        "amp": "bf16",
        "compile": "off",
        "cuda_graphs": "off",
    }
    assert content["reasons"] == ["amp bf16: measured"]
    assert content["setting"] == setting()
    assert content["setting"]["batch"] == [8, 1, 28, 28]


# ------------------------------------------------------------------------------ what it hangs on


def other_device(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(cache_module, "hardware_name", lambda _: "another processor")
    return setting()


def other_threads(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(torch, "get_num_threads", lambda: 64)
    return setting()


def other_version(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(cache_module, "__version__", f"{__version__}.1")
    return setting()


def other_torch(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(torch, "__version__", "99.0")
    return setting()


def of(model: nn.Module, images: torch.Tensor = IMAGES) -> dict[str, Any]:
    return speed_setting(AUTO, model, images, steps=1000)


def wider(_: pytest.MonkeyPatch) -> dict[str, Any]:
    return of(build_model("convnet", in_channels=1, num_classes=4, image_size=(28, 28)))


OTHERS: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    "device": other_device,
    "threads": other_threads,
    "version": other_version,
    "torch": other_torch,
    "network": wider,
    "double": lambda _: of(network().double()),
    "batch": lambda _: of(network(), torch.zeros(16, 1, 28, 28)),
    "images": lambda _: of(network(), torch.zeros(8, 1, 28, 28).double()),
    "options": lambda _: setting(amp="off"),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_setting_is_measured_by_itself(
    cache: SpeedCache,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], dict[str, Any]],
) -> None:
    cache.choice(setting(), Measuring(FAST))
    other = change(monkeypatch)
    assert other != setting() or change in (other_device, other_threads, other_version, other_torch)
    measure = Measuring(PLAIN)
    assert cache.choice(other, measure).choice.speed == PLAIN
    assert measure.count == 1
    monkeypatch.undo()


def test_weights_seed_and_training_do_not_matter() -> None:
    torch.manual_seed(0)
    one = network()
    torch.manual_seed(1)
    other = network().eval()
    assert architecture_digest(one) == architecture_digest(other)
    assert setting(seed=1, lr=0.3, epochs=7) == setting()
    assert setting(speed_cache="refresh") == setting()


def test_a_structure_is_that_of_layers_parameters_and_buffers() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    frozen[0].weight.requires_grad_(False)
    buffered = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    buffered.register_buffer("scale", torch.ones(2))
    different = [
        plain,
        frozen,
        buffered,
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()),
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.float64), nn.ReLU()),
        nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "relu": nn.ReLU()}),
    ]
    assert len({architecture_digest(model) for model in different}) == len(different)


class Addressed(nn.Module):
    """Shows an address, as a default ``repr`` inside ``extra_repr`` does."""

    def extra_repr(self) -> str:
        return f"{id(self)}"


def test_what_a_network_of_ones_own_says_of_itself_does_not_matter() -> None:
    one, other = Addressed(), Addressed()
    assert architecture_digest(one) == architecture_digest(other)


def test_steps_count_where_compilation_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    options = replace(AUTO, compile="auto")

    def steps(number: int, **given: Any) -> Any:
        found = replace(options, **given)
        return speed_setting(found, network(), IMAGES, steps=number)["steps"]

    assert steps(520) == steps(1000) == typical_steps(1000) == 724
    assert steps(1024) == 1448
    assert steps(1000, compile="off") is None
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert steps(1000) is None


@pytest.mark.parametrize("steps", [*range(1, 40), 10**6])
def test_the_typical_steps_are_within_a_factor_of_the_root_of_two(steps: int) -> None:
    assert steps / 1.5 <= typical_steps(steps) <= steps * 1.5
    assert typical_steps(typical_steps(steps)) == typical_steps(steps)


def test_where_nothing_is_to_be_chosen_nothing_is_kept(cache: SpeedCache, own_cache: Path) -> None:
    nothing = setting(channels_last="on", amp="off")
    kept = cache.choice(nothing, Measuring(Speed(channels_last=True)))
    assert kept.source == "as given"
    assert not own_cache.exists()


# ------------------------------------------------------------------------ damage and hard places


def cut(content: dict[str, Any]) -> str:
    return json.dumps(content)[:-40]


DAMAGED: dict[str, Callable[[dict[str, Any]], str]] = {
    "cut short": cut,
    "empty": lambda _: "",
    "a list": lambda _: "[]",
    "no choices": lambda c: json.dumps({**c, "choices": None}),
    "later version": lambda c: json.dumps({**c, "schema_version": 99}),
    "other setting": lambda c: json.dumps({**c, "setting": {**c["setting"], "threads": 77}}),
    "unknown choice": lambda c: json.dumps({**c, "choices": {**c["choices"], "amp": "fp8"}}),
    "refused choice": lambda c: json.dumps({**c, "choices": {**c["choices"], "compile": "on"}}),
    "no time": lambda c: json.dumps({**c, "measured": "yesterday"}),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_replaced_and_said(
    cache: SpeedCache,
    notes: list[str],
    own_cache: Path,
    damage: Callable[[dict[str, Any]], str],
) -> None:
    cache.choice(setting(), Measuring(FAST))
    file = only_file(own_cache)
    whole = json.loads(file.read_text())
    file.write_text(damage(whole))
    measure = Measuring(FAST)
    assert cache.choice(setting(), measure).choice.speed == FAST
    assert measure.count == 1
    (note,) = notes
    assert note.startswith(f"{file} cannot be used (")
    assert note.endswith("); speed is measured again")
    assert "\n" not in note
    assert {**json.loads(file.read_text()), "measured": ""} == {**whole, "measured": ""}


def test_a_folder_that_cannot_be_written_costs_a_measurement(
    notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FGE_CACHE", str(tmp_path / "file"))
    cache, measure = SpeedCache("on", notes.append), Measuring(FAST)
    for _ in range(2):
        kept = cache.choice(setting(), measure)
        assert (kept.choice.speed, kept.source) == (FAST, "measured now and not kept")
    assert measure.count == 2
    assert notes[-1] == (
        f"speed choices cannot be kept in {tmp_path / 'file' / 'speed'} (Not a directory): each "
        "run measures them; set FGE_CACHE to a folder that can be written"
    )


def test_a_write_that_fails_leaves_what_was_there(
    cache: SpeedCache, notes: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.choice(setting(), Measuring(FAST))
    before = only_file(own_cache).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        SpeedCache("refresh", notes.append).choice(setting(), Measuring(PLAIN))
    assert notes[-1].startswith("speed choices cannot be kept in ")
    assert only_file(own_cache).read_bytes() == before
    assert list((own_cache / "speed").glob(".*.tmp")) == []


def test_the_folder_is_the_systems_or_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FGE_CACHE", "here")
    assert cache_folder() == tmp_path / "here" / "speed"
    monkeypatch.delenv("FGE_CACHE")
    expected = Path(platformdirs.user_cache_dir("fge", appauthor=False))
    assert cache_folder() == expected / "speed"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: "~/.cache/fge")
    assert cache_folder() is None


def test_without_a_home_nothing_is_kept(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "cache_folder", lambda: None)
    kept = SpeedCache("on", notes.append).choice(setting(), Measuring(FAST))
    assert (kept.choice.speed, kept.source) == (FAST, "measured now and not kept")
    assert notes == ["speed choices are not kept, because there is no home folder; set FGE_CACHE"]


# ---------------------------------------------------------------------------- several processes


def test_of_two_that_measure_at_once_both_get_one_choice(own_cache: Path) -> None:
    """A thread has a lock of its own, as a process has."""
    measuring, go_on = threading.Event(), threading.Event()
    notes: list[str] = []
    found: dict[str, Speed] = {}

    def slow() -> Choice:
        measuring.set()
        assert go_on.wait(10)
        return Choice(FAST, [])

    def ask(name: str, measure: Callable[[], Choice], note: Callable[[str], None]) -> None:
        found[name] = SpeedCache("on", note).choice(setting(), measure).choice.speed

    def waiting(note: str) -> None:
        notes.append(note)
        go_on.set()

    late = Measuring(PLAIN)
    first = threading.Thread(target=ask, args=("first", slow, notes.append))
    first.start()
    assert measuring.wait(10)
    second = threading.Thread(target=ask, args=("second", late, waiting))
    second.start()
    for thread in (first, second):
        thread.join(10)
    assert found == {"first": FAST, "second": FAST}
    assert late.count == 0
    assert notes == ["another process is measuring the same speed; waiting for its choice"]
    assert only_file(own_cache).is_file()


def test_a_lock_that_is_never_released_is_not_waited_for(
    cache: SpeedCache, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_LOCK_PATIENCE", 0.0)
    monkeypatch.setattr(cache_module, "_LOCK_SECONDS", 0.0)
    cache.choice(setting(), Measuring(FAST))
    file = only_file(own_cache)
    file.unlink()
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cache.choice(setting(), Measuring(PLAIN)).choice.speed == PLAIN
        assert file.is_file()


def test_the_first_that_is_kept_counts_where_there_are_no_locks(
    cache: SpeedCache, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    def overtaken() -> Choice:
        SpeedCache("on", notes.append).choice(setting(), Measuring(FAST))
        return Choice(PLAIN, [])

    assert cache.choice(setting(), overtaken).choice.speed == FAST
