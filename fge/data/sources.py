"""Where images come from: the bundled subset, torchvision, an ``.npz`` file."""

from __future__ import annotations

import gzip
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.arrays import Archive, unreadable
from fge.config import CLASSIFICATION, OF_CLASSES, TaskName
from fge.data.pictures import Pictures
from fge.data.raw import VAL_NAMES, Part, RawData, check_arrays, in_memory, only
from fge.data.targets import checked_targets
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
_IDX_PREFIXES = {"train": "train", "test": "t10k"}
DOWNLOADED = {
    "fashion-mnist": (31, ("FashionMNIST/raw",)),
    "cifar10": (170, ("cifar-10-batches-py", "cifar-10-python.tar.gz")),
    "cifar100": (169, ("cifar-100-python", "cifar-100-python.tar.gz")),
}
"""By name of a data set: megabytes to download, and the files that are there afterwards."""


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
            in_memory(parts[name].images, parts[name].labels, parts[name].origin)
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


def from_npz(path: Path, task: TaskName = CLASSIFICATION) -> RawData:
    """Return the data in an ``.npz`` with images (N, H, W[, C]) uint8 and labels of a task.

    Its arrays are ``train_images`` and ``train_labels`` (or ``train_targets``), and perhaps the
    same for ``test`` and for one of ``VAL_NAMES``. ``target_names`` may name the labels of
    multilabel, the outputs of a regression, or the two classes of binary.
    """
    with Archive(path) as archive:
        kinds = ("images", "labels", "targets")
        present = [p for p in VAL_NAMES if any(f"{p}_{kind}" in archive for kind in kinds)]
        val = only(present, f"{path} has the arrays of {{}}; keep one of them")
        train = _npz_part(archive, "train", task)
        tested = any(f"test_{kind}" in archive for kind in kinds)
        test = _npz_part(archive, "test", task) if tested else None
        checked = _npz_part(archive, val, task) if val else None
        given = archive.read("target_names") if "target_names" in archive else None
    if task != CLASSIFICATION:
        names = _target_names(path, task, train, given)
        for part in (test, checked):
            if part is not None and part.labels.shape[1:] != train.labels.shape[1:]:
                raise UserError(
                    f"{path}: training targets have {train.labels.shape[1]} columns, others "
                    f"{part.labels.shape[1]}; give all parts the same"
                )
        stem = printable(path.stem)
        return RawData(stem, names, train, test, checked, missing="test_images", task=task)
    classes = int(train.labels.max()) + 1 if train.labels.size else 0
    if classes > len(train):  # making so many names could take a long time
        raise UserError(
            f"{path}: train_labels go up to {classes - 1}, but each class needs a training image "
            f"and there are {len(train)}; number the classes from 0"
        )
    known = [part.labels for part in (train, test, checked) if part is not None]
    low = min((int(labels.min()) for labels in known if labels.size), default=0)
    if low > 0:  # else the error would be that class 0 has no image
        raise UserError(f"{path}: labels go from {low} to {classes - 1}; number the classes from 0")
    names = tuple(str(c) for c in range(classes))
    return RawData(printable(path.stem), names, train, test, checked, missing="test_images")


def _target_names(
    path: Path, task: TaskName, train: Part, given: NDArray[Any] | None
) -> tuple[str, ...]:
    """Return the names of classes, labels or outputs: those given, or numbers from 0."""
    count = 2 if task in OF_CLASSES else train.labels.shape[1]
    names = tuple(map(str, range(count) if given is None else np.atleast_1d(given).tolist()))
    if len(names) != count or len(set(names)) != count:
        raise UserError(
            f"{path}: target_names must be {count} different names for --task {task}, got "
            f"{len(names)}"
        )
    return names


def _npz_part(archive: Archive, part: str, task: TaskName) -> Part:
    """Return a part of an archive after checking what the headers of its arrays say."""
    found = [f"{part}_{kind}" for kind in ("labels", "targets") if f"{part}_{kind}" in archive]
    only(found, f"{archive.path} has the arrays {{}}; keep one of them")
    keys = [f"{part}_images", *(found or [f"{part}_labels"])]
    archive.check_names(keys)
    images, labels = (archive.header(key) for key in keys)
    shape = (*images.shape, 1) if len(images.shape) == 3 else images.shape
    check_arrays(part, shape, images.dtype, labels.shape, labels.dtype, task)
    values = archive.read(keys[1])
    if task != CLASSIFICATION:
        values = checked_targets(task, keys[1], values, shape[0])
    pictures = _ArchivePictures(archive.path, keys[0], shape)
    return Part(values, shape, pictures, f"from {keys[0]}")


class _ArchivePictures(Pictures):
    """The images (N, H, W, C) of an archive, which are read in bulk: one takes nearly as long."""

    streamable = False

    def __init__(self, path: Path, key: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.key = key
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        with Archive(self.path) as reopened:
            rows = reopened.rows(self.key, index)
        return rows.reshape(len(index), *self.shape[1:])


def _idx_folders(data_dir: Path) -> tuple[Path, ...]:
    return data_dir, data_dir / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST


def _idx_name(split: str, kind: str) -> str:
    rank = 3 if kind == "images" else 1
    return f"{_IDX_PREFIXES[split]}-{kind}-idx{rank}-ubyte.gz"


def _idx_part(folder: Path, split: str) -> Part:
    images, labels = (_read_idx(folder / _idx_name(split, k)) for k in ("images", "labels"))
    check_arrays(split, (*images.shape, 1), images.dtype, labels.shape, labels.dtype)
    return in_memory(images, labels.astype(np.int64), f"from the {split} images")


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
        in_memory(
            np.asarray(part.data, dtype=np.uint8),
            np.asarray(part.targets, dtype=np.int64),
            f"from the {split} images",
        )
        for split, part in (("train", train), ("test", test))
    )
    return RawData(name, tuple(train.classes), first, second)
