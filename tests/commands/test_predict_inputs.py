"""Images in, probabilities out: what is read, refused and written."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fge.commands import inputs
from fge.commands.predict import write_predictions
from fge.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)


def read_inputs(*arguments: Any) -> tuple[list[str], torch.Tensor]:
    found = inputs.read_inputs(*arguments)
    assert not found.unreadable
    return found.names, found.split.images


def save_images(folder: Path, arrays: np.ndarray) -> Path:
    (folder / "sub").mkdir(parents=True)
    for name, array in zip(("b.png", "a.png", "sub/c.png"), arrays, strict=True):
        Image.fromarray(array).save(folder / name)
    return folder


def save_npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "in.npz", **arrays)
    return folder / "in.npz"


def test_folder_is_searched_and_sorted(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "in", GREY)
    names, images = read_inputs(folder, 1, (5, 7))
    assert names == [str(folder / name) for name in ("a.png", "b.png", "sub/c.png")]
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), GREY[[1, 0, 2], None])


def test_colour_folder_is_channels_first(tmp_path: Path) -> None:
    _, images = read_inputs(save_images(tmp_path / "in", RGB), 3, (5, 7))
    assert np.array_equal(images.numpy(), RGB[[1, 0, 2]].transpose(0, 3, 1, 2))


def test_grey_images_are_converted_for_a_colour_network(tmp_path: Path) -> None:
    _, images = read_inputs(save_images(tmp_path / "in", GREY), 3, (5, 7))
    assert np.array_equal(images.numpy(), np.repeat(GREY[[1, 0, 2], None], 3, axis=1))


def test_colour_images_are_converted_for_a_grey_network(tmp_path: Path) -> None:
    _, images = read_inputs(save_images(tmp_path / "in", RGB), 1, (5, 7))
    assert images.shape == (3, 1, 5, 7)


def test_single_image(tmp_path: Path) -> None:
    path = save_images(tmp_path / "in", GREY) / "b.png"
    names, images = read_inputs(path, 1, (5, 7))
    assert names == [str(path)]
    assert np.array_equal(images.numpy(), GREY[:1, None])


@pytest.mark.parametrize("array", [GREY, GREY[..., None]])
def test_npz_of_grey_images(tmp_path: Path, array: np.ndarray) -> None:
    names, images = read_inputs(save_npz(tmp_path, images=array), 1, (5, 7))
    assert names == ["0", "1", "2"]
    assert np.array_equal(images.numpy(), GREY[:, None])


def test_npz_in_capitals(tmp_path: Path) -> None:
    path = save_npz(tmp_path, images=GREY).rename(tmp_path / "IN.NPZ")
    assert read_inputs(path, 1, (5, 7))[0] == ["0", "1", "2"]


def test_npz_of_colour_images(tmp_path: Path) -> None:
    _, images = read_inputs(save_npz(tmp_path, images=RGB), 3, (5, 7))
    assert np.array_equal(images.numpy(), RGB.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("size", [(5, 6), (7, 5)])
def test_folder_of_another_size_names_both(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = save_images(tmp_path / "in", GREY)
    expected = (
        f"images in {folder} are 5 x 7 x 1 (height, width, channels), "
        f"but the network needs {size[0]} x {size[1]} x 1"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        read_inputs(folder, 1, size)


def test_npz_of_other_channels_names_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"are 5 x 7 x 3 .* but the network needs 5 x 7 x 1$"):
        read_inputs(save_npz(tmp_path, images=RGB), 1, (5, 7))


def test_images_of_mixed_size_are_named(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "in", GREY)
    Image.fromarray(GREY[0, :4]).save(folder / "odd.png")
    with pytest.raises(UserError, match=r"odd\.png is 7 x 4; resize"):
        read_inputs(folder, 1, (5, 7))


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images; give another folder"):
        read_inputs(tmp_path, 1, (5, 7))


def test_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no image file or folder .*nowhere; check the path$"):
        read_inputs(tmp_path / "nowhere", 1, (5, 7))


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt cannot be read as an image"):
        read_inputs(tmp_path / "notes.txt", 1, (5, 7))


@pytest.mark.parametrize("array", [GREY.astype(np.float32), GREY[0], GREY[:0]])
def test_npz_of_other_arrays_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"images must be uint8 \(N, H, W\) or .* with N >= 1, got"):
        read_inputs(save_npz(tmp_path, images=array), 1, (5, 7))


def test_npz_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in\.npz has no array 'images'"):
        read_inputs(save_npz(tmp_path, pictures=GREY), 1, (5, 7))


def test_missing_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in\.npz"):
        read_inputs(tmp_path / "in.npz", 1, (5, 7))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.95])
def test_truncated_npz_is_named(tmp_path: Path, save: Any, share: float) -> None:
    path = tmp_path / "in.npz"
    save(path, images=GREY)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"in\.npz"):
        read_inputs(path, 1, (5, 7))


def test_npz_with_damaged_compression_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez_compressed(path, images=GREY)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"in\.npz"):
        read_inputs(path, 1, (5, 7))


def test_single_array_named_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "in.npz").open("wb") as file:
        np.save(file, GREY)
    with pytest.raises(UserError, match=r"in\.npz"):
        read_inputs(tmp_path / "in.npz", 1, (5, 7))


# ------------------------------------------------------------------------------------ output

NAMES = ["a.png", 'odd, "name".png']
CLASSES = ["T-shirt/top", "cat, dog", "owl"]
PROBS = torch.tensor([[0.2, 1 / 3, 7 / 15], [0.7, 0.2, 0.1]], dtype=torch.float64)


def test_csv_holds_names_labels_and_probabilities(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", NAMES, PROBS, CLASSES)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["image", "label", "class", *(f"p({name})" for name in CLASSES)]
    assert [row[:3] for row in rows] == [[NAMES[0], "2", "owl"], [NAMES[1], "0", "T-shirt/top"]]
    probabilities = [[float(p) for p in row[3:]] for row in rows]
    np.testing.assert_allclose(probabilities, PROBS, atol=0.5e-6)


def test_npz_holds_names_labels_and_probabilities(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", NAMES, PROBS, CLASSES)
    with np.load(tmp_path / "out" / "predictions.npz", allow_pickle=False) as stored:
        assert stored["images"].tolist() == NAMES
        assert stored["classes"].tolist() == CLASSES
        assert stored["labels"].tolist() == [2, 0]
        assert stored["probabilities"].dtype == np.float64
        assert np.array_equal(stored["probabilities"], PROBS.numpy())
