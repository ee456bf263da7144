"""Mean and standard deviation in pieces are bitwise NumPy's of the whole."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fge.data import statistics
from fge.data.statistics import mean_and_std


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 3, 130, 1001])
@pytest.mark.parametrize("rows", [128, 1 << 16])
def test_pieces_give_the_bits_of_the_whole(
    channels: int, count: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_ROWS", rows)
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 13, 11, channels), dtype=np.uint8)
    pixels = images.reshape(-1, channels)
    mean, std = mean_and_std(images)
    assert mean == tuple(pixels.mean(axis=0, dtype=np.float64).tolist())
    assert std == tuple(pixels.std(axis=0, dtype=np.float64).tolist())


@pytest.mark.parametrize("channels", [1, 3])
def test_only_a_piece_is_in_floating_point(channels: int) -> None:
    images = np.zeros((400, 100, 100, channels), np.uint8)
    images[0] = 200
    tracemalloc.start()
    mean, std = mean_and_std(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mean == (0.5,) * channels
    assert std == pytest.approx([np.sqrt(200 * 0.5 - 0.25)] * channels, rel=1e-12)
    assert peak < 8e6  # as float64 they have 32e6 bytes per channel
