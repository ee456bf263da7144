"""Which images train, validate and test, for every layout of a folder and of an ``.npz``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fge import memory
from fge.data import Dataset, Split, balanced_order, load_dataset, read_images
from fge.data.choice import TEST_FRACTION, choose
from fge.data.folders import from_folder
from fge.data.raw import VAL_NAMES, RawData, in_memory
from fge.data.sources import from_npz
from fge.errors import UserError
from fge.seeds import derive_seed

CLASSES = ("cat", "dog")
COUNTS = {"train": 60, "val": 20, "test": 30}
FIRST = {"train": 0, "val": 100, "test": 200}


def pixels(part: str) -> np.ndarray:
    """Return images whose value is their number, which tells the part."""
    numbers = np.arange(COUNTS[part]) + FIRST[part]
    return np.broadcast_to(numbers[:, None, None], (len(numbers), 5, 4)).astype(np.uint8)


def folder(path: Path, **names: str) -> Path:
    """Write a data folder with the given parts under the given names."""
    for part, name in names.items():
        for number, image in enumerate(pixels(part)):
            place = path / name / CLASSES[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03d}.png")
    return path


def archive(path: Path, **names: str) -> Path:
    arrays: dict[str, Any] = {}
    for part, name in names.items():
        arrays |= {f"{name}_images": pixels(part), f"{name}_labels": np.arange(COUNTS[part]) % 2}
    np.savez(path, **arrays)
    return path


def make(kind: str, place: Path, **names: str) -> str:
    if kind == "folder":
        return str(folder(place / "data", **names))
    return str(archive(place / "data.npz", **names))


def numbers(split: Split) -> list[int]:
    return sorted(split.images[:, 0, 0, 0].tolist())


def numbers_of(part: str) -> list[int]:
    return [FIRST[part] + k for k in range(COUNTS[part])]


def splits(dataset: Dataset) -> list[list[int]]:
    return [numbers(split) for split in (dataset.train, dataset.val, dataset.test)]


KINDS = pytest.mark.parametrize("kind", ["folder", "npz"])


@KINDS
@pytest.mark.parametrize("name", VAL_NAMES)
def test_images_of_their_own_validate_and_all_of_train_trains(
    tmp_path: Path, kind: str, name: str
) -> None:
    data = make(kind, tmp_path, train="train", val=name, test="test")
    for fraction in (0.1, 0.5):  # has nothing to do with it
        dataset = load_dataset(data, val_fraction=fraction)
        assert splits(dataset) == [numbers_of(part) for part in COUNTS]
    origin = f"from {name}/" if kind == "folder" else f"from {name}_images"
    assert dataset.origins == {"val": origin}
    assert dataset.notes == [f"validation: 20 images {origin}"]
    for split in (dataset.train, dataset.val, dataset.test):
        assert torch.equal(split.labels, split.images[:, 0, 0, 0] % 2)


@KINDS
def test_without_validation_its_own_images_are_left_out(tmp_path: Path, kind: str) -> None:
    data = make(kind, tmp_path, train="train", val="val", test="test")
    dataset = load_dataset(data, val_fraction=0)
    assert splits(dataset) == [numbers_of("train"), [], numbers_of("test")]
    assert dataset.val.images.shape == (0, 1, 5, 4)
    own = "val/" if kind == "folder" else "val_images"
    assert dataset.notes == [f"validation: none (val_fraction 0), those from {own} neither"]


@KINDS
def test_a_size_takes_training_and_validation_in_their_proportion(
    tmp_path: Path, kind: str
) -> None:
    data = make(kind, tmp_path, train="train", val="val", test="test")
    dataset = load_dataset(data, train_size=40, test_size=10)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (30, 10, 10)
    for split, part in ((dataset.train, "train"), (dataset.val, "val"), (dataset.test, "test")):
        assert set(numbers(split)) < set(numbers_of(part))
        assert split.labels.bincount().tolist() == [len(split) // 2] * 2
    assert load_dataset(data, train_size=80).val.labels.shape == (20,)
    assert len(load_dataset(data, train_size=3).val) == 1
    with pytest.raises(UserError, match="train_size 81 is more than the 80 available images"):
        load_dataset(data, train_size=81)
    with pytest.raises(UserError, match="train_size 61 is more than the 60 available images"):
        load_dataset(data, train_size=61, val_fraction=0)


@KINDS
@pytest.mark.parametrize("val", [True, False])
def test_test_images_come_from_train_where_there_are_none(
    tmp_path: Path, kind: str, val: bool
) -> None:
    names = {"train": "train"} | ({"val": "val"} if val else {})
    data = make(kind, tmp_path, **names)
    dataset = load_dataset(data, val_fraction=0.25)
    count = round(TEST_FRACTION * COUNTS["train"])
    train, validate, test = splits(dataset)
    assert len(test) == count == 12
    assert dataset.test.labels.bincount().tolist() == [6, 6]
    missing = "test/" if kind == "folder" else "test_images"
    tested = f"held out of the training images (0.2 of them), as there is no {missing}"
    assert dataset.origins["test"] == tested
    assert f"test: 12 images {tested}" in dataset.notes
    if val:
        assert (len(train), validate) == (48, numbers_of("val"))
        assert sorted(train + test) == numbers_of("train")
    else:
        assert (len(train), len(validate)) == (36, 12)
        assert sorted(train + validate + test) == numbers_of("train")
        assert "validation: 12 images held out of the training images (0.25 of them)" in (
            dataset.notes
        )


@KINDS
def test_fewer_test_images_leave_what_trains_as_it_is(tmp_path: Path, kind: str) -> None:
    data = make(kind, tmp_path, train="train")
    whole, fewer = (load_dataset(data, test_size=size) for size in (None, 4))
    assert splits(fewer)[:2] == splits(whole)[:2]
    assert set(numbers(fewer.test)) < set(numbers(whole.test))
    assert len(fewer.test) == 4
    with pytest.raises(UserError, match="test_size 13 is more than the 12 available images"):
        load_dataset(data, test_size=13)
    with pytest.raises(UserError, match="train_size 49 is more than the 48 available images"):
        load_dataset(data, train_size=49)


def labelled(labels: np.ndarray) -> RawData:
    images = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2)
    names = tuple(map(str, range(labels.max() + 1)))
    return RawData("data", names, in_memory(images, labels, "from train/"), None)


@pytest.mark.parametrize("counts", [(40, 3), (3, 40, 2), (2, 2, 2), (1, 9, 5), (1, 1)])
def test_each_class_of_two_images_or_more_has_a_test_image(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = choose(labelled(labels), val_fraction=0.2 if sum(counts) > 6 else 0)
    parts = (chosen.train, chosen.val, chosen.test)
    assert sorted(np.concatenate([part.order for part in parts])) == list(range(len(labels)))
    tested = np.bincount(chosen.test.labels, minlength=len(counts))
    if min(counts) > 1:
        assert tested.min() >= 1
        assert np.bincount(chosen.train.labels, minlength=len(counts)).min() >= 1


@pytest.mark.parametrize("alone", [1, 7, 60])
def test_the_only_image_of_a_class_trains(alone: int) -> None:
    labels = np.concatenate([np.repeat([0, 1], 30), np.arange(2, 2 + alone)])
    chosen = choose(labelled(labels), val_fraction=0.1)
    assert set(chosen.train.labels) == set(labels)
    assert set(chosen.test.labels) == {0, 1}
    assert not {*chosen.val.labels} - {0, 1}


def test_what_no_class_has_two_images_of_still_tests_other_networks() -> None:
    assert len(choose(labelled(np.arange(20))).test) == 4


def test_why_a_class_has_no_training_image_is_told(tmp_path: Path) -> None:
    def load(counts: tuple[int, ...], **options: Any) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        images = np.zeros((len(labels), 5, 4), np.uint8)
        np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels)
        load_dataset(str(tmp_path / "d.npz"), **options)

    with pytest.raises(UserError, match=r"class '\d' has 1 image, of which none is left to train"):
        load((1,) * 20, val_fraction=0)
    with pytest.raises(UserError, match=r"class '1' has 3 images, .*; add some, or raise train_s"):
        load((990, 3), train_size=20)
    with pytest.raises(UserError, match=r"no validation image, as each .*; add images, or set it"):
        load((2,) * 50, val_fraction=0.1)


def test_splits_that_test_every_class_are_as_they_were() -> None:
    same = 0
    for seed in range(60):
        labels = np.random.default_rng(seed).integers(0, 3, 4 + seed)
        order = balanced_order(labels, derive_seed(0, "test"))
        before = order[: max(1, round(0.2 * len(labels)))]
        if set(labels[before]) == set(labels):
            same += 1
            assert sorted(choose(labelled(labels)).test.order) == sorted(before)
    assert same > 30


def test_folder_and_npz_split_alike(tmp_path: Path) -> None:
    """A folder lists a class after the other, so the same order of labels is needed."""
    labels = np.repeat([0, 1], 30)
    images = np.concatenate([pixels("train")[0::2], pixels("train")[1::2]])
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels)
    first = load_dataset(str(folder(tmp_path / "data", train="train")))
    second = load_dataset(str(tmp_path / "data.npz"))
    assert first.fingerprint == second.fingerprint


def test_two_validation_parts_are_refused(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", train="train", val="val", test="valid")
    with pytest.raises(UserError, match=f"^{data} has val and valid; keep one of them$"):
        from_folder(data)
    path = archive(tmp_path / "data.npz", train="train", val="val", test="validation")
    with pytest.raises(UserError, match=r"has the arrays of val and validation; keep one of them$"):
        from_npz(path)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_that_is_no_folder_or_has_no_images_is_refused(tmp_path: Path, part: str) -> None:
    data = folder(tmp_path / "data", train="train")
    (data / part).write_text("x")
    with pytest.raises(UserError, match=rf"/{part} is not a folder; a data folder has {part}/CLA"):
        from_folder(data)
    (data / part).unlink()
    (data / part).symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"/{part} is not a folder"):
        from_folder(data)
    (data / part).unlink()
    (data / part).mkdir()
    with pytest.raises(UserError, match=rf"/{part} holds no class folders; put images into"):
        from_folder(data)
    (data / part / "bird").mkdir()
    with pytest.raises(UserError, match=rf"/{part} has a class 'bird', but .*/train does not"):
        from_folder(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "has no array 'val_labels'; it needs val_images, val_labels"),
        ({"val_images": None}, "has no array 'val_images'; it needs val_images, val_labels"),
        ({"val_labels": np.full(20, 2)}, r"val_labels must be in \[0, 2\), got 2 to 2"),
        ({"val_labels": np.zeros(20)}, "val_labels must be integers, got float64"),
        ({"val_labels": np.zeros(3, int)}, r"val_labels must be one per image \(20\)"),
        ({"val_images": np.zeros((20, 9, 9), np.uint8)}, r"and validation images \(9, 9, 1\)"),
        (
            {"val_images": np.zeros((0, 5, 4), np.uint8), "val_labels": np.zeros(0, int)},
            "the val split is empty",
        ),
    ],
)
def test_validation_arrays_are_checked_as_others(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = archive(tmp_path / "data.npz", train="train", val="val", test="test")
    with np.load(path) as stored:
        arrays = {**stored, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=message):
        load_dataset(str(path))


def test_validation_images_of_another_size_are_refused(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", train="train", val="val", test="test")
    for file in (data / "val").rglob("*.png"):
        Image.new("L", (9, 9)).save(file)
    with pytest.raises(UserError, match=r"and validation images \(9, 9, 1\); give images of one"):
        load_dataset(str(data))


def test_colour_in_the_validation_images_makes_all_colour(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", train="train", val="val", test="test")
    Image.new("RGB", (4, 5), (9, 8, 7)).save(data / "val" / "cat" / "000.png")
    assert load_dataset(str(data)).in_channels == 3


def test_one_training_image_is_not_enough_for_a_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", train_images=pixels("train")[:1], train_labels=np.zeros(1, int))
    with pytest.raises(UserError, match="no training images are left"):
        load_dataset(str(tmp_path / "d.npz"), val_fraction=0)


# ------------------------------------------------------------------------------------ memory


@KINDS
def test_data_larger_than_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(kind, tmp_path, train="train", test="test")
    whole = 90 * 5 * 4
    monkeypatch.setattr(memory, "free_host_memory", lambda: whole - 1)
    monkeypatch.setattr("fge.data.pictures.read_images", pytest.fail)
    monkeypatch.setattr("fge.arrays.Archive.rows", pytest.fail)
    with pytest.raises(
        UserError,
        match=r"^90 images of data, 5 x 4 x 1 bytes each, need 1\.8 kB of memory, but 1\.8 kB are "
        r"free; take fewer with --train-size and --test-size$",
    ):
        load_dataset(data)


@KINDS
def test_a_size_that_fits_is_read_and_nothing_else(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(kind, tmp_path, train="train", test="test")
    expected = load_dataset(data, train_size=30, test_size=10)
    labels = 60 * 8  # of an npz, which are read as a whole
    monkeypatch.setattr(memory, "free_host_memory", lambda: max(40 * 5 * 4, labels))
    opened: list[int] = []

    def counting(files: list[Path], **options: Any) -> np.ndarray:
        opened.append(len(files))
        return read_images(files, **options)

    monkeypatch.setattr("fge.data.pictures.read_images", counting)
    dataset = load_dataset(data, train_size=30, test_size=10)
    assert dataset.fingerprint == expected.fingerprint
    assert opened == ([30, 10] if kind == "folder" else [])


def test_of_files_outside_the_sample_only_headers_are_read(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", train="train", test="test")
    kept = set(numbers(load_dataset(str(data), train_size=10, val_fraction=0).train))
    for file in (data / "train").rglob("*.png"):
        if int(file.stem) not in kept:
            whole = file.read_bytes()
            file.write_bytes(whole[: whole.index(b"IDAT") + 6])
    first = min((data / "train" / "cat").iterdir())
    if int(first.stem) not in kept:  # the size of the images is that of the first
        Image.fromarray(pixels("train")[0]).save(first)
    assert set(numbers(load_dataset(str(data), train_size=10, val_fraction=0).train)) == kept
    with pytest.raises(UserError, match="cannot be read as an image"):
        load_dataset(str(data))
