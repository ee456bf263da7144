"""A data set as it is found: its parts, whose images are read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.config import CLASSIFICATION, OF_CLASSES, TaskName
from fge.data.pictures import ArrayPictures, Pictures, Sized
from fge.errors import UserError

VAL_NAMES = ("val", "valid", "validation")
"""Names of the validation part; one of them is used."""
_CHANNELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Part:
    """A part of a data set whose images are read when they are asked for.

    ``labels`` (N,) are integers, or what another task needs; ``shape`` is that of all images
    (N, H, W, C), if they have one size; ``origin`` says where they are from: "from test/".
    """

    labels: NDArray[Any]
    shape: tuple[int, ...]
    pictures: Pictures
    origin: str

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images (n, H, W, C) uint8 of an index (n,)."""
        return self.pictures.take(index)

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images (N, H, W, C), read now."""
        return self.take(np.arange(len(self.labels)))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def in_memory(images: NDArray[Any], labels: NDArray[Any], origin: str) -> Part:
    """Return a part of arrays that are read already; grey images gain a channel."""
    images = images[..., None] if images.ndim == 3 else images
    return Part(labels, images.shape, ArrayPictures(images), origin)


@dataclass(frozen=True)
class RawData:
    """A data set as it is found. What has no part of its own is taken from ``train``.

    ``missing`` is the name of the part that would hold test images, ``skipped`` a line about files
    that were passed over, if any were; ``unreadable``: the files that could not be read and why, if
    they were to be left out; ``task``: for which the labels are.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part | None
    val: Part | None = None
    missing: str = "test/"
    skipped: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    task: TaskName = CLASSIFICATION

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


def only(names: Sequence[str], error: str) -> str | None:
    """Return the one name, or None if there is none; more are a UserError."""
    if len(names) > 1:
        raise UserError(error.format(" and ".join(names)))
    return names[0] if names else None


def check_arrays(
    part: str,
    images: tuple[int, ...],
    dtype: np.dtype[Any],
    labels: tuple[int, ...],
    label_dtype: np.dtype[Any],
    task: TaskName = CLASSIFICATION,
) -> None:
    """Raise a UserError unless shapes and types are those of images and labels."""
    if dtype != np.uint8 or len(images) != 4:
        raise UserError(
            f"{part}_images must be uint8 (N, H, W) or (N, H, W, C), got {dtype} {images}"
        )
    if 0 in images[1:]:
        raise UserError(f"{part}_images {images} have no pixel; give (N, H, W) or (N, H, W, C)")
    square = images[1] != images[2] == images[3]  # (N, 13, 64, 64): as many channels as columns
    if images[3] not in _CHANNELS and (images[1] in _CHANNELS or square):
        raise UserError(
            f"{part}_images {images} have their channels first; give (N, H, W, C), "
            "images.transpose(0, 2, 3, 1)"
        )
    if task != CLASSIFICATION:
        return  # the values say more than shapes and types
    if labels != images[:1]:
        raise UserError(f"{part}_labels must be one per image ({images[0]}), got shape {labels}")
    if label_dtype.kind not in "iu":
        raise UserError(f"{part}_labels must be integers, got {label_dtype}")


def check(raw: RawData) -> None:
    """Raise a UserError unless the labels of all parts are in range, and images of one size."""
    if raw.task == "binary" and len(raw.classes) != 2:
        raise UserError(
            f"--task binary needs two classes, {raw.name} has {len(raw.classes)}; "
            + (
                "use --task classification"
                if len(raw.classes) > 2
                else "add images of another class"
            )
        )
    for name, part in raw.parts.items():
        if len(part) == 0:
            raise UserError(f"the {name} split is empty")
        low, high = part.labels.min(), part.labels.max()
        if raw.task in OF_CLASSES and low < 0:
            raise UserError(
                f"{name}_labels must be class numbers from 0 on, got {low} to {high}; leave out "
                "images without a class, and number the classes again"
            )
        if raw.task in OF_CLASSES and high >= len(raw.classes):
            raise UserError(
                f"{name}_labels must be in [0, {len(raw.classes)}), got {low} to {high}"
            )
        if part.shape[1:] != raw.train.shape[1:]:
            kind = {"val": "validation"}.get(name, name)
            raise UserError(
                f"training images are {raw.train.shape[1:]} (H, W, C) "
                f"and {kind} images {part.shape[1:]}; give images of one size, or --image-size"
            )


def sized(raw: RawData, side: int, workers: int) -> RawData:
    """Return a data set whose images are the centres of the given ones.

    What cannot be read one by one is read into memory now.

    Raises:
        UserError: it does not fit into the memory.
    """

    def centres(part: Part | None) -> Part | None:
        if part is None:
            return None
        pictures = part.pictures if part.pictures.streamable else ArrayPictures(part.images)
        channels = part.shape[3]
        own = Sized(pictures, side, channels, workers)
        return replace(part, shape=(len(part), side, side, channels), pictures=own)

    train = centres(raw.train)
    assert train is not None
    return replace(raw, train=train, val=centres(raw.val), test=centres(raw.test))
