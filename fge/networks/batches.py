"""The tensors in a batch, whatever containers hold them: moving, counting, cutting."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from fge.errors import UserError
from fge.observer import listed
from fge.seeds import same_random_state


def check_reiterable(batches: Iterable[Any]) -> None:
    """Check that ``batches`` can be iterated more than once.

    Raises:
        UserError: it is an iterator, which a first pass uses up.
    """
    if isinstance(batches, Iterator):
        raise UserError(
            f"batches must be iterable more than once, got a {type(batches).__name__}; "
            "give a list, a DataLoader or the like"
        )


@contextmanager
def unnoticed(batches: Any) -> Iterator[Any]:
    """Yield batches to iterate within somebody's training, which may be iterating them too.

    A loader draws its order from the global generator or from one of its own, which both come back
    to where they were. One whose workers persist has a single iterator; the block gets another.
    The loader of accelerate counts its epochs, and says when gradients are complete: the block gets
    the one within.
    """
    loader = getattr(batches, "base_dataloader", batches)
    states = [(own, own.get_state()) for own in _generators_of(loader)]
    single = isinstance(loader, DataLoader) and loader.persistent_workers
    iterator = loader._iterator if single else None
    with same_random_state():
        try:
            if single:
                loader._iterator = None
            yield loader
        finally:
            if single:
                loader._iterator = iterator
            for own, state in states:
                own.set_state(state)


def _generators_of(loader: Any) -> list[torch.Generator]:
    """Return the generators of a loader and of its samplers, each once."""
    outer = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), outer, getattr(outer, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(own): own for own in found if isinstance(own, torch.Generator)}.values())


def nothing_yielded(name: str = "batches") -> UserError:
    """Return the error for batches of which there are none, or none on a second pass."""
    return UserError(f"{name} yielded nothing; give data that can be iterated more than once")


def reordered(name: str = "batches") -> UserError:
    """Return the error for batches that differ from pass to pass."""
    return UserError(
        f"{name} come in a different order on each pass; turn off shuffling and augmentation"
    )


def parts_of(batch: Any) -> Sequence[Any] | None:
    """Return a batch as its parts ``(x, y, ...)``, or None if it is one object."""
    if isinstance(batch, Tensor):  # the usual case, and that of which this takes a share
        return None
    if isinstance(batch, str | bytes | PackedSequence) or not isinstance(batch, Sequence):
        return None
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    A batch is nested in whatever containers PyTorch's collate makes: sequences, named tuples,
    mappings, dataclasses. Objects with a ``to`` of their own move themselves, as copies. Tuples
    become lists; the other containers keep their types.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if _moves_itself(batch):
        own = copy.copy(batch)
        moved = own.to(device)
        return own if moved is None else moved
    held = _held_by(batch)
    if held is None:
        return batch
    return _rebuilt(batch, {key: to_device(part, device) for key, part in held.items()})


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a batch with its tensors changed; tuples become lists."""
    if isinstance(batch, Tensor):
        return change(batch)
    held = _held_by(batch)
    if held is None:
        return batch
    return _rebuilt(batch, {key: map_tensors(part, change) for key, part in held.items()})


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch, however nested, in order."""
    if isinstance(batch, Tensor):
        yield batch
        return
    for part in (_held_by(batch) or {}).values():
        yield from tensors(part)


def count_examples(batch: Any, target_fn: Callable[[Any], Any] | None = None) -> int:
    """Return the number of examples of a batch: the length of its tensors.

    Where lengths differ it is that of the targets, which ``target_fn`` gives or the second of two
    parts is, if another tensor has this length in its first or second dimension: sequences may lie
    time first. Otherwise it is the length that most have, the first of as frequent ones: others are
    not of examples, such as the weights of classes.

    >>> import torch
    >>> count_examples((torch.zeros(5, 3), torch.zeros(5))), count_examples({"ids": torch.ones(2)})
    (5, 2)
    >>> count_examples({"weights": torch.ones(3), "x": torch.zeros(5, 3), "y": torch.zeros(5)})
    5
    >>> count_examples((torch.zeros(5, 12, 3), torch.zeros(12)))
    12

    Raises:
        UserError: there is no tensor that has a length.
    """
    lengths = Counter(_lengths(batch))
    if not lengths:
        parts = batch if isinstance(batch, tuple | list) else ()
        within = f" of {listed(type(part).__name__ for part in parts)}" if parts else ""
        raise UserError(f"a batch must hold a tensor, got a {type(batch).__name__}{within}")
    told = _length_of_targets(batch, target_fn) if len(lengths) > 1 else None
    return lengths.most_common(1)[0][0] if told is None else told


def _length_of_targets(batch: Any, target_fn: Callable[[Any], Any] | None) -> int | None:
    """Return the length of a batch's targets, None if it is not known or no input has it."""
    parts = parts_of(batch)
    if target_fn is None and (parts is None or len(parts) != 2):
        return None
    targets = None if parts is None or target_fn is not None else parts[1]
    if target_fn is not None:
        with suppress(Exception):  # inputs alone have no targets, and the function is anybody's
            targets = target_fn(batch)
    found, own = set(_lengths(targets)), {id(tensor) for tensor in tensors(targets)}
    if len(found) != 1:
        return None
    inputs = (tensor for tensor in tensors(batch) if id(tensor) not in own)
    count = found.pop()
    return count if any(count in tensor.shape[:2] for tensor in inputs) else None


def _lengths(batch: Any) -> Iterator[int]:
    """Yield the number of examples of each part that has any."""
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, PackedSequence):  # its data are the steps of all sequences
        yield int(batch.batch_sizes[0])
    else:
        for part in (_held_by(batch) or {}).values():
            yield from _lengths(part)


def cut(
    batch: Any,
    chunk: int,
    *,
    model: nn.Module | None = None,
    target_fn: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Any, int]]:
    """Yield pieces of at most ``chunk`` examples, as equal in size as possible, and their sizes.

    An empty batch has no pieces. A batch is not cut if its tensors differ in length, if it may lie
    time first for ``model`` (see :func:`may_be_time_first`), or if a part of it is an object of
    another class than a container's. Tuples become lists.

    >>> import torch
    >>> [size for _, size in cut([torch.zeros(10, 3), torch.zeros(10)], 4)]
    [3, 3, 4]

    Raises:
        UserError: there is no tensor in the batch, or its tensors have no first dimension.
    """
    parts = list(tensors(batch))
    if any(tensor.ndim == 0 for tensor in parts):
        raise UserError("a batch must hold tensors of shape (n, ...), got one of shape ()")
    count = count_examples(batch, target_fn)
    pieces = -(-count // chunk)
    whole = pieces == 1 or any(len(tensor) != count for tensor in parts) or _is_opaque(batch)
    if count and (whole or may_be_time_first(batch, model)):
        yield batch, count
        return
    starts = [count * piece // pieces for piece in range(pieces)]
    for start, stop in itertools.pairwise([*starts, count]):
        yield rows(batch, start, stop, count), stop - start


def may_be_time_first(batch: Any, model: nn.Module | None) -> bool:
    """Return whether the first dimension of tensors of one length may be time for a model.

    A recurrent or attention layer without ``batch_first``, PyTorch's default, takes (T, N, ...).
    The shapes do not tell this from (N, T, ...) where T = N, or where all tensors have both
    dimensions: then a piece of the first would be a part of each sequence, of which the loss is
    another one.
    """
    layers = () if model is None else model.modules()
    if not any(getattr(layer, "batch_first", None) is False for layer in layers):
        return False
    shapes = [tensor.shape[:2] for tensor in tensors(batch) if tensor.ndim in (2, 3)]
    every = len(shapes) == sum(1 for _ in tensors(batch))
    square = any(first == second for first, second in shapes)
    return square or (every and len(set(shapes)) == 1)


def rows(batch: Any, start: int, stop: int, count: int) -> Any:
    """Return some examples of a batch of ``count``, whose tensors all have this length."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    held = _held_by(batch)
    if held is None:
        return batch
    # Of texts, say, collate makes a list with one entry per example.
    listing = isinstance(batch, Sequence) and not hasattr(batch, "_fields")
    if listing and len(held) == count and next(tensors(batch), None) is None:
        return list(batch[start:stop])
    return _rebuilt(batch, {key: rows(part, start, stop, count) for key, part in held.items()})


def _moves_itself(batch: Any) -> bool:
    """Return whether an object has a method ``to``; a key of that name is none."""
    return callable(getattr(type(batch), "to", None)) and not isinstance(batch, nn.Module)


def _held_by(batch: Any) -> dict[Any, Any] | None:
    """Return what a container holds, by position or name; None for what is no container."""
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes | range):
        return dict(enumerate(batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in fields(batch)]
        return {name: getattr(batch, name) for name in names if hasattr(batch, name)}
    if isinstance(batch, Mapping):
        return dict(batch.items())
    if _moves_itself(batch) and hasattr(batch, "__dict__"):
        return dict(vars(batch))
    return None


def _is_opaque(batch: Any) -> bool:
    """Return whether a part is an object whose attributes may depend on its number of examples."""
    if isinstance(batch, Tensor) or (held := _held_by(batch)) is None:
        return False
    known = isinstance(batch, Sequence | Mapping) or is_dataclass(batch)
    if isinstance(batch, PackedSequence) or not known:
        return True
    return any(_is_opaque(part) for part in held.values())


def _rebuilt(batch: Any, held: dict[Any, Any]) -> Any:
    """Return a container like a batch that holds something else."""
    if isinstance(batch, Sequence):
        return type(batch)(*held.values()) if hasattr(batch, "_fields") else list(held.values())
    if type(batch) is dict:
        return held
    if isinstance(batch, Mapping) and not is_dataclass(batch):
        return _mapping_like(batch, held)
    new = copy.copy(batch)
    for name, value in held.items():
        try:
            setattr(new, name, value)
        except FrozenInstanceError:
            object.__setattr__(new, name, value)
    return new


def _mapping_like(batch: Mapping[Any, Any], held: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the type of another one, if such a one can be made."""
    with suppress(Exception):  # a class may refuse anything
        new: Any = copy.copy(batch)
        for key, value in held.items():
            new[key] = value
        return new  # type: ignore[no-any-return]
    with suppress(Exception):
        return type(batch)(held)  # type: ignore[call-arg]
    return held
