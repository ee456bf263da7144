"""A part of a data set as batches want it: images in memory, or read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.data.images import BEGIN_AGAIN, LEAVE_OUT
from fge.data.pictures import Pictures, Sized, random_crops, stacked
from fge.data.workers import loaded
from fge.errors import UserError
from fge.memory import check_fits
from fge.observer import counted

_PIECE_BYTES = 1 << 25
"""Of pixels that a worker process hands over at once: more would only wait in memory."""
_LEAST_PIECE = 16
_CHECKED = 64
"""Pictures that a worker process checks in one piece."""


T = TypeVar("T")


@dataclass(frozen=True)
class Photographs:
    """The pictures of a split, which worker processes read when they are needed.

    ``pictures``: those of a part of the data; ``order``: which of them (n,); ``size``: height and
    width of what is read, in pixels; ``workers``: how many processes, 0 for this one; ``of_run``:
    whether a run goes on after one was repaired, which the error of one says then.
    """

    pictures: Pictures
    order: NDArray[np.int64]
    size: tuple[int, int]
    channels: int
    workers: int
    of_run: bool = False

    def first(self, count: int) -> Photographs:
        """Return the first ``count``; 0 returns all."""
        return replace(self, order=self.order[: count or None])

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the pictures (n, C, H, W) uint8 of each index (n,) of positions."""
        return self._loaded(batches, partial(stacked, self.pictures))

    def crops(self, batches: Sequence[Tensor], *stream: object, flip: bool) -> Iterator[Tensor]:
        """Yield random resized crops (n, C, H, W), H = W, of each index, drawn from a stream."""
        read = partial(random_crops, self.pictures, self.size[0], flip, stream)
        return self._loaded(batches, read)

    def check(self, share: slice) -> None:
        """Read a share of the pictures once and keep none of them.

        Raises:
            UserError: naming the first that cannot be read.
        """
        index = self.order[share]
        pieces = np.array_split(index, -(-len(index) // _CHECKED)) if len(index) else []
        for _ in self._found(pieces, partial(_read_only, self.pictures)):
            pass

    def _found(
        self, pieces: Sequence[NDArray[np.int64]], read: Callable[[NDArray[np.int64]], T]
    ) -> Iterator[T]:
        """Yield what is read of each piece; the error of a run says how it goes on."""
        try:
            yield from loaded(pieces, read, self.workers)
        except UserError as error:
            message = str(error)
            if not (self.of_run and message.endswith(LEAVE_OUT)):
                raise
            raise UserError(message.removesuffix(LEAVE_OUT) + BEGIN_AGAIN) from None

    def _loaded(
        self, batches: Sequence[Tensor], read: Callable[[NDArray[np.int64]], Tensor]
    ) -> Iterator[Tensor]:
        """Yield batches, each of which is read in pieces by several workers."""
        pieces: list[NDArray[np.int64]] = []
        counts = []
        for batch in batches:
            index = self.order[batch.cpu().numpy()]
            parts = -(-len(index) // self._piece(len(index))) if len(index) else 0
            pieces += np.array_split(index, parts) if parts else []
            counts.append(parts)
        found = self._found(pieces, read)
        for parts in counts:
            images = [next(found) for _ in range(parts)]
            if images:
                yield _joined(images).permute(0, 3, 1, 2)
            else:  # a process's share of a small batch
                yield torch.empty((0, self.channels, *self.size), dtype=torch.uint8)

    def _piece(self, count: int) -> int:
        most = max(1, _PIECE_BYTES // (self.size[0] * self.size[1] * self.channels))
        return min(most, max(_LEAST_PIECE, -(-count // max(1, self.workers))))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Return pieces as one tensor, in memory of NumPy if there are several.

    A block that PyTorch aligned is seldom used again by the C library once it is freed: memory grew
    with each epoch that was left before its end.
    """
    if len(pieces) == 1:
        return pieces[0]
    return torch.from_numpy(np.concatenate([piece.numpy() for piece in pieces]))


def _read_only(pictures: Pictures, index: NDArray[np.int64]) -> None:
    for k in index.tolist():
        pictures.read(k)


@dataclass(frozen=True)
class Split:
    """Part of a data set: ``images`` (N, C, H, W) uint8 and ``labels`` (N,) int64.

    ``photographs`` are the whole pictures of which ``images`` are the centres, if they are.
    """

    images: Tensor
    labels: Tensor
    photographs: Photographs | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images (N, C, H, W)."""
        return tuple(self.images.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of images in memory."""
        return self.images.nbytes

    def to(self, device: torch.device) -> Split:
        """Return the split with its tensors on ``device``."""
        return Split(self.images.to(device), self.labels.to(device), self.photographs)

    def first(self, count: int) -> Split:
        """Return the first ``count`` images; 0 returns all, and so does a larger number."""
        whole = self.photographs
        return Split(
            self.images[: count or None],
            self.labels[: count or None],
            whole and whole.first(count),
        )

    def take(self, index: Tensor) -> Tensor:
        """Return the images (n, C, H, W) uint8 of an index (n,), on the CPU."""
        return self.images[index.to(self.images.device)].cpu()

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images (n, C, H, W) uint8 and labels (n,) in order."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]


class StreamedSplit(Split):
    """Part of a data set whose images are read when they are needed, and not kept.

    Args:
        centres: the images, all of one size.
        shape: of all images (N, C, H, W).
        labels: (N,) int64, on the device to which images go.
        photographs: the whole pictures, if ``centres`` are their centres.
    """

    def __init__(
        self,
        centres: Photographs,
        shape: tuple[int, ...],
        labels: Tensor,
        photographs: Photographs | None,
    ) -> None:
        for name, value in (
            ("centres", centres),
            ("_shape", shape),
            ("labels", labels),
            ("photographs", photographs),
        ):
            object.__setattr__(self, name, value)

    centres: Photographs
    _shape: tuple[int, ...]

    @property
    def images(self) -> Tensor:
        """All images (N, C, H, W), read now if they fit into the memory."""
        size = int(np.prod(self._shape))
        check_fits(size, f"{counted(len(self), 'image')} at once need", "take fewer images")
        parts = [images for images, _ in self.batches(256)]
        return torch.cat(parts) if parts else torch.empty(self._shape, dtype=torch.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images (N, C, H, W)."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """The bytes of images in memory: none are kept."""
        return 0

    def to(self, device: torch.device) -> Split:
        """Return the split with its labels on ``device``, to which images will go."""
        labels = self.labels.to(device)
        return StreamedSplit(self.centres, self._shape, labels, self.photographs)

    def first(self, count: int) -> Split:
        """Return the first ``count`` images; 0 returns all, and so does a larger number."""
        labels, whole = self.labels[: count or None], self.photographs
        return StreamedSplit(
            self.centres.first(count),
            (len(labels), *self._shape[1:]),
            labels,
            whole and whole.first(count),
        )

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the images (n, C, H, W) uint8 of each index (n,), on the device."""
        for images in self.centres.read(batches):
            yield images.to(self.labels.device)

    def take(self, index: Tensor) -> Tensor:
        """Return the images (n, C, H, W) uint8 of an index (n,), on the CPU; no others are read."""
        here = replace(self.centres, workers=0)  # a few images are not worth a process
        return next(here.read([index.cpu()]))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images (n, C, H, W) uint8 and labels (n,) in order."""
        parts = torch.split(torch.arange(len(self)), size) if len(self) else ()
        for part, images in zip(parts, self.read(parts), strict=True):
            yield images, self.labels[int(part[0]) : int(part[-1]) + 1]


def unlabelled(pictures: Pictures, side: int, channels: int, workers: int) -> Split:
    """Return the centres of pictures as a split that is read when it is needed; labels are 0."""
    centres = Sized(pictures, side, channels, workers)
    count = len(pictures)
    whole = Photographs(centres, np.arange(count), (side, side), channels, workers)
    labels = torch.zeros(count, dtype=torch.int64)
    return StreamedSplit(whole, (count, channels, side, side), labels, None)
