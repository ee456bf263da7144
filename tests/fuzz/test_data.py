"""Random data files: they are read as what they hold, or refused in one line."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fge.data import Dataset, load_dataset
from fge.errors import UserError

pytestmark = pytest.mark.slow

DTYPES = (
    *(np.uint8, np.int64, np.int8, np.uint16, np.float32, np.float64, np.bool_),
    *(np.complex64, np.str_, np.object_, "M8[D]", "m8[s]", "V3", [("a", "i4")]),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)
COUNTS = {"train": 12, "val": 4, "test": 6}
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def read(path: Path, **options: Any) -> tuple[Dataset | None, str]:
    """Return the data set without a message, or what is said of its file."""
    try:
        return load_dataset(str(path), **{"val_fraction": 0.0, **options}), ""
    except UserError as error:
        return None, str(error)


def pairs(images: Any, labels: Any) -> Counter[tuple[tuple[int, ...], int]]:
    """Return the pixels and the label of each image, which are read in another order."""
    images = np.asarray(images)
    rows = map(tuple, images.reshape(len(images), math.prod(images.shape[1:])).tolist())
    return Counter(zip(rows, np.asarray(labels).reshape(-1).tolist(), strict=True))


def pairs_of(dataset: Dataset, *parts: str) -> Counter[tuple[tuple[int, ...], int]]:
    splits = [getattr(dataset, part) for part in parts]
    return sum((pairs(s.images.permute(0, 2, 3, 1), s.labels) for s in splits), Counter())


def sound(seed: int, *parts: str) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    content: dict[str, np.ndarray[Any, Any]] = {}
    for part in parts:
        content[f"{part}_images"] = rng.integers(0, 256, (COUNTS[part], 4, 4, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.arange(COUNTS[part]) % 3
    return content


def check_content(dataset: Dataset, content: dict[str, np.ndarray[Any, Any]]) -> None:
    """Check that every image is in the split of its part, with its label."""
    given_parts = [part for part in COUNTS if f"{part}_images" in content]
    for part in COUNTS:
        if part in given_parts and part != "train":
            expected = pairs(content[f"{part}_images"], content[f"{part}_labels"])
            assert pairs_of(dataset, part) == expected
    rest = ["train", *(part for part in ("val", "test") if part not in given_parts)]
    expected = pairs(content["train_images"], content["train_labels"])
    assert pairs_of(dataset, *rest) == expected
    assert dataset.train.images.dtype == torch.uint8


@st.composite
def arrays(draw: st.DrawFn, count: int) -> np.ndarray[Any, Any]:
    """Draw an array that is now and then what is wanted."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.one_of(SHAPES, st.just((count, 4, 4)), st.just((count, 4, 4, 3))))
    if dtype in (np.str_, np.object_):
        return np.full(shape, "x", dtype=dtype)
    values = draw(st.integers(-3, 300))
    with np.errstate(all="ignore"):
        if isinstance(dtype, type):
            return np.full(shape, values).astype(dtype)
        return np.zeros(shape, dtype=dtype)


@st.composite
def files(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    """Draw the arrays of a file: sound ones, of which some are replaced or missing."""
    parts = draw(st.sampled_from([("train", "test"), ("train", "val", "test"), ("train", "val")]))
    content = sound(draw(st.integers(0, 3)), *parts)
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=2, unique=True)):
        if draw(st.booleans()):
            content[name] = draw(arrays(len(content[name])))
        else:
            del content[name]
    if draw(st.booleans()):
        content = {name: np.asfortranarray(array) for name, array in content.items()}
    return content


@settings(max_examples=200)
@given(content=files())
def test_arrays_are_read_as_they_are_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, np.ndarray[Any, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    np.savez(path, allow_pickle=True, **content)  # type: ignore[arg-type]
    dataset, message = read(path, val_fraction=0.1)
    if dataset is None:
        assert "\n" not in message
        return
    check_content(dataset, content)


def packed(content: dict[str, np.ndarray[Any, Any]], packing: int, **raw: bytes) -> bytes:
    """Return a file of arrays, some of them replaced by raw bytes."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", packing) as archive:
        for name, array in content.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            archive.writestr(f"{name}.npy", raw.get(name, member.getvalue()))
    return whole.getvalue()


SIDES = st.one_of(
    st.integers(-3, 13),
    st.booleans(),
    st.sampled_from([2**31, 2**32, 10**9, 2**62, 2**63, 2**64, 10**30, 1.0, None, "x"]),
)
TYPES = st.sampled_from(
    [
        *("|u1", "<u1", ">u1", "|b1", "<i8", ">i8", "<f2", "<c8", "<M8[s]", "|O", "|S0", "|V0"),
        *("<U9", "u9", "", "list", 5, None, [("a", "<i4")], ("|u1", (4,)), ("|u1", (2**40,))),
    ]
)


@settings(max_examples=150)
@given(
    name=st.sampled_from([f"{p}_{k}" for p in COUNTS for k in ("images", "labels")]),
    sides=st.lists(SIDES, max_size=5),
    kind=TYPES,
    order=st.sampled_from([False, True, 1, None]),
    packing=st.sampled_from(PACKINGS),
    payload=st.integers(0, 600),
    version=st.sampled_from([1, 1, 1, 2, 3, 0, 9]),
)
def test_headers_are_believed_only_if_the_file_agrees(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    sides: list[Any],
    kind: Any,
    order: Any,
    packing: int,
    payload: int,
    version: int,
) -> None:
    header = {"descr": kind, "fortran_order": order, "shape": tuple(sides)}
    text = f"{header!r}\n".encode()
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    raw = b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(payload)
    content = sound(0, *COUNTS)
    path = tmp_path_factory.getbasetemp() / "headers.npz"
    path.write_bytes(packed(content, packing, **{name: raw}))
    dataset, message = read(path, val_fraction=0.1)
    assert (dataset is None) == bool(message)
    assert "\n" not in message
    if dataset is not None:  # then NumPy reads it as well
        with np.load(path) as stored:
            check_content(dataset, dict(stored))


@settings(max_examples=120)
@given(
    place=st.floats(0, 1),
    value=st.binary(min_size=1, max_size=8),
    cut=st.booleans(),
    packing=st.sampled_from(PACKINGS),
)
def test_a_damaged_file_is_refused_or_read_whole(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: bytes, cut: bool, packing: int
) -> None:
    """A byte that is not part of an array (a time stamp in the archive) may differ."""
    content = sound(0, "train", "test")
    whole = packed(content, packing)
    start = int(place * (len(whole) - 1))
    damaged = whole[:start] if cut else whole[:start] + value + whole[start + len(value) :]
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(damaged)
    dataset, message = read(path)
    if dataset is None:
        assert "\n" not in message
        return
    assert zipfile.is_zipfile(path)
    with zipfile.ZipFile(path) as archive:  # the test arrays may have lost their names
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    check_content(dataset, {name: array for name, array in content.items() if name in names})


def png(colour: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def saved_as(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if kind == "AVIF" else "RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


CONTENTS = {
    "png": png(),
    "empty": b"",
    "text": b"hello",
    "cut": png()[: len(png()) // 2],
    "EPS": saved_as("EPS"),
    "DDS": saved_as("DDS"),
    "TGA": saved_as("TGA"),
    "pipe": b"",
    "link": b"",
}


@settings(max_examples=100)
@given(
    names=st.lists(
        st.sampled_from(
            [
                *("train/a", "train/b", "test/a", "test/b", "test/c", "val/a", "val/b", "valid/a"),
                *("validation/b", "train/.x", "test/.x", "other", os.fsdecode(b"train/caf\xe9")),
            ]
        ),
        max_size=6,
        unique=True,
    ),
    content=st.sampled_from(sorted(CONTENTS)),
)
def test_folders_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], content: str
) -> None:
    root = tmp_path_factory.mktemp("folder")
    for name in names:
        folder = Path(root, name)
        folder.mkdir(parents=True)
        odd = folder / os.fsdecode(b"\xe9.png")
        if content == "pipe":
            os.mkfifo(odd)
        elif content == "link":
            odd.symlink_to("nowhere.png")
        else:
            odd.write_bytes(CONTENTS[content])
        for number in range(4):
            folder.joinpath(f"{number}.png").write_bytes(png())
    dataset, message = read(root, val_fraction=0.1)
    if dataset is None:
        assert "\n" not in message
        return
    assert content == "png"
    classes = {"train/a": "a", "train/b": "b", os.fsdecode(b"train/caf\xe9"): "caf\\xe9"}
    assert dataset.classes == tuple(text for name, text in classes.items() if name in names)
    total = sum(5 for name in names if not name.startswith("other") and "/.x" not in name)
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == total
    assert int(dataset.train.images.sum()) == 7 * dataset.train.images.numel()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "TIFF lzw", "WEBP", "PPM"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.floats(0.2, 1.5),
)
def test_damaged_images_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    changes: list[tuple[float, int]],
    cut: float,
) -> None:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    name, _, packing = kind.partition(" ")
    image.save(buffer, name, **({"compression": f"tiff_{packing}"} if packing else {}))
    data = bytearray(buffer.getvalue())
    for place, value in changes:
        data[int(place**2 * (len(data) - 1))] = value  # rather at the begin
    root = tmp_path_factory.mktemp("images")
    for part in ("train", "test"):
        folder = Path(root, part, "a")
        folder.mkdir(parents=True)
        folder.joinpath("1.png").write_bytes(data[: int(cut * len(data))])
    dataset, message = read(root)
    assert (dataset is None) == bool(message)
    assert "\n" not in message
    assert capfd.readouterr().err == ""
