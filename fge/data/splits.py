"""Data sets as splits of uint8 images in memory; what has no images of its own is split off."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.config import DATA_NAMES
from fge.data import sources
from fge.data.choice import Chosen, choose
from fge.data.sources import RawData
from fge.data.statistics import mean_and_std
from fge.errors import UserError, unknown
from fge.memory import check_fits
from fge.observer import counted

NAMED: dict[str, Callable[[Path], RawData]] = {
    "fashion-mnist-mini": sources.fashion_mnist_mini,
    "fashion-mnist": sources.fashion_mnist,
    "cifar10": sources.cifar10,
    "cifar100": sources.cifar100,
}
assert tuple(NAMED) == DATA_NAMES


@dataclass(frozen=True)
class Split:
    """Part of a data set: ``images`` (N, C, H, W) uint8 and ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """Return the split with its tensors on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, count: int) -> Split:
        """Return the first ``count`` images; 0 returns all, and so does a larger number."""
        return Split(self.images[: count or None], self.labels[: count or None])


@dataclass(frozen=True)
class OODImages:
    """OOD images in the format of a data set, and a SHA-256 over them.

    The labels of the split are all 0, since its images belong to none of the classes.
    """

    split: Split
    fingerprint: str


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test splits, and facts about them.

    ``val`` has no images if ``val_fraction`` is 0. ``mean`` and ``std`` are those of the training
    images per channel, in grey levels from 0 to 255. ``fingerprint`` is a SHA-256 over all three
    splits. ``ood`` holds OOD images by name; see :func:`fge.data.load_ood`. ``origins`` say where
    the images of ``val``, and those of ``test`` if it has no part of its own, come from;
    ``skipped`` tells of files that were passed over, if any were.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    ood: Mapping[str, OODImages] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]

    @property
    def notes(self) -> list[str]:
        """Lines for the user: which images validate and test, and what was passed over."""
        named = {"val": ("validation", self.val), "test": ("test", self.test)}
        lines = []
        for part, origin in self.origins.items():
            name, split = named[part]
            count = f"{counted(len(split), 'image')} " if len(split) else ""
            lines.append(f"{name}: {count}{origin}")
        return [*lines, *([self.skipped] if self.skipped else [])]

    def to(self, device: torch.device) -> Dataset:
        """Return the data set with its splits on ``device``."""
        train, val, test = (split.to(device) for split in (self.train, self.val, self.test))
        ood = {n: replace(f, split=f.split.to(device)) for n, f in self.ood.items()}
        return replace(self, train=train, val=val, test=test, ood=ood)


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.1,
) -> Dataset:
    """Load a data set by name or from the user's own files.

    Only images that are used are kept in memory, and only if they fit.

    Args:
        name: a key of ``NAMED``, a folder with images in ``train/CLASS/``, and perhaps
            ``val/CLASS/`` and ``test/CLASS/``, or an ``.npz`` file.
        data_dir: folder of a named data set's files; ``data`` by default.
        train_size: number of training images to use, balanced over classes, validation included.
        test_size: number of test images to use, balanced over classes.
        val_fraction: fraction of the training images that becomes the validation split if the data
            have no validation images of their own; 0 for no validation.

    Raises:
        UserError: the name is unknown, files are missing or damaged, labels are out of range,
            images differ in size, a class or split is empty, a size exceeds the data, or the
            images do not fit into the memory.
    """
    raw = load_raw(name, data_dir or Path("data"))
    sources.check(raw)
    chosen = choose(raw, train_size=train_size, test_size=test_size, val_fraction=val_fraction)
    _check_classes(chosen.train, raw.classes)
    train, val, test = _read(raw, chosen.train, chosen.val, chosen.test)
    mean, std = mean_and_std(train.images)
    return Dataset(
        name=raw.name,
        classes=raw.classes,
        train=_split(train),
        val=_split(val),
        test=_split(test),
        mean=mean,
        std=std,
        fingerprint=_fingerprint(train, val, test),
        origins={"val": chosen.val.origin} | ({} if raw.test else {"test": chosen.test.origin}),
        skipped=raw.skipped,
    )


def load_test_images(name: str, *, data_dir: Path | None = None, most: int) -> tuple[str, Tensor]:
    """Return the name of a data set, and at most so many of its test images (M, C, H, W).

    They are the first of :func:`load_dataset`'s; no others are read.

    Raises:
        UserError: as :func:`load_dataset`.
    """
    raw = load_raw(name, data_dir or Path("data"))
    sources.check(raw)
    (test,) = _read(raw, choose(raw).test.first(most))
    return raw.name, _split(test).images


def load_raw(name: str, data_dir: Path) -> RawData:
    """Return the images of a named data set, an ``.npz`` file or a folder, as they are.

    Raises:
        UserError: there is no such data.
    """
    if name in NAMED:
        return NAMED[name](data_dir)
    path = Path(name)
    if path.suffix == ".npz":
        return sources.from_npz(path)
    if path.is_dir():
        return sources.from_folder(path)
    if "/" in name or path.exists():
        raise UserError(f"data {name!r} is neither a folder nor an .npz file")
    raise unknown("data", name, NAMED)


@dataclass(frozen=True)
class _Read:
    """Images (n, H, W, C) uint8 in memory, and labels (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]


def _read(raw: RawData, *splits: Chosen) -> list[_Read]:
    """Read the images of splits if they fit into the memory; those of one part at once."""
    count, shape = sum(len(split) for split in splits), raw.train.shape[1:]
    size = " x ".join(map(str, shape))
    what = f"{counted(count, 'image')} of {raw.name}, {size} bytes each, need"
    check_fits(count * math.prod(shape), what, sources.FEWER)
    read: dict[int, NDArray[np.uint8]] = {}
    for part in {id(split.part): split.part for split in splits}.values():
        own = [k for k, split in enumerate(splits) if split.part is part]
        images = part.take(np.concatenate([splits[k].order for k in own]))
        ends = np.cumsum([len(splits[k]) for k in own])
        read |= dict(zip(own, np.split(images, ends[:-1]), strict=True))
    return [_Read(read[k], split.labels) for k, split in enumerate(splits)]


def _check_classes(train: Chosen, classes: tuple[str, ...]) -> None:
    if len(train) == 0:
        raise UserError("no training images are left; lower val_fraction or raise train_size")
    counts = np.bincount(train.labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise UserError(f"class {name!r} has no training image; add some or remove the class")


def _split(read: _Read) -> Split:
    """Return the split as tensors: (N, C, H, W) views of NHWC memory."""
    images = torch.from_numpy(np.ascontiguousarray(read.images)).permute(0, 3, 1, 2)
    return Split(images, torch.from_numpy(read.labels.astype(np.int64)))


def _fingerprint(*splits: _Read) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()
