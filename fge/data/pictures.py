"""Pictures that are read one by one: as they are, or resized and cropped to a size.

Resizing and cropping are torchvision's: ``v2.Resize`` (of the shorter side, bilinear, with an
antialiasing filter) and ``v2.CenterCrop`` to look at a picture, ``v2.RandomResizedCrop`` to train.
They work on tensors; on PIL images they differ by rounding, one grey level at most.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.data.images import ONE_SIZE, Box, Source, read_image, read_images, read_part
from fge.data.workers import loaded
from fge.errors import UserError
from fge.memory import check_fits
from fge.observer import counted
from fge.seeds import derive_seed

_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of random resized crops: part of the area, and width by height (torchvision's defaults)."""
FEWER = "take fewer with --train-size and --test-size"
_AT_ONCE = 128
"""Pictures that are read in one piece into the memory."""
Choose = Callable[[tuple[int, int]], Box]


class Pictures:
    """Pictures as uint8 arrays (H, W, C), which may differ in size; each is read when asked for."""

    streamable = True
    """Whether one picture can be read quickly without the others."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        raise NotImplementedError

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a picture (H, W, C)."""
        raise NotImplementedError

    def part(self, index: int, choose: Choose, side: int) -> NDArray[np.uint8]:
        """Return a part of a picture, perhaps at a smaller scale, but not below ``side``."""
        del side
        picture = self.read(index)
        top, left, height, width = choose((picture.shape[0], picture.shape[1]))
        return picture[top : top + height, left : left + width]

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return pictures (n, H, W, C).

        Raises:
            UserError: they differ in size.
        """
        first = self.read(int(index[0]))
        same = OfOneSize(self, first.shape, self.name(int(index[0])))
        images = np.empty((len(index), *first.shape), np.uint8)
        for position, k in enumerate(index.tolist()):
            images[position] = same.read(k)
        return images

    def name(self, index: int) -> str:
        """Return what an error calls a picture."""
        return f"image {index}"

    def known_as(self, index: int) -> bytes:
        """Return the name by which a picture is known again after a repair, as far as there is."""
        del index
        return b""

    def identity(self, index: int) -> bytes:
        """Return what tells a picture from others without reading it, as far as it is known."""
        del index
        return b""


class ArrayPictures(Pictures):
    """The pictures of an array (N, H, W, C) in memory."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a picture (H, W, C)."""
        picture: NDArray[np.uint8] = self.images[index]
        return picture

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return pictures (n, H, W, C)."""
        return self.images[index]


class Names:
    """Names in little memory: hundreds of thousands are held and handed on to other processes.

    >>> Names([b"a", b"bc"])[1]
    b'bc'
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        given = list(names)
        self._text = b"".join(given)
        self._ends = np.cumsum([0, *map(len, given)])

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """Return a name."""
        index = range(len(self))[index]
        return self._text[self._ends[index] : self._ends[index + 1]]


class Sources:
    """Where images are: files, or what is within them."""

    def __len__(self) -> int:
        """Return their number."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Source:
        """Return one of them."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Source]:
        """Iterate over all."""
        return (self[k] for k in range(len(self)))

    def kept(self, index: Sequence[int]) -> Sources:
        """Return those of an index."""
        raise NotImplementedError

    def known_as(self, index: int) -> bytes:
        """Return the name of one of them."""
        raise NotImplementedError

    def length(self, index: int) -> int:
        """Return the size of one of them in bytes."""
        raise NotImplementedError

    def identity(self, index: int) -> bytes:
        """Return the name of one of them, and its size."""
        return self.known_as(index) + b"\0%d" % self.length(index)


class FilePaths(Sources):
    """Paths of files below a folder.

    >>> paths = FilePaths(Path("photos"), [Path("photos/cat/1.png"), Path("photos/dog/2.png")])
    >>> len(paths), str(paths[1]), str(paths[-2])
    (2, 'photos/dog/2.png', 'photos/cat/1.png')
    """

    def __init__(self, folder: Path, files: Iterable[Path | str]) -> None:
        start = 0 if folder == Path() else len(os.fsencode(os.path.join(folder, "")))
        self.folder = folder
        self._names = Names(os.fsencode(file)[start:] for file in files)

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        """Return a path."""
        return self.folder / os.fsdecode(self._names[index])

    def kept(self, index: Sequence[int]) -> FilePaths:
        """Return the paths of an index."""
        return FilePaths(self.folder, [self[k] for k in index])

    def known_as(self, index: int) -> bytes:
        """Return the name of a file below the folder."""
        return self._names[index]

    def length(self, index: int) -> int:
        """Return the size of a file in bytes."""
        return self[index].stat().st_size


class FilePictures(Pictures):
    """The pictures in image files, all with the same number of channels."""

    def __init__(self, files: Sources, channels: int, remedy: str = FEWER) -> None:
        self.files = files
        self.channels = channels
        self.remedy = remedy

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a picture (H, W, C)."""
        return read_image(self.files[index], self.channels)

    def part(self, index: int, choose: Choose, side: int) -> NDArray[np.uint8]:
        """Return a part of a picture, at a smaller scale where its format makes that quick."""
        return read_part(self.files[index], self.channels, choose, side)

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return pictures of one size (n, H, W, C)."""
        files = [self.files[k] for k in index.tolist()]
        return read_images(files, channels=self.channels, remedy=self.remedy)

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return str(self.files[index])

    def known_as(self, index: int) -> bytes:
        """Return the name of a file."""
        return self.files.known_as(index)

    def identity(self, index: int) -> bytes:
        """Return the name of a file, and its size."""
        return self.files.identity(index)


class OfOneSize(Pictures):
    """Pictures that must have one size, which is checked when each is read."""

    def __init__(self, pictures: Pictures, shape: tuple[int, ...], first: str) -> None:
        self.pictures = pictures
        self.shape = shape
        self.first = first

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a picture (H, W, C).

        Raises:
            UserError: it has another size.
        """
        picture = self.pictures.read(index)
        if picture.shape != self.shape:
            (height, width), (high, wide) = self.shape[:2], picture.shape[:2]
            raise UserError(
                f"images differ in size: {self.first} is {width} x {height}, "
                f"{self.pictures.name(index)} is {wide} x {high}; {ONE_SIZE}"
            )
        return picture

    def known_as(self, index: int) -> bytes:
        """Return the name by which a picture is known again after a repair."""
        return self.pictures.known_as(index)

    def identity(self, index: int) -> bytes:
        """Return what tells a picture from others without reading it."""
        return self.pictures.identity(index)


class Sized(Pictures):
    """The centres of pictures: resized so that the shorter side is ``side``, and cropped."""

    def __init__(self, pictures: Pictures, side: int, channels: int, workers: int) -> None:
        self.pictures = pictures
        self.side = side
        self.channels = channels
        self.workers = workers

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the centre of a picture (side, side, C)."""
        return centre(self.pictures.read(index), self.side)

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return centres (n, side, side, C), read by worker processes."""
        pieces = np.array_split(index, max(1, -(-len(index) // _AT_ONCE)))
        needed = len(index) * self.side**2 * self.channels
        check_fits(needed, f"{counted(len(index), 'image')} need", FEWER)
        images = np.empty((len(index), self.side, self.side, self.channels), np.uint8)
        start = 0
        for piece in loaded(pieces, partial(stacked, self), self.workers):
            images[start : start + len(piece)] = piece.numpy()
            start += len(piece)
        return images

    def known_as(self, index: int) -> bytes:
        """Return the name by which a picture is known again after a repair."""
        return self.pictures.known_as(index)

    def identity(self, index: int) -> bytes:
        """Return what tells a picture from others without reading it."""
        return self.pictures.identity(index)


def stacked(pictures: Pictures, index: NDArray[np.int64]) -> Tensor:
    """Return pictures of one size as a tensor (n, H, W, C)."""
    return torch.from_numpy(np.stack([pictures.read(k) for k in index.tolist()]))


def centre(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the centre (side, side, C) of a picture (H, W, C), its shorter side resized to it."""
    if picture.shape[:2] == (side, side):
        return picture
    from torchvision.transforms.v2 import functional

    resized = functional.resize(_tensor(picture), [side], antialias=True)
    return _array(functional.center_crop(resized, [side, side]))


def random_crop(
    pictures: Pictures, index: int, side: int, *, flip: bool, seed: int
) -> NDArray[np.uint8]:
    """Return a random resized crop (side, side, C) of a picture, mirrored with probability 1/2.

    The crop depends on the seed and the size of the picture alone; without ``flip`` none is
    mirrored, and the crops are the same.
    """
    from torchvision.transforms import v2

    mirrored = False

    def choose(size: tuple[int, int]) -> Box:
        nonlocal mirrored
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed)
            mirrored = bool(torch.rand(()) < 0.5)
            like = torch.empty((1, *size), device="meta")
            top, left, height, width = v2.RandomResizedCrop.get_params(
                like, list(_SCALE), list(_RATIO)
            )
        return top, left, height, width

    part = _tensor(pictures.part(index, choose, side))
    crop = v2.functional.resize(part, [side, side], antialias=True)
    return _array(crop.flip(2) if flip and mirrored else crop)


def random_crops(
    pictures: Pictures, side: int, flip: bool, stream: tuple[object, ...], index: NDArray[np.int64]
) -> Tensor:
    """Return random resized crops (n, side, side, C), drawn per picture from a stream of seeds."""
    seed, *names = stream
    assert isinstance(seed, int)
    crops = [
        random_crop(pictures, k, side, flip=flip, seed=derive_seed(seed, *names, k))
        for k in index.tolist()
    ]
    return torch.from_numpy(np.stack(crops))


def _tensor(picture: NDArray[np.uint8]) -> Tensor:
    # Pillow's arrays are read-only, which PyTorch warns of; nothing here writes to them.
    writeable = picture if picture.flags.writeable else picture.copy()
    return torch.from_numpy(writeable).permute(2, 0, 1)


def _array(picture: Tensor) -> NDArray[np.uint8]:
    return picture.permute(1, 2, 0).numpy()
