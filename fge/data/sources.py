"""Where images come from: the bundled subset, torchvision, a folder, an ``.npz`` file."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fge.errors import UserError
from fge.files import read_npz, unreadable

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
_NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_IDX_PREFIXES = {"train": "train", "test": "t10k"}
DOWNLOADED = {
    "fashion-mnist": (31, ("FashionMNIST/raw",)),
    "cifar10": (170, ("cifar-10-batches-py", "cifar-10-python.tar.gz")),
    "cifar100": (169, ("cifar-100-python", "cifar-100-python.tar.gz")),
}
"""By name of a data set: megabytes to download, and the files that are there afterwards."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
_DEEP_MODES = {"I", "I;16", "I;16B", "I;16L"}
_GREY_MODES = {"1", "L", "F", *_DEEP_MODES}
_CHANNELS = (1, 2, 3, 4)
_NO_CLASSES = {"__MACOSX"}
"""Folders that systems leave behind, beside those whose names begin with a dot."""
_MOST_OF_16_BITS = 65_535
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow raises it for a broken chunk
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class RawSplit:
    """``images`` (N, H, W, C) uint8 and integer ``labels`` (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class RawData:
    """A data set as read, before the validation split is taken from training."""

    name: str
    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit


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
        raw = from_npz(path)
    return RawData("fashion-mnist-mini", FASHION_CLASSES, raw.train, raw.test)


def fashion_mnist(data_dir: Path) -> RawData:
    """Return Fashion-MNIST from ``data_dir``, Debian's package or a download."""
    for folder in _idx_folders(data_dir):
        if (folder / _idx_name("train", "images")).exists():
            splits = [_idx_split(folder, split) for split in ("train", "test")]
            return RawData("fashion-mnist", FASHION_CLASSES, *splits)
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
    """Return the data in an ``.npz`` with images (N, H, W[, C]) uint8 and integer labels."""
    arrays = read_npz(path, _NPZ_KEYS)
    train, test = (
        RawSplit(_with_channels(arrays[f"{s}_images"]), arrays[f"{s}_labels"])
        for s in ("train", "test")
    )
    countable = train.labels.size and np.issubdtype(train.labels.dtype, np.integer)
    classes = int(train.labels.max()) + 1 if countable else 0
    images = len(train.images) if train.images.ndim else classes
    if classes > images:  # making so many names could take a long time
        raise UserError(
            f"{path}: train_labels go up to {classes - 1}, but each class needs a training image "
            f"and there are {images}; number the classes from 0"
        )
    return RawData(path.stem, tuple(str(c) for c in range(classes)), train, test)


def from_folder(folder: Path) -> RawData:
    """Return the images of ``train/CLASS/`` and ``test/CLASS/``, classes in sorted order."""
    classes = _class_names(folder / "train")
    if extra := sorted(set(_class_names(folder / "test")) - set(classes)):
        raise UserError(
            f"{folder}/test has a class {extra[0]!r}, but {folder}/train does not; add training "
            "images or remove the class"
        )
    listed = [_labelled_files(folder / part, classes) for part in ("train", "test")]
    channels = channels_of([file for files, _ in listed for file in files])
    train, test = (
        RawSplit(read_images(files, channels=channels), np.array(labels, dtype=np.int64))
        for files, labels in listed
    )
    return RawData(Path(os.path.abspath(folder)).name, classes, train, test)


def check(raw: RawData) -> None:
    """Raise a UserError unless shapes, counts and label ranges of both splits are valid."""
    for part, split in (("train", raw.train), ("test", raw.test)):
        images, labels = split.images, split.labels
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"{part}_images must be uint8 (N, H, W) or (N, H, W, C), "
                f"got {images.dtype} {images.shape}"
            )
        if images.shape[1] in _CHANNELS and images.shape[3] not in _CHANNELS:
            raise UserError(
                f"{part}_images {images.shape} have their channels first; give (N, H, W, C), "
                "images.transpose(0, 2, 3, 1)"
            )
        if labels.shape != (len(images),):
            raise UserError(
                f"{part}_labels must be one per image ({len(images)}), got shape {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{part}_labels must be integers, got {labels.dtype}")
        if len(labels) == 0:
            raise UserError(f"the {part} split is empty")
        if labels.min() < 0 or labels.max() >= len(raw.classes):
            raise UserError(
                f"{part}_labels must be in [0, {len(raw.classes)}), "
                f"got {labels.min()} to {labels.max()}"
            )
    if raw.train.images.shape[1:] != raw.test.images.shape[1:]:
        raise UserError(
            f"training images are {raw.train.images.shape[1:]} (H, W, C) "
            f"and test images {raw.test.images.shape[1:]}; give images of one size"
        )


def list_images(folder: Path) -> list[Path]:
    """Return the image files in ``folder`` and below, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(_is_hidden(part) for part in path.relative_to(folder).parts)
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NO_CLASSES


def channels_of(files: list[Path]) -> int:
    """Return 1 if all images are grey, else 3.

    Raises:
        UserError: a file is not a readable image.
    """
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in _GREY_MODES:
                    return 3
        except _UNREADABLE as error:
            raise UserError(f"{file} cannot be read as an image: {error}") from None
    return 1


def read_images(files: list[Path], *, channels: int | None = None) -> NDArray[np.uint8]:
    """Read images of one size.

    Args:
        files: at least one file.
        channels: 1 or 3; by default as :func:`channels_of`.

    Returns:
        images (N, H, W, C) uint8.

    Raises:
        UserError: a file is not a readable image, or not of the size of the first.
    """
    channels = channels or channels_of(files)
    first = read_image(files[0], channels)
    images = np.empty((len(files), *first.shape), np.uint8)
    for position, file in enumerate(files):
        image = read_image(file, channels)
        if image.shape != first.shape:
            raise UserError(
                f"images differ in size: {files[0]} is {first.shape[1]} x {first.shape[0]}, "
                f"{file} is {image.shape[1]} x {image.shape[0]}; resize them to one size"
            )
        images[position] = image
    return images


def read_image(file: Path, channels: int | None = None) -> NDArray[np.uint8]:
    """Read one image, turned upright as its EXIF data say, as (H, W, C) uint8.

    By default it has as many channels as it needs. Deep images are scaled to 8 bits by the range of
    their type.

    Raises:
        UserError: it cannot be read, or its pixels have no range that is known.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            grey = opened.mode in _GREY_MODES if channels is None else channels == 1
            if image.mode in _DEEP_MODES or image.mode == "F":
                image = _shallow(image, file)
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except _UNREADABLE as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from None
    return array[..., None] if array.ndim == 2 else array


def _shallow(image: Image.Image, file: Path) -> Image.Image:
    """Return an image of 16 bits in 8; Pillow would clip it instead of scaling it."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _MOST_OF_16_BITS:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise UserError(f"{file} has {kind} pixels, whose range is not known; save 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; a data folder needs train/CLASS/ and test/CLASS/")
    names = tuple(sorted(e.name for e in folder.iterdir() if e.is_dir() and not _is_hidden(e.name)))
    if not names:
        raise UserError(f"{folder} holds no class folders; put images into {folder}/CLASS/")
    return names


def _labelled_files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return the images of the class folders, and their labels."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list_images(folder / name) if (folder / name).is_dir() else []
        if not images and folder.name == "train":
            raise UserError(f"class folder {folder / name} holds no images; add some or remove it")
        files += images
        labels += [label] * len(images)
    if not files:
        raise UserError(f"{folder} holds no images; put some into {folder}/CLASS/")
    return files, labels


def _with_channels(images: NDArray[Any]) -> NDArray[Any]:
    return images[..., None] if images.ndim == 3 else images


def _idx_folders(data_dir: Path) -> tuple[Path, ...]:
    return data_dir, data_dir / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST


def _idx_name(split: str, kind: str) -> str:
    rank = 3 if kind == "images" else 1
    return f"{_IDX_PREFIXES[split]}-{kind}-idx{rank}-ubyte.gz"


def _idx_split(folder: Path, split: str) -> RawSplit:
    images, labels = (_read_idx(folder / _idx_name(split, k)) for k in ("images", "labels"))
    return RawSplit(images[..., None], labels.astype(np.int64))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in a gzipped IDX file: magic (.., type, rank), sizes, then bytes."""
    if not path.exists():
        raise UserError(f"no data file {path}")
    try:
        data = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
        return values.reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
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
    splits = [
        RawSplit(
            _with_channels(np.asarray(part.data, dtype=np.uint8)),
            np.asarray(part.targets, dtype=np.int64),
        )
        for part in (train, test)
    ]
    return RawData(name, tuple(train.classes), *splits)
