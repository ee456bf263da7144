"""Random crops of images: padded ones in memory or streamed, and resized ones of photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fge.data.split import Photographs, Split, StreamedSplit
from fge.seeds import generator


class AnyCrops(Protocol):
    """Crops of a split, drawn per image from a stream of random numbers."""

    def batches(self, batches: Sequence[Tensor], seed: int, *stream: object) -> Iterator[Tensor]:
        """Yield the crops (n, C, H, W) uint8 of the images of each index (n,), on the CPU."""


def crops_of(split: Split, padding: int, *, flip: bool, resized: bool = False) -> AnyCrops:
    """Return the crops of a split: padded ones, or resized ones of its photographs if it has any.

    Args:
        split: on the device on which images are cropped.
        padding: of crops that are not resized.
        flip: mirror images left to right with probability 1/2.
        resized: take random resized crops of whole photographs.
    """
    if len(split.shape) == 2:
        return Rows(split.images)
    if resized and split.photographs is not None:
        return ResizedCrops(split.photographs, split.labels.device, flip=flip)
    if isinstance(split, StreamedSplit):
        return StreamedCrops(split, padding, flip=flip)
    return Crops(split.images, padding, flip=flip)


class Rows:
    """The rows of a table (N, F), which are not cropped."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def batches(self, batches: Sequence[Tensor], seed: int, *stream: object) -> Iterator[Tensor]:
        """Yield the rows (n, F) of each index (n,)."""
        del seed, stream
        for batch in batches:
            yield self.rows[batch.to(self.rows.device)]


class Crops:
    """Random crops and flips of images, drawn per image.

    Args:
        images: (N, C, H, W), on the device on which they are cropped.
        padding: pixels of black around each image from which a crop of its size is taken.
        flip: mirror images left to right with probability 1/2.
    """

    def __init__(self, images: Tensor, padding: int, *, flip: bool) -> None:
        self.size = (images.shape[2], images.shape[3])
        self.padded = _padded(images, padding)
        self.padding = padding
        self.flip = flip

    def batches(self, batches: Sequence[Tensor], seed: int, *stream: object) -> Iterator[Tensor]:
        """Yield the crops (n, C, H, W) of the images of each index (n,)."""
        device = self.padded.device
        draws = Draws(len(self.padded), self.padding, seed, *stream).to(device)
        rows, columns = draws.positions(self.size, flip=self.flip)
        for batch in batches:
            index = batch.to(device)
            yield _taken(self.padded, index, rows[index], columns[index])


class StreamedCrops:
    """The crops that :class:`Crops` takes, of images that are read when they are needed."""

    def __init__(self, split: StreamedSplit, padding: int, *, flip: bool) -> None:
        self.split = split
        self.padding = padding
        self.flip = flip

    def batches(self, batches: Sequence[Tensor], seed: int, *stream: object) -> Iterator[Tensor]:
        """Yield the crops (n, C, H, W) of the images of each index (n,)."""
        draws = Draws(len(self.split), self.padding, seed, *stream)
        size = (self.split.shape[2], self.split.shape[3])
        for batch, images in zip(batches, self.split.read(batches), strict=True):
            own = draws.of(batch.cpu(), images.device)
            rows, columns = own.positions(size, flip=self.flip)
            index = torch.arange(len(batch), device=images.device)
            yield _taken(_padded(images, self.padding), index, rows, columns)


class ResizedCrops:
    """Random resized crops of photographs, which worker processes read."""

    def __init__(self, photographs: Photographs, device: torch.device, *, flip: bool) -> None:
        self.photographs = photographs
        self.device = device
        self.flip = flip

    def batches(self, batches: Sequence[Tensor], seed: int, *stream: object) -> Iterator[Tensor]:
        """Yield the crops (n, C, H, W) of the images of each index (n,)."""
        for images in self.photographs.crops(batches, seed, *stream, flip=self.flip):
            yield images.to(self.device)


class Draws:
    """Offsets and flips of padded crops, for each image of a split.

    They come from the CPU, so that they are the same for every device.
    """

    def __init__(self, count: int, padding: int, seed: int, *stream: object) -> None:
        rng = generator(seed, *stream)
        self.offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=rng)
        self.mirrored = torch.rand(count, generator=rng) < 0.5

    def to(self, device: torch.device) -> Draws:
        """Move them to a device."""
        self.offsets, self.mirrored = self.offsets.to(device), self.mirrored.to(device)
        return self

    def of(self, index: Tensor, device: torch.device) -> Draws:
        """Return those of an index (n,), on a device."""
        own = object.__new__(Draws)
        own.offsets, own.mirrored = self.offsets[index], self.mirrored[index]
        return own.to(device)

    def positions(self, size: tuple[int, int], *, flip: bool) -> tuple[Tensor, Tensor]:
        """Return, for each image, the rows (n, H) and columns (n, W) of its crop."""
        height, width = size
        device = self.offsets.device
        rows = self.offsets[:, :1] + torch.arange(height, device=device)
        columns = self.offsets[:, 1:] + torch.arange(width, device=device)
        if flip:
            columns = torch.where(self.mirrored[:, None], columns.flip(1), columns)
        return rows, columns


def _padded(images: Tensor, padding: int) -> Tensor:
    return F.pad(images, [padding] * 4).permute(0, 2, 3, 1).contiguous()


def _taken(padded: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return crops (n, C, H, W) of padded images (N, H, W, C) at an index (n,)."""
    crops = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)
