"""Make ``digits.npz`` from the hand-written digits that scikit-learn comes with.

The images are the 1,797 of the test part of UCI's "Optical Recognition of Handwritten Digits", in
their order. Their grey levels from 0 to 16 become round(255 / 16 * level). Run it as

    python fge/data/bundled/make_digits.py OUTPUT.npz

The output is deterministic for one zlib version; ``ORIGIN.md`` records its SHA-256.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

LEVELS = 16


def main(output: Path) -> None:
    """Write an ``.npz`` of one array ``images`` (1797, 8, 8) uint8, without timestamps."""
    images = np.rint(load_digits().images * (255 / LEVELS)).astype(np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    info = zipfile.ZipInfo("images.npy")
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(info, buffer.getvalue(), compresslevel=9)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUTPUT.npz")
    main(Path(sys.argv[1]))
