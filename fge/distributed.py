"""Data-parallel runs: joining the processes that ``torchrun`` started, and leaving them.

A run is data-parallel where ``RANK`` and ``WORLD_SIZE`` are in the environment, in the commands
``COMMANDS`` and nowhere else: nothing happens at import.
"""

from __future__ import annotations

import atexit
import importlib
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fge.errors import UserError
from fge.ranks import Ranks

COMMANDS = ("fge", "train")
"""Commands that train one model in several processes."""
_SHARING = ("compare",)
"""Commands that share whole runs out among the processes, which then are not joined."""
_PATIENCE = timedelta(hours=2)
"""How long processes wait for the first one, which validates, writes and compiles meanwhile."""

_alone = Ranks()
_joined: list[Ranks] = []


class Dismissed(BaseException):
    """This process has done its part of a run; the first one goes on alone."""


def current() -> Ranks:
    """Return the processes that were joined, or this one alone."""
    return _joined[-1] if _joined else _alone


def join(command: str) -> Ranks:
    """Join the processes that ``torchrun`` started for a command; alone where it did not.

    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL.

    Raises:
        UserError: the command runs in one process, or the others cannot be reached.
    """
    size = started_processes()
    if size == 1 or _joined or command in _SHARING:
        return current()
    check_command(command)
    # Its functions take the group there is at import for a default argument. PyTorch imports it
    # late by itself; the group would outlive ``leave`` then, and gloo's threads the interpreter,
    # which aborts the process now and again.
    importlib.import_module("torch.distributed.nn")
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot join the {size} processes that RANK and WORLD_SIZE speak of ({reason}); "
            "start them with torchrun"
        ) from None
    _joined.append(Ranks(dist.get_rank(), dist.get_world_size()))
    atexit.register(leave)
    return current()


def started_processes() -> int:
    """Return how many processes ``torchrun`` started, by the environment; 1 without it.

    Raises:
        UserError: the environment holds something else than a number.
    """
    if "RANK" not in os.environ:
        return 1
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"WORLD_SIZE must be a number of processes, got {value!r}; use torchrun")
    return int(value)


def check_command(command: str) -> None:
    """Check that a command may run in as many processes as were started.

    Raises:
        UserError: there are several, and it runs in one.
    """
    size = started_processes()
    if size > 1 and command not in COMMANDS:
        raise UserError(
            f"{command} runs in one process and {size} were started; start it without torchrun "
            f"({' and '.join(COMMANDS)} train data-parallel, compare shares out its runs)"
        )


def leave() -> None:
    """Leave the processes that were joined, if any."""
    if _joined:
        _joined.clear()
        dist.destroy_process_group()


def dismiss(ranks: Ranks) -> None:
    """End what processes do together; the first one is alone from here on.

    Raises:
        Dismissed: in all others.
    """
    if ranks.size == 1:
        return
    leads = ranks.leads
    leave()
    ranks.rank, ranks.size = 0, 1
    if not leads:
        raise Dismissed


def ranks_of(model: nn.Module) -> Ranks:
    """Return the processes over which PyTorch's data-parallel wrapper spreads a model, if any."""
    inner: object = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, DistributedDataParallel):
            group = inner.process_group
            return Ranks(dist.get_rank(group), dist.get_world_size(group), group)
        inner = getattr(inner, "_orig_mod", None)  # what torch.compile returns
    return Ranks()


def default_ranks() -> Ranks:
    """Return the processes of PyTorch's default group, or this one alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()
