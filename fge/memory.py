"""Memory of the computer: how much is free, and whether data fit before they are read."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from fge.errors import UserError

_SYSTEM = Path("/")
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
_CONTROLLERS = (
    ("sys/fs/cgroup", "", "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "sys/fs/cgroup/memory",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
"""Of both versions of Linux's control groups: where they are, the controller's name, and the files
of the limit, of the memory in use, and in ``memory.stat`` of what the system can take back."""


def free_host_memory() -> int:
    """Return the bytes that this process can still take, within its own and a container's limit.

    >>> free_host_memory() > 0
    True
    """
    limits = [_free_of_computer(), *_free_within_groups(), *_free_of_process()]
    return max(0, min(limits))


def check_fits(needed: int, what: str, remedy: str, *, free: int | None = None) -> None:
    """Check that something fits into the memory before it is read.

    Args:
        needed: bytes.
        what: needs them, with its verb: "the images need".
        remedy: what to do if they do not fit.
        free: bytes; those of the computer by default.

    Raises:
        UserError: with both sizes and the remedy.

    >>> check_fits(3 * 10**12, "the images need", "take fewer", free=2 * 10**9)
    Traceback (most recent call last):
    fge.errors.UserError: the images need 3 TB of memory, but 2 GB are free; take fewer
    """
    free = free_host_memory() if free is None else free
    if needed > free:
        raise UserError(
            f"{what} {size_text(needed)} of memory, but {size_text(free)} are free; {remedy}"
        )


def size_text(count: int) -> str:
    """Return a number of bytes with a unit.

    >>> [size_text(n) for n in (7, 47_040_000, 784 * 10**9)]
    ['7 bytes', '47 MB', '784 GB']
    """
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    value = count / 1000**power
    return f"{value:,.0f} {_UNITS[power]}" if value >= 100 else f"{value:.3g} {_UNITS[power]}"


def _free_of_computer() -> int:
    words = _text("proc/meminfo").split()
    if "MemAvailable:" in words:
        return int(words[words.index("MemAvailable:") + 1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_within_groups() -> Iterator[int]:
    """Yield what is free within each limit of the control groups that this process is in.

    What a group reads from files counts as used, though the system takes it back when needed.
    """
    groups = dict(_group(line) for line in _text("proc/self/cgroup").splitlines())
    for root, controller, limit, used, reclaimed in _CONTROLLERS:
        own = Path(groups.get(controller, "/"))
        for group in (own, *own.parents):
            folder = f"{root}{group}".rstrip("/")
            most, now = (_text(f"{folder}/{file}").strip() for file in (limit, used))
            if most.isdigit() and now.isdigit():
                stat = dict(line.split() for line in _text(f"{folder}/memory.stat").splitlines())
                yield int(most) - int(now) + sum(int(stat.get(key, 0)) for key in reclaimed)


def _group(line: str) -> tuple[str, str]:
    """Return the controller and the folder in a line such as ``4:memory:/a`` or ``0::/a``."""
    _, controllers, folder = line.split(":", 2)
    return ("memory" if "memory" in controllers.split(",") else controllers), folder


def _free_of_process() -> Iterator[int]:
    """Yield what is free within ``ulimit -v``, if there is such a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text("proc/self/statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        yield limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE")


def _text(path: str) -> str:
    """Return what a file of the system says, nothing where there is none."""
    try:
        return (_SYSTEM / path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
