"""Arrays from ``.npz`` files, and every way in which a file is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fge.errors import UserError
from fge.files import read_npz

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
    assert refusal(tmp_path / "none.npz") == f"no data file {tmp_path / 'none.npz'}"
    assert refusal(tmp_path) == f"no data file {tmp_path}"


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
