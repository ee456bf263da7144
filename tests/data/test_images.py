"""Image files as arrays: modes, sizes, and files that cannot be read."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fge import memory
from fge.data import Skipped, list_images, load_dataset, read_images
from fge.data.folders import from_folder
from fge.data.images import SUFFIXES, channels_of, read_image
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
        hidden = (".ipynb_checkpoints/1.png", "a/.thumbs/1.png", "@eaDir/1.png", "a/@eaDir/1.png")
        for name in ("a/1.png", "b/1.png", *hidden):
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
    with pytest.raises(UserError, match=r"^no image file .*gone\.png; check the path$"):
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


# --------------------------------------------------------------------------- hostile or broken


def png_of_size(width: int, height: int) -> bytes:
    """Return a picture whose header promises a size that its few bytes do not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["EPS", "DDS", "TGA", "ICO", "PDF", "SGI"])
def test_formats_that_nobody_asked_for_are_not_opened(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would start Ghostscript for EPS."""
    for name in ("run", "Popen", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, pytest.fail)
    Image.fromarray(RGB).save(tmp_path / "i.png", kind)
    with pytest.raises(
        UserError,
        match=r"i\.png cannot be read as an image: none of the formats PNG, JPEG, BMP, GIF, TIFF, "
        "WEBP and PPM; replace it, or leave it out with --skip-unreadable$",
    ):
        read_image(tmp_path / "i.png")


def test_a_name_need_not_tell_the_format(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), 100, np.uint8)
    for kind in ("JPEG", "MPO", "WEBP", "TIFF", "GIF"):
        Image.fromarray(flat).save(tmp_path / "i.png", kind)
        assert np.abs(read_image(tmp_path / "i.png").astype(int) - 100).max() <= 3


@pytest.mark.parametrize("side", [9_500, 12_000, 100_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "i.png").write_bytes(png_of_size(side, side))
    for read in (read_image, lambda file: channels_of([file])):
        with pytest.raises(UserError, match=r"i\.png cannot be read .* decompression bomb"):
            read(tmp_path / "i.png")


def test_an_image_larger_than_the_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "i.png", RGB)
    monkeypatch.setattr("fge.data.images._SURELY_FITS", 0)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 5 * 7 * 4 - 1)
    with pytest.raises(
        UserError, match=r"i\.png, 7 x 5, needs 140 bytes of memory, but 139 bytes are free"
    ):
        read_image(path)


def test_images_larger_than_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [save(tmp_path / f"{n}.png", RGB) for n in range(3)]
    monkeypatch.setattr(memory, "free_host_memory", lambda: 3 * RGB.nbytes - 1)
    with pytest.raises(
        UserError,
        match=rf"^3 images like {files[0]} need 315 bytes of memory, but 314 bytes are free; take "
        "fewer images$",
    ):
        read_images(files)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "is a named pipe and no image file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device and no image file"),
        (lambda path: path.symlink_to("gone"), "is a link to nothing and no image file"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], what: str
) -> None:
    make(tmp_path / "i.png")
    for read in (read_image, lambda _: list_images(tmp_path)):
        with pytest.raises(UserError, match=what):
            read(tmp_path / "i.png")


@pytest.mark.parametrize("packing", ["raw", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_a_broken_tiff_gives_one_error_and_no_other_line(
    tmp_path: Path, packing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / "i.tif"
    Image.fromarray(noise).save(path, compression=packing)
    whole = path.read_bytes()
    for cut in range(20, len(whole), len(whole) // 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"i\.tif cannot be read as an image: ") as raised:
            read_image(path)
        assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------ passed over


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    for name in ("a/1.png", ".ipynb_checkpoints/1.png", ".ipynb_checkpoints/2.png", "a/._1.png"):
        save(tmp_path / f"{name}.png", GREY).rename(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    skipped = Skipped()
    assert [path.name for path in list_images(tmp_path, skipped)] == ["1.png"]
    note = skipped.note("photos")
    assert note is not None
    assert note.startswith("skipped in photos: ")
    assert set(note.removeprefix("skipped in photos: ").split(", ")) == {
        "2 hidden (such as .ipynb_checkpoints)",
        "1 linked folder (linked)",
        "1 not an image by its name (notes.txt)",
    }
    assert Skipped().note("photos") is None


def test_a_run_is_told_what_its_folder_holds_beside_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", ".cache/1.png"):
            save(tmp_path / part / name, GREY)
        (tmp_path / part / "README").write_text("x")
    assert load_dataset(str(tmp_path), val_fraction=0.5).notes == [
        "validation: 2 images held out of the training images (0.5 of them)",
        f"skipped in {tmp_path}: 2 hidden (such as .cache), "
        "2 outside the class folders (such as README)",
    ]


def test_names_that_are_no_utf8_become_printable_classes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for part in ("train", "test"):
        save(tmp_path / name / part / name / f"{name}.png", GREY)
    with pytest.raises(UserError, match=r"needs images of two classes or more, caf.* has 1; add"):
        load_dataset(str(tmp_path / name), val_fraction=0)
    for part in ("train", "test"):
        save(tmp_path / name / part / "tea" / "1.png", GREY)
    dataset = load_dataset(str(tmp_path / name), val_fraction=0)
    assert (dataset.name, dataset.classes) == ("caf\\xe9", ("caf\\xe9", "tea"))
    assert len(dataset.train) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is locked for root")
def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path) -> None:
    save(tmp_path / "locked" / "1.png", GREY)
    (tmp_path / "locked").chmod(0)
    with pytest.raises(PermissionError):
        list_images(tmp_path)
    (tmp_path / "locked").chmod(0o700)


def test_a_folder_around_the_data_set_is_told(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            save(tmp_path / "photos" / part / name / "1.png", GREY)
    inner = tmp_path / "photos"
    message = (
        f"{tmp_path} has no class folders, but one folder, whose parts are test and train; "
        f"give {inner}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load_dataset(str(tmp_path), val_fraction=0)
