"""Image files to uint8 arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fge.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
_DEEP_MODES = {"I", "I;16", "I;16B", "I;16L"}
_GREY_MODES = {"1", "L", "F", *_DEEP_MODES}
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's word for a broken chunk
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


def list_images(folder: Path) -> list[Path]:
    """Return the image files in ``folder`` and below, sorted."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def read_images(files: list[Path], *, channels: int | None = None) -> NDArray[np.uint8]:
    """Read images of one size.

    Args:
        files: at least one file.
        channels: 1 or 3; by default 1 where the first image is grey and 3 where it is not.

    Returns:
        images (N, H, W, C) uint8.

    Raises:
        UserError: a file is no readable image, or of another size than the first.
    """
    first = read_image(files[0], channels)
    images = np.empty((len(files), *first.shape), np.uint8)
    for position, file in enumerate(files):
        image = read_image(file, first.shape[2])
        if image.shape != first.shape:
            raise UserError(
                f"images differ in size: {files[0]} is {first.shape[1]} x {first.shape[0]}, "
                f"{file} is {image.shape[1]} x {image.shape[0]}; resize them to one size"
            )
        images[position] = image
    return images


def read_image(file: Path, channels: int | None = None) -> NDArray[np.uint8]:
    """Read one image as (H, W, C) uint8.

    Raises:
        UserError: the file is no readable image.
    """
    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            grey = image.mode in _GREY_MODES if channels is None else channels == 1
            if image.mode in _DEEP_MODES:  # Pillow would clip 16 bits where it should scale
                image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except _UNREADABLE as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from None
    return array[..., None] if array.ndim == 2 else array
