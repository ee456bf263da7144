"""Foreign images: their conversion against closed forms, where they come from, what is refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays, write_tiny_npz
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from fge.data import Dataset, OODImages, Split, load_dataset, load_ood
from fge.data.ood import MAX_IMAGES, convert_images
from fge.errors import UserError


def constant(count: int, levels: list[int], side: int) -> Tensor:
    """Images of one level per channel."""
    channels = torch.tensor(levels, dtype=torch.uint8).view(1, -1, 1, 1)
    return channels.expand(count, -1, side, side).contiguous()


def columns(values: list[int]) -> Tensor:
    """A grey square image whose columns have these values."""
    side = len(values)
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 1, side).repeat(1, 1, side, 1)


def dataset_of(test: Tensor, train: Tensor | None = None) -> Dataset:
    def split(images: Tensor) -> Split:
        return Split(images, torch.zeros(len(images), dtype=torch.int64))

    train = test[:0] if train is None else train
    channels = test.shape[1]
    ones = (1.0,) * channels
    return Dataset("own", ("only",), split(train), split(test[:0]), split(test), ones, ones, "abc")


def noise_of(seed: int, count: int, channels: int = 1, side: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


def write_npz(path: Path, test: Tensor, labels: Any = None) -> Path:
    """Write data of which only the test part matters."""
    images = test.permute(0, 2, 3, 1).numpy()
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    classes = np.unique(labels)
    return write_tiny_npz(
        path,
        train_images=np.repeat(images[:1], len(classes), axis=0),
        train_labels=classes,
        test_images=images,
        test_labels=labels,
    )


def loaded(names: list[str], dataset: Dataset) -> dict[str, OODImages]:
    return load_ood(names, dataset, data="own.npz")


# ------------------------------------------------------------------------------------ conversion


@pytest.mark.parametrize("size", [(4, 4), (9, 9), (3, 5), (2, 2), (1, 1)])
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_constant_image_stays_constant(level: int, size: tuple[int, int]) -> None:
    for given, channels in (([level], 1), ([level], 3), ([level] * 3, 1), ([level] * 3, 3)):
        found = convert_images(constant(2, given, 4), channels=channels, size=size)
        assert found.dtype == torch.uint8
        assert torch.equal(found, torch.full((2, channels, *size), level, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("colour", "grey"), [([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([9, 8, 7], 8)]
)
def test_colour_becomes_its_luminance(colour: list[int], grey: int) -> None:
    # 0.299 * 255 = 76.245, 0.587 * 255 = 149.685, 0.114 * 255 = 29.07; 2.691 + 4.696 + 0.798.
    found = convert_images(constant(1, colour, 2), channels=1, size=(2, 2))
    assert found.tolist() == [[[[grey] * 2] * 2]]


def test_luminance_is_that_of_pillow() -> None:
    images = noise_of(0, 3, channels=3, side=16)
    found = convert_images(images, channels=1, size=(16, 16))
    for image, grey in zip(images, found, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        # Pillow's weights are rounded to 16 bits.
        assert np.abs(grey[0].numpy().astype(int) - expected.astype(int)).max() <= 1


def test_grey_is_repeated() -> None:
    images = noise_of(1, 5)
    found = convert_images(images, channels=3, size=(4, 4))
    assert torch.equal(found, images.repeat(1, 3, 1, 1))


def test_images_of_the_right_form_are_left_alone() -> None:
    images = noise_of(2, 5, channels=3)
    assert convert_images(images, channels=3, size=(4, 4)) is images


def test_a_gradient_is_interpolated_where_it_grows() -> None:
    found = convert_images(columns([16, 24, 32, 40]), channels=1, size=(8, 8))
    # Pixel k of 8 lies at (k + 1/2) / 2 - 1/2 of 4, the outermost ones beyond the last centres.
    assert found[0, 0, 3].tolist() == [16, 18, 22, 26, 30, 34, 38, 40]
    assert torch.equal(found[0, 0], found[0, 0, 3].expand(8, 8))


def test_height_and_width_are_not_confused() -> None:
    wide = convert_images(columns([16, 24, 32, 40]), channels=1, size=(2, 8))
    assert wide.shape == (1, 1, 2, 8)
    tall = convert_images(columns([16, 24, 32, 40]).transpose(2, 3), channels=1, size=(8, 2))
    assert torch.equal(tall, wide.transpose(2, 3))


def test_a_gradient_keeps_its_values_where_it_shrinks() -> None:
    found = convert_images(columns([8 * k for k in range(16)]), channels=1, size=(8, 8))
    # Pixel k of 8 lies at 2 k + 1/2 of 16; the filter is symmetric within.
    assert found[0, 0, 4, 1:-1].tolist() == [8 * (2 * k) + 4 for k in range(1, 7)]


def test_what_is_too_fine_for_the_smaller_image_becomes_its_mean() -> None:
    # Four neighbouring pixels become one, whose middle two alone would be 0.
    found = convert_images(columns([254, 0, 0, 254] * 4), channels=1, size=(4, 4))
    assert found[0, 0, 1:-1, 1:-1].tolist() == [[127, 127], [127, 127]]


def test_many_images_are_converted_one_by_one() -> None:
    images = noise_of(3, 601, channels=3)
    found = convert_images(images, channels=1, size=(3, 3))
    for position in (0, 249, 250, 600):
        alone = convert_images(images[position : position + 1], channels=1, size=(3, 3))
        assert torch.equal(found[position : position + 1], alone)


@pytest.mark.parametrize(("given", "wanted"), [(2, 1), (2, 3), (4, 3), (3, 4)])
def test_channels_that_cannot_be_turned_into_others(given: int, wanted: int) -> None:
    message = f"images with {given} channels cannot be converted to {wanted}"
    with pytest.raises(UserError, match=message):
        convert_images(noise_of(0, 1, channels=given), channels=wanted, size=(4, 4))


# -------------------------------------------------------------------------------- where they are


@pytest.mark.parametrize(("tested", "count"), [(48, 48), (MAX_IMAGES + 500, MAX_IMAGES)])
def test_noise_is_uniform_and_always_the_same(tested: int, count: int) -> None:
    dataset = dataset_of(torch.zeros(tested, 3, 4, 6, dtype=torch.uint8))
    (noise,) = loaded(["noise"], dataset).values()
    assert noise.split.images.shape == (count, 3, 4, 6)
    assert noise.split.images.dtype == torch.uint8
    assert noise.split.labels.tolist() == [0] * count
    counts = torch.bincount(noise.split.images.flatten().long(), minlength=256).double()
    expected = counts.sum() / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - 255) < 5 * (2 * 255) ** 0.5  # chi-squared of 255 degrees of freedom
    again = loaded(["noise"], dataset)["noise"]
    assert torch.equal(again.split.images, noise.split.images)
    assert again.fingerprint == noise.fingerprint


def test_digits_are_those_of_scikit_learn() -> None:
    dataset = dataset_of(noise_of(0, 3, side=8))
    (digits,) = loaded(["digits"], dataset).values()
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert torch.equal(digits.split.images, torch.from_numpy(expected)[:, None])
    assert digits.split.labels.tolist() == [0] * 1797


def test_digits_take_the_form_of_the_data() -> None:
    digits = loaded(["digits"], dataset_of(noise_of(0, 3, channels=3, side=28)))["digits"]
    images = digits.split.images
    assert images.shape == (1797, 3, 28, 28)
    assert torch.equal(images[:, 0], images[:, 2])
    own = loaded(["digits"], dataset_of(noise_of(0, 3, side=8)))["digits"].split.images
    assert torch.equal(images, convert_images(own, channels=3, size=(28, 28)))


def test_the_bundled_digits_are_those_that_their_origin_is_told_of() -> None:
    folder = ROOT / "fge" / "data" / "bundled"
    digest = hashlib.sha256((folder / "digits.npz").read_bytes()).hexdigest()
    assert f"| digits.npz | {digest} |" in (folder / "ORIGIN.md").read_text()


def test_of_other_data_the_test_images_are_taken(tmp_path: Path) -> None:
    test = noise_of(4, 7, channels=3, side=5)
    path = write_npz(tmp_path / "other.npz", test)
    found = loaded([str(path)], dataset_of(noise_of(0, 3)))
    assert list(found) == ["other"]
    expected = convert_images(test, channels=1, size=(4, 4))
    assert sorted(map(bytes, found["other"].split.images.numpy())) == sorted(
        map(bytes, expected.numpy())
    )


def test_a_folder_goes_by_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    for part in ("train", "test"):
        (folder / part / "dog").mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((6, 5), 40 * k, np.uint8)).save(folder / part / f"dog/{k}.png")
    dataset = dataset_of(noise_of(0, 3))
    found = loaded([str(folder)], dataset)
    assert list(found) == ["photos"]
    assert sorted(found["photos"].split.images[:, 0, 0, 0].tolist()) == [0, 40, 80]
    monkeypatch.chdir(folder)
    assert list(loaded(["."], dataset)) == ["photos"]


def test_a_large_data_set_is_cut_with_its_classes_in_balance(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [2000, 600, 400])
    test = torch.from_numpy((labels * 100).astype(np.uint8)).view(-1, 1, 1, 1)
    test = test.expand(-1, 1, 4, 4)
    path = write_npz(tmp_path / "large.npz", test, labels)
    images = loaded([str(path)], dataset_of(noise_of(0, 3)))["large"].split.images
    assert len(images) == MAX_IMAGES
    counts = torch.bincount(images[:, 0, 0, 0].long() // 100)
    # Two thirds of each class, but for one at the cut.
    assert (counts - torch.tensor([1333, 400, 267])).abs().max() <= 1


def test_several_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", noise_of(5, 4))
    found = loaded(["noise", str(path), "digits"], dataset_of(noise_of(0, 3)))
    assert list(found) == ["noise", "a", "digits"]
    assert len({ood.fingerprint for ood in found.values()}) == 3


def test_fingerprints_tell_images_of_the_same_bytes_apart(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "zeros.npz", constant(4, [7], 4))
    one = loaded([str(path)], dataset_of(noise_of(0, 3, side=4)))["zeros"]
    other = loaded([str(path)], dataset_of(noise_of(0, 3, channels=4, side=2)))["zeros"]
    assert one.split.images.numel() == other.split.images.numel()
    assert one.fingerprint != other.fingerprint


def test_nothing_is_loaded_where_nothing_is_named() -> None:
    assert loaded([], dataset_of(noise_of(0, 3))) == {}


def test_ood_images_move_with_their_data_set() -> None:
    dataset = dataset_of(noise_of(0, 3))
    ood = loaded(["noise"], dataset)
    moved = Dataset(**{**vars(dataset), "ood": ood}).to(torch.device("meta"))
    assert moved.ood["noise"].split.images.device.type == "meta"
    assert moved.ood["noise"].fingerprint == ood["noise"].fingerprint


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["nois", "photos", "missing/folder"])
def test_an_unknown_name_is_answered_with_all_that_are_known(name: str) -> None:
    message = (
        f"unknown --ood {name!r}; give noise, digits, fashion-mnist-mini, fashion-mnist, cifar10, "
        "cifar100, a folder with train/CLASS/ and test/CLASS/, or an .npz file"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        loaded([name], dataset_of(noise_of(0, 3)))


def test_data_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.npz"
    with pytest.raises(UserError, match=f"^--ood {re.escape(str(path))}: no data file"):
        loaded([str(path)], dataset_of(noise_of(0, 3)))


def test_channels_that_do_not_fit_are_named_with_their_data(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "four.npz", noise_of(0, 3, channels=4))
    message = f"--ood {path}: images with 4 channels cannot be converted to 1"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        loaded([str(path)], dataset_of(noise_of(1, 3)))


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [
        str(write_npz(tmp_path / folder / "x.npz", noise_of(seed, 4)))
        for seed, folder in ((1, "."), (2, "b"))
    ]
    message = "^--ood has 'x' twice; leave one out, or rename its file$"
    with pytest.raises(UserError, match=message):
        loaded(paths, dataset_of(noise_of(0, 3)))
    with pytest.raises(UserError, match=r"^--ood has 'noise' twice"):
        loaded(["noise", "noise"], dataset_of(noise_of(0, 3)))


def test_the_run_s_own_data_are_refused_by_their_name(tiny_npz: Path) -> None:
    dataset = load_dataset(str(tiny_npz))
    message = f"--ood {tiny_npz} is not out of distribution: it is the run's own --data; give other"
    with pytest.raises(UserError, match=re.escape(message)):
        load_ood([str(tiny_npz)], dataset, data=str(tiny_npz))


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_run_s_own_images_are_refused_under_any_name(
    tiny_npz: Path, tmp_path: Path, part: str
) -> None:
    own = tiny_arrays()
    copied = {"test_images": own[f"{part}_images"], "test_labels": own[f"{part}_labels"]}
    path = write_tiny_npz(tmp_path / "copy.npz", **copied)
    count = len(copied["test_labels"])
    message = (
        f"--ood {path} is not out of distribution: {count} of its {count} images are the run's "
        "own; give other data"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load_ood([str(path)], load_dataset(str(tiny_npz)), data=str(tiny_npz))


@pytest.mark.parametrize(("shared", "refused"), [(0, False), (2, False), (3, True)])
def test_a_few_images_in_common_do_not_matter(tmp_path: Path, shared: int, refused: bool) -> None:
    own = noise_of(0, 5)
    path = write_npz(tmp_path / "other.npz", torch.cat([own[:shared], noise_of(1, 200 - shared)]))
    dataset = dataset_of(noise_of(2, 3), train=own)
    if refused:
        with pytest.raises(UserError, match="3 of its 200 images are the run's own"):
            loaded([str(path)], dataset)
    else:
        assert len(loaded([str(path)], dataset)["other"].split) == 200
