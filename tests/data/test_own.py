"""A user's own data sets: what they may return, and what each mistake is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

from fge.data import Dataset, Reading, load_dataset
from fge.data.images import read_image
from fge.data.own import OwnPictures
from fge.errors import UserError

NAME = "my_data:load"


class Numbers(TorchDataset[Any]):
    """Images whose value is their number and whose label is that modulo 3."""

    def __init__(self, count: int = 30, convert: Callable[[np.ndarray], Any] = np.asarray) -> None:
        self.count = count
        self.convert = convert

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.convert(np.full((4, 5), index, np.uint8)), index % 3


class WithTargets(Numbers):
    classes = ("ape", "bat", "cat")

    @property
    def targets(self) -> list[int]:
        return [k % 3 for k in range(self.count)]


def load(made: Any, **options: Any) -> Dataset:
    return load_dataset(NAME, val_fraction=0, reading=Reading(own=lambda: made, **options))


def numbers(dataset: Dataset) -> list[int]:
    parts = (dataset.train, dataset.test)
    return sorted(n for part in parts for n in part.images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize(
    ("convert", "channels"),
    [
        (np.asarray, 1),
        (lambda a: a[..., None], 1),
        (lambda a: np.repeat(a[..., None], 3, axis=2), 3),
        (torch.from_numpy, 1),
        (lambda a: torch.from_numpy(a)[None], 1),
        (lambda a: torch.from_numpy(a)[None].expand(3, -1, -1), 3),
        (Image.fromarray, 1),
        (lambda a: Image.fromarray(a.astype(np.uint16) * 257), 1),
        (lambda a: Image.fromarray(a).convert("RGBA"), 3),
    ],
)
def test_images_of_every_kind(convert: Callable[[np.ndarray], Any], channels: int) -> None:
    dataset = load(Numbers(convert=convert))
    assert numbers(dataset) == list(range(30))
    assert dataset.train.shape == (24, channels, 4, 5)
    for part in (dataset.train, dataset.test):
        assert torch.equal(part.labels, part.images[:, 0, 0, 0].long() % 3)
    assert dataset.origins["test"].endswith("as there is no test")


@pytest.mark.parametrize(("workers", "val"), [(0, "valid"), (2, "val")])
def test_parts_by_name(workers: int, val: str) -> None:
    made = {"train": Numbers(12), val: Numbers(6), "test": Numbers(9)}
    dataset = load_dataset(NAME, reading=Reading(own=lambda: made, workers=workers))
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [12, 6, 9]
    assert dataset.classes == ("0", "1", "2")


def test_targets_and_classes_are_taken_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fge.data.own._labels_of", pytest.fail)  # reads all items
    assert load(WithTargets()).classes == ("ape", "bat", "cat")
    part = Subset(Subset(WithTargets(), list(range(1, 30))), list(range(0, 29, 2)))
    dataset = load({"train": part, "test": WithTargets(6)})
    assert dataset.classes == ("ape", "bat", "cat")
    assert torch.equal(dataset.train.labels, dataset.train.images[:, 0, 0, 0].long() % 3)


def test_images_of_mixed_sizes_are_resized_or_named() -> None:
    def grow(array: np.ndarray) -> np.ndarray:
        return np.pad(array, int(array[0, 0]) % 2)

    assert load(Numbers(convert=grow), image_size=4, workers=0).image_size == (4, 4)
    with pytest.raises(UserError, match=r"differ in size: item \d+ of train of my_data:load is"):
        load(Numbers(convert=grow))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photographs_are_turned_as_files_are(tmp_path: Path, orientation: int, suffix: str) -> None:
    file, exif = tmp_path / f"1.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    Image.fromarray(pixels).save(file, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert (orientation == 1) == np.array_equal(expected, np.asarray(Image.open(file)))
    images = [Image.open(file), Image.open(file).convert("L")]
    images.append(ImageOps.exif_transpose(Image.open(file)))  # has no tag any more
    dataset = [(image, 0) for image in images]
    for k in range(3):
        assert np.array_equal(OwnPictures("own", dataset, None).read(k)[..., 0], expected)
    assert np.array_equal(read_image(file)[..., 0], expected)


def test_own_data_sets_are_streamed() -> None:
    held, streamed = (load(Numbers(), stream=how, workers=2) for how in ("off", "on"))
    assert streamed.streamed
    assert torch.equal(streamed.train.images, held.train.images)
    assert torch.equal(streamed.train.labels, held.train.labels)


class Iterable(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Numbers())


class Broken(WithTargets):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("no\nsuch")


class Labelled(Numbers):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0], "cat"


def grey_first(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 1 if array[0, 0] == 0 else 3, axis=2)


class Wrong(Numbers):
    targets = (0.5,) * 30


def targeted(targets: Any) -> Numbers:
    made = Numbers()
    made.targets = targets
    return made


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (Iterable(), r"^train of my_data:load must have __len__ and .*, got a Iterable$"),
        (iter(()), r"^train of my_data:load must have __len__ and __getitem__"),
        ({"trains": Numbers()}, r"must return the keys train, val and test.*; got 'trains'$"),
        ({"train": Numbers(), 1: Numbers()}, r"train at least; got 'train', 1$"),
        ({"train": Numbers(), "eval": Numbers()}, r"^key 'eval' of my_data:load may be the val"),
        ({"train": Numbers(), "Training": Numbers()}, r"returns two data sets of the part train;"),
        ((Numbers(), Numbers()), r"^my_data:load returns a tuple of 2 data sets; return a dict of"),
        ({}, r"must return the keys train, .*; got none$"),
        ({"train": Numbers(), "val": Numbers(0)}, r"^val of my_data:load has no items; return"),
        (Broken(), r"^item 0 of train of my_data:load cannot be read: KeyError: [^\n]*$"),
        (TensorDataset(torch.zeros(3)), r"^item 0 .* must be a pair \(image, label\), got a tuple"),
        (Labelled(), r"^item 0 .* has a label of the type str, but it must be an integer$"),
        (Numbers(convert=lambda a: a / 255), r"has an image of float64, .*; leave out transforms"),
        (Numbers(convert=list), r"has an image of list, but it must be a PIL image, a uint8 array"),
        (Numbers(convert=lambda a: a[None]), r"item 0 .* is \(1, 4, 5\), but it must be"),
        (
            Numbers(convert=grey_first),
            r"item \d+ .* is in colour, but the first .* is grey; return",
        ),
        (Wrong(), r"has targets float32 \(30,\), but they must be 30 integers, one an item$"),
        (targeted(["cat"] * 30), r"^train of my_data:load has targets of the type str, but they"),
        (
            Subset(targeted(["cat"] * 30), [1, 2]),
            r"has targets of the type str, but they must be 30",
        ),
        (
            targeted([[1], [1, 2], *[[3]] * 28]),
            r"has targets of the type list, but they must be 30",
        ),
        (
            targeted(np.array(["cat"] * 30)),
            r"has targets of the type str_, but they must be 30 int",
        ),
        (targeted(object()), r"has targets of the type object, but they must be 30 integers"),
        (targeted([k % 3 - 1 for k in range(30)]), r"go from -1 to 1; number the classes from 0$"),
        (
            targeted([k % 3 + 1 for k in range(30)]),
            r"^labels of my_data:load go from 1 to 3; number",
        ),
        (targeted([0] * 29 + [10**9]), r"go up to 1000000000, but each class needs a training ima"),
    ],
)
def test_what_is_wrong_is_named(made: Any, error: str) -> None:
    with pytest.raises(UserError, match=error) as raised:
        load(made)
    assert "\n" not in str(raised.value)


def test_a_load_that_fails_is_the_users_to_hear_of() -> None:
    def fail() -> Any:
        raise FileNotFoundError("gone.csv")

    with pytest.raises(UserError, match=r"^my_data:load failed: FileNotFoundError: gone\.csv$"):
        load_dataset(NAME, reading=Reading(own=fail))


def test_labels_beyond_the_names_are_numbers() -> None:
    class More(WithTargets):
        classes = ("ape", "bat")

    assert load(More()).classes == ("0", "1", "2")
