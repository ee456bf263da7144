"""Data sets as splits of uint8 images; what has no images of its own is split off."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.arrays import is_npz
from fge.config import CLASSIFICATION, DATA_NAMES, OF_CLASSES, TaskName
from fge.data import sources
from fge.data.choice import Chosen, choose
from fge.data.encoding import TableFacts
from fge.data.folders import from_folder, parts_in, raw_of
from fge.data.own import from_own
from fge.data.pictures import FEWER, ArrayPictures, OfOneSize, Pictures, Sized
from fge.data.raw import RawData, check, sized
from fge.data.shards import SUFFIX, list_shards
from fge.data.split import Photographs, Split, StreamedSplit
from fge.data.statistics import Normalisation, given_statistics, mean_and_std
from fge.data.targets import MANY, TargetFacts, as_tensor, outputs_of
from fge.data.workers import default_workers
from fge.errors import UserError, unknown
from fge.memory import check_fits, free_host_memory, size_text
from fge.observer import counted
from fge.parallel import default_ranks

NAMED: dict[str, Callable[[Path], RawData]] = {
    "fashion-mnist-mini": sources.fashion_mnist_mini,
    "fashion-mnist": sources.fashion_mnist,
    "cifar10": sources.cifar10,
    "cifar100": sources.cifar100,
}
assert tuple(NAMED) == DATA_NAMES
_SHARD, _BRACES = re.compile(r"\.(tar|tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE), re.compile("[{}]")
"""Names that are meant as tar shards: compressed ones and unfinished braces are refused as such."""
_NAMED = 20
"""Classes that a line names."""
_SAMPLE = 2000
"""Training images that give mean and standard deviation of data that are not in memory."""
_PADDED = 1.6
"""The largest part of the training images' memory that a padded copy of them takes in addition."""


@dataclass(frozen=True)
class OODImages:
    """OOD images in the format of a data set, and a SHA-256 over them.

    The labels of the split are all 0, since its images belong to none of the classes.
    """

    split: Split
    fingerprint: str


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test splits, and facts about them.

    ``val`` has no images if ``val_fraction`` is 0. ``mean`` and ``std`` are those of the training
    images per channel, in grey levels from 0 to 255. ``fingerprint`` is a SHA-256 over all three
    splits. ``ood`` holds OOD images by name; see :func:`fge.data.load_ood`. ``origins`` say where
    the images of ``val``, and those of ``test`` if it has no part of its own, come from;
    ``skipped`` tells of files that were passed over, if any were; ``unreadable``: files that were
    left out because they cannot be read, and why; ``streamed``: whether images are read when they
    are needed, ``streamable``: whether they can be; ``target``: the task; ``table``: what
    predicting needs of a table; ``names_fingerprint``: of streamed images the fingerprint without
    the sizes of files, which a repair changes. ``classes`` name the classes, or the labels or
    numbers that are predicted.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    ood: Mapping[str, OODImages] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    skipped: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False
    streamable: bool = False
    target: TargetFacts = MANY
    table: TableFacts | None = None
    names_fingerprint: str = ""

    @property
    def outputs(self) -> int:
        """The outputs of a network for these data."""
        return outputs_of(self.target.task, len(self.classes))

    @property
    def is_table(self) -> bool:
        """Whether examples are rows of a table (N, F), and no images."""
        return self.table is not None

    @property
    def example(self) -> str:
        """What an example is called: image or row."""
        return "row" if self.is_table else "image"

    @property
    def in_channels(self) -> int:
        """Channels of the images, or features of the rows."""
        return self.train.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels; 1 and 1 for the rows of a table."""
        if self.is_table:
            return 1, 1
        return self.train.shape[2], self.train.shape[3]

    @property
    def model_size(self) -> tuple[int, int] | None:
        """Height and width of the images that a network gets; None for rows (N, F)."""
        return None if self.is_table else self.image_size

    @property
    def untested(self) -> list[str]:
        """The classes that have no test image; nothing for targets that are no classes."""
        if self.target.task not in OF_CLASSES:
            return []
        counts = np.bincount(self.test.labels.cpu().numpy(), minlength=len(self.classes))
        return [name for name, n in zip(self.classes, counts.tolist(), strict=True) if n == 0]

    @property
    def notes(self) -> list[str]:
        """Lines for the user: which images validate and test, and what was passed over."""
        named = {"val": ("validation", self.val), "test": ("test", self.test)}
        lines = []
        for part, origin in self.origins.items():
            name, split = named[part]
            count = f"{counted(len(split), self.example)} " if len(split) else ""
            lines.append(f"{name}: {count}{origin}")
        lines += [self.skipped] if self.skipped else []
        if self.unreadable:
            file = next(iter(self.unreadable))
            lines.append(f"unreadable: {counted(len(self.unreadable), 'file')}, such as {file}")
        if self.untested:
            names, rest = self.untested[:_NAMED], len(self.untested) - _NAMED
            more = f" and {rest} more" if rest > 0 else ""
            lines.append(f"classes without test images: {', '.join(names)}{more}")
        if self.streamed:
            splits = (self.train, self.val, self.test)
            size = size_text(sum(math.prod(split.shape) for split in splits))
            lines.append(f"streamed: images are read when needed; together they are {size}")
        return lines

    def to(self, device: torch.device) -> Dataset:
        """Return the data set with its splits on ``device``."""
        train, val, test = (split.to(device) for split in (self.train, self.val, self.test))
        ood = {n: replace(f, split=f.split.to(device)) for n, f in self.ood.items()}
        return replace(self, train=train, val=val, test=test, ood=ood)


@dataclass(frozen=True)
class Reading:
    """How the images of a data set are read.

    ``image_size``: images are resized to this side and their centres cropped, in pixels; ``stream``
    is auto, on or off: read images when they are needed (auto: if they do not fit); ``workers``:
    processes that read (None: one a core); ``skip_unreadable``: leave out files that cannot be
    read; ``labels``: a table of labels of a folder's images; ``task``: what is predicted;
    ``own``: returns the user's own data sets (:func:`fge.data.own.from_own`).
    """

    image_size: int | None = None
    stream: str = "off"
    workers: int | None = 0
    skip_unreadable: bool = False
    labels: Path | None = None
    task: TaskName = CLASSIFICATION
    own: Callable[[], Any] | None = None

    @property
    def processes(self) -> int:
        """The number of worker processes."""
        return default_workers() if self.workers is None else self.workers


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.1,
    normalize: Normalisation = "data",
    reading: Reading | None = None,
) -> Dataset:
    """Load a data set by name or from the user's own files.

    Only images that are used are kept in memory, and only if they fit.

    Args:
        name: a key of ``NAMED``, a folder with images in ``train/CLASS/``, and perhaps
            ``val/CLASS/`` and ``test/CLASS/`` (or another layout of
            :func:`fge.data.folders.from_folder`), or an ``.npz`` file.
        data_dir: folder of a named data set's files; ``data`` by default.
        train_size: number of training images to use, balanced over classes, validation included.
        test_size: number of test images to use, balanced over classes.
        val_fraction: fraction of the training images that becomes the validation split if the data
            have no validation images of their own; 0 for no validation.
        normalize: the means and standard deviations that the channels get, of red, green and blue
            from 0 to 1; ``"imagenet"`` for ImageNet's, ``"data"`` for those of the training images.
        reading: how images are read; by default as they are, into memory.

    Raises:
        UserError: the name is unknown, files are missing or damaged, labels are out of range,
            images differ in size, a class or split is empty, a size exceeds the data, or the
            images do not fit into the memory.
    """
    reading = reading or Reading()
    raw = load_raw(name, data_dir or Path("data"), reading)
    check(raw)
    chosen = choose(raw, train_size=train_size, test_size=test_size, val_fraction=val_fraction)
    check_learnable(chosen.train, raw)
    three = (chosen.train, chosen.val, chosen.test)
    streamed = _streams(raw, three, reading)
    read = (_streamed if streamed else _in_memory)(raw, three, reading)
    mean, std = given_statistics(normalize, raw.train.shape[3]) or (read.mean, read.std)
    return Dataset(
        name=raw.name,
        classes=raw.classes,
        train=read.splits[0],
        val=read.splits[1],
        test=read.splits[2],
        mean=mean,
        std=std,
        fingerprint=read.fingerprint,
        names_fingerprint=read.names,
        origins={"val": chosen.val.origin} | ({} if raw.test else {"test": chosen.test.origin}),
        skipped=raw.skipped,
        unreadable=raw.unreadable,
        streamed=streamed,
        streamable=_streamable(raw),
        target=TargetFacts.of(raw.task, chosen.train.labels),
    )


def load_test_images(
    name: str, *, data_dir: Path | None = None, most: int, reading: Reading | None = None
) -> tuple[str, Tensor]:
    """Return the name of a data set, and at most so many of its test images (M, C, H, W).

    They are the first of :func:`load_dataset`'s; no others are read.

    Raises:
        UserError: as :func:`load_dataset`.
    """
    raw = load_raw(name, data_dir or Path("data"), reading or Reading())
    check(raw)
    (test,) = _read(raw, choose(raw).test.first(most))
    return raw.name, _split(test).images


def load_raw(name: str, data_dir: str | Path, reading: Reading | None = None) -> RawData:
    """Return the images of a named data set, an ``.npz`` file or a folder.

    They are as they are, or the centres of the given size.

    Raises:
        UserError: there is no such data.
    """
    reading = reading or Reading()
    raw = _found(name, Path(data_dir), reading)
    if reading.task not in OF_CLASSES and raw.task != reading.task:
        raise UserError(
            f"--task {reading.task} needs targets of its own, and {raw.name} has classes; give an "
            ".npz file with train_targets, or a table"
        )
    raw = replace(raw, task=reading.task)
    return raw if reading.image_size is None else sized(raw, reading.image_size, reading.processes)


def _found(name: str, data_dir: Path, reading: Reading) -> RawData:
    path = Path(name)
    known = reading.own is not None or name in NAMED
    shards = not known and _in_shards(path)
    if reading.skip_unreadable and (known or is_npz(path)):
        raise UserError(f"--skip-unreadable is for image files, and data {name!r} are none")
    if reading.labels is not None and (known or shards or not path.is_dir()):
        raise UserError(f"--labels is for a folder of images, and data {name!r} is none")
    if reading.own is not None:
        return from_own(name, reading.own, reading.processes)
    if shards:
        listed, skip = list_shards(name), reading.skip_unreadable
        return raw_of(name, listed, skip_unreadable=skip, workers=reading.processes)
    if name not in NAMED and path.is_dir():
        return from_folder(
            path,
            labels=reading.labels,
            skip_unreadable=reading.skip_unreadable,
            workers=reading.processes,
        )
    if name in NAMED:
        return NAMED[name](data_dir)
    if is_npz(path):
        return sources.from_npz(path, reading.task)
    if "/" in name or path.exists():
        raise UserError(f"data {name!r} is neither a folder, an .npz file nor a tar shard")
    raise unknown("data", name, NAMED, others="a folder or file here")


def _in_shards(path: Path) -> bool:
    """Return whether data are tar shards: by their name, or in a folder that has no parts."""
    if not path.is_dir():
        return bool(_SHARD.search(path.name) or (_BRACES.search(str(path)) and not path.exists()))
    return not parts_in(path) and any(path.glob(f"*{SUFFIX}"))


@dataclass(frozen=True)
class _Loaded:
    """The splits, facts about the training images, and fingerprints: of all, of names alone."""

    splits: tuple[Split, Split, Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    names: str = ""


def _streams(raw: RawData, splits: Sequence[Chosen], reading: Reading) -> bool:
    """Return whether the images are read when they are needed: as asked, or if they do not fit."""
    if not _streamable(raw):
        if reading.stream == "on":
            raise UserError(
                "--stream on is for images in files of their own; those of this data set are "
                "arrays, which are in memory"
            )
        return False
    if reading.stream != "auto":
        return reading.stream == "on"
    sizes = [math.prod((len(split), *raw.train.shape[1:])) for split in splits]
    return sum(sizes) + int(_PADDED * sizes[0]) > free_host_memory()


def _streamable(raw: RawData) -> bool:
    """Return whether images can be read when they are needed, and are not in memory anyway."""
    whole = _whole(raw.train.pictures)
    return whole.streamable and not isinstance(whole, ArrayPictures)


def _in_memory(raw: RawData, chosen: Sequence[Chosen], reading: Reading) -> _Loaded:
    found = _read(raw, *chosen)
    mean, std = mean_and_std(found[0].images)
    train, val, test = (
        replace(_split(read), photographs=_photographs(own, reading))
        for read, own in zip(found, chosen, strict=True)
    )
    return _Loaded((train, val, test), mean, std, _fingerprint(*found))


def _streamed(raw: RawData, chosen: Sequence[Chosen], reading: Reading) -> _Loaded:
    """Return splits that are read when they are needed.

    Now only a sample is read, to measure it, and the validation and test images once, so that one
    that cannot be read does not end a whole training; each process reads its share of them.
    """
    ranks = default_ranks()
    height, width, channels = shape = raw.train.shape[1:]
    (sample,) = _read(raw, chosen[0].first(_SAMPLE))
    mean, std = mean_and_std(sample.images)
    digest = hashlib.sha256(_fingerprint(sample).encode())
    names = digest.copy()
    splits = []
    for own in chosen:
        labels = as_tensor(own.labels)
        for found in (digest, names):
            found.update(np.ascontiguousarray(labels.numpy()).data)
        for k in own.order.tolist():
            digest.update(own.part.pictures.identity(k) + b"\0")
            names.update(own.part.pictures.known_as(k) + b"\0")
        pictures = own.part.pictures
        if not isinstance(pictures, Sized):
            pictures = OfOneSize(pictures, shape, pictures.name(0))
        size, workers = (height, width), reading.processes
        centres = Photographs(pictures, own.order, size, channels, workers, of_run=True)
        if own is not chosen[0] and not reading.skip_unreadable:  # which has read them all
            centres.check(slice(ranks.rank, None, ranks.size))
        whole = _photographs(own, reading)
        splits.append(StreamedSplit(centres, (len(own), channels, *size), labels, whole))
    train, val, test = splits
    return _Loaded((train, val, test), mean, std, digest.hexdigest(), names.hexdigest())


def _photographs(chosen: Chosen, reading: Reading) -> Photographs | None:
    """Return the whole pictures of which the centres are used, or None if they are used whole."""
    if reading.image_size is None:
        return None
    side, channels = reading.image_size, chosen.part.shape[3]
    whole = _whole(chosen.part.pictures)
    size = (side, side)
    return Photographs(whole, chosen.order, size, channels, reading.processes, of_run=True)


def _whole(pictures: Pictures) -> Pictures:
    return pictures.pictures if isinstance(pictures, Sized) else pictures


@dataclass(frozen=True)
class _Read:
    """Images (n, H, W, C) uint8 in memory, and labels (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]


def _read(raw: RawData, *splits: Chosen) -> list[_Read]:
    """Read the images of splits if they fit into the memory; those of one part at once."""
    count, shape = sum(len(split) for split in splits), raw.train.shape[1:]
    size = " x ".join(map(str, shape))
    what = f"{counted(count, 'image')} of {raw.name}, {size} bytes each, need"
    check_fits(count * math.prod(shape), what, FEWER)
    read: dict[int, NDArray[np.uint8]] = {}
    for part in {id(split.part): split.part for split in splits}.values():
        own = [k for k, split in enumerate(splits) if split.part is part]
        images = part.take(np.concatenate([splits[k].order for k in own]))
        ends = np.cumsum([len(splits[k]) for k in own])
        read |= dict(zip(own, np.split(images, ends[:-1]), strict=True))
    return [_Read(read[k], split.labels) for k, split in enumerate(splits)]


def check_learnable(train: Chosen, raw: RawData) -> None:
    """Raise a UserError unless there is something to learn.

    There are training images: of every class, of two or more; or of numbers that differ.
    """
    if len(train) == 0:
        raise UserError("no training images are left; lower val_fraction or raise train_size")
    if raw.task == "regression" and (train.labels == train.labels[0]).all():
        values = ", ".join(f"{value:g}" for value in train.labels[0])
        raise UserError(
            f"the target is {values} for all {len(train)} training images, so there is nothing to "
            "learn; give another target"
        )
    if raw.task not in OF_CLASSES:
        return
    if len(raw.classes) < 2:
        raise UserError(
            f"a classifier needs images of two classes or more, {raw.name} has "
            f"{len(raw.classes)}; add the images of another class"
        )
    counts = np.bincount(train.labels, minlength=len(raw.classes))
    found = np.bincount(raw.train.labels, minlength=len(raw.classes))
    for name, count, whole in zip(raw.classes, counts, found, strict=True):
        if count == 0 and whole > 0:
            raise UserError(
                f"class {name!r} has {counted(int(whole), 'image')}, of which none is left to "
                "train on; add some, or raise train_size"
            )
        if count == 0:
            raise UserError(f"class {name!r} has no training image; add some or remove the class")


def _split(read: _Read) -> Split:
    """Return the split as tensors: (N, C, H, W) views of NHWC memory."""
    images = torch.from_numpy(np.ascontiguousarray(read.images)).permute(0, 3, 1, 2)
    return Split(images, as_tensor(read.labels))


def _fingerprint(*splits: _Read) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()
