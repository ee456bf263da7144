"""Random data files: they are read as what they hold, or refused in one line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fge.data import Dataset, load_dataset
from fge.errors import UserError

DTYPES = (
    *(np.uint8, np.int64, np.int8, np.uint16, np.float32, np.float64, np.bool_),
    *(np.complex64, np.str_, np.object_),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)


def read(path: Path) -> tuple[Dataset | None, str]:
    """Return the data set without a message, or what is said of its file."""
    try:
        return load_dataset(str(path), val_fraction=0.0), ""
    except UserError as error:
        return None, str(error)


def pairs(images: Any, labels: Any) -> list[tuple[list[int], int]]:
    """Return the pixels and the label of each image, sorted: they are read in another order."""
    rows = np.asarray(images).reshape(len(images), -1).tolist()
    return sorted(zip(rows, np.asarray(labels).reshape(-1).tolist(), strict=True))


def pairs_of(dataset: Dataset) -> list[tuple[list[int], int]]:
    return pairs(dataset.test.images.permute(0, 2, 3, 1), dataset.test.labels)


@st.composite
def arrays(draw: st.DrawFn, count: int) -> np.ndarray[Any, Any]:
    """Draw an array that is now and then what is wanted."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.one_of(SHAPES, st.just((count, 4, 4)), st.just((count, 4, 4, 3))))
    if dtype in (np.str_, np.object_):
        return np.full(shape, "x", dtype=dtype)
    values = draw(st.integers(-3, 300))
    with np.errstate(all="ignore"):
        return np.full(shape, values).astype(dtype)


@st.composite
def files(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    """Draw the arrays of a file: sound ones, of which some are replaced or missing."""
    rng = np.random.default_rng(draw(st.integers(0, 3)))
    content: dict[str, np.ndarray[Any, Any]] = {}
    for part, count in (("train", 12), ("test", 6)):
        content[f"{part}_images"] = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.arange(count) % 3
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=2, unique=True)):
        if draw(st.booleans()):
            content[name] = draw(arrays(len(content[name])))
        else:
            del content[name]
    return content


@settings(max_examples=300)
@given(content=files())
def test_arrays_are_read_as_they_are_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, np.ndarray[Any, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    np.savez(path, allow_pickle=True, **content)  # type: ignore[arg-type]
    dataset, message = read(path)
    if dataset is None:
        assert "\n" not in message
        return
    assert pairs_of(dataset) == pairs(content["test_images"], content["test_labels"])
    assert dataset.train.images.dtype == torch.uint8


@settings(max_examples=200)
@given(place=st.floats(0, 1), value=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_a_damaged_file_is_refused_or_read_whole(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: bytes, cut: bool
) -> None:
    """A byte that is not part of an array (a time stamp in the archive) may differ."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for part, count in (("train", 12), ("test", 6)):
        content[f"{part}_images"] = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.arange(count) % 3
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    whole = buffer.getvalue()
    start = int(place * (len(whole) - 1))
    damaged = whole[:start] if cut else whole[:start] + value + whole[start + len(value) :]
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(damaged)
    dataset, message = read(path)
    if dataset is None:
        assert "\n" not in message
        return
    assert pairs_of(dataset) == pairs(content["test_images"], content["test_labels"])
    assert zipfile.is_zipfile(path)


@settings(max_examples=100)
@given(
    names=st.lists(
        st.sampled_from(["train/a", "train/b", "test/a", "test/b", "test/c", "train/.x", "other"]),
        max_size=6,
        unique=True,
    ),
    content=st.sampled_from(["png", "empty", "text", "cut"]),
)
def test_folders_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], content: str
) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (4, 4), 7).save(buffer, "PNG")
    png = buffer.getvalue()
    written = {"png": png, "empty": b"", "text": b"hello", "cut": png[: len(png) // 2]}[content]
    root = tmp_path_factory.mktemp("folder")
    for name in names:
        folder = Path(root, name)
        folder.mkdir(parents=True)
        folder.joinpath("1.png").write_bytes(written)
        folder.joinpath("2.png").write_bytes(png)
    dataset, message = read(root)
    if dataset is None:
        assert "\n" not in message
        return
    assert content == "png"
    assert dataset.classes == ("a", "b")
    assert int(dataset.train.images.sum()) == 7 * dataset.train.images.numel()
