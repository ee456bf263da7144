"""Data sets as splits of uint8 images in memory; validation images come from training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.config import DATA_NAMES
from fge.data import sources
from fge.data.sources import RawData, RawSplit
from fge.errors import UserError, unknown
from fge.seeds import derive_seed

SPLIT_SEED = 0
"""The split does not depend on a run's seed, so that networks with different seeds can be compared
and ensembled: none has trained on another's validation images."""

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
    splits. ``ood`` holds OOD images by name; see :func:`fge.data.load_ood`.
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

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]

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

    Args:
        name: a key of ``NAMED``, a folder with ``train/CLASS/`` and ``test/CLASS/`` images, or an
            ``.npz`` file.
        data_dir: folder of a named data set's files; ``data`` by default.
        train_size: number of training images to use, balanced over classes, validation included.
        test_size: number of test images to use, balanced over classes.
        val_fraction: fraction of the training images that becomes the validation split.

    Raises:
        UserError: the name is unknown, files are missing or damaged, labels are out of range,
            images differ in size, a class or split is empty, or a size exceeds the data.
    """
    raw = load_raw(name, data_dir or Path("data"))
    sources.check(raw)
    train = _first(raw.train, "train_size", train_size)
    test = _first(raw.test, "test_size", test_size)
    val_count = round(val_fraction * len(train.labels))
    if val_fraction > 0 and val_count == 0:
        raise UserError(
            f"val_fraction {val_fraction} of {len(train.labels)} images gives no validation image; "
            "raise it, or set it to 0 for no validation"
        )
    train, val = _slice(train, val_count, None), _slice(train, 0, val_count)
    _check_classes(train, raw.classes)
    pixels = train.images.reshape(-1, train.images.shape[3])
    return Dataset(
        name=raw.name,
        classes=raw.classes,
        train=_split(train),
        val=_split(val),
        test=_split(test),
        mean=tuple(float(m) for m in pixels.mean(axis=0, dtype=np.float64)),
        std=tuple(max(float(s), 1.0) for s in pixels.std(axis=0, dtype=np.float64)),
        fingerprint=_fingerprint(train, val, test),
    )


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


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return a random order of examples whose every prefix has about the class balance of all."""
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks = rng.permutation(len(members))
        position[members] = (ranks + rng.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")


def _first(split: RawSplit, option: str, size: int | None) -> RawSplit:
    """Put a split in balanced order and keep its first ``size`` examples."""
    count = len(split.labels)
    if size is not None and size > count:
        raise UserError(f"{option} {size} is more than the {count} available images")
    order = balanced_order(split.labels, derive_seed(SPLIT_SEED, option))[:size]
    return RawSplit(split.images[order], split.labels[order])


def _slice(split: RawSplit, start: int, stop: int | None) -> RawSplit:
    return RawSplit(split.images[start:stop], split.labels[start:stop])


def _check_classes(train: RawSplit, classes: tuple[str, ...]) -> None:
    if len(train.labels) == 0:
        raise UserError("no training images are left; lower val_fraction or raise train_size")
    counts = np.bincount(train.labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise UserError(f"class {name!r} has no training image; add some or remove the class")


def _split(raw: RawSplit) -> Split:
    """Return the split as tensors: (N, C, H, W) views of NHWC memory."""
    images = torch.from_numpy(np.ascontiguousarray(raw.images)).permute(0, 3, 1, 2)
    return Split(images, torch.from_numpy(raw.labels.astype(np.int64)))


def _fingerprint(*splits: RawSplit) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()
