"""A user's own data sets: what they may return, and what each mistake is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

from fge.data import Dataset, Reading, load_dataset
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


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_by_name(workers: int) -> None:
    made = {"train": Numbers(12), "val": Numbers(6), "test": Numbers(9)}
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


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (Iterable(), r"^train of my_data:load must have __len__ and .*, got a Iterable$"),
        (iter(()), r"^train of my_data:load must have __len__ and __getitem__"),
        ({"training": Numbers()}, r"must return the keys train, val and test.*; got 'training'$"),
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


def test_labels_beyond_the_names_are_numbers_and_negative_ones_refused() -> None:
    class More(WithTargets):
        classes = ("ape", "bat")

    assert load(More()).classes == ("0", "1", "2")

    class Negative(Numbers):
        targets = (-1,) * 30

    with pytest.raises(UserError, match=r"train_labels must be class .* got -1 to -1; leave"):
        load(Negative())
