"""Folders of images: ``train/CLASS/``, ``CLASS/`` alone, or any with a table of labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fge.data.images import (
    HIDDEN,
    LEAVE_OUT,
    Skipped,
    channels_of,
    find_images,
    is_hidden,
    read_image,
)
from fge.data.parts import is_part, part_of
from fge.data.pictures import FilePaths, FilePictures, Sources
from fge.data.raw import VAL_NAMES, Part, RawData, only
from fge.data.table import TABLE, Listed, from_table
from fge.data.workers import loaded
from fge.errors import UserError
from fge.files import printable
from fge.observer import listed

_OUTSIDE = "outside the class folders"
_BESIDE = "beside the parts"
_PLAIN = ("train", *VAL_NAMES, "test")
"""Names of parts as they are documented."""
_AT_ONCE = 64
"""Files that a worker process checks in one piece."""


def from_folder(
    folder: Path,
    *,
    labels: Path | None = None,
    skip_unreadable: bool = False,
    workers: int = 0,
) -> RawData:
    """Return the images of a folder.

    They are those of ``train/CLASS/``, and of ``test/CLASS/`` and ``val/CLASS/`` if any; without
    ``train/`` those of a table of labels, or of ``CLASS/``. Classes are in sorted order.

    Args:
        folder: is searched.
        labels: the table; by default ``labels.csv`` in the folder if it has no ``train/``.
        skip_unreadable: read all files first, and leave out those that cannot be read.
        workers: processes for that.

    Raises:
        UserError: there are no such images, or the first cannot be read.
    """
    skipped, missing = Skipped(), dict[str, str]()
    listed = _listed(folder, labels, skipped, missing if skip_unreadable else None)
    raw = raw_of(os.path.abspath(folder), listed, skip_unreadable=skip_unreadable, workers=workers)
    unreadable = {printable(file): reason for file, reason in missing.items()}
    return replace(raw, skipped=skipped.note(folder), unreadable={**unreadable, **raw.unreadable})


def raw_of(path: str, listed: Listed, *, skip_unreadable: bool, workers: int) -> RawData:
    """Return the data set of files that are listed, named after the end of a path."""
    bad: dict[str, str] = {}
    if skip_unreadable:
        for files, *_ in listed.parts.values():
            bad |= find_unreadable(files, workers)
        listed = _without(listed, bad)
    channels = channels_of(file for files, *_ in listed.parts.values() for file in files)
    parts = {name: _part(*found, channels) for name, found in listed.parts.items()}
    return RawData(
        printable(Path(path).name),
        tuple(printable(name) for name in listed.classes),
        parts["train"],
        parts.get("test"),
        parts.get("val"),
        unreadable={printable(file): reason for file, reason in bad.items()},
    )


def _listed(
    folder: Path, labels: Path | None, skipped: Skipped, missing: dict[str, str] | None
) -> Listed:
    """Return the files of a folder by the first layout that it has."""
    nested = _is_folder(folder / "train")
    if labels is None and not nested and (folder / TABLE).exists():
        labels = folder / TABLE
    if labels is not None:
        return from_table(folder, labels, skipped, missing)
    parts = parts_in(folder, skipped)
    return _of_parts(folder, parts, skipped) if parts else _of_classes(folder, skipped)


def parts_in(folder: Path, skipped: Skipped | None = None) -> dict[str, str]:
    """Return the folders of the parts, by part; none if a folder has class folders or files alone.

    Parts may be spelt in several ways: if none is spelt as documented, all folders must be parts.

    Raises:
        UserError: a part is there twice, or it is unclear which one a folder is.
    """
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:  # asks nothing of the files, of which there may be many
        names = sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    others = [name for name in names if not is_part(name)]
    if not set(names) & set(_PLAIN) and (others or not names):
        return {}
    found: dict[str, list[str]] = {}
    for name in names:
        if name in others:
            if skipped:
                skipped.add(_BESIDE, name)
        else:
            found.setdefault(part_of(name, folder / name), []).append(name)
    twice = f"{folder} has {{}}; keep one of them"
    return {part: only(given, twice) or "" for part, given in found.items()}


def _of_classes(folder: Path, skipped: Skipped) -> Listed:
    """Return the files of a folder of class folders, all of which train."""
    classes = _class_names(folder, skipped)
    if len(classes) == 1 and parts_in(folder / classes[0]):
        inner = folder / classes[0]
        raise UserError(
            f"{folder} has no class folders, but one folder, whose parts are "
            f"{listed(parts_in(inner).values())}; give {inner}"
        )
    files, numbers = _labelled_files(folder, classes, skipped, folder)
    part = (FilePaths(folder, files), np.array(numbers, np.int64), "from the class folders")
    return Listed(classes, {"train": part})


def _of_parts(folder: Path, names: Mapping[str, str], skipped: Skipped) -> Listed:
    for name in _PLAIN:
        _is_folder(folder / name)
    train = folder / names.get("train", "train")
    classes = _class_names(train, skipped)
    parts: dict[str, tuple[Sources, NDArray[np.int64], str]] = {}
    for part in ("train", "val", "test"):
        if part in names:
            place = folder / names[part]
            files, numbers = _labelled_files(place, classes, skipped, train)
            labels = np.array(numbers, np.int64)
            parts[part] = (FilePaths(folder, files), labels, f"from {place.name}/")
    return Listed(classes, parts)


def _part(files: Sources, labels: NDArray[np.int64], origin: str, channels: int) -> Part:
    shape = (len(files), *read_image(files[0], channels).shape)
    return Part(labels, shape, FilePictures(files, channels), origin)


def find_unreadable(files: Sources, workers: int) -> dict[str, str]:
    """Return the files that cannot be read, and why, after reading all of them."""
    bad: dict[str, str] = {}
    pieces = np.array_split(np.arange(len(files)), max(1, -(-len(files) // _AT_ONCE)))
    for found in loaded(pieces, partial(_reasons, files), workers):
        bad |= {str(files[k]): reason for k, reason in found.items()}
    return bad


def _reasons(files: Sources, index: NDArray[np.int64]) -> dict[int, str]:
    """Return those of an index of files that cannot be read, and why."""
    bad = {}
    for k in index.tolist():
        try:
            read_image(files[k])
        except UserError as error:
            bad[k] = str(error).removesuffix(LEAVE_OUT)
    return bad


def _without(listed: Listed, bad: dict[str, str]) -> Listed:
    """Return what is listed without some files."""
    parts = {}
    for name, (files, labels, origin) in listed.parts.items():
        kept = [k for k, file in enumerate(files) if str(file) not in bad]
        if not kept:
            raise UserError(f"no image {origin} can be read; {next(iter(bad.values()))}")
        parts[name] = (files.kept(kept), labels[kept], origin)
    return Listed(listed.classes, parts)


def _is_folder(path: Path) -> bool:
    """Return whether there is such a folder; something else of that name is a UserError."""
    if path.is_dir():
        return True
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is not a folder; a data folder has {path.name}/CLASS/")
    return False


def _class_names(folder: Path, skipped: Skipped) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; a data folder needs train/CLASS/, and may have val/CLASS/ and "
            "test/CLASS/"
        )
    names = []
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name):
            skipped.add(HIDDEN, entry.name)
        elif entry.is_dir():
            names.append(entry.name)
        else:
            skipped.add(_OUTSIDE, entry.name)
    if not names:
        raise UserError(
            f"{folder} holds no class folders; put images into {folder}/CLASS/, or give a table of "
            "their classes, --labels FILE"
        )
    return tuple(names)


def _labelled_files(
    folder: Path, classes: tuple[str, ...], skipped: Skipped, train: Path
) -> tuple[list[str], list[int]]:
    """Return the images of the class folders, none of which is empty in ``train``, and labels."""
    complete = folder == train
    if not complete:
        extra = sorted(set(_class_names(folder, skipped)) - set(classes))
        if extra:
            raise UserError(
                f"{folder} has a class {extra[0]!r}, but {train} does not; add "
                "training images or remove the class"
            )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = find_images(folder / name, skipped) if (folder / name).is_dir() else []
        if not images and complete:
            raise UserError(f"class folder {folder / name} holds no images; add some or remove it")
        files += images
        labels += [label] * len(images)
    if not files:
        raise UserError(f"{folder} holds no images; put some into {folder}/CLASS/")
    return files, labels
