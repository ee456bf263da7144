"""The store of snapshots: what it holds, and what it does about damage and full disks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fge import SnapshotStore
from fge.errors import UserError
from fge.networks import load_weights


def weights(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), value), "steps": torch.tensor(7)}


def filled(path: Path, count: int = 3) -> SnapshotStore:
    store = SnapshotStore(path)
    for position in range(count):
        store.append(weights(float(position)), step=10 * position)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_new_store_is_empty_and_makes_no_folder(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "new")
    assert len(store) == 0
    assert list(store) == []
    assert not (tmp_path / "new").exists()


def test_snapshots_come_back_in_order(tmp_path: Path) -> None:
    filled(tmp_path / "deep" / "store")
    store = SnapshotStore(str(tmp_path / "deep" / "store"))
    assert len(store) == 3
    for position, state in enumerate(store):
        assert torch.equal(state["weight"], torch.full((2, 3), float(position)))
        assert int(state["steps"]) == 7
    assert torch.equal(store[-1]["weight"], store[2]["weight"])


def test_a_modules_weights_and_buffers_come_back_bitwise(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model(torch.randn(4, 1, 5, 5))
    model.to(memory_format=torch.channels_last)
    store = SnapshotStore(tmp_path)
    store.append(model)
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    load_weights(other, store[0], "the store")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_wrapped_module_is_kept_under_its_own_names(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    store = SnapshotStore(tmp_path)
    first, second = store.append(nn.DataParallel(model)), store.append(model)
    assert first.read_bytes() == second.read_bytes()
    assert set(store[0]) == {"weight", "bias"}


def test_a_snapshot_does_not_change_with_the_model(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    store = SnapshotStore(tmp_path)
    store.append(model)
    nn.init.zeros_(model.weight)
    assert torch.equal(store[0]["weight"], before)


def test_the_distance_is_that_of_all_parameters_whatever_their_numbers(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    model.turn = nn.Parameter(torch.tensor([1 + 1j], dtype=torch.complex64))
    model.mask = nn.Parameter(torch.tensor([-torch.inf, 0.0]), requires_grad=False)
    store = SnapshotStore(tmp_path)
    assert store.distance(model) is None
    store.append(model)
    with torch.no_grad():
        model.weight += torch.tensor([[3.0, 0.0]])
        model.turn += 4j
    assert store.distance(model) == pytest.approx(5, abs=1e-6)


def test_files_and_index_are_as_documented(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    path = store.append(weights(5.0), step=4, lr=0.001, val_error=None)
    assert path == tmp_path / "0003.safetensors"
    assert sorted(contents(tmp_path)) == [
        "0001.safetensors",
        "0002.safetensors",
        "0003.safetensors",
        "index.json",
    ]
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["schema_version"] == 1
    assert index["snapshots"][2] == {
        "file": "0003.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "step": 4,
        "lr": 0.001,
        "val_error": None,
    }
    assert store.facts(2) == index["snapshots"][2]


def test_the_same_weights_have_the_same_bytes(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    assert (
        store.append(weights(1.0)).read_bytes()
        == store.append(dict(reversed(weights(1.0).items()))).read_bytes()
    )


def test_facts_handed_out_are_copies(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    store.facts(0)["step"] = 99
    assert store.facts(0)["step"] == 0


def test_truncating_drops_the_later_snapshots_and_their_files(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.truncate(1)
    assert len(store) == len(SnapshotStore(tmp_path)) == 1
    assert sorted(contents(tmp_path)) == ["0001.safetensors", "index.json"]
    assert store.append(weights(8.0)).name == "0002.safetensors"
    assert float(store[1]["weight"][0, 0]) == 8.0


def test_truncating_to_more_than_there_are_keeps_all_but_unnamed_files(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "0004.safetensors").write_bytes(b"written, but the index never named it")
    (tmp_path / "notes.txt").write_bytes(b"somebody's")
    store.truncate(9)
    assert contents(tmp_path) == before | {"notes.txt": b"somebody's"}


def test_truncating_a_store_that_was_never_written_is_nothing(tmp_path: Path) -> None:
    SnapshotStore(tmp_path / "new").truncate(0)
    assert not (tmp_path / "new").exists()


def test_a_file_that_the_index_never_named_is_no_snapshot(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (tmp_path / "0002.safetensors").write_bytes(b"interrupted before the index was written")
    store = SnapshotStore(tmp_path)
    assert len(store) == 1
    store.append(weights(2.0))
    assert float(store[1]["weight"][0, 0]) == 2.0


def truncate_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "snapshot .*0002.safetensors is missing, but index.json names it"),
        (truncate_file, "snapshot .*0002.safetensors does not match its checksum"),
        (flip_last_byte, "snapshot .*0002.safetensors does not match its checksum"),
    ],
)
def test_a_damaged_snapshot_is_named_and_the_others_can_be_read(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    filled(tmp_path)
    damage(tmp_path / "0002.safetensors")
    store = SnapshotStore(tmp_path)
    assert float(store[0]["weight"][0, 0]) == 0.0
    assert float(store[2]["weight"][0, 0]) == 2.0
    with pytest.raises(UserError, match=message):
        store[1]
    with pytest.raises(UserError, match=message):
        list(store)


def test_there_is_no_snapshot_beyond_the_last(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        filled(tmp_path)[3]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"{}",
        b'{"snapshots": 5}',
        b'{"snapshots": null}',
        b'{"snapshots": {"a": 1}}',
        b'{"snapshots": [3]}',
        b'{"snapshots": [{"file": "0001.safetensors"}]}',
        b'{"snapshots": [{"sha256": "00"}]}',
    ],
)
def test_a_damaged_index_is_named_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json is not a snapshot index"):
        SnapshotStore(tmp_path)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    store = filled(tmp_path)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full_disk)
        with pytest.raises(OSError, match="No space left"):
            store.append(weights(9.0))
    assert contents(tmp_path) == before
    assert len(store) == 3
    store.append(weights(3.0))
    assert len(list(SnapshotStore(tmp_path))) == 4


def test_a_disk_that_fills_up_before_the_index_leaves_the_snapshots_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    before = contents(tmp_path)
    replace = os.replace

    def only_weights(source: str, target: Path) -> None:
        if Path(target).name == "index.json":
            full_disk()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", only_weights)
        with pytest.raises(OSError, match="No space left"):
            store.append(weights(9.0))
    assert len(store) == len(SnapshotStore(tmp_path)) == 3
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    store.truncate(3)
    assert contents(tmp_path) == before


def test_facts_that_are_no_json_leave_the_store_as_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = (tmp_path / "index.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append(weights(9.0), val_error=float("nan"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.append(weights(9.0), val_error={1, 2})
    assert (tmp_path / "index.json").read_bytes() == before
    assert len(store) == 3
