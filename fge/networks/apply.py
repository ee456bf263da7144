"""What lies in a batch of any nesting: its tensors, its number of examples, its pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fge.errors import UserError


def cut(batch: Any, chunk: int) -> Iterator[tuple[Any, int]]:
    """Yield pieces of at most ``chunk`` examples, as equal in size as can be, and their sizes.

    An empty batch has none. A batch is used whole where its tensors (nested in lists, tuples and
    dicts) are of several lengths. Tuples become lists.

    >>> import torch
    >>> [size for _, size in cut([torch.zeros(10, 3), torch.zeros(10)], 4)]
    [3, 3, 4]

    Raises:
        UserError: there is no tensor in the batch, or its tensors have no first dimension.
    """
    found = list(tensors(batch))
    if any(tensor.ndim == 0 for tensor in found):
        raise UserError("a batch must hold tensors of shape (n, ...), got one of shape ()")
    count = count_examples(batch)
    pieces = -(-count // chunk)
    if count and (pieces == 1 or any(len(tensor) != count for tensor in found)):
        yield batch, count
        return
    starts = [count * piece // pieces for piece in range(pieces)]
    for start, stop in itertools.pairwise([*starts, count]):
        yield _rows(batch, start, stop), stop - start


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch, nested in lists, tuples and mappings, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, list | tuple | Mapping):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors(part)


def count_examples(batch: Any) -> int:
    """Return the length of the first tensor in a batch.

    >>> import torch
    >>> count_examples((torch.zeros(5, 3), torch.zeros(5))), count_examples({"ids": torch.ones(2)})
    (5, 2)

    Raises:
        UserError: there is no tensor in it.
    """
    for tensor in tensors(batch):
        return len(tensor)
    raise UserError(f"a batch must hold a tensor, got a {type(batch).__name__}")


def _rows(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, list | tuple):
        return [_rows(part, start, stop) for part in batch]
    if isinstance(batch, dict):
        return {key: _rows(part, start, stop) for key, part in batch.items()}
    return batch
