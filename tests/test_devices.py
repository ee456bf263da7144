"""Devices and memory: what is not there or full is told in one line."""

from __future__ import annotations

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from fge.devices import choose_device, enough_memory, peak_memory_mib
from fge.errors import DivergenceError, UserError


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        choose_device(name)


def test_full_memory_is_told_with_the_remedy() -> None:
    full = r"^the memory of here is full; use less$"
    with pytest.raises(UserError, match=full), enough_memory("here", "use less"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(UserError, match=full), enough_memory("here", "use less"):
        torch.empty(10**15)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), DivergenceError("nan"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, enough_memory("cpu", "use less"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_peak_memory_is_in_mebibytes(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    """``ru_maxrss`` is in bytes on macOS and in KiB on Linux (getrusage(2) of both)."""
    monkeypatch.setattr(sys, "platform", platform)
    usage = SimpleNamespace(ru_maxrss=300 * unit + 1)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert peak_memory_mib(torch.device("cpu")) == {"peak_memory_mib": 300}
