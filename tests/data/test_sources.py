"""The user's own data, and named data sets found, damaged or absent."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from conftest import tiny_arrays, tiny_split, write_tiny_npz
from PIL import Image

from fge.data import download_note, load_dataset, sources
from fge.data.folders import from_folder
from fge.data.raw import RawData, check
from fge.data.sources import FASHION_CLASSES, fashion_mnist, from_npz
from fge.errors import UserError

CLASSES = ("bird", "cat", "dog")


def make_folder(folder: Path, *, colour: bool = False, count: int = 4) -> Path:
    """Write ``count`` images of each class and part; the pixel value tells part, class, number."""
    for part, base in (("train", 0), ("test", 100)):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixel = np.full((6, 5, 3) if colour else (6, 5), base + 10 * label + number)
                image = Image.fromarray(pixel.astype(np.uint8))
                image.save(folder / part / name / f"{number}.png")
    return folder


def labels_as(dtype: str) -> np.ndarray:
    return (np.arange(96) % 3).astype(dtype)


def checked(path: Path) -> RawData:
    raw = from_npz(path)
    check(raw)
    return raw


def changed_npz(folder: Path, **changes: Any) -> Path:
    return write_tiny_npz(folder / "data.npz", **{k: np.asarray(v) for k, v in changes.items()})


# ---------------------------------------------------------------------------------- .npz


def test_npz_of_grey_images_gains_a_channel(tiny_npz: Path) -> None:
    raw = checked(tiny_npz)
    arrays = tiny_arrays()
    assert raw.name == "tiny"
    assert raw.classes == ("0", "1", "2")
    assert np.array_equal(raw.train.images, arrays["train_images"][..., None])
    assert np.array_equal(raw.test.labels, arrays["test_labels"])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npz_of_images_with_channels_is_taken_as_it_is(tmp_path: Path, channels: int) -> None:
    train, test = (np.repeat(tiny_split(n, 0)[0][..., None], channels, axis=3) for n in (96, 48))
    raw = checked(changed_npz(tmp_path, train_images=train, test_images=test))
    assert np.array_equal(raw.train.images, train)
    assert np.array_equal(raw.test.images, test)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_type_are_taken(tmp_path: Path, dtype: str) -> None:
    arrays = tiny_arrays()
    labels = {key: arrays[key].astype(dtype) for key in ("train_labels", "test_labels")}
    dataset = load_dataset(str(changed_npz(tmp_path, **labels)), val_fraction=0)
    assert dataset.train.labels.bincount().tolist() == [32, 32, 32]


def negative(part: str, found: str) -> str:
    return (
        f"{part}_labels must be class numbers from 0 on, got {found}; leave out images without a "
        "class, and number the classes again"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_labels": np.arange(96) % 3 - 1},
            negative("train", "-1 to 1"),
        ),
        (
            {"train_labels": np.full(96, -1)},
            negative("train", "-1 to -1"),
        ),
        ({"test_labels": np.arange(48) % 4}, "test_labels must be in [0, 3), got 0 to 3"),
        (
            {"test_labels": np.arange(48) % 3 - 1},
            negative("test", "-1 to 1"),
        ),
        (
            {"train_labels": np.arange(95) % 3},
            "train_labels must be one per image (96), got shape (95,)",
        ),
        (
            {"test_labels": np.zeros((48, 1), int)},
            "test_labels must be one per image (48), got shape (48, 1)",
        ),
        ({"train_labels": np.array(3)}, "train_labels must be one per image (96), got shape ()"),
        ({"train_labels": np.arange(96) % 3 * 1.0}, "train_labels must be integers, got float64"),
        ({"test_labels": np.arange(48) % 3 * 1.0}, "test_labels must be integers, got float64"),
        ({"train_labels": np.full(96, np.nan)}, "train_labels must be integers, got float64"),
        (
            {"train_labels": np.array(["cat", "dog", "owl"] * 32)},
            "train_labels must be integers, got <U3",
        ),
        (
            {"train_images": np.zeros((96, 8, 8), np.float32)},
            "train_images must be uint8 (N, H, W) or (N, H, W, C), got float32 (96, 8, 8, 1)",
        ),
        (
            {"test_images": np.zeros((48, 64), np.uint8)},
            "test_images must be uint8 (N, H, W) or (N, H, W, C), got uint8 (48, 64)",
        ),
        (
            {"train_images": np.zeros((), np.uint8)},
            "train_images must be uint8 (N, H, W) or (N, H, W, C), got uint8 ()",
        ),
        (
            {"train_images": np.zeros((96, 3, 32, 32), np.uint8)},
            "train_images (96, 3, 32, 32) have their channels first; give (N, H, W, C), "
            "images.transpose(0, 2, 3, 1)",
        ),
        (
            {"train_images": np.zeros((96, 13, 16, 16), np.uint8)},
            "train_images (96, 13, 16, 16) have their channels first; give (N, H, W, C), "
            "images.transpose(0, 2, 3, 1)",
        ),
        (
            {"test_images": np.zeros((48, 1, 8, 8), np.uint8)},
            "test_images (48, 1, 8, 8) have their channels first; give (N, H, W, C), "
            "images.transpose(0, 2, 3, 1)",
        ),
        (
            {"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)},
            "the train split is empty",
        ),
        (
            {"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, int)},
            "the test split is empty",
        ),
        ({"train_labels": labels_as("M8[D]")}, "train_labels must be integers, got datetime64[D]"),
        (
            {"train_labels": labels_as("m8[D]"), "test_labels": labels_as("m8[D]")[:48]},
            "train_labels must be integers, got timedelta64[D]",
        ),
        ({"train_labels": labels_as("c16")}, "train_labels must be integers, got complex128"),
        ({"train_labels": labels_as("?")}, "train_labels must be integers, got bool"),
        (
            {"train_images": np.zeros((96, 8, 8, 0), np.uint8)},
            "train_images (96, 8, 8, 0) have no pixel; give (N, H, W) or (N, H, W, C)",
        ),
        (
            {"test_images": np.zeros((48, 0, 8), np.uint8)},
            "test_images (48, 0, 8, 1) have no pixel; give (N, H, W) or (N, H, W, C)",
        ),
        (
            {"test_images": np.zeros((48, 8, 9), np.uint8)},
            "training images are (8, 8, 1) (H, W, C) and test images (8, 9, 1); "
            "give images of one size, or --image-size",
        ),
    ],
)
def test_npz_with_wrong_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        checked(changed_npz(tmp_path, **changes))


def test_labels_far_beyond_the_images_are_refused_before_their_classes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "range", pytest.fail, raising=False)
    path = write_tiny_npz(tmp_path / "t.npz", train_labels=np.full(96, 30_000_000))
    expected = (
        f"{path}: train_labels go up to 30000000, but each class needs a training image and there "
        "are 96; number the classes from 0"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        load_dataset(str(path))


def test_labels_that_begin_at_one_are_named_as_such(tmp_path: Path) -> None:
    labels = {"train_labels": np.arange(96) % 3 + 1, "test_labels": np.arange(48) % 3 + 1}
    path = write_tiny_npz(tmp_path / "t.npz", **labels)
    with pytest.raises(UserError, match=r"t\.npz: labels go from 1 to 3; number the cl"):
        load_dataset(str(path))
    labels["test_labels"] -= 1
    with pytest.raises(UserError, match="class '0' has no training image"):
        load_dataset(str(write_tiny_npz(path, **labels)))


def test_a_class_for_each_image_is_the_most_there_can_be(tmp_path: Path) -> None:
    path = write_tiny_npz(tmp_path / "t.npz", train_labels=np.arange(96))
    assert len(from_npz(path).classes) == 96


def test_missing_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no data file .*none\.npz; check the path$"):
        from_npz(tmp_path / "none.npz")


@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "test_labels"])
def test_npz_without_an_array_names_it(tmp_path: Path, key: str) -> None:
    arrays = tiny_arrays()
    del arrays[key]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UserError, match=f"has no array '{key}'; it needs"):
        from_npz(tmp_path / "data.npz")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_npz_is_named(tmp_path: Path, save: Any, share: float) -> None:
    path = tmp_path / "data.npz"
    save(path, **tiny_arrays())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"data\.npz cannot be read; it may be truncated"):
        from_npz(path)


@pytest.mark.parametrize("position", [100, 2000, 5000])
def test_npz_with_a_changed_byte_is_named(tmp_path: Path, position: int) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **tiny_arrays())
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"data\.npz cannot be read"):
        load_dataset(str(path))


def test_npz_that_would_need_pickle_is_refused(tmp_path: Path) -> None:
    images = np.empty(2, object)
    with pytest.raises(UserError, match=r"data\.npz cannot be read"):
        from_npz(changed_npz(tmp_path, train_images=images))


def test_single_array_named_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, tiny_arrays()["train_images"])
    with pytest.raises(UserError, match=r"data\.npz"):
        from_npz(tmp_path / "data.npz")


# --------------------------------------------------------------------- folders of images


def test_folder_of_grey_images(tmp_path: Path) -> None:
    raw = from_folder(make_folder(tmp_path / "pets"))
    check(raw)
    assert raw.name == "pets"
    assert raw.classes == CLASSES
    assert raw.train.images.shape == (12, 6, 5, 1)
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = [10 * label + number for label in range(3) for number in range(4)]
    assert raw.train.images[:, 0, 0, 0].tolist() == expected
    assert raw.test.images[:, 0, 0, 0].tolist() == [100 + value for value in expected]


def test_folder_of_colour_images(tmp_path: Path) -> None:
    raw = from_folder(make_folder(tmp_path, colour=True))
    assert raw.train.images.shape == (12, 6, 5, 3)


def test_dataset_from_a_folder(tmp_path: Path) -> None:
    dataset = load_dataset(str(make_folder(tmp_path / "pets")), val_fraction=0.25)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (9, 3, 12)
    assert (dataset.in_channels, dataset.image_size) == (1, (6, 5))


def test_the_folder_one_is_in_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path / "animals"))
    assert from_folder(Path()).name == "animals"
    assert from_folder(Path("../animals/../animals")).name == "animals"


def test_image_of_another_size_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    Image.new("L", (9, 9)).save(folder / "train" / "dog" / "odd.png")
    with pytest.raises(UserError, match=r"images differ in size: .*dog/odd\.png is 9 x 9; resize"):
        load_dataset(str(folder))


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for file in (folder / "test").rglob("*.png"):
        Image.new("L", (9, 9)).save(file)
    with pytest.raises(UserError, match="give images of one size"):
        load_dataset(str(folder))


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "train" / "emu").mkdir()
    with pytest.raises(
        UserError, match=r"class folder .*train/emu holds no images; add some or remove it"
    ):
        from_folder(folder)


def test_class_that_only_test_has_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "test" / "emu").mkdir()
    with pytest.raises(
        UserError, match=r"has a class 'emu', but .*/train does not; add training images"
    ):
        from_folder(folder)


def test_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for file in (folder / "test" / "cat").iterdir():
        file.unlink()
    (folder / "test" / "cat").rmdir()
    raw = from_folder(folder)
    check(raw)
    assert raw.test.labels.tolist() == [0] * 4 + [2] * 4


def test_test_part_without_images_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"/test holds no images; put some into .*/test/CLASS/"):
        from_folder(folder)


def test_part_without_class_folders_says_where_images_go(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(
        UserError, match=r"train holds no class folders; put images into .*/CLASS/, or .* --labels"
    ):
        from_folder(tmp_path)


def test_missing_part_says_what_a_data_folder_holds(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pets")
    (folder / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError,
        match=r"no folder .*/train; a data folder needs train/CLASS/, and may have val/CLASS/ and "
        r"test/CLASS/$",
    ):
        from_folder(folder)


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "train" / "cat" / "2.png").write_text("no image")
    with pytest.raises(UserError, match=r"cat/2\.png cannot be read as an image"):
        from_folder(folder)


def test_files_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "train" / "README.txt").write_text("notes")
    (folder / "train" / "cat" / "Thumbs.db").write_text("x")
    assert len(from_folder(folder).train.labels) == 12


# ------------------------------------------------------------------------------ IDX files


def write_idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()))


def write_fashion(folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
        arrays |= {f"{prefix}_images": images, f"{prefix}_labels": labels}
    return arrays


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-folder")


def assert_fashion(raw: RawData, arrays: dict[str, np.ndarray]) -> None:
    check(raw)
    assert raw.classes == FASHION_CLASSES
    assert np.array_equal(raw.train.images, arrays["train_images"][..., None])
    assert np.array_equal(raw.train.labels, arrays["train_labels"])
    assert np.array_equal(raw.test.images, arrays["t10k_images"][..., None])
    assert np.array_equal(raw.test.labels, arrays["t10k_labels"])


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_the_data_folder(tmp_path: Path, below: str) -> None:
    arrays = write_fashion(tmp_path / below)
    assert_fashion(fashion_mnist(tmp_path), arrays)


def test_fashion_mnist_is_found_in_debian_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_fashion(tmp_path / "debian")
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    assert_fashion(fashion_mnist(tmp_path / "nothing-here"), arrays)


def test_debian_s_folder_is_where_its_package_puts_the_files() -> None:
    assert str(sources.DEBIAN_FASHION_MNIST) == "/usr/share/datasets/fashion-mnist"


def test_data_folder_goes_before_debian_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_fashion(tmp_path / "own")
    write_idx(tmp_path / "debian" / "train-images-idx3-ubyte.gz", np.zeros((1, 1, 1), np.uint8))
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    assert_fashion(fashion_mnist(tmp_path / "own"), arrays)


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize(
    "name", ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
)
def test_missing_idx_file_is_named(tmp_path: Path, name: str) -> None:
    write_fashion(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no data file .*{name}"):
        fashion_mnist(tmp_path)


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_truncated_idx_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    write_fashion(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{name} cannot be read; it may be truncated"):
        fashion_mnist(tmp_path)


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize(
    "content",
    [
        b"no idx file",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x03\x00\x00\x00\x28",
        bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (40, 28, 28)) + b"short",
    ],
)
def test_idx_file_with_too_few_bytes_is_named(tmp_path: Path, content: bytes) -> None:
    write_fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        fashion_mnist(tmp_path)


# ----------------------------------------------------------------------------- torchvision


class Stored:
    """What torchvision's CIFAR classes hold once they are loaded."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        assert download
        self.root = root
        self.data = np.full((4, 32, 32, 3), 10 + train, np.uint8)
        self.targets = [0, 1, 0, 1]
        self.classes = ["cat", "dog"]


class Offline:
    def __init__(self, root: str, train: bool, download: bool) -> None:
        raise RuntimeError(f"Error downloading to {root}\nafter 3 tries {train} {download}")


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize(
    ("name", "kind", "files"),
    [
        (
            "fashion-mnist",
            "FashionMNIST",
            "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
            "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz",
        ),
        ("cifar10", "CIFAR10", "the unpacked folder cifar-10-batches-py"),
        ("cifar100", "CIFAR100", "the unpacked folder cifar-100-python"),
    ],
)
def test_offline_the_error_says_which_files_go_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, files: str
) -> None:
    monkeypatch.setattr(torchvision.datasets, kind, Offline)
    expected = (
        f"{name} is not in {tmp_path} and could not be downloaded; put {files} there, or give "
        "another folder with --data-dir (RuntimeError)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        load_dataset(name, data_dir=tmp_path)


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize(
    ("name", "size", "place"),
    [
        ("fashion-mnist", 31, "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", 31, "FashionMNIST/raw"),
        ("cifar10", 170, "cifar-10-batches-py"),
        ("cifar100", 169, "cifar-100-python.tar.gz"),
    ],
)
def test_what_would_be_downloaded_is_told_unless_it_is_there(
    tmp_path: Path, name: str, size: int, place: str
) -> None:
    note = download_note(name, tmp_path)
    assert note is not None
    assert note.startswith(f"downloading {name} (about {size} MB) ")
    assert f" to {tmp_path} ..." in note
    (tmp_path / place).mkdir(parents=True)
    assert download_note(name, tmp_path) is None


@pytest.mark.parametrize("name", ["fashion-mnist-mini", "photos", "a.npz", "noise"])
def test_other_data_are_not_downloaded(tmp_path: Path, name: str) -> None:
    assert download_note(name, tmp_path) is None


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_torchvision_s_data_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.setattr(torchvision.datasets, kind, Stored)
    dataset = load_dataset(name, data_dir=tmp_path, val_fraction=0)
    assert dataset.name == name
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images.shape == (4, 3, 32, 32)
    assert dataset.train.images.unique().tolist() == [11]
    assert dataset.test.images.unique().tolist() == [10]
    assert sorted(dataset.train.labels.tolist()) == [0, 0, 1, 1]


def test_interruption_of_a_download_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\x08\x03" + (2**31 - 1).to_bytes(4, "big") * 3, "needs 9,903,520,300 EB of memory"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "it is no IDX file of bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "it is no IDX file of bytes"),
        (b"\0\0\x08\x03\0\0\0\x02", "cannot be read"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "it is longer than it says"),
        (b"\0\0\x08", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_idx_files_that_promise_what_they_do_not_hold(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    write_fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=reason):
        fashion_mnist(tmp_path)


@pytest.mark.usefixtures("no_debian")
def test_a_pipe_among_idx_files_is_refused_at_once(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    os.mkfifo(tmp_path / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match=r"ubyte\.gz is a named pipe and no data file$"):
        fashion_mnist(tmp_path)
