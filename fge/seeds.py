"""One seed, many independent streams of random numbers."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *stream: object) -> int:
    """Return a 63-bit seed for the named stream, e.g. ``derive_seed(0, "shuffle", epoch)``.

    Streams are told apart by hashing, so that no state has to be kept: what was drawn in one
    epoch is drawn again after an interruption.
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *stream: object) -> torch.Generator:
    """Return a CPU generator for the named stream."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))
