"""Grids in files: what is written comes back, and what is damaged or foreign is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fge.errors import UserError
from fge.landscape import PlaneGrid
from fge.landscape.grid import GridStore


def grid_of(**changes: Any) -> PlaneGrid:
    rng = np.random.default_rng(0)
    values = {key: rng.normal(size=(3, 4)) for key in ("train_loss", "test_error")}
    values["train_loss"][1, 2] = math.inf
    fields = {
        "xs": np.linspace(-1, 2, 4),
        "ys": np.linspace(0, 0.3, 3),
        "values": values,
        "anchors": rng.normal(size=(3, 2)),
        "gram": np.eye(2),
    }
    return PlaneGrid(**{**fields, **changes})


def test_a_grid_comes_back_bitwise(tmp_path: Path) -> None:
    grid = grid_of()
    grid.save(tmp_path / "new" / "plane.npz")
    loaded = PlaneGrid.load(str(tmp_path / "new" / "plane.npz"))
    assert list(loaded.values) == ["train_loss", "test_error"]
    for key, value in grid.values.items():
        assert np.array_equal(loaded.values[key], value)
    for name in ("xs", "ys", "anchors", "gram"):
        assert np.array_equal(getattr(loaded, name), getattr(grid, name))
    with np.load(tmp_path / "new" / "plane.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["test_error"], grid.values["test_error"])


def test_a_grid_of_one_key_comes_back(tmp_path: Path) -> None:
    grid = grid_of(values={"loss": np.ones((3, 4))})
    grid.save(tmp_path / "plane.npz")
    assert list(PlaneGrid.load(tmp_path / "plane.npz").values) == ["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"loss": np.ones((4, 3))}}, r"'loss' of a plane .* \(3, 4\), got \(4, 3\)"),
        ({"anchors": np.ones((2, 3))}, r"'anchors' of a plane .* \(2, 2\), got \(2, 3\)"),
        ({"gram": np.ones(2)}, r"'gram' of a plane must have shape \(2, 2\), got \(2,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        grid_of(**changes)


def test_files_that_hold_no_grid_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plane.npz"
    with pytest.raises(UserError, match=r"^no data file .*plane.npz; check the path$"):
        PlaneGrid.load(path)
    np.savez(path, xs=np.ones(3))
    with pytest.raises(UserError, match=r"plane.npz has no array 'keys'"):
        PlaneGrid.load(path)
    grid_of().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"plane.npz cannot be read; it may be truncated"):
        PlaneGrid.load(path)


HEADER = {"xs": [0.0, 1.0, 1e3], "splits": ["train", ""], "num_images": 5, "weight_decay": 0.0}


def test_records_come_back_bitwise_infinity_included(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plane.jsonl"
    store = GridStore(path, HEADER)
    records = {(0, 0): {"loss": 1 / 3, "error": 5.0}, (2, 1): {"loss": math.inf, "error": -0.0}}
    for place, record in records.items():
        store.add(place, record)
    assert GridStore(path, HEADER).records == store.records == records
    store.add((1, 1), {"loss": math.nan, "error": 0.0})
    assert math.isnan(GridStore(path, HEADER).records[1, 1]["loss"])


def test_records_of_all_points_make_arrays_in_any_order() -> None:
    store = GridStore(None, HEADER)
    for place in ((1, 2), (0, 1), (1, 0), (0, 0), (0, 2), (1, 1)):
        store.add(place, {"loss": 10.0 * place[0] + place[1], "error": float(place[1])})
    assert store.arrays()["loss"].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert store.arrays()["error"].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_a_store_without_a_file_keeps_records_in_memory() -> None:
    store = GridStore(None, HEADER)
    store.add((0, 1), {"loss": 2.0})
    assert store.records == {(0, 1): {"loss": 2.0}}


def test_what_was_being_written_is_left_out_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "plane.jsonl"
    path.write_text('{"xs": [0.')
    store = GridStore(path, HEADER)
    store.add((0, 0), {"loss": 1.0})
    store.add((0, 1), {"loss": 2.0})
    path.write_bytes(path.read_bytes()[:-3])
    store = GridStore(path, HEADER)
    assert store.records == {(0, 0): {"loss": 1.0}}
    store.add((0, 1), {"loss": 3.0})
    assert GridStore(path, HEADER).records[0, 1] == {"loss": 3.0}


def test_numbers_of_a_header_may_differ_by_rounding(tmp_path: Path) -> None:
    path = tmp_path / "plane.jsonl"
    GridStore(path, HEADER)
    GridStore(path, {**HEADER, "xs": [1e-9, 1.0, 1e3 * (1 + 1e-12)]})


@pytest.mark.parametrize(
    "changes",
    [
        {"xs": [0.0, 1.0, 1e3 + 1e-5]},
        {"xs": [0.0, 1.0]},
        {"splits": ["train", "test"]},
        {"num_images": None},
        {"weight_decay": 1e-4},
        {"more": 1},
        {"more": [1.0]},
    ],
)
def test_the_store_of_another_grid_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "plane.jsonl"
    GridStore(path, HEADER)
    before = path.read_bytes()
    (name,) = changes
    with pytest.raises(UserError, match=rf"plane.jsonl holds another grid, its '{name}' differ;"):
        GridStore(path, {**HEADER, **changes})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    ["{", "3", '{"row": 1}', '{"row": 0, "column": 0}', '{"row": 0, "column": 0, "loss": "x"}'],
)
def test_a_damaged_store_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "plane.jsonl"
    GridStore(path, HEADER).add((3, 3), {"loss": 1.0})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"plane.jsonl is damaged.*; (give|restore)"):
        GridStore(path, HEADER)
