"""Mean and standard deviation of images, without a copy of all of them in floating point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROWS = 1 << 16
"""Pixels that are in floating point at a time."""


def mean_and_std(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
