"""One seed, many independent streams of random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, *stream: object) -> int:
    """Return a 63-bit seed for the named stream, e.g. ``derive_seed(0, "shuffle", epoch)``.

    The name is hashed, so no state has to be saved: a resumed run draws the same numbers again.
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *stream: object) -> torch.Generator:
    """Return a CPU generator for the named stream."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))


def random_state() -> list[Tensor]:
    """Return the states of PyTorch's global generators: the CPU's, and that of the current GPU."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_gpu else [])]


def set_random_state(state: list[Tensor]) -> None:
    """Restore a state from :func:`random_state`."""
    torch.set_rng_state(state[0])
    for on_gpu in state[1:]:
        torch.cuda.set_rng_state(on_gpu)


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore PyTorch's global generators after a ``with`` block, also after an exception."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
