"""Where images come from: the bundled subset, torchvision, a folder, an ``.npz`` file."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.arrays import Archive, unreadable
from fge.data.images import (
    HIDDEN,
    Skipped,
    channels_of,
    is_hidden,
    list_images,
    read_image,
    read_images,
)
from fge.errors import UserError
from fge.files import check_file, printable
from fge.memory import check_fits

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package ``dataset-fashion-mnist``."""
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
VAL_NAMES = ("val", "valid", "validation")
"""Names of the validation part; one of them is used."""
FEWER = "take fewer with --train-size and --test-size"
_IDX_PREFIXES = {"train": "train", "test": "t10k"}
DOWNLOADED = {
    "fashion-mnist": (31, ("FashionMNIST/raw",)),
    "cifar10": (170, ("cifar-10-batches-py", "cifar-10-python.tar.gz")),
    "cifar100": (169, ("cifar-100-python", "cifar-100-python.tar.gz")),
}
"""By name of a data set: megabytes to download, and the files that are there afterwards."""
_CHANNELS = (1, 2, 3, 4)
_OUTSIDE = "outside the class folders"


@dataclass(frozen=True)
class Part:
    """A part of a data set whose images are read when they are asked for.

    ``labels`` (N,) are integers; ``shape`` is that of all images (N, H, W, C); ``take`` returns the
    images (n, H, W, C) uint8 of an index (n,); ``origin`` says where they are from: "from test/".
    """

    labels: NDArray[Any]
    shape: tuple[int, ...]
    take: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    origin: str

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images (N, H, W, C), read now."""
        return self.take(np.arange(len(self.labels)))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class RawData:
    """A data set as it is found. What has no part of its own is taken from ``train``.

    ``missing`` is the name of the part that would hold test images, ``skipped`` a line about files
    that were passed over, if any were.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part | None
    val: Part | None = None
    missing: str = "test/"
    skipped: str | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


def download_note(name: str, data_dir: Path) -> str | None:
    """Return a sentence about the download that a named data set needs, or None."""
    if name not in DOWNLOADED:
        return None
    size, files = DOWNLOADED[name]
    paths = [data_dir / file for file in files]
    if name == "fashion-mnist":
        paths += [folder / _idx_name("train", "images") for folder in _idx_folders(data_dir)]
    if any(path.exists() for path in paths):
        return None
    return (
        f"downloading {name} (about {size} MB) with torchvision from its authors or a mirror to "
        f"{data_dir} ..."
    )


def fashion_mnist_mini(data_dir: Path) -> RawData:
    """Return the subset of Fashion-MNIST that comes with the package."""
    del data_dir
    file = resources.files("fge.data") / "bundled" / "fashion-mnist-mini.npz"
    with resources.as_file(file) as path:
        parts = from_npz(path).parts
        # The file may be gone later, if the package is in a zip.
        train, test = (
            _in_memory(parts[name].images, parts[name].labels, parts[name].origin)
            for name in ("train", "test")
        )
    return RawData("fashion-mnist-mini", FASHION_CLASSES, train, test)


def fashion_mnist(data_dir: Path) -> RawData:
    """Return Fashion-MNIST from ``data_dir``, Debian's package or a download."""
    for folder in _idx_folders(data_dir):
        if (folder / _idx_name("train", "images")).exists():
            train, test = (_idx_part(folder, split) for split in ("train", "test"))
            return RawData("fashion-mnist", FASHION_CLASSES, train, test)
    names = [_idx_name(s, k) for s in ("train", "test") for k in ("images", "labels")]
    return _from_torchvision("FashionMNIST", "fashion-mnist", data_dir, ", ".join(names))


def cifar10(data_dir: Path) -> RawData:
    """Return CIFAR-10 from ``data_dir`` or a download."""
    return _from_torchvision(
        "CIFAR10", "cifar10", data_dir, "the unpacked folder cifar-10-batches-py"
    )


def cifar100(data_dir: Path) -> RawData:
    """Return CIFAR-100 from ``data_dir`` or a download."""
    return _from_torchvision(
        "CIFAR100", "cifar100", data_dir, "the unpacked folder cifar-100-python"
    )


def from_npz(path: Path) -> RawData:
    """Return the data in an ``.npz`` with images (N, H, W[, C]) uint8 and integer labels.

    Its arrays are ``train_images`` and ``train_labels``, and perhaps the same for ``test`` and for
    one of ``VAL_NAMES``.
    """
    with Archive(path) as archive:
        present = [p for p in VAL_NAMES if f"{p}_images" in archive or f"{p}_labels" in archive]
        val = _only(present, f"{path} has the arrays of {{}}; keep one of them")
        train = _npz_part(archive, "train")
        tested = any(f"test_{kind}" in archive for kind in ("images", "labels"))
        test = _npz_part(archive, "test") if tested else None
        checked = _npz_part(archive, val) if val else None
    classes = int(train.labels.max()) + 1 if train.labels.size else 0
    if classes > len(train):  # making so many names could take a long time
        raise UserError(
            f"{path}: train_labels go up to {classes - 1}, but each class needs a training image "
            f"and there are {len(train)}; number the classes from 0"
        )
    names = tuple(str(c) for c in range(classes))
    return RawData(printable(path.stem), names, train, test, checked, missing="test_images")


def _npz_part(archive: Archive, part: str) -> Part:
    """Return a part of an archive after checking what the headers of its arrays say."""
    keys = [f"{part}_images", f"{part}_labels"]
    archive.check_names(keys)
    images, labels = (archive.header(key) for key in keys)
    shape = (*images.shape, 1) if len(images.shape) == 3 else images.shape
    check_arrays(part, shape, images.dtype, labels.shape, labels.dtype)

    def take(index: NDArray[np.int64]) -> NDArray[np.uint8]:
        with Archive(archive.path) as reopened:
            rows = reopened.rows(keys[0], index)
        return rows.reshape(len(index), *shape[1:])

    return Part(archive.read(keys[1]), shape, take, f"from {keys[0]}")


def from_folder(folder: Path) -> RawData:
    """Return the images of ``train/CLASS/``, and of ``test/CLASS/`` and ``val/CLASS/`` if any.

    Classes are in sorted order.
    """
    present = [name for name in ("train", *VAL_NAMES, "test") if _is_folder(folder / name)]
    val = _only([n for n in present if n in VAL_NAMES], f"{folder} has {{}}; keep one of them")
    skipped = Skipped()
    classes = _class_names(folder / "train", skipped)
    listed = {}
    for part in ("train", *([val] if val else []), *({"test"} & set(present))):
        listed[part] = _labelled_files(folder / part, classes, skipped)
    channels = channels_of([file for files, _ in listed.values() for file in files])
    parts = {
        part: _folder_part(files, labels, channels, f"from {part}/")
        for part, (files, labels) in listed.items()
    }
    return RawData(
        printable(Path(os.path.abspath(folder)).name),
        tuple(printable(name) for name in classes),
        parts["train"],
        parts.get("test"),
        parts.get(val or ""),
        skipped=skipped.note(folder),
    )


def _folder_part(files: Sequence[Path], labels: list[int], channels: int, origin: str) -> Part:
    def take(index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return read_images([files[k] for k in index], channels=channels, remedy=FEWER)

    shape = (len(files), *read_image(files[0], channels).shape)
    return Part(np.array(labels, dtype=np.int64), shape, take, origin)


def _only(names: Sequence[str], error: str) -> str | None:
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
) -> None:
    """Raise a UserError unless shapes and types are those of images and labels."""
    if dtype != np.uint8 or len(images) != 4:
        raise UserError(
            f"{part}_images must be uint8 (N, H, W) or (N, H, W, C), got {dtype} {images}"
        )
    if 0 in images[1:]:
        raise UserError(f"{part}_images {images} have no pixel; give (N, H, W) or (N, H, W, C)")
    if images[1] in _CHANNELS and images[3] not in _CHANNELS:
        raise UserError(
            f"{part}_images {images} have their channels first; give (N, H, W, C), "
            "images.transpose(0, 2, 3, 1)"
        )
    if labels != images[:1]:
        raise UserError(f"{part}_labels must be one per image ({images[0]}), got shape {labels}")
    if label_dtype.kind not in "iu":
        raise UserError(f"{part}_labels must be integers, got {label_dtype}")


def check(raw: RawData) -> None:
    """Raise a UserError unless the labels of all parts are in range, and images of one size."""
    for name, part in raw.parts.items():
        if len(part) == 0:
            raise UserError(f"the {name} split is empty")
        low, high = part.labels.min(), part.labels.max()
        if low < 0 or high >= len(raw.classes):
            raise UserError(
                f"{name}_labels must be in [0, {len(raw.classes)}), got {low} to {high}"
            )
        if part.shape[1:] != raw.train.shape[1:]:
            kind = {"val": "validation"}.get(name, name)
            raise UserError(
                f"training images are {raw.train.shape[1:]} (H, W, C) "
                f"and {kind} images {part.shape[1:]}; give images of one size"
            )


def _is_folder(path: Path) -> bool:
    """Return whether there is such a folder; something else of that name is a UserError."""
    if path.is_dir():
        return True
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is not a folder; a data folder has {path.name}/CLASS/")
    return False


def _class_names(folder: Path, skipped: Skipped) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; a data folder needs train/CLASS/, and may have val/CLASS/ and "
            "test/CLASS/"
        )
    names = []
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name):
            skipped.add(HIDDEN, entry.name)
        elif entry.is_dir():
            names.append(entry.name)
        else:
            skipped.add(_OUTSIDE, entry.name)
    if not names:
        raise UserError(f"{folder} holds no class folders; put images into {folder}/CLASS/")
    return tuple(names)


def _labelled_files(
    folder: Path, classes: tuple[str, ...], skipped: Skipped
) -> tuple[list[Path], list[int]]:
    """Return the images of the class folders, and their labels."""
    if folder.name != "train":
        extra = sorted(set(_class_names(folder, skipped)) - set(classes))
        if extra:
            raise UserError(
                f"{folder} has a class {extra[0]!r}, but {folder.parent}/train does not; add "
                "training images or remove the class"
            )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list_images(folder / name, skipped) if (folder / name).is_dir() else []
        if not images and folder.name == "train":
            raise UserError(f"class folder {folder / name} holds no images; add some or remove it")
        files += images
        labels += [label] * len(images)
    if not files:
        raise UserError(f"{folder} holds no images; put some into {folder}/CLASS/")
    return files, labels


def _in_memory(images: NDArray[Any], labels: NDArray[Any], origin: str) -> Part:
    """Return a part of arrays that are read already; grey images gain a channel."""
    images = images[..., None] if images.ndim == 3 else images
    return Part(labels, images.shape, lambda index: images[index], origin)


def _idx_folders(data_dir: Path) -> tuple[Path, ...]:
    return data_dir, data_dir / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST


def _idx_name(split: str, kind: str) -> str:
    rank = 3 if kind == "images" else 1
    return f"{_IDX_PREFIXES[split]}-{kind}-idx{rank}-ubyte.gz"


def _idx_part(folder: Path, split: str) -> Part:
    images, labels = (_read_idx(folder / _idx_name(split, k)) for k in ("images", "labels"))
    check_arrays(split, (*images.shape, 1), images.dtype, labels.shape, labels.dtype)
    return _in_memory(images, labels.astype(np.int64), f"from the {split} images")


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in a gzipped IDX file: magic (0, 0, type, rank), sizes, then bytes."""
    check_file(path, "data file")
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            sizes = np.frombuffer(file.read(4 * magic[3]), ">i4", count=magic[3])
            if magic[:3] != b"\0\0\x08" or sizes.min(initial=0) < 0:
                raise ValueError("it is no IDX file of bytes")
            shape = sizes.tolist()
            check_fits(math.prod(shape), f"{path} needs", "free some of it")
            values = np.frombuffer(file.read(math.prod(shape)), np.uint8)
            if file.read(1):
                raise ValueError("it is longer than it says")
            return values.reshape(shape)
    except UserError:
        raise
    except Exception as error:  # gzip and NumPy raise many types
        raise unreadable(path, error) from None


def _from_torchvision(kind: str, name: str, data_dir: Path, files: str) -> RawData:
    from torchvision import datasets

    try:
        train, test = (
            getattr(datasets, kind)(root=str(data_dir), train=part, download=True)
            for part in (True, False)
        )
    except Exception as error:  # torchvision raises many types when it cannot download
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded; put {files} there, or give "
            f"another folder with --data-dir ({type(error).__name__})"
        ) from None
    first, second = (
        _in_memory(
            np.asarray(part.data, dtype=np.uint8),
            np.asarray(part.targets, dtype=np.int64),
            f"from the {split} images",
        )
        for split, part in (("train", train), ("test", test))
    )
    return RawData(name, tuple(train.classes), first, second)
