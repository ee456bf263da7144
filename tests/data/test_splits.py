"""Splits: balanced, disjoint, the same for every seed; sizes and classes are checked."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_tiny_npz
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fge.data import Dataset, Split, balanced_order, load_dataset, sources
from fge.data.raw import RawData
from fge.errors import UserError

DATASETS = ROOT / "fge" / "data" / "bundled"


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load_dataset("fashion-mnist-mini")


def unique_npz(path: Path, classes: int = 4, train: int = 200, test: int = 40) -> Path:
    """Images that are all different: the number of each is written into its pixels."""
    numbers = np.arange(train + test)
    images = np.zeros((len(numbers), 4, 4), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permutation(np.arange(n) % classes) for n in (train, test)])
    return write_tiny_npz(
        path,
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
    )


def numbers_of(split: Split) -> list[int]:
    images = split.images.long()
    return (images[:, 0, 0, 0] * 256 + images[:, 0, 0, 1]).tolist()


def class_counts(split: Split) -> list[int]:
    return torch.bincount(split.labels).tolist()


def test_bundled_file_is_the_one_described() -> None:
    data = (DATASETS / "fashion-mnist-mini.npz").read_bytes()
    recorded = re.search(r"fashion-mnist-mini\.npz \| ([0-9a-f]{64})", origin())
    assert recorded is not None
    assert hashlib.sha256(data).hexdigest() == recorded[1]
    assert len(data) < 7e6


def origin() -> str:
    return (DATASETS / "ORIGIN.md").read_text()


def test_bundled_data_come_with_licence_and_origin() -> None:
    assert "MIT" in (DATASETS / "LICENSE").read_text()
    assert "github.com/zalandoresearch/fashion-mnist" in origin()
    assert (DATASETS / "make_fashion_mnist_mini.py").is_file()


def test_bundled_data_have_their_shape(mini: Dataset) -> None:
    assert len(mini.train) + len(mini.val) == 10_000
    assert len(mini.test) == 5_000
    assert (mini.in_channels, mini.image_size) == (1, (28, 28))
    assert len(mini.classes) == 10
    assert mini.classes[9] == "Ankle boot"


def test_bundled_data_are_balanced(mini: Dataset) -> None:
    both = torch.bincount(mini.train.labels) + torch.bincount(mini.val.labels)
    assert both.tolist() == [1000] * 10
    assert class_counts(mini.test) == [500] * 10


def test_validation_part_of_the_bundled_data_is_balanced(mini: Dataset) -> None:
    assert len(mini.val) == 1000
    # A prefix holds |count - share| < 1 + C * share of a class / prefix, here 2.
    assert max(abs(count - 100) for count in class_counts(mini.val)) < 2


def test_splits_are_uint8_and_int64(mini: Dataset) -> None:
    for split in (mini.train, mini.val, mini.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64


def test_mean_and_std_are_those_of_the_training_images(mini: Dataset) -> None:
    pixels = mini.train.images.numpy().astype(np.float64)
    assert mini.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert mini.std == pytest.approx([pixels.std()], rel=1e-12)


def test_a_name_in_capitals_is_an_npz_file_too(tmp_path: Path) -> None:
    small, capitals = write_tiny_npz(tmp_path / "tiny.npz"), tmp_path / "TINY.NPZ"
    capitals.write_bytes(small.read_bytes())
    own, other = load_dataset(str(small)), load_dataset(str(capitals))
    assert torch.equal(own.train.images, other.train.images)


def test_mean_and_std_are_per_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, [50, 150, 250], (30, 5, 6, 3)).astype(np.uint8)
    labels = np.arange(30) % 3
    path = write_tiny_npz(
        tmp_path / "rgb.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    dataset = load_dataset(str(path), val_fraction=0)
    assert (dataset.in_channels, dataset.image_size) == (3, (5, 6))
    assert dataset.mean == pytest.approx(images.mean(axis=(0, 1, 2)), rel=1e-12)
    assert dataset.std == pytest.approx(images.std(axis=(0, 1, 2)), rel=1e-12)


def test_constant_images_have_no_zero_std(tmp_path: Path) -> None:
    images = np.full((6, 4, 4), 7, np.uint8)
    labels = np.arange(6) % 2
    path = write_tiny_npz(
        tmp_path / "flat.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    assert load_dataset(str(path), val_fraction=0).std == (1.0,)


@given(
    labels=hnp.arrays(np.int64, st.integers(1, 120), elements=st.integers(0, 6)),
    seed=st.integers(0, 10**6),
)
def test_every_prefix_of_the_balanced_order_is_balanced(labels: np.ndarray, seed: int) -> None:
    order = balanced_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    present, totals = np.unique(labels, return_counts=True)
    for length in range(len(labels) + 1):
        counts = np.array([(labels[order[:length]] == label).sum() for label in present])
        share = totals / len(labels)
        # Positions of a class are stratified in [0, 1): a threshold t takes t * total +- 1 of each
        # class, and t is within (number of classes) / N of length / N.
        assert (np.abs(counts - length * share) < 1 + len(present) * share + 1e-9).all()


def test_balanced_order_is_random_within_a_class() -> None:
    labels = np.zeros(200, np.int64)
    first, second = balanced_order(labels, 0), balanced_order(labels, 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(200))
    assert np.array_equal(first, balanced_order(labels, 0))


def test_validation_and_training_are_disjoint_and_complete(tmp_path: Path) -> None:
    dataset = load_dataset(str(unique_npz(tmp_path / "u.npz")), val_fraction=0.2)
    train, val = numbers_of(dataset.train), numbers_of(dataset.val)
    assert len(val) == 40
    assert sorted(train + val) == list(range(200))
    assert sorted(numbers_of(dataset.test)) == list(range(200, 240))


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    path = unique_npz(tmp_path / "u.npz")
    with np.load(path) as stored:
        labels = np.concatenate([stored["train_labels"], stored["test_labels"]])
    dataset = load_dataset(str(path))
    for split in (dataset.train, dataset.val, dataset.test):
        assert split.labels.tolist() == labels[numbers_of(split)].tolist()


def test_pixels_are_not_moved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 5, 2)).astype(np.uint8)
    labels = np.arange(20) % 2
    path = write_tiny_npz(
        tmp_path / "t.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    dataset = load_dataset(str(path))
    together = torch.cat([dataset.val.images, dataset.train.images]).permute(0, 2, 3, 1).numpy()
    assert sorted(image.tobytes() for image in together) == sorted(i.tobytes() for i in images)


def test_splits_are_the_same_at_each_load_whatever_the_global_seed(tmp_path: Path) -> None:
    path = unique_npz(tmp_path / "u.npz")
    torch.manual_seed(1)
    first = load_dataset(str(path))
    torch.manual_seed(2)
    second = load_dataset(str(path))
    assert first.fingerprint == second.fingerprint
    assert numbers_of(first.val) == numbers_of(second.val)


def test_smaller_validation_part_is_contained_in_a_larger_one(tmp_path: Path) -> None:
    path = unique_npz(tmp_path / "u.npz")
    small, large = (load_dataset(str(path), val_fraction=f) for f in (0.1, 0.3))
    assert set(numbers_of(small.val)) < set(numbers_of(large.val))


def test_no_validation_part(tmp_path: Path) -> None:
    dataset = load_dataset(str(unique_npz(tmp_path / "u.npz")), val_fraction=0)
    assert (len(dataset.train), len(dataset.val)) == (200, 0)
    assert dataset.val.images.shape == (0, 1, 4, 4)


def test_sizes_count_validation_in_and_keep_the_balance(tmp_path: Path) -> None:
    path = unique_npz(tmp_path / "u.npz")
    dataset = load_dataset(str(path), train_size=100, test_size=20, val_fraction=0.2)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (80, 20, 20)
    assert all(abs(count - 20) <= 2 for count in class_counts(dataset.train))
    assert all(abs(count - 5) <= 1 for count in class_counts(dataset.test))


def test_sizes_take_a_subset_of_a_larger_size(tmp_path: Path) -> None:
    path = unique_npz(tmp_path / "u.npz")
    small, large = (load_dataset(str(path), train_size=n, val_fraction=0) for n in (50, 120))
    assert set(numbers_of(small.train)) < set(numbers_of(large.train))


@pytest.mark.parametrize("option", ["train_size", "test_size"])
def test_size_beyond_the_data_names_both(tmp_path: Path, option: str) -> None:
    path = unique_npz(tmp_path / "u.npz")
    count = {"train_size": 200, "test_size": 40}[option]
    with pytest.raises(
        UserError, match=f"{option} {count + 1} is more than the {count} available images"
    ):
        load_dataset(str(path), **{option: count + 1})  # type: ignore[arg-type]


def test_fingerprint_changes_with_one_pixel_one_label_and_the_split(tmp_path: Path) -> None:
    path = unique_npz(tmp_path / "u.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    fingerprints = {load_dataset(str(path)).fingerprint, load_dataset(str(path)).fingerprint}
    fingerprints.add(load_dataset(str(path), val_fraction=0.2).fingerprint)
    images = arrays["test_images"].copy()
    images[3, 3, 3] = 1
    np.savez(path, **{**arrays, "test_images": images})
    fingerprints.add(load_dataset(str(path)).fingerprint)
    labels = arrays["train_labels"].copy()
    labels[5] = (labels[5] + 1) % 4
    np.savez(path, **{**arrays, "train_labels": labels})
    fingerprints.add(load_dataset(str(path)).fingerprint)
    assert len(fingerprints) == 4


def test_class_without_training_image_is_named(tmp_path: Path) -> None:
    path = write_tiny_npz(tmp_path / "t.npz", train_labels=np.arange(96) % 2 * 2)
    with pytest.raises(UserError, match="class '1' has no training image"):
        load_dataset(str(path))


def test_class_lost_to_a_small_train_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class '\d' has 32 images, of which none is left"):
        load_dataset(str(write_tiny_npz(tmp_path / "t.npz")), train_size=2, val_fraction=0)


def test_validation_part_that_takes_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training images are left; lower val_fraction"):
        load_dataset(str(write_tiny_npz(tmp_path / "t.npz")), val_fraction=0.999)


def test_validation_part_of_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"val_fraction 0\.001 of 96 images gives no validation image; raise it"
    ):
        load_dataset(str(write_tiny_npz(tmp_path / "t.npz")), val_fraction=0.001)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown data 'fashon-mnist'; did you mean 'fashion-mnis"):
        load_dataset("fashon-mnist")
    with pytest.raises(UserError, match=r"unknown data 'photos'; .* cifar100, or a folder or file"):
        load_dataset("photos")


def test_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a folder, an \.npz file nor a tar shard"):
        load_dataset(str(tmp_path / "nowhere"))


def test_missing_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data file .*missing\.npz"):
        load_dataset(str(tmp_path / "missing.npz"))


def test_named_data_come_from_the_folder_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def cifar10(data_dir: Path) -> RawData:
        asked.append(data_dir)
        return sources.from_npz(write_tiny_npz(tmp_path / "t.npz"))

    monkeypatch.setitem(load_dataset.__globals__["NAMED"], "cifar10", cifar10)
    load_dataset("cifar10", data_dir=tmp_path)
    load_dataset("cifar10")
    assert asked == [tmp_path, Path("data")]


@pytest.mark.parametrize(("count", "expected"), [(2, 2), (0, 5), (5, 5), (9, 5)])
def test_the_first_images_of_a_split_are_as_many_as_there_are(count: int, expected: int) -> None:
    split = Split(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5))
    first = split.first(count)
    assert torch.equal(first.images, split.images[:expected])
    assert torch.equal(first.labels, split.labels[:expected])


def test_moving_to_a_device_keeps_everything(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_tiny_npz(tmp_path / "t.npz")))
    moved = dataset.to(torch.device("cpu"))
    assert torch.equal(moved.train.images, dataset.train.images)
    assert moved.fingerprint == dataset.fingerprint
