"""Make ``fashion-mnist-mini.npz`` from the four original Fashion-MNIST files.

The subset is balanced: the same number of images of each class, drawn without replacement with a
fixed seed from the original training and test files, in shuffled order. Run it as

    python fge/data/bundled/make_fashion_mnist_mini.py FOLDER_OF_GZ_FILES OUTPUT.npz

The output is deterministic for one zlib version; ``ORIGIN.md`` records its SHA-256.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

SEED = 20180227  # the date of arXiv 1802.10026v1
TRAIN_PER_CLASS = 1000
TEST_PER_CLASS = 500
NUM_CLASSES = 10
IDX_HEADER_BYTES = {"images": 16, "labels": 8}


def read_idx(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 28, 28) uint8 and labels (N,) uint8 of one original split."""
    arrays = {}
    for kind, rank in (("images", 3), ("labels", 1)):
        data = gzip.decompress((folder / f"{prefix}-{kind}-idx{rank}-ubyte.gz").read_bytes())
        arrays[kind] = np.frombuffer(data, np.uint8, offset=IDX_HEADER_BYTES[kind])
    return arrays["images"].reshape(-1, 28, 28), arrays["labels"]


def balanced_subset(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of ``per_class`` examples of each class, shuffled."""
    chosen = [
        rng.choice(np.flatnonzero(labels == c), per_class, replace=False)
        for c in range(NUM_CLASSES)
    ]
    return rng.permutation(np.concatenate(chosen))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an ``.npz`` at the highest compression level, without timestamps."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue(), compresslevel=9)


def main(folder: Path, output: Path) -> None:
    """Read the original files in ``folder`` and write the subset to ``output``."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for split, prefix, per_class in (
        ("train", "train", TRAIN_PER_CLASS),
        ("test", "t10k", TEST_PER_CLASS),
    ):
        images, labels = read_idx(folder, prefix)
        index = balanced_subset(labels, per_class, rng)
        arrays[f"{split}_images"] = images[index]
        arrays[f"{split}_labels"] = labels[index]
    write_npz(output, arrays)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FOLDER_OF_GZ_FILES OUTPUT.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
