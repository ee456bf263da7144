"""Images out of the distribution of a data set: noise, digits or other data, in its form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fge.config import OOD_NAMES
from fge.data.splits import NAMED, SPLIT_SEED, Dataset, OODImages, Split, load_dataset
from fge.errors import UserError
from fge.files import read_npz
from fge.seeds import generator

NOISE, DIGITS = OOD_NAMES
MAX_IMAGES = 2000
"""Foreign images of each kind at most; of other data they are balanced over its classes."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""Red, green and blue in a grey level (ITU-R BT.601)."""
_SHARED = 0.01
"""Data of which more than this part are images of the run itself are not foreign to it; a few
blank images that two collections have in common do not matter."""
_CHUNK = 250
_KINDS = (
    f"{NOISE}, {DIGITS}, {', '.join(NAMED)}, a folder with train/CLASS/ and test/CLASS/, or an "
    ".npz file"
)


def load_ood(
    names: Sequence[str], dataset: Dataset, *, data: str, data_dir: Path | None = None
) -> dict[str, OODImages]:
    """Load what ``--ood`` names, in size and channels of a data set's images.

    Noise is uniform on 0 to 255 and the same for every seed of a run, as many images as the test
    set has. Of other data the test images are taken. No kind has more than ``MAX_IMAGES``.

    Args:
        names: ``noise``, ``digits`` (bundled), or whatever :func:`fge.data.load_dataset` takes.
        dataset: whose distribution the images are to be out of, on the CPU.
        data: what the data set was loaded by.
        data_dir: folder of a named data set's files; ``data`` by default.

    Returns:
        By name (the stem of a file, the last part of a folder): images (M, C, H, W) uint8.

    Raises:
        UserError: an unknown name, data that cannot be read or put in the form of the data set,
            two of one name, or the data set's own images.
    """
    found: dict[str, OODImages] = {}
    for given in names:
        if given == data:
            raise _own(given, "it is the run's own --data")
        name, images = _read(given, dataset, data_dir)
        if name in found:
            raise UserError(f"--ood has {name!r} twice; leave one out, or rename its file")
        if name != NOISE:
            _check_ood(given, images, dataset)
        labels = torch.zeros(len(images), dtype=torch.int64)
        found[name] = OODImages(Split(images, labels), _fingerprint(images))
    return found


def convert_images(images: Tensor, *, channels: int, size: tuple[int, int]) -> Tensor:
    """Return images in other channels and another size, stretched where the shape differs.

    Colour becomes grey by luminance (0.299 R + 0.587 G + 0.114 B), grey is repeated; the size is
    changed bilinearly, with an anti-aliasing filter where it shrinks.

    Args:
        images: (N, C, H, W) uint8.
        channels: that they shall have.
        size: height and width that they shall have, in pixels.

    Returns:
        (N, channels, *size) uint8, rounded; the images themselves where they are of this form.

    Raises:
        UserError: channels that are neither grey nor the wanted ones, nor colour to become grey.
    """
    given = images.shape[1]
    if given not in (1, channels) and (given, channels) != (3, 1):
        raise UserError(f"images of {given} channels cannot be turned into {channels}")
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
    """Return the name and the images (M, C, H, W), converted."""
    channels, size = dataset.in_channels, dataset.image_size
    if given == NOISE:
        shape = (min(len(dataset.test), MAX_IMAGES), channels, *size)
        rng = generator(SPLIT_SEED, "ood", NOISE)
        return NOISE, torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    if given == DIGITS:
        return DIGITS, convert_images(_digits(), channels=channels, size=size)
    path = Path(given)
    if not (given in NAMED or path.suffix == ".npz" or path.is_dir()):
        raise UserError(f"unknown --ood {given!r}; give {_KINDS}")
    try:
        other = load_dataset(given, data_dir=data_dir, val_fraction=0)
        # The test split is in an order of which every first part is balanced.
        images = other.test.images[:MAX_IMAGES].clone()
        return other.name, convert_images(images, channels=channels, size=size)
    except UserError as error:
        raise UserError(f"--ood {given}: {error}") from None


def _digits() -> Tensor:
    """Return the bundled digits (1797, 1, 8, 8)."""
    file = resources.files("fge.data") / "bundled" / "digits.npz"
    with resources.as_file(file) as path:
        return torch.from_numpy(read_npz(path, ["images"])["images"])[:, None]


def _check_ood(given: str, images: Tensor, dataset: Dataset) -> None:
    """Refuse data of which some are images that the run trains on, validates on or tests."""
    ood = list(_as_bytes(images))
    wanted = set(ood)
    splits = (dataset.train, dataset.val, dataset.test)
    own = {image for split in splits for image in _as_bytes(split.images) if image in wanted}
    shared = sum(image in own for image in ood)
    if shared > _SHARED * len(ood):
        raise _own(given, f"{shared} of its {len(ood)} images are the run's own")


def _as_bytes(images: Tensor) -> Iterator[bytes]:
    return (image.tobytes() for image in images.numpy())


def _own(given: str, why: str) -> UserError:
    return UserError(f"--ood {given} is not foreign to the data: {why}; name other data")


def _fingerprint(images: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
