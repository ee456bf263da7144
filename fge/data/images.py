"""Image files: which of a folder are read, and their pixels."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fge.errors import UserError
from fge.files import check_file, printable
from fge.memory import check_fits
from fge.observer import counted

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is opened, whatever the name says. Pillow's other formats are left out on purpose: for EPS
it starts a program, and the decoders of rare ones (DDS, BLP, FTEX) take a broken file badly."""
_DEEP_MODES = {"I", "I;16", "I;16B", "I;16L"}
_GREY_MODES = {"1", "L", "F", *_DEEP_MODES}
_MOST_OF_16_BITS = 65_535
_LEFT_BEHIND = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
"""Folders that systems leave behind, beside those whose names begin with a dot."""
_PIXEL_BYTES = 4
_SURELY_FITS = 1 << 24
"""Bytes of an image that is not compared with the free memory: asking for it takes time."""
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)
"""Values of the EXIF orientation that exchange height and width."""
_SCALES = (8, 4, 2)
"""By how much a JPEG decoder can shrink an image while it decodes it."""
_ENOUGH = 1.5
"""A crop is decoded at a smaller scale if it keeps this many pixels for each that is needed."""
Box = tuple[int, int, int, int]
"""A part of an image: top, left, height, width."""
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors are printed
HIDDEN, LINKED, OTHER = "hidden", "linked folder", "not an image by its name"
FEWER = "take fewer images"
LEAVE_OUT = "; replace it, or leave it out with --skip-unreadable"
BEGIN_AGAIN = "; replace it (a run goes on with --resume), or begin again with --skip-unreadable"
ONE_SIZE = "resize them to one size, or give --image-size"


@dataclass(frozen=True)
class Member:
    """A file within another one, which is not packed there: where it begins, and its size."""

    file: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def read(self) -> bytes:
        """Return the content.

        Raises:
            UserError: the file is gone, or too short.
        """
        check_file(self.file, "data file")
        with self.file.open("rb") as opened:
            opened.seek(self.start)
            content = opened.read(self.size)
        if len(content) < self.size:
            raise UserError(f"{self.file} is cut off within {self.name}; restore it from a copy")
        return content


Source = Path | Member
"""Where an image is."""


class Skipped:
    """What is passed over in a folder: how many of each kind, and the name of the first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Count something that is passed over."""
        count, first = self._found.get(kind, (0, name))
        self._found[kind] = (count + 1, first)

    def note(self, where: object) -> str | None:
        """Return a line that tells what was passed over, or None if nothing was.

        >>> skipped = Skipped()
        >>> skipped.add(HIDDEN, ".ipynb_checkpoints")
        >>> skipped.note("photos")
        'skipped in photos: 1 hidden (.ipynb_checkpoints)'
        """
        if not self._found:
            return None
        parts = [
            f"{count} {kind} ({'such as ' if count > 1 else ''}{printable(first)})"
            for kind, (count, first) in self._found.items()
        ]
        return f"skipped in {printable(str(where))}: {', '.join(parts)}"


def list_images(folder: str | Path, skipped: Skipped | None = None) -> list[Path]:
    """Return the image files in ``folder`` and below, sorted; see :func:`find_images`."""
    return [Path(name) for name in find_images(Path(folder), skipped)]


def find_images(folder: Path, skipped: Skipped | None = None) -> list[str]:
    """Return the paths of the image files in a folder and below, sorted; hidden ones are left out.

    They are text, because making a ``Path`` of each takes longer than finding it.

    Args:
        folder: is walked; links to other folders are not followed.
        skipped: counts what is left out.

    Raises:
        UserError: the name of an image belongs to no regular file.
        OSError: a folder cannot be read.
    """
    skipped = skipped or Skipped()
    found, waiting = [], [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    skipped.add(HIDDEN, entry.name)
                elif entry.is_dir():
                    if entry.is_symlink():
                        skipped.add(LINKED, entry.name)
                    else:
                        waiting.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                    skipped.add(OTHER, entry.name)
                else:
                    if not entry.is_file(follow_symlinks=False):  # a link, or none
                        check_file(Path(entry.path), "image file")
                    found.append(entry.path)
    return sorted(found, key=lambda path: path.split(os.sep))  # as paths are sorted


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's images by its name."""
    return name.startswith(".") or name in _LEFT_BEHIND


def channels_of(files: Iterable[Source]) -> int:
    """Return 1 if all images are grey, else 3.

    Raises:
        UserError: a file is not a readable image.
    """
    for file in files:
        with _opened(file) as image:
            if image.mode not in _GREY_MODES:
                return 3
    return 1


def read_images(
    files: Sequence[Source], *, channels: int | None = None, remedy: str = FEWER
) -> NDArray[np.uint8]:
    """Read images of one size.

    Args:
        files: at least one file.
        channels: 1 or 3; by default as :func:`channels_of`.
        remedy: what to do if they do not fit into the memory, for the error.

    Returns:
        images (N, H, W, C) uint8.

    Raises:
        UserError: a file is not a readable image, or not of the size of the first, or the images
            do not fit into the memory.
    """
    channels = channels or channels_of(files)
    first = read_image(files[0], channels)
    needed = len(files) * first.nbytes
    check_fits(needed, f"{counted(len(files), 'image')} like {files[0]} need", remedy)
    images = np.empty((len(files), *first.shape), np.uint8)
    for position, file in enumerate(files):
        image = read_image(file, channels)
        if image.shape != first.shape:
            raise UserError(
                f"images differ in size: {files[0]} is {first.shape[1]} x {first.shape[0]}, "
                f"{file} is {image.shape[1]} x {image.shape[0]}; {ONE_SIZE}"
            )
        images[position] = image
    return images


def read_image(file: Source, channels: int | None = None) -> NDArray[np.uint8]:
    """Read one image, turned upright as its EXIF data say, as (H, W, C) uint8.

    By default it has as many channels as it needs. Deep images are scaled to 8 bits by the range of
    their type.

    Raises:
        UserError: it cannot be read, or its pixels have no range that is known.
    """
    with _opened(file) as opened:
        _check_memory(opened, file)
        grey = opened.mode in _GREY_MODES if channels is None else channels == 1
        return _pixels(_upright(opened), grey, file)


def read_part(
    file: Source, channels: int, choose: Callable[[tuple[int, int]], Box], side: int
) -> NDArray[np.uint8]:
    """Read a part of an image, turned upright, as (h, w, C) uint8; see :func:`read_image`.

    A JPEG is decoded at a half, a quarter or an eighth of its size if that leaves more than
    ``side`` pixels in the part, which is then smaller than the box.

    Args:
        file: the image.
        channels: 1 or 3.
        choose: returns the box for an image of a height and a width.
        side: to which height and width the part will be resized.
    """
    with _opened(file) as opened:
        _check_memory(opened, file)
        turned = opened.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        width, height = opened.size[::-1] if turned else opened.size
        top, left, high, wide = choose((height, width))
        if opened.format in ("JPEG", "MPO"):
            least = min(high, wide)
            scale = next((s for s in _SCALES if least >= s * _ENOUGH * side), 1)
            if scale > 1:
                opened.draft(None, (opened.width // scale, opened.height // scale))
        image = _upright(opened)
        columns = _scaled(left, wide, image.width / width, image.width)
        rows = _scaled(top, high, image.height / height, image.height)
        part = image.crop((columns[0], rows[0], columns[1], rows[1]))
        return _pixels(part, channels == 1, file)


def _scaled(start: int, length: int, scale: float, most: int) -> tuple[int, int]:
    """Return begin and end of a scaled interval, in whole pixels and not empty."""
    begin = min(round(start * scale), most - 1)
    return begin, min(max(begin + 1, round((start + length) * scale)), most)


def _check_memory(opened: Image.Image, file: Source) -> None:
    needed = opened.width * opened.height * _PIXEL_BYTES
    if needed > _SURELY_FITS:
        what = f"{file}, {opened.width} x {opened.height}, needs"
        check_fits(needed, what, "make it smaller")


def _upright(opened: Image.Image) -> Image.Image:
    with _silent() if opened.format == "TIFF" else nullcontext():
        opened.load()
        return opened if opened.getexif().get(_ORIENTATION, 1) == 1 else _turned(opened)


def _turned(opened: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(opened)
    assert turned is not None
    return turned


def pixels_of(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of an image in as many channels as it needs: :func:`read_image`.

    It is turned upright if it still has the EXIF entry that says how, as files are.

    Raises:
        UserError: naming the image, whose pixels have no range that is known.
    """
    return _pixels(_upright(image), image.mode in _GREY_MODES, name)


def _pixels(image: Image.Image, grey: bool, file: object) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C), in 8 bits."""
    if image.mode in _DEEP_MODES or image.mode == "F":
        image = _shallow(image, file)
    mode = "L" if grey else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[..., None] if array.ndim == 2 else array


@contextmanager
def _opened(file: Source) -> Iterator[Image.Image]:
    """Open an image; turn every error about it into one for the user, and warnings of bombs."""
    content: Path | io.BytesIO
    if isinstance(file, Member):
        content = io.BytesIO(file.read())
    else:
        check_file(file, "image file")
        content = file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd entries, of which nothing is used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content, formats=FORMATS) as image:
                yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        formats = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
        raise _no_image(file, f"none of the formats {formats}") from None
    except Exception as error:  # Pillow's decoders raise many types for a broken file
        reason = str(error).split("\n")[0] or type(error).__name__
        raise _no_image(file, reason) from None


@contextmanager
def _silent() -> Iterator[None]:
    """Discard what libtiff itself writes to the process's errors; Pillow raises an error as well.

    It does so from C, where no stream of Python's is asked.
    """
    try:
        kept = os.dup(2)
    except OSError:  # errors go nowhere
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _no_image(file: Source, reason: str) -> UserError:
    return UserError(f"{file} cannot be read as an image: {reason}{LEAVE_OUT}")


def _shallow(image: Image.Image, file: object) -> Image.Image:
    """Return an image of 16 bits in 8; Pillow would clip it instead of scaling it."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _MOST_OF_16_BITS:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise UserError(f"{file} has {kind} pixels, whose range is not known; save 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))
