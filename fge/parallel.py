"""The processes that train one model together: joining them, and their communication.

A run is data-parallel if ``RANK`` and ``WORLD_SIZE`` are in the environment and its command is
one of ``COMMANDS``. Nothing happens at import.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fge.errors import DivergenceError, UserError
from fge.seeds import derive_seed, random_state, set_random_state

COMMANDS = ("fge", "train")
"""Commands that train one model in several processes."""
_SHARING = ("compare",)
"""Commands that share whole runs out among the processes, which then are not joined."""
_PATIENCE = timedelta(hours=2)
"""How long processes wait for the first one, which validates, writes and compiles meanwhile."""

T = TypeVar("T")


class Ranks:
    """The processes that train together, as one of them sees them; alone by default.

    Each holds the whole model and takes its share of every batch. The first process (``leads``)
    also writes, validates and reports.

    Args:
        rank: the number of this process, from 0.
        size: the number of processes.
        group: of ``torch.distributed``; None is the default group.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.group = group
        self._common: list[Tensor] | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return which of the ``count`` images of a joint batch this process takes.

        Shares are contiguous and differ by one image at most. If there are fewer than two images
        per process, the first processes take two or three each and the others none, because batch
        norm cannot use a single image.

        >>> [Ranks(rank, 3).share(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        >>> [Ranks(rank, 3).share(5) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(0, 0, None)]
        """
        parts = min(self.size, max(1, count // 2))
        if self.rank >= parts:
            return slice(0, 0)
        return slice(count * self.rank // parts, count * (self.rank + 1) // parts)

    def part(self, count: int) -> int:
        """Return this process's part of a number that is divided among all.

        >>> [Ranks(rank, 3).part(8) for rank in range(3)]
        [2, 3, 3]
        """
        return count * (self.rank + 1) // self.size - count * self.rank // self.size

    def check_batch_size(self, batch_size: int) -> None:
        """Check that full batches make equal shares of two images or more.

        Raises:
            UserError: they do not.
        """
        least = 2 * self.size
        if self.size > 1 and (batch_size % self.size or batch_size < least):
            near = max(least, batch_size - batch_size % self.size)
            raise UserError(
                f"batch_size {batch_size} makes no equal shares of 2 images or more for "
                f"{self.size} processes; use a multiple of {self.size}, {near} say"
            )

    def take_device(self, device: torch.device) -> None:
        """Make ``cuda`` mean the GPU of this process (LOCAL_RANK) if there are several processes.

        Raises:
            UserError: one GPU is asked for, or there are fewer GPUs than processes.
        """
        if self.size == 1 or device.type != "cuda":
            return
        if device.index is not None:
            raise UserError(
                f"--device {device} is one GPU for {self.size} processes; use --device cuda, "
                "which gives each its own GPU"
            )
        local, available = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if local >= available:
            raise UserError(
                f"there is no GPU for process {local} of this machine ({available} found); start "
                f"at most {available} per machine, or use --device cpu"
            )
        torch.cuda.set_device(local)

    # ------------------------------------------------------------------------ randomness

    def seed(self, seed: int, epoch: int) -> None:
        """Seed what the model draws in an epoch (dropout): for each process a stream of its own.

        What the optimizer draws (:meth:`common_draws`) comes from one stream for all, the one
        that a process alone has for both.
        """
        torch.manual_seed(derive_seed(seed, "model", epoch))
        if self.size > 1:
            self._common = random_state()
            torch.manual_seed(derive_seed(seed, "model", epoch, "rank", self.rank))

    @contextmanager
    def common_draws(self) -> Iterator[None]:
        """Draw the same random numbers in all processes: steps with noise must not differ."""
        if self.size == 1 or self._common is None:
            yield
            return
        own = random_state()
        set_random_state(self._common)
        yield
        self._common = random_state()
        set_random_state(own)

    # ----------------------------------------------------------------------- collectives

    def sum(self, tensor: Tensor) -> None:
        """Add up a tensor over the processes, in place.

        Raises:
            UserError: another process is gone.
        """
        with self.exchange():
            dist.all_reduce(tensor, group=self.group)

    def begin_sum(self, number: int) -> Callable[[], int]:
        """Begin to add up a whole number over the processes.

        Returns:
            What waits for the sum and returns it.

        Raises:
            UserError: another process is gone.
        """
        total = torch.tensor(number, device=self._device)
        with self.exchange():
            work = dist.all_reduce(total, group=self.group, async_op=True)

        def finish() -> int:
            with self.exchange():
                work.wait()
            return int(total)

        return finish

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor], weight: int, total: int) -> None:
        """Replace tensors by their weighted means over the processes: one message a dtype.

        Args:
            tensors: floating, of the same shapes everywhere.
            weight: of this process.
            total: of all.
        """
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            group = [tensor for tensor in tensors if tensor.dtype == dtype]
            # In fewer bits than float32 a product with a number of images may be infinite.
            wide = torch.promote_types(dtype, torch.float32)
            flat = torch.cat([tensor.reshape(-1) for tensor in group]).to(wide).mul_(weight)
            self.sum(flat)
            flat.div_(total)
            parts = torch.split(flat, [tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.size == 1:
            return
        for tensor in tensors:
            data = tensor.detach().contiguous()
            raw = data.reshape(-1).view(torch.uint8)  # no back end knows every dtype
            with self.exchange():
                dist.broadcast(raw, src=self._first, group=self.group)
            tensor.copy_(data)

    def synchronise(self, model: nn.Module) -> None:
        """Make a model's buffers the same in all processes.

        Running statistics of normalisation layers in training mode are averaged; all other
        buffers become those of the first process.
        """
        if self.size > 1:
            self.average(running_statistics(model.modules()), 1, self.size)
            self.broadcast(other_buffers(model))

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in their order, in all; they are pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.exchange():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def tell(self, value: T) -> T:
        """Return the value of the first process, in all; it is pickled."""
        if self.size == 1:
            return value
        values = [value]
        with self.exchange():
            dist.broadcast_object_list(values, src=self._first, group=self.group)
        return values[0]

    def first(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns in the first process; if it raises there, all raise."""
        result: Any = None
        with self.together():
            if self.leads:
                result = call()
        told: T = self.tell(result)
        return told

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait at the end for all processes; if one raises in the block, all raise its error.

        Raises:
            UserError: of one that failed, and for its ``OSError``.
            DivergenceError: of one that failed.
            RuntimeError: for any other error of another process.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size > 1:
            self._agree(failure)

    def _agree(self, failure: Exception | None) -> None:
        told = self.gather(None if failure is None else (_kind(failure), str(failure)))
        for rank, found in enumerate(told):
            if found is None:
                continue
            if rank == self.rank and failure is not None:
                raise failure
            kind, text = found
            raise kind(text if kind is not RuntimeError else f"process {rank}: {text}")

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Name the cause if the processes cannot reach each other in the block.

        Raises:
            UserError: another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            # Gloo has no exception of its own; its messages begin with the path of its source.
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            reason = str(error).strip().split("\n")[0].rpartition("] ")[2][:120]
            raise UserError(
                f"another process of this run is gone ({reason}); see its message, then continue "
                "with --resume"
            ) from error

    def disband(self) -> bool:
        """End what the processes that were joined do together.

        Returns:
            Whether this process continues, alone from here on: the first one does.
        """
        if self.size > 1:
            leave()
            self.size = 1
        return self.leads

    @property
    def _first(self) -> int:
        """The number of the first process among all that were started."""
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    @property
    def _device(self) -> torch.device:
        """The device for messages that do not concern the model."""
        nccl = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def running_statistics(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return running means and variances of the normalisation layers that collect them now."""
    return [
        statistic
        for module in modules
        if isinstance(module, _NormBase) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]


def other_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that are not among the running statistics."""
    known = {id(statistic) for statistic in running_statistics(model.modules())}
    return [buffer for buffer in model.buffers() if id(buffer) not in known]


def is_shard(tensor: object) -> bool:
    """Say whether a tensor is spread over processes, as a ``DTensor``."""
    # If nobody has imported the module, which takes time, there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _kind(failure: Exception) -> type[Exception]:
    """Return the class of the error that the other processes raise for a failure."""
    if isinstance(failure, DivergenceError):
        return DivergenceError
    return UserError if isinstance(failure, UserError | OSError) else RuntimeError


def default_ranks() -> Ranks:
    """Return the processes of PyTorch's default group, or this one alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def join(command: str) -> Ranks:
    """Join the processes that ``torchrun`` started for a command; alone if it did not.

    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL.

    Raises:
        UserError: the command runs in one process, or the others cannot be reached.
    """
    size = started_processes()
    if size == 1 or command in _SHARING:
        return Ranks()
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
    atexit.register(leave)
    return default_ranks()


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
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
