"""A user's own data sets: map-style, as PyTorch's ``Dataset`` is, of images and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from fge.data.images import pixels_of
from fge.data.parts import is_part, part_of
from fge.data.pictures import Pictures
from fge.data.raw import Part, RawData
from fge.data.workers import loaded
from fge.errors import UserError, one_line
from fge.files import printable

_AT_ONCE = 64
"""Items that a worker process reads in one piece for their labels."""
_IMAGES = (
    "a PIL image, a uint8 array (H, W[, C]) or a uint8 tensor ([C, ]H, W) with 1 or 3 channels"
)


def from_own(name: str, load: Callable[[], Any], workers: int) -> RawData:
    """Return the images of a user's own data sets.

    Args:
        name: ``package.module:load``, for errors.
        load: returns a map-style data set of ``(image, label)`` to train on, or a dict of them with
            the keys ``train`` and perhaps ``val`` and ``test``. An image is a PIL image, or a uint8
            array or tensor; a label is a number from 0. ``targets``, as torchvision's data sets
            have them, are the labels; without them all items are read once. ``classes`` of the
            first are the names of the classes, by default their numbers.
        workers: processes that read items for their labels.

    Raises:
        UserError: naming what is wrong with what ``load`` returns.
    """
    try:
        made = load()
    except UserError:
        raise
    except Exception as error:  # it is the user's code
        raise UserError(f"{name} failed: {_reason(error)}") from error
    found = _by_part(name, made)
    labels = {part: _labels(f"{part} of {name}", d, workers) for part, d in found.items()}
    first = OwnPictures(f"train of {name}", found["train"], None)
    channels = first.read(0).shape[2]
    parts = {}
    for part, dataset in found.items():
        pictures = OwnPictures(f"{part} of {name}", dataset, channels)
        shape = (len(pictures), *pictures.read(0).shape)
        parts[part] = Part(labels[part], shape, pictures, f"from {part} of {name}")
    _check_numbers(name, found["train"], labels)
    classes = _classes(found["train"], max(int(own.max()) for own in labels.values()) + 1)
    return RawData(
        printable(name),
        classes,
        parts["train"],
        parts.get("test"),
        parts.get("val"),
        missing="test",
    )


def _by_part(name: str, made: Any) -> dict[str, Any]:
    """Return the data sets by part: train, val, test."""
    if isinstance(made, tuple | list) and made and all(map(_is_data_set, made)):
        kind = type(made).__name__
        raise UserError(
            f"{name} returns a {kind} of {len(made)} data sets; return a dict of them, "
            "{'train': ..., 'test': ...}"
        )
    given = dict(made) if isinstance(made, Mapping) else {"train": made}
    known = [key for key in given if isinstance(key, str) and is_part(key)]
    found: dict[str, Any] = {}
    for key in known:
        part = part_of(key, f"key {key!r} of {name}")
        if part in found:
            raise UserError(f"{name} returns two data sets of the part {part}; return one")
        found[part] = given[key]
    if len(known) < len(given) or "train" not in found:
        keys = ", ".join(map(repr, given)) or "none"
        raise UserError(
            f"{name} must return the keys train, val and test, train at least; got {keys}"
        )
    return found


def _is_data_set(value: Any) -> bool:
    """Return whether this is a data set, and no pair of an image and a label."""
    if isinstance(value, tuple | list):
        return bool(value) and isinstance(value[0], tuple | list)
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _check_numbers(name: str, dataset: Any, labels: Mapping[str, NDArray[np.int64]]) -> None:
    """Raise a UserError unless labels can be numbers of classes from 0."""
    low = min(int(own.min()) for own in labels.values())
    high = max(int(own.max()) for own in labels.values())
    beyond = len(_names(dataset)) <= high
    if low < 0 or (low > 0 and beyond):
        raise UserError(f"labels of {name} go from {low} to {high}; number the classes from 0")
    if beyond and high >= len(labels["train"]):  # so many names could take a long time
        raise UserError(
            f"labels of {name} go up to {high}, but each class needs a training image and there "
            f"are {len(labels['train'])}; number the classes from 0"
        )


class OwnPictures(Pictures):
    """The images of a data set, in ``channels``; by default each in as many as it has."""

    def __init__(self, name: str, dataset: Any, channels: int | None) -> None:
        self.of = name
        self.dataset = dataset
        self.channels = channels

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.dataset)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return an image (H, W, C)."""
        return _in_channels(_pixels(_item(self, index)[0], self, index), self, index)

    def name(self, index: int) -> str:
        """Return the number of an item, and of which data set."""
        return f"item {index} of {self.of}"


def _item(pictures: OwnPictures, index: int) -> tuple[Any, Any]:
    try:
        item = pictures.dataset[index]
        if isinstance(item, tuple | list) and item and isinstance(item[0], Image.Image):
            item[0].load()  # a file may be opened and not read yet
    except Exception as error:  # it is the user's code
        raise UserError(f"{pictures.name(index)} cannot be read: {_reason(error)}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        kind = type(item).__name__
        raise UserError(f"{pictures.name(index)} must be a pair (image, label), got a {kind}")
    return item[0], item[1]


def _pixels(image: Any, pictures: OwnPictures, index: int) -> NDArray[np.uint8]:
    """Return an image of any kind as an array (H, W, C)."""
    if isinstance(image, Image.Image):
        try:
            image = pixels_of(image, pictures.name(index))
        except UserError:
            raise
        except Exception as error:  # as a broken EXIF entry
            raise UserError(f"{pictures.name(index)} cannot be read: {_reason(error)}") from error
    elif isinstance(image, Tensor):
        image = (image if image.ndim == 2 else image.movedim(0, -1)).cpu().numpy()
    array = image[..., None] if isinstance(image, np.ndarray) and image.ndim == 2 else image
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = getattr(array, "dtype", type(array).__name__)
        raise UserError(
            f"{pictures.name(index)} has an image of {kind}, but it must be {_IMAGES}; leave out "
            "transforms that convert or normalise images, the command does it"
        )
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise UserError(f"{pictures.name(index)} is {array.shape}, but it must be {_IMAGES}")
    return array


def _in_channels(array: NDArray[np.uint8], pictures: OwnPictures, index: int) -> NDArray[np.uint8]:
    if pictures.channels in (None, array.shape[2]):
        return array
    if pictures.channels == 1:
        raise UserError(
            f"{pictures.name(index)} is in colour, but the first image of train is grey; return "
            "all of them in colour"
        )
    return np.repeat(array, 3, axis=2)


def _labels(name: str, dataset: Any, workers: int) -> NDArray[np.int64]:
    """Return the labels (N,) of a data set: its targets, or those of its items."""
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not sized or isinstance(dataset, IterableDataset):
        kind = type(dataset).__name__
        raise UserError(f"{name} must have __len__ and __getitem__ (map-style), got a {kind}")
    if len(dataset) == 0:
        raise UserError(f"{name} has no items; return some, or leave it out")
    given = _targets(name, dataset)
    if given is None:
        pictures = OwnPictures(name, dataset, None)
        pieces = np.array_split(np.arange(len(dataset)), -(-len(dataset) // _AT_ONCE))
        read = loaded(pieces, partial(_labels_of, pictures), workers)
        return np.concatenate(list(read))
    return given


def _targets(name: str, dataset: Any) -> NDArray[np.int64] | None:
    """Return the labels that a data set, or a subset of one, knows without reading its items."""
    if isinstance(dataset, Subset):
        inner = _targets(name, dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, np.int64)]
    given = getattr(dataset, "targets", None)
    if given is None:
        return None
    try:
        values = torch.as_tensor(given).cpu().numpy()
        found = f"{values.dtype} {values.shape}"
    except Exception:  # no numbers, or not one an item
        values, found = np.array(()), f"of the type {_kind(given)}"
    if values.shape != (len(dataset),) or values.dtype.kind not in "iu":
        raise UserError(
            f"{name} has targets {found}, but they must be {len(dataset)} integers, one an item"
        )
    return values.astype(np.int64)


def _kind(targets: Any) -> str:
    """Return the name of the type of the first target, or of what holds them."""
    try:
        odd = next((t for t in targets if not isinstance(t, int | np.integer)), targets)
    except TypeError:
        odd = targets
    return type(odd).__name__


def _labels_of(pictures: OwnPictures, index: NDArray[np.int64]) -> NDArray[np.int64]:
    labels = []
    for k in index.tolist():
        label = _item(pictures, k)[1]
        try:
            labels.append(int(label.__index__()))
        except (AttributeError, TypeError):
            kind = type(label).__name__
            raise UserError(
                f"{pictures.name(k)} has a label of the type {kind}, but it must be an integer"
            ) from None
    return np.array(labels, np.int64)


def _names(dataset: Any) -> list[str]:
    """Return the names of the classes that a data set, or the whole of a subset, has."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    given = getattr(dataset, "classes", None)
    return [str(name) for name in given] if given is not None else []


def _classes(dataset: Any, count: int) -> tuple[str, ...]:
    names = _names(dataset)
    return tuple(names if len(names) >= count else map(str, range(count)))


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")
