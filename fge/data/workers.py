"""Worker processes that read and decode pictures while the network trains."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from fge.errors import UserError

_MOST = 16
"""Workers by default; a network seldom needs more."""
_PREFETCH = 2
"""Tasks that each worker has ready in advance."""
T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """Return the number of worker processes by default: the cores of this process's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST, max(1, (cores or 1) // processes))


def loaded(tasks: Sequence[T], read: Callable[[T], R], workers: int) -> Iterator[R]:
    """Yield what ``read`` returns for each task, in order, from worker processes.

    The number of workers changes nothing but the time: 0 reads in this process. PyTorch's global
    random numbers are left alone.

    Raises:
        UserError: what ``read`` raises, or a worker process was ended.
    """
    workers = min(workers, len(tasks))
    if workers == 0:
        yield from map(read, tasks)
        return
    loader: Any = DataLoader(
        _Reading(read),
        sampler=tasks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCH,
        multiprocessing_context="fork",  # nothing that is read needs to be pickled
        generator=torch.Generator(),
    )
    try:
        with _interrupts_held():
            values = iter(loader)
        for value in values:
            if isinstance(value, _Failed):
                raise UserError(value.message)
            yield value
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a worker process that reads images was ended, perhaps for want of (shared) memory; "
            f"use fewer than {workers} --workers, or --workers 0"
        ) from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back in the block: Python can lose it while it starts a process.

    The processes that are started in it never stop at Ctrl-C themselves; they end with this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # it gets no signals
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if came:
        signal.raise_signal(signal.SIGINT)


class _Failed:
    """An error for the user: raised in a worker it would arrive with a traceback in its text."""

    def __init__(self, message: str) -> None:
        self.message = message


class _Reading(Dataset[Any]):
    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitem__(self, task: Any) -> Any:
        try:
            return self.read(task)
        except UserError as error:
            return _Failed(str(error))
