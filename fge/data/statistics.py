"""Mean and standard deviation of the channels of images, measured or given."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fge.errors import UserError
from fge.observer import counted

ChannelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""
Normalisation = Literal["data", "imagenet"] | ChannelStatistics
"""Whose statistics the channels get: those of the training images, ImageNet's, or these of red,
green and blue, from 0 to 1."""
_IMAGENET: ChannelStatistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of torchvision's ``ImageClassification`` preset."""
_ROWS = 1 << 16
"""Pixels that are in floating point at a time."""


def given_statistics(normalize: Normalisation, channels: int) -> ChannelStatistics | None:
    """Return what is given instead of the images' own statistics, from 0 to 255.

    A single channel gets the means of the three.

    Raises:
        UserError: the images have neither one channel nor three.
    """
    if normalize == "data":
        return None
    mean, std = _IMAGENET if normalize == "imagenet" else normalize
    if channels not in (1, len(mean)):
        raise UserError(
            f"--normalize imagenet and model are for images in colour or grey, and these have "
            f"{counted(channels, 'channel')}; use --normalize data"
        )

    def scaled(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(255 * v for v in (values if channels > 1 else (sum(values) / len(values),)))

    return scaled(mean), scaled(std)


def mean_and_std(images: NDArray[np.uint8]) -> ChannelStatistics:
    """Return mean and standard deviation per channel, in grey levels from 0 to 255.

    Both are bitwise those of ``numpy.mean`` and ``numpy.std`` in float64 over all pixels, which
    would take eight times the memory of the images. A standard deviation is at least 1.

    Args:
        images: (N, H, W, C).
    """
    pixels = images.reshape(-1, images.shape[3])
    sums = np.zeros(pixels.shape[1], np.int64)
    for start in range(0, len(pixels), _ROWS):
        sums += pixels[start : start + _ROWS].sum(axis=0, dtype=np.int64)
    mean = sums / len(pixels)
    add_up = _pairwise if pixels.shape[1] == 1 else _one_by_one
    std = np.sqrt(add_up(pixels, mean) / len(pixels))
    return tuple(map(float, mean)), tuple(max(float(s), 1.0) for s in std)


def _pairwise(pixels: NDArray[np.uint8], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of squared deviations as NumPy adds up a contiguous array: by halves."""
    if len(pixels) <= _ROWS:
        return np.asarray(np.add.reduce((pixels - mean) ** 2, axis=0))
    half = len(pixels) // 2
    half -= half % 8
    return _pairwise(pixels[:half], mean) + _pairwise(pixels[half:], mean)


def _one_by_one(pixels: NDArray[np.uint8], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of squared deviations as NumPy adds up rows: one after the other."""
    total = np.zeros((1, pixels.shape[1]))
    for start in range(0, len(pixels), _ROWS):
        squares = (pixels[start : start + _ROWS] - mean) ** 2
        total = np.add.reduce(np.concatenate([total, squares]), axis=0, keepdims=True)
    return np.asarray(total[0])
