"""Out-of-distribution (OOD) images for a data set, in its format: noise, digits or other data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fge.arrays import is_npz, read_npz
from fge.config import OOD_NAMES
from fge.data.choice import SPLIT_SEED
from fge.data.split import Split
from fge.data.splits import NAMED, Dataset, OODImages, Reading, load_test_images
from fge.errors import UserError
from fge.seeds import generator

NOISE, DIGITS = OOD_NAMES
MAX_IMAGES = 2000
"""The largest number of OOD images of each kind; other data are balanced over their classes."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey level (ITU-R BT.601)."""
_SHARED = 0.01
"""Data are not OOD if more than this fraction are the run's own images; a few blank images that
two collections have in common do not matter."""
_CHUNK = 250
_KINDS = (
    f"{NOISE}, {DIGITS}, {', '.join(NAMED)}, a folder with train/CLASS/ and test/CLASS/, or an "
    ".npz file"
)


def load_ood(
    names: Sequence[str], dataset: Dataset, *, data: str, data_dir: Path | None = None
) -> dict[str, OODImages]:
    """Load OOD images in the size and channels of a data set's images.

    Noise is uniform on 0 to 255, the same for every seed of a run, and has as many images as the
    test set. Other data contribute their test images. No kind has more than ``MAX_IMAGES``.

    Args:
        names: ``noise``, ``digits`` (bundled), or a name or path for
            :func:`fge.data.load_dataset`.
        dataset: the in-distribution data set, on the CPU.
        data: the name or path that it was loaded by.
        data_dir: folder of a named data set's files; ``data`` by default.

    Returns:
        By name (the stem of a file, the last part of a folder): images (M, C, H, W) uint8.

    Raises:
        UserError: a name is unknown or occurs twice, or data cannot be read, cannot be converted to
            the format of the data set, or contain its images.
    """
    loaded: dict[str, OODImages] = {}
    for given in names:
        if given == data:
            raise _not_ood(given, "it is the run's own --data")
        name, images = _read(given, dataset, data_dir)
        if name in loaded:
            raise UserError(f"--ood has {name!r} twice; leave one out, or rename its file")
        if name != NOISE:
            _check_ood(given, images, dataset)
        labels = dataset.test.labels.new_zeros((len(images), *dataset.test.labels.shape[1:]))
        loaded[name] = OODImages(Split(images, labels), _fingerprint(images))
    return loaded


def convert_images(images: Tensor, *, channels: int, size: tuple[int, int]) -> Tensor:
    """Return images (N, C, H, W) uint8 converted to (N, channels, *size) uint8.

    Colour becomes grey by luminance (0.299 R + 0.587 G + 0.114 B), grey is repeated. Images are
    resized (and stretched) bilinearly, with an anti-aliasing filter when they shrink.
    """
    given = images.shape[1]
    if given not in (1, channels) and (given, channels) != (3, 1):
        raise UserError(f"images with {given} channels cannot be converted to {channels}")
    if tuple(images.shape[1:]) == (channels, *size):
        return images
    parts = [_convert(part, channels, size) for part in torch.split(images, _CHUNK)]
    return torch.cat(parts)


def _convert(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    values = images.float()
    if values.shape[1] > channels:
        weights = torch.tensor(_LUMINANCE, device=images.device).view(1, 3, 1, 1)
        values = (values * weights).sum(dim=1, keepdim=True)
    if tuple(values.shape[2:]) != size:
        values = F.interpolate(values, size, mode="bilinear", antialias=True)
    levels = values.round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, channels, -1, -1).contiguous()


def _read(given: str, dataset: Dataset, data_dir: Path | None) -> tuple[str, Tensor]:
    """Return the name and the converted images (M, C, H, W)."""
    channels, size = dataset.in_channels, dataset.image_size
    if given == NOISE:
        shape = (min(len(dataset.test), MAX_IMAGES), channels, *size)
        rng = generator(SPLIT_SEED, "ood", NOISE)
        return NOISE, torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    if given == DIGITS:
        return DIGITS, convert_images(_digits(), channels=channels, size=size)
    path = Path(given)
    if not (given in NAMED or is_npz(path) or path.is_dir()):
        raise UserError(f"unknown --ood {given!r}; give {_KINDS}")
    try:
        # The first images of the test split are balanced, for any number of them.
        # Photographs are cropped as the data set's own; stretching them would be telling.
        side = min(size) if dataset.train.photographs is not None else None
        reading = Reading(side, workers=None)
        name, images = load_test_images(given, data_dir=data_dir, most=MAX_IMAGES, reading=reading)
        return name, convert_images(images, channels=channels, size=size)
    except UserError as error:
        raise UserError(f"--ood {given}: {error}") from None


def _digits() -> Tensor:
    """Return the bundled digits (1797, 1, 8, 8)."""
    file = resources.files("fge.data") / "bundled" / "digits.npz"
    with resources.as_file(file) as path:
        return torch.from_numpy(read_npz(path, ["images"])["images"])[:, None]


def _check_ood(given: str, images: Tensor, dataset: Dataset) -> None:
    """Refuse data that contain images which the run uses for training, validation or testing."""
    ood = list(_as_bytes(images))
    distinct = set(ood)
    splits = (dataset.train, dataset.val, dataset.test)
    parts = (images for split in splits for images, _ in split.batches(_CHUNK))
    used = {image for part in parts for image in _as_bytes(part) if image in distinct}
    shared = sum(image in used for image in ood)
    if shared > _SHARED * len(ood):
        raise _not_ood(given, f"{shared} of its {len(ood)} images are the run's own")


def _as_bytes(images: Tensor) -> Iterator[bytes]:
    return (image.tobytes() for image in images.numpy())


def _not_ood(given: str, why: str) -> UserError:
    return UserError(f"--ood {given} is not out of distribution: {why}; give other data")


def _fingerprint(images: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
