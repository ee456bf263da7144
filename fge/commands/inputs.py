"""New images that a network predicts: which files, and their pixels as the network needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fge.arrays import is_npz, read_npz
from fge.data import (
    ArrayPictures,
    FilePaths,
    FilePictures,
    Pictures,
    Skipped,
    Split,
    find_unreadable,
    list_images,
    unlabelled,
)
from fge.errors import UserError
from fge.files import check_file

_IN_PARTS = "predict them in several parts"


@dataclass(frozen=True)
class Inputs:
    """The images to predict, a name for each, and the files that were left out and why."""

    names: list[str]
    split: Split
    unreadable: Mapping[str, str]


def read_inputs(
    path: Path,
    channels: int,
    image_size: tuple[int, int],
    skipped: Skipped | None = None,
    *,
    side: int | None = None,
    skip_unreadable: bool = False,
    workers: int = 0,
) -> Inputs:
    """Return the images to predict, in the network's number of channels.

    Args:
        path: an image, a folder (with subfolders), or an ``.npz`` with ``images`` (N, H, W[, C])
            uint8.
        channels: of the network's images.
        image_size: of the network's images, height and width.
        skipped: counts what is left out of a folder.
        side: resize images to it and crop their centres, when they are needed; by default they are
            read now, as they are.
        skip_unreadable: leave out files that cannot be read.
        workers: processes that read images.

    Raises:
        UserError: there are no images, or they do not suit the network.
    """
    if side is not None and image_size != (side, side):
        size = f"{image_size[0]} x {image_size[1]}"
        raise UserError(f"image_size must be the side of the network's images, {size}, got {side}")
    bad: dict[str, str] = {}
    if is_npz(path):
        if skip_unreadable:
            raise UserError(f"--skip-unreadable is for image files, and {path} is none")
        names, pictures = _from_npz(path)
    else:
        files = _listed(path, skipped)
        bad = find_unreadable(files, workers) if skip_unreadable else {}
        if len(bad) == len(files):
            raise UserError(f"none of the images can be read: {next(iter(bad.values()))}")
        files = files.kept([k for k, file in enumerate(files) if str(file) not in bad])
        names = [str(file) for file in files]
        pictures = FilePictures(files, channels, _IN_PARTS)
    if side is not None:
        _check_channels(path, pictures, channels)
        return Inputs(names, unlabelled(pictures, side, channels, workers), bad)
    array = pictures.take(np.arange(len(pictures)))
    height, width = image_size
    if array.shape[1:] != (height, width, channels):
        raise UserError(
            f"images in {path} are {array.shape[1]} x {array.shape[2]} x {array.shape[3]} "
            f"(height, width, channels), but the network needs {height} x {width} x {channels}"
            f"{_remedy(array.shape[3] == channels, height, width)}"
        )
    images = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
    return Inputs(names, Split(images, torch.zeros(len(images), dtype=torch.int64)), bad)


def _remedy(only_size: bool, height: int, width: int) -> str:
    return f"; resize them with --image-size {height}" if only_size and height == width else ""


def _listed(path: Path, skipped: Skipped | None) -> FilePaths:
    if not path.is_dir():
        check_file(path, "image file or folder")
        return FilePaths(path.parent, [path])
    files = list_images(path, skipped)
    if not files:
        raise UserError(f"{path} holds no images; give another folder")
    return FilePaths(path, files)


def _check_channels(path: Path, pictures: Pictures, channels: int) -> None:
    """Check the channels of an array; files are converted when they are read."""
    if isinstance(pictures, ArrayPictures) and pictures.images.shape[3] != channels:
        raise UserError(
            f"images in {path} have {pictures.images.shape[3]} channels, but the network needs "
            f"{channels}"
        )


def _from_npz(path: Path) -> tuple[list[str], Pictures]:
    array = read_npz(path, ["images"], remedy=_IN_PARTS)["images"]
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"{path}: images must be uint8 (N, H, W) or (N, H, W, C) with N >= 1, "
            f"got {array.dtype} {array.shape}"
        )
    array = array[..., None] if array.ndim == 3 else array
    return [str(position) for position in range(len(array))], ArrayPictures(array)
