"""Data and paths that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before PyTorch is loaded: threads only cost time on arrays as small as these.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "tests", ROOT):  # for `import cli` and `from conftest import ...`
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
settings.load_profile("reproducible")

PLAIN = {"batch_size": 32, "threads": 1, "channels_last": "off", "compile": "off", "amp": "off"}
"""Options of runs on the tiny data: nothing is measured to choose them."""
TINY_CLASSES = 3
TINY_TRAIN, TINY_TEST = 96, 48
TINY_SIDE = 8


def tiny_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (N, 8, 8) with a bright column band whose place is the class, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % TINY_CLASSES
    images = rng.integers(0, 100, (count, TINY_SIDE, TINY_SIDE))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    return images.astype(np.uint8), labels


def tiny_arrays() -> dict[str, np.ndarray]:
    train_images, train_labels = tiny_split(TINY_TRAIN, 0)
    test_images, test_labels = tiny_split(TINY_TEST, 1)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def write_tiny_npz(path: Path, **changes: np.ndarray) -> Path:
    """Write the tiny data set, with other arrays where they are given; return the path."""
    np.savez(path, **{**tiny_arrays(), **changes})
    return path


@pytest.fixture
def tiny_npz(tmp_path: Path) -> Path:
    return write_tiny_npz(tmp_path / "tiny.npz")
