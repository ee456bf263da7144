"""New images in, class probabilities out, as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fge.data.sources import list_images, read_images
from fge.errors import UserError
from fge.files import read_npz, write_bytes, write_text


def read_inputs(path: Path, channels: int, image_size: tuple[int, ...]) -> tuple[list[str], Tensor]:
    """Read the images to predict.

    Args:
        path: an image, a folder that is searched through, or an ``.npz`` with ``images``
            (N, H, W[, C]) uint8.
        channels: what the network takes; image files are converted.
        image_size: height and width that the network was trained on.

    Returns:
        A name for each image, and images (N, C, H, W) uint8.

    Raises:
        UserError: nothing there, unreadable, or of another size or channel count.
    """
    if path.suffix == ".npz":
        names, array = _from_npz(path)
    else:
        files = list_images(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no images")
        if not files[0].is_file():
            raise UserError(f"no image file or folder {path}")
        names, array = [str(file) for file in files], read_images(files, channels=channels)
    height, width = image_size
    if array.shape[1:] != (height, width, channels):
        raise UserError(
            f"images in {path} are {array.shape[1]} x {array.shape[2]} x {array.shape[3]} "
            f"(height, width, channels), the network takes {height} x {width} x {channels}"
        )
    return names, torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)


def _from_npz(path: Path) -> tuple[list[str], np.ndarray]:
    array = read_npz(path, ["images"])["images"]
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or len(array) == 0:
        raise UserError(
            f"{path}: images must be uint8 (N, H, W) or (N, H, W, C) with N >= 1, "
            f"got {array.dtype} {array.shape}"
        )
    array = array[..., None] if array.ndim == 3 else array
    return [str(position) for position in range(len(array))], array


def write_predictions(
    out: Path, names: Sequence[str], probs: Tensor, classes: Sequence[str]
) -> None:
    """Write ``predictions.csv`` and ``predictions.npz``.

    Args:
        out: the folder.
        names: of the images.
        probs: (N, C), rows sum to 1.
        classes: names of the C classes.
    """
    labels = probs.argmax(dim=1).numpy()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "class", *(f"p({name})" for name in classes)])
    for name, label, row in zip(names, labels, probs.tolist(), strict=True):
        writer.writerow([name, label, classes[label], *(f"{p:.6f}" for p in row)])
    write_text(out / "predictions.csv", text.getvalue())
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=np.array(names),
        labels=labels,
        probabilities=probs.numpy(),
        classes=np.array(classes),
    )
    write_bytes(out / "predictions.npz", buffer.getvalue())
