"""Tar shards as WebDataset writes them: samples of an image and a class, one after the other.

The library ``webdataset`` expands names with braces and groups the files of a shard into samples.
The images are not read in a row as it does, but each by its place in the shard: so that their order
comes from the seed alone, processes read only their shares, and a run can be resumed anywhere.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.data.images import SUFFIXES, Member
from fge.data.parts import PARTS, UNCLEAR, part_of
from fge.data.pictures import Names, Sources
from fge.data.table import Listed
from fge.errors import UserError, missing_package, one_line
from fge.files import check_file, printable

SUFFIX = ".tar"
_LABEL = "cls"
_MOST_LABEL = 1000
"""Bytes of a label."""
_MOST_CLASSES = 10**6
_NAMES = sorted((*PARTS, *UNCLEAR), key=len, reverse=True)
_BEGINS = re.compile(rf"({'|'.join(_NAMES)})(?![a-z])", re.IGNORECASE)


class Members(Sources):
    """Images within shards: ``shard`` (N,) is the number of each one's file."""

    def __init__(
        self,
        files: Sequence[Path],
        names: Names,
        shard: NDArray[np.int64],
        start: NDArray[np.int64],
        size: NDArray[np.int64],
    ) -> None:
        self.files = files
        self.names = names
        self.shard = shard
        self.start = start
        self.size = size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Member:
        """Return an image."""
        file = self.files[self.shard[index]]
        name = self.names[index].decode("utf-8", "surrogateescape")
        return Member(file, name, int(self.start[index]), int(self.size[index]))

    def kept(self, index: Sequence[int]) -> Members:
        """Return the images of an index."""
        names, rows = Names(self.names[k] for k in index), np.array(index, np.int64)
        return Members(self.files, names, self.shard[rows], self.start[rows], self.size[rows])

    def known_as(self, index: int) -> bytes:
        """Return the name of an image, and its shard."""
        shard = self.files[self.shard[index]].name.encode("utf-8", "surrogateescape")
        return b"%s\0%s" % (shard, self.names[index])

    def length(self, index: int) -> int:
        """Return the size of an image in bytes."""
        return int(self.size[index])


def shards_of(name: str) -> list[Path]:
    """Return the shards that a name means: a folder's, or those of a name with or without braces.

    Raises:
        UserError: the library ``webdataset`` is missing, or the name cannot be understood.
    """
    if Path(name).is_dir():
        return sorted(Path(name).glob(f"*{SUFFIX}"))
    if name.startswith("pipe:") or "://" in name:
        raise UserError(f"data {name!r} is not on this computer; give the path of local shards")
    if Path(name).exists():
        return [Path(name)]
    from webdataset.shardlists import expand_urls

    try:
        paths = [Path(path) for path in expand_urls(name)]
    except ValueError:
        paths = []
    if not paths or name.count("{") != name.count("}"):
        why = "has a brace without its pair; write {000..009}"
        raise UserError(f"data {name!r} {why}")
    return paths


def list_shards(name: str) -> Listed:
    """Return the samples of shards by parts: ``train``, ``val`` and ``test`` begin their names.

    Shards of which none begins so are all for training. Each sample has an image, and its class
    as ``.cls``: a number from 0, or a name.

    Raises:
        UserError: naming the first shard or sample that is wrong.
    """
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise missing_package(f"data {name}", "webdataset", error, extra="webdataset") from None
    files: dict[str, list[Path]] = {}
    shards = shards_of(name)
    known = any(_BEGINS.match(path.name) for path in shards)
    for path in shards:
        check_file(path, "tar shard")
        begins = _BEGINS.match(path.name)
        if known and begins is None:
            raise UserError(f"{path} is of no part: its name must begin with train, val or test")
        files.setdefault(part_of(begins[1], path) if begins else "train", []).append(path)
    if "train" not in files:
        raise UserError(f"data {name} has no shard to train on, whose name begins with train")
    listed = {part: _listed(paths) for part, paths in files.items()}
    classes = _classes(label for _, labels in listed.values() for label in labels)
    number = {label: k for k, label in enumerate(classes)}
    parts = {
        part: (
            members,
            np.array([number[label] for label in labels], np.int64),
            f"from the {part} shards",
        )
        for part, (members, labels) in listed.items()
    }
    return Listed(classes, dict(parts))


def _classes(labels: Iterator[str]) -> tuple[str, ...]:
    found = set(labels)
    if all(label.isascii() and label.isdigit() for label in found):
        least, most = min(map(int, found)), max(map(int, found))
        if most > _MOST_CLASSES:
            raise UserError(f"a class is the number {most}; number the classes from 0")
        if least > 0:
            raise UserError(f"classes go from {least} to {most}; number the classes from 0")
        return tuple(map(str, range(most + 1)))
    return tuple(sorted(found))


def _listed(files: Sequence[Path]) -> tuple[Members, list[str]]:
    names, rows, labels = [], [], []
    for position, file in enumerate(files):
        for name, start, size, label in _samples(file):
            names.append(name.encode("utf-8", "surrogateescape"))
            rows.append((position, start, size))
            labels.append(label)
    if not rows:
        raise UserError(f"{files[0]} holds no samples; write them with webdataset.ShardWriter")
    table = np.array(rows, np.int64)
    return Members(files, Names(names), table[:, 0], table[:, 1], table[:, 2]), labels


def _samples(file: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield the image of each sample of a shard, its begin and size, and the label."""
    from webdataset.tariterators import group_by_keys

    length = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar, file.open("rb") as content:
            for sample in group_by_keys(_files(tar, str(file))):
                key = f"{file}: {printable(sample['__key__'])}"
                images = [s for s in sample if f".{s.rpartition('.')[2]}" in SUFFIXES]
                if len(images) != 1 or _LABEL not in sample:
                    has = ", ".join(s for s in sample if not s.startswith("__"))
                    raise UserError(
                        f"{key} must be one image and its class (.{_LABEL}), but it has {has}"
                    )
                info = sample[images[0]]
                if info.offset_data + info.size > length:
                    raise UserError(f"{file} is cut off within {info.name}; restore it from a copy")
                content.seek(sample[_LABEL].offset_data)
                label = content.read(min(sample[_LABEL].size, _MOST_LABEL)).decode().strip()
                if not label:
                    raise UserError(f"{key} has an empty class (.{_LABEL}); write one into it")
                yield info.name, info.offset_data, info.size, label
    except UserError:
        raise
    except (tarfile.TarError, ValueError) as error:
        reason = one_line(str(error.args[0] if error.args else error))
        raise UserError(
            f"{file} cannot be read as a tar file that is not compressed: {reason}"
        ) from None


def _files(tar: tarfile.TarFile, url: str) -> Iterator[dict[str, Any]]:
    for info in tar:
        if info.isfile():
            yield {"fname": info.name, "data": info, "__url__": url}
        tar.members = []  # type: ignore[attr-defined]  # else it keeps all that it has met
