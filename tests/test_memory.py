"""What is free: the least of the computer's memory and every limit of this process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fge import memory
from fge.errors import UserError
from fge.memory import check_fits, free_host_memory, size_text

KIB, PAGE = 1024, os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of 9,000 KiB without limits."""
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    write(tmp_path / "proc/meminfo", "MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable: 9000 kB\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_computer_s_available_memory_is_free(system: Path) -> None:
    del system
    assert free_host_memory() == 9000 * KIB


def test_a_system_that_does_not_say_has_its_physical_memory(
    tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del system
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "nothing")
    pages = os.sysconf("SC_PHYS_PAGES")
    assert free_host_memory() == pages * PAGE


def test_a_group_s_limit_holds_and_what_it_read_from_files_is_free(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/job/step\n")
    for folder, limit in (("", "max\n"), ("job", "5000\n"), ("job/step", "max\n")):
        write(system / "sys/fs/cgroup" / folder / "memory.max", limit)
        write(system / "sys/fs/cgroup" / folder / "memory.current", "4000\n")
        stat = "anon 1000\ninactive_file 600\nactive_file 70\n"
        write(system / "sys/fs/cgroup" / folder / "memory.stat", stat)
    assert free_host_memory() == 5000 - 4000 + 600 + 70


def test_groups_of_the_first_version_have_limits_too(system: Path) -> None:
    write(system / "proc/self/cgroup", "5:cpu:/\n4:memory:/job\n0::/\n")
    folder = system / "sys/fs/cgroup/memory/job"
    write(folder / "memory.limit_in_bytes", "7000\n")
    write(folder / "memory.usage_in_bytes", "6500\n")
    write(folder / "memory.stat", "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 3\n")
    assert free_host_memory() == 500 + 23


def test_a_container_sees_its_limit_at_the_root(system: Path) -> None:
    write(system / "proc/self/cgroup", "4:memory:/docker/abc\n")
    write(system / "sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n")
    write(system / "sys/fs/cgroup/memory/memory.usage_in_bytes", "6500\n")
    assert free_host_memory() == 500


def test_the_limit_of_the_process_holds(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(system / "proc/self/statm", "40 20 10 1 0 10 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100 * PAGE, resource.RLIM_INFINITY))
    assert free_host_memory() == 60 * PAGE


def test_nothing_is_free_above_a_limit(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(system / "proc/self/statm", "140 20 10 1 0 10 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100 * PAGE, resource.RLIM_INFINITY))
    assert free_host_memory() == 0


def test_what_does_not_fit_is_told_with_sizes_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1500)
    check_fits(1500, "the images need", "take fewer")
    with pytest.raises(
        UserError,
        match=r"^the images need 1\.6 kB of memory, but 1\.5 kB are free; take fewer$",
    ):
        check_fits(1600, "the images need", "take fewer")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_999, "1,000 kB"),
        (3_210_000_000, "3.21 GB"),
        (2**63, "9.22 EB"),
        (10**24, "1,000,000 EB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.slow
def test_a_limit_of_the_shell_is_seen(tmp_path: Path) -> None:
    """``ulimit -v``: what is free is a little more than NumPy can then take at once."""
    script = tmp_path / "free.py"
    script.write_text(
        "import resource, numpy\n"
        "from fge.memory import _free_of_process\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))\n"
        "(free,) = _free_of_process()\n"
        "numpy.empty(free - 2**20, 'u1')\n"
        "try: numpy.empty(free + 2**20, 'u1')\n"
        "except MemoryError: print('full')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "full\n"
