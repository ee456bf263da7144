"""Arrays from ``.npz`` files, and every way in which a file is none."""

from __future__ import annotations

import io
import os
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fge import memory
from fge.arrays import Archive, npz_bytes, read_npz
from fge.errors import UserError

VALUES = np.arange(6).reshape(2, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, values=VALUES, names=np.array(["a", "b"]), more=np.zeros(2))
    return path


def refusal(path: Path, *names: str) -> str:
    """Return what the user is told, which is one line."""
    with pytest.raises(UserError) as raised:
        read_npz(path, names or ("values",))
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_arrays_asked_for_are_returned_and_no_others(file: Path) -> None:
    found = read_npz(file, ("names", "values"))
    assert list(found) == ["names", "values"]
    np.testing.assert_array_equal(found["values"], VALUES)
    assert found["values"].dtype == VALUES.dtype
    assert found["names"].tolist() == ["a", "b"]


def test_compressed_files_are_read_as_well(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", values=VALUES)
    np.testing.assert_array_equal(read_npz(tmp_path / "data.npz", ("values",))["values"], VALUES)


def test_a_missing_file_and_a_folder_are_no_data_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.npz") == f"no data file {tmp_path / 'none.npz'}; check the path"
    assert refusal(tmp_path) == f"{tmp_path} is a folder and no data file"


def test_a_missing_array_is_named_with_those_needed(file: Path) -> None:
    assert refusal(file, "values", "labels", "images") == (
        f"{file} has no array 'labels'; it needs values, labels, images"
    )


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", VALUES)
    assert "holds a single array, not the arrays of an .npz" in refusal(tmp_path / "data.npy")


@pytest.mark.parametrize("content", [b"", b"values", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_other_files_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} cannot be read; it may be truncated or damaged: ")


def test_pickled_objects_are_refused_and_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, values=np.array([{}, []], dtype=object))
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("cut", [lambda n: n - 1, lambda n: n // 2, lambda _: 60])
def test_a_file_cut_off_cannot_be_read(file: Path, cut: Callable[[int], int]) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: cut(len(data))])
    assert "cannot be read" in refusal(file)


def test_a_damaged_array_does_not_pass_for_whole(file: Path) -> None:
    data = bytearray(file.read_bytes())
    position = data.index(VALUES.tobytes())
    data[position] ^= 1
    file.write_bytes(data)
    assert "cannot be read" in refusal(file)


def test_a_damaged_compressed_array_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, values=VALUES)
    data = bytearray(path.read_bytes())
    name, extra = (int.from_bytes(data[start : start + 2], "little") for start in (26, 28))
    data[30 + name + extra] = 0x07  # a block type that deflate does not have
    path.write_bytes(data)
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize(
    ("place", "bit"), [(8, 0x01), (6, 0x40), (10, 0x04)], ids=["encrypted", "version", "method"]
)
def test_a_damaged_directory_is_the_users_to_hear_of(file: Path, place: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02") + place] ^= bit  # of the zip's central directory
    file.write_bytes(data)
    assert "cannot be read" in refusal(file)


# ------------------------------------------------------------------------------------- rows


PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def member(array: np.ndarray) -> bytes:
    """Return the bytes of an array in an ``.npz``."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def pack(path: Path, packing: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1100, 21, 17, 3), "u1"),
        ((40, 5), ">i4"),
        ((7,), "<U3"),
        ((5, 0, 2), "f8"),
        ((3, 2), "M8[s]"),
    ],
)
def test_rows_are_those_of_an_index(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, order: str, packing: int
) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.integers(0, 250, shape).astype(dtype), order=order)  # type: ignore[call-overload]
    path = pack(tmp_path / "data.npz", packing, values=member(array))
    for index in (rng.integers(0, shape[0], 11), np.arange(shape[0])[::-1], np.arange(0)):
        with Archive(path) as archive:
            found = archive.rows("values", index)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[index])
    whole = read_npz(path, ["values"])["values"]
    np.testing.assert_array_equal(whole, array)
    assert whole.flags.f_contiguous >= (order == "F")


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_few_rows_of_a_large_array_take_little_memory(
    tmp_path: Path, packing: int, order: str
) -> None:
    array = np.zeros((50_000, 30, 20), "u1", order=order)  # type: ignore[call-overload]
    array[49_999, 29, 19] = 7
    path = pack(tmp_path / "data.npz", packing, values=member(array))
    del array
    tracemalloc.start()
    with Archive(path) as archive:
        found = archive.rows("values", np.array([49_999, 3]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.sum(axis=(1, 2)).tolist() == [7, 0]
    assert peak < 6e6  # of 30e6


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_damaged_row_that_is_not_asked_for_is_found(
    tmp_path: Path, order: str, packing: int
) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.integers(0, 256, (100, 30), dtype=np.uint8), order=order)  # type: ignore[call-overload]
    path = pack(tmp_path / "data.npz", packing, values=member(array))
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0xFF
    path.write_bytes(data)
    with (
        pytest.raises(UserError, match=r"data\.npz cannot be read; it may be truncated or damaged"),
        Archive(path) as archive,
    ):
        archive.rows("values", np.array([0]))


# ----------------------------------------------------------------------------------- headers


def header(descr: str, shape: str, order: str = "False", *, version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


BYTES = "'|u1'"
LARGE = "which is larger than any memory"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(BYTES, "(1000000000, 28, 28)") + b"x" * 99, "has 784 GB, and the file 99 bytes"),
        (header(BYTES, f"({2**64},)"), f"has the shape ({2**64},), {LARGE}"),
        (header(BYTES, f"(0, {2**63})"), f"has the shape (0, {2**63}), {LARGE}"),
        (header("'<f8'", f"({2**60},)"), f"has the shape ({2**60},), {LARGE}"),
        (header("'|S0'", f"({2**63},)"), f"has the shape ({2**63},), {LARGE}"),
        (header(BYTES, "(True,)") + b"x", "has the shape (True,), which makes no sense"),
        (header(BYTES, "(-2, -3)") + b"123456", "has the shape (-2, -3), which makes no sense"),
        (header(BYTES, f"({'1, ' * 70})") + b"x", "which makes no sense"),
        (header(BYTES, "(2.0,)") + b"xx", "shape is not valid"),
        (header("'|O'", "(2,)") + b"x" * 16, "holds pickled Python objects, which are not loaded"),
        (header("[('a', '|O')]", "(2,)") + b"x" * 16, "holds pickled Python objects"),
        (header("[('a', '<i4')]", "(2,)") + b"x" * 8, "save single numbers"),
        (header("('|u1', (3,))", "(2,)") + b"x" * 6, "save single numbers"),
        (header("('|u1', (10**12,))", "(2,)"), "cannot be read"),
        (header(BYTES, "(3,)") + b"xx", "has 3 bytes, and the file 2 bytes"),
        (header(BYTES, "(3,)") + b"xxxx", "has 3 bytes, and the file 4 bytes"),
        (header(BYTES, "(" * 3000 + ")" * 3000), "cannot be read"),
        (header(BYTES, "(" + "-" * 9000 + "1,)"), "cannot be read"),
        (header(BYTES, "(3,)", version=9) + b"xxx", "it has no header"),
        (header("'what'", "(3,)") + b"xxx", "cannot be read"),
        (header("__import__('os')", "(3,)") + b"xxx", "cannot be read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "its header has 4294967295 bytes"),
        (b"\x93NUMPY\x01", "it has no header"),
        (b"", "it has no header"),
    ],
)
@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_a_header_promises_is_checked_before_memory_is_taken(
    tmp_path: Path, content: bytes, message: str, packing: int
) -> None:
    path = pack(tmp_path / "data.npz", packing, values=content)
    tracemalloc.start()
    told = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told.startswith(f"{path} cannot be read")
    assert message in told
    assert len(told) < 500
    assert peak < 20e6


def test_arrays_of_python_2_are_read_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = pack(tmp_path / "data.npz", values=header(BYTES, "(2L, 3L)") + bytes(range(6)))
    assert read_npz(path, ["values"])["values"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not recwarn.list


def test_an_array_larger_than_the_memory_is_refused_with_the_remedy(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_host_memory", lambda: 47)
    with pytest.raises(
        UserError,
        match=rf"^{file}: the array 'values' needs 48 bytes of memory, but 47 bytes are free; "
        "give fewer$",
    ):
        read_npz(file, ["values"], "give fewer")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "data.npz")
    assert re.search("is a (named pipe|device) and no data file$", refusal(tmp_path / "data.npz"))


def test_an_interruption_within_an_array_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file cannot be closed while an array is open in it, and that error is not shown."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    for compressed in (False, True):
        with pytest.raises(KeyboardInterrupt):
            npz_bytes({"a": np.arange(9)}, compressed=compressed)
