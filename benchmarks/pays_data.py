"""The data sets of ``benchmarks/pays.py``, made of Fashion-MNIST and of CIFAR-10 as JPEG.

``make_data(name, folder)`` writes ``NAME.npz`` unless it is there:

- ``fashion``: the 10,000 training images of the bundled subset, all 10,000 test images.
- ``fashion-search``: the same training images; 20,000 of the 50,000 other training images to search
  settings on, in the place of test images.
- ``related``: 25,000 of the 50,000 others, of the five odd classes, to train weights on that are
  fine-tuned; their test images.
- ``fine``, ``fine-search``: 1,000 images of the five even classes from the bundled subset; the
  5,000 test images of these classes, or their 25,000 other training images to search on.
- ``cifar``, ``cifar-search``: 10,000 training images of CIFAR-10 (JPEG q75), balanced; all test
  images, or 20,000 other training images to search on.

Fashion-MNIST is found as ``--data fashion-mnist`` finds it; CIFAR-10 in a folder with
``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``.
"""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fge.data import balanced_order, load_raw
from fge.files import write_bytes

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Part = tuple[Images, Labels]
SEARCHED = 20_000
_TRAINED = 10_000
_FINE = 1_000


def make_data(name: str, folder: Path, cifar: Path | None = None) -> Path:
    """Write a data set unless it is there; return its file."""
    path = folder / f"{name}.npz"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    base = name.removesuffix("-search")
    kinds = {"fashion": _fashion, "related": _related, "fine": _fine}
    train, test, others = _cifar(cifar) if base == "cifar" else kinds[base]()
    if name.endswith("-search"):
        test = others
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
    )
    write_bytes(path, buffer.getvalue())
    return path


def _fashion() -> tuple[Part, Part, Part]:
    """Return the bundled training images, all test images, and others to search on."""
    full, mini = load_raw("fashion-mnist", Path("data")), _bundled()
    test = (full.parts["test"].images, full.parts["test"].labels)
    return mini, test, _first(_others(), SEARCHED)


def _bundled() -> Part:
    with resources.as_file(resources.files("fge.data") / "bundled" / "fashion-mnist-mini.npz") as f:
        arrays = np.load(f)
        images = arrays["train_images"]
        return images.reshape(*images.shape[:3], 1), arrays["train_labels"].astype(np.int64)


def _others() -> Part:
    """Return the 50,000 training images that are not bundled."""
    full, known = load_raw("fashion-mnist", Path("data")).train, _bundled()[0]
    bundled = {image.tobytes() for image in known}
    kept = [k for k, image in enumerate(full.images) if image.tobytes() not in bundled]
    return full.images[kept], full.labels[kept]


def _related() -> tuple[Part, Part, Part]:
    full = load_raw("fashion-mnist", Path("data")).parts["test"]
    others = _of_classes(_others(), odd=True)
    return others, _of_classes((full.images, full.labels), odd=True), others


def _fine() -> tuple[Part, Part, Part]:
    full = load_raw("fashion-mnist", Path("data")).parts["test"]
    train = _first(_of_classes(_bundled(), odd=False), _FINE)
    test = _of_classes((full.images, full.labels), odd=False)
    return train, test, _of_classes(_others(), odd=False)


def _cifar(folder: Path | None) -> tuple[Part, Part, Part]:
    if folder is None:
        raise SystemExit("task C needs --cifar FOLDER, with train/CLASS/*.jpg and test/CLASS/*.jpg")
    full = load_raw(str(folder), Path("data"))
    order = balanced_order(full.train.labels, 0)
    mine, others = order[:_TRAINED], order[_TRAINED : _TRAINED + SEARCHED]
    images, labels = full.train.images, full.train.labels
    test = (full.parts["test"].images, full.parts["test"].labels)
    return (images[mine], labels[mine]), test, (images[others], labels[others])


def _of_classes(part: Part, *, odd: bool) -> Part:
    """Return the images of every other class, whose labels become 0 to 4."""
    images, labels = part
    kept = labels % 2 == odd
    return images[kept], labels[kept] // 2


def _first(part: Part, count: int) -> Part:
    """Return so many images, balanced over the classes."""
    order = balanced_order(part[1], 0)[:count]
    return part[0][order], part[1][order]
