"""Images of the data as small pictures: which are the least certain, and what to say of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fge.report.escaping import plain_name

SHOWN = 12
"""Pictures of the least certain images on a page."""
MOST_PIXELS = 128
"""Of the longer side of a picture."""
_COLOURS = 3
Array = NDArray[np.float64]


def png_of(image: NDArray[np.uint8]) -> bytes:
    """Return an image (C, H, W) as PNG, its longer side at most ``MOST_PIXELS``.

    Of another number of channels than three, the first is shown in grey.
    """
    from PIL import Image

    pixels = image.transpose(1, 2, 0) if len(image) == _COLOURS else image[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def least_certain(probs: Array, count: int) -> NDArray[np.int64]:
    """Return the numbers of the images with the lowest largest probability, the lowest first.

    Args:
        probs: (N, C), rows sum to 1.
        count: of images, at most.
    """
    return np.argsort(probs.max(axis=1), kind="stable")[:count]


def captions(
    index: NDArray[np.int64],
    figures: Mapping[str, Array],
    classes: Sequence[str],
    *,
    targets: NDArray[np.int64] | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Return what to say of images: the predicted class, the true one, and how uncertain that is.

    Args:
        index: of the images (n,).
        figures: of all images, ``mean`` (N, C), ``entropy`` (N,), and of several members also
            ``mutual_information`` (N,).
        classes: names of the C classes.
        targets: the true classes (N,), if they are known.
        names: of the N images, if they have any.
    """
    found = []
    for image in index:
        row = figures["mean"][image]
        said = int(row.argmax())
        text = f"{plain_name(classes[said])} ({row[said]:.2f})"
        if names is not None:
            text = f"{plain_name(names[image])}: {text}"
        if targets is not None:
            true = int(targets[image])
            text += ", correct" if true == said else f", is {plain_name(classes[true])}"
        text += f"; entropy {figures['entropy'][image]:.2f}"
        if "mutual_information" in figures:
            text += f", mutual information {figures['mutual_information'][image]:.3f}"
        found.append(text)
    return found
