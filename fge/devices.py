"""Choosing the device and the number of threads; memory free and used."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fge.errors import UserError
from fge.memory import free_host_memory


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA if available, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device {name!r} is not available ({count} found); use --device auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def set_threads(threads: int | None) -> int:
    """Set the number of CPU threads, PyTorch's own for None; return the number in use.

    PyTorch's own is set too: that also forbids MKL to use fewer threads as it sees fit, so a run
    computes as it does when it is resumed with the number in its ``config.json``.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    return torch.get_num_threads()


def hardware_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor if the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def enough_memory(device: object, remedy: str) -> Iterator[None]:
    """Turn out-of-memory errors of PyTorch and NumPy into a UserError that names the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # PyTorch's CPU allocator has no exception class of its own.
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        full = full or "DefaultCPUAllocator" in str(error)
        if not full:
            raise
        raise UserError(f"the memory of {device} is full; {remedy}") from error


def free_memory(device: torch.device) -> int:
    """Return the bytes that a device has free; on the CPU within the limits of this process.

    >>> free_memory(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory()


def peak_memory_mib(device: torch.device) -> dict[str, int]:
    """Return the peak memory of this process so far in MiB, and that of its GPU if it uses one.

    >>> list(peak_memory_mib(torch.device("cpu")))
    ['peak_memory_mib']
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peaks = {"peak_memory_mib": peak // unit}
    if device.type == "cuda":
        peaks["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) // 1024**2
    return peaks
