"""Image files as arrays: modes, sizes, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fge.data import list_images, read_images
from fge.data.sources import SUFFIXES, from_folder, read_image
from fge.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm"])
def test_grey_image_keeps_its_pixels(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"i{suffix}", GREY))
    assert image.dtype == np.uint8
    assert np.array_equal(image, GREY[..., None])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_colour_image_keeps_its_pixels(tmp_path: Path, suffix: str) -> None:
    assert np.array_equal(read_image(save(tmp_path / f"i{suffix}", RGB)), RGB)


def test_jpeg_is_read(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), 100, np.uint8)
    image = read_image(save(tmp_path / "i.JPG", flat)).astype(int)
    assert image.shape == (16, 16, 3)
    assert np.abs(image - 100).max() <= 3


def test_grey_image_becomes_colour_where_asked(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "i.png", GREY), channels=3)
    assert np.array_equal(image, np.repeat(GREY[..., None], 3, axis=2))


def test_colour_image_becomes_grey_where_asked(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "i.png", RGB), channels=1)
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow documents for "L"
    assert image.shape == (5, 7, 1)
    assert np.abs(image[..., 0] - luma).max() <= 1


def test_transparency_is_left_out(tmp_path: Path) -> None:
    opaque = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path / "i.png", opaque)), RGB)


def test_16_bit_grey_keeps_its_gradation(tmp_path: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = read_image(save(tmp_path / "i.png", deep))[..., 0].astype(int)
    assert np.abs(image - deep / 257).max() <= 1  # 65535 / 257 = 255


def test_colour_in_any_image_makes_all_of_them_colour(tmp_path: Path) -> None:
    grey, colour = save(tmp_path / "a.png", GREY), save(tmp_path / "b.png", RGB)
    for files in ([grey, colour], [colour, grey]):
        images = read_images(files)
        assert images.shape == (2, 5, 7, 3)
        assert np.array_equal(images[files.index(colour)], RGB)
    assert read_images([grey, grey]).shape == (2, 5, 7, 1)
    for part, array in (("train", GREY), ("test", RGB)):  # the parts decide together
        for name in "ab":
            save(tmp_path / "data" / part / name / "1.png", array)
    raw = from_folder(tmp_path / "data")
    assert (raw.train.images.shape, raw.test.images.shape) == ((2, 5, 7, 3), (2, 5, 7, 3))


def test_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "i.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "i.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("values", "kind"),
    [(np.float32([[0, 0.5], [1, 0.25]]), "floating-point"), (np.int32([[0, 70_000]]), "32-bit")],
)
def test_pixels_without_a_known_range_are_refused(
    tmp_path: Path, values: np.ndarray, kind: str
) -> None:
    file = save(tmp_path / "i.tif", values)
    with pytest.raises(UserError, match=rf"i\.tif has {kind} pixels, whose range is not known"):
        read_image(file)


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a/1.png", "b/1.png", ".ipynb_checkpoints/1.png", "a/.thumbs/1.png"):
            save(tmp_path / part / name, GREY)
        save(tmp_path / part / "a" / "x.png", GREY).rename(tmp_path / part / "a" / "._1.png")
        save(tmp_path / part / "__MACOSX" / "1.png", GREY)
    raw = from_folder(tmp_path)
    assert raw.classes == ("a", "b")
    assert len(raw.train.images) == len(raw.test.images) == 2


def test_images_come_in_the_order_given(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}.png", np.full((2, 2), n, np.uint8)) for n in (3, 1, 2)]
    assert read_images(files)[:, 0, 0, 0].tolist() == [3, 1, 2]


def test_image_of_another_size_is_named(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.png", GREY), save(tmp_path / "odd.png", GREY[:, :6])]
    with pytest.raises(UserError, match=r"a\.png is 7 x 5, .*odd\.png is 6 x 5; resize"):
        read_images(files)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png cannot be read as an image"):
        read_image(tmp_path / "bad.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".webp"])
def test_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = save(tmp_path / f"bad{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"bad\.\w+ cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT"])
def test_damaged_png_chunk_is_named(tmp_path: Path, chunk: bytes) -> None:
    data = save(tmp_path / "bad.png", RGB).read_bytes()
    (tmp_path / "bad.png").write_bytes(data.replace(chunk, b"I\xff\x02T"))
    with pytest.raises(UserError, match=r"bad\.png cannot be read as an image"):
        read_image(tmp_path / "bad.png")


def test_png_with_a_wrong_chunk_length_is_named(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "bad.png", RGB).read_bytes())
    length = data.index(b"IDAT") - 1  # the low byte of the chunk's length
    data[length] -= 20
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.png cannot be read as an image"):
        read_image(tmp_path / "bad.png")


def test_image_of_absurd_size_is_named(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "bad.bmp", RGB).read_bytes())
    data[18:22] = data[22:26] = (1_000_000).to_bytes(4, "little")  # width and height
    (tmp_path / "bad.bmp").write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.bmp cannot be read as an image"):
        read_image(tmp_path / "bad.bmp")


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png cannot be read as an image"):
        read_image(tmp_path / "gone.png")


def test_images_are_found_below_and_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "sub/c.jpg"):
        save(tmp_path / name, RGB)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.PNG", "b.png", "sub/c.jpg"]


def test_suffixes_are_lower_case_with_a_dot() -> None:
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in SUFFIXES)
