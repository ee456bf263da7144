"""Weights files that hold something else than plain numbers: one line, at once, and no hang."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fge
from fge import memory
from fge.curves import Curve
from fge.ensemble import SnapshotStore
from fge.errors import UserError
from fge.networks import (
    canonical_state,
    flatten,
    load_weights,
    read_metadata,
    read_state,
    read_weights,
)

SIZE = (2, 3)
WEIGHT = torch.arange(6.0).reshape(SIZE)


def state(weight: Tensor) -> dict[str, Tensor]:
    return {"weight": weight, "bias": torch.zeros(2)}


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([WEIGHT[0], WEIGHT[1]], layout=layout)


def quantised() -> Tensor:
    return torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)


KINDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "coo": (WEIGHT.to_sparse, "is sparse (torch.sparse_coo); make it dense with .to_dense() first"),
    "csr": (WEIGHT.to_sparse_csr, "is sparse (torch.sparse_csr); make it dense"),
    "meta": (lambda: WEIGHT.to("meta"), "has no values, only a shape (device meta)"),
    "nested": (lambda: nested(torch.strided), "is nested; make it dense"),
    "jagged": (lambda: nested(torch.jagged), "is nested; make it dense"),
    "quantised": (quantised, "is of type torch.qint8; make it plain numbers first"),
    "bits": (lambda: torch.zeros(SIZE, dtype=torch.bits8), "is of type torch.bits8; make it"),
}


def told(call: Callable[[], Any]) -> str:
    """Return what the user is told, which is one line."""
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    make, message = KINDS[kind]
    path, content = tmp_path / "weights.pt", state(make())
    torch.save(content, path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert told(lambda: read_weights(path)).startswith(f"{path}: tensor 'weight' {message}")
    assert not warned
    assert message in told(lambda: canonical_state(content))
    assert message in told(lambda: load_weights(nn.Linear(3, 2), content, "given"))
    assert message in told(lambda: SnapshotStore(tmp_path / "store").append(content))


def test_an_expanded_tensor_is_read_as_what_it_shows(tmp_path: Path) -> None:
    torch.save(state(torch.tensor([[1.0], [2.0]]).expand(SIZE)), tmp_path / "weights.pt")
    weight = read_weights(tmp_path / "weights.pt")["weight"]
    assert weight.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert weight.is_contiguous()


def test_an_expanded_tensor_larger_than_any_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state(torch.zeros(1).expand(10**7, 10**8)), path)
    assert path.stat().st_size < 10_000
    message = told(lambda: read_weights(path))
    assert message.startswith(f"the tensors in {path} need 4 PB of memory, but ")


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_complex_numbers_do_not_lose_their_imaginary_part(
    tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    path, content = tmp_path / f"weights.{suffix}", state((WEIGHT + 1j).to(dtype))
    if suffix == "safetensors" and dtype is torch.complex128:
        return  # that format has none
    if suffix == "pt":
        torch.save(content, path)
    else:
        write(path, {}, weight=("C64", SIZE, bytes(48)))
        content = {"weight": torch.zeros(SIZE, dtype=dtype)}
    read = read_weights(path)
    assert read["weight"].dtype == dtype
    model = nn.Linear(3, 2, bias=suffix == "pt")
    message = told(lambda: load_weights(model, read, path))
    assert message == f"{path}: tensor 'weight' is complex ({dtype}), and the model's is not"
    own = nn.Linear(3, 2, bias=False).to(dtype)  # a model of complex numbers has them
    load_weights(own, {"weight": read["weight"]}, path)
    assert torch.equal(own.weight, read["weight"])


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights_that_are_not_finite_are_refused() -> None:
    own = nn.Linear(3, 2, bias=False).to(torch.complex64)
    weight = torch.full(SIZE, complex(0, float("nan")), dtype=torch.complex64)
    assert "holds values that are not finite" in told(
        lambda: load_weights(own, {"weight": weight}, "x")
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_integers_are_no_floating_point_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({name: tensor.to(dtype) for name, tensor in plain.items()}, path)
    expected = (
        f"tensor '0.weight' holds integers ({dtype}), and the model needs torch.float32; save the "
        "weights as they were trained"
    )
    read = read_weights(path)
    for attempt in (
        lambda: load_weights(model, read, path),
        lambda: flatten(path, model),
        lambda: fge.Ensemble(model, [path, read]).predict_proba([torch.zeros(2, 3)]),
        lambda: fge.fit_curve(model, path, plain, [(torch.zeros(2, 3), torch.tensor([0, 1]))]),
    ):
        assert told(attempt).endswith(expected)
    statistics = {**plain, "1.running_mean": plain["1.running_mean"].to(dtype)}
    assert "'1.running_mean' holds integers" in told(lambda: load_weights(model, statistics, "x"))
    counted = {**plain, "1.num_batches_tracked": torch.tensor(7, dtype=torch.int32)}
    load_weights(model, counted, "x")
    assert int(model[1].num_batches_tracked) == 7


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_short_numbers_are_taken_over(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    load_weights(model, state(WEIGHT.to(dtype)), "given")
    assert torch.equal(model.weight, WEIGHT)


# -------------------------------------------------------------------------------- safetensors


def write(path: Path, metadata: Any, **tensors: tuple[str, tuple[int, ...], bytes]) -> Path:
    """Write a safetensors file by hand: a type, a shape and bytes for each tensor."""
    header: dict[str, Any] = {} if metadata == {} else {"__metadata__": metadata}
    body = b""
    for name, (kind, shape, content) in tensors.items():
        place = [len(body), len(body) + len(content)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": place}
        body += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


WEIGHTS = {"weight": ("F32", SIZE, bytes(24)), "bias": ("F32", (2,), bytes(8))}


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}])
def test_the_entry_of_metadata_may_be_null(tmp_path: Path, metadata: Any) -> None:
    path = write(tmp_path / "weights.safetensors", metadata, **WEIGHTS)
    assert read_weights(path).keys() == {"weight", "bias"}
    assert read_metadata(path.read_bytes(), path) == (metadata or {})
    assert "holds no curve" in told(lambda: Curve.load(path))
    assert "holds no ensemble" in told(lambda: fge.Ensemble.load(path, nn.Linear(3, 2)))
    assert "is not a training state" in told(lambda: read_state(path))


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": ("F8_E8M0", SIZE, bytes(6))},
        {"weight": ("F4", SIZE, bytes(3))},
        {"weight": ("F6_E2M3", SIZE, bytes(5))},
        {"weight": ("F32", (2**40, 2**40), bytes(24))},
        {"weight": ("F32", (True, 3), bytes(12))},
        {"weight": ("U9", SIZE, bytes(6))},
        {"weight": ("F32", (2,), bytes(24))},
    ],
)
def test_odd_headers_are_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    path = write(tmp_path / "weights.safetensors", {}, **tensors)
    assert told(lambda: read_weights(path)).startswith(f"{path} is not a complete safetensors file")


@pytest.mark.parametrize(
    "facts", ["", "{}", "[]", "5", "null", '{"schema_version": "x"}', "[" * 9_999]
)
def test_damaged_facts_of_an_ensemble_are_named(tmp_path: Path, facts: str) -> None:
    tensors = {f"members.0.{name}": tensor for name, tensor in WEIGHTS.items()}
    path = write(tmp_path / "ensemble.safetensors", {"ensemble": facts}, **tensors)
    message = told(lambda: fge.Ensemble.load(path, nn.Linear(3, 2)))
    assert message.startswith(f"{path} is damaged and is not an ensemble any more: ")


@pytest.mark.parametrize("skeleton", ["", "[]", "5", '{"items": 3}', "[" * 9_999])
def test_a_damaged_training_state_is_named(tmp_path: Path, skeleton: str) -> None:
    path = write(tmp_path / "state.safetensors", {"skeleton": skeleton}, **WEIGHTS)
    assert "has a damaged header and is not a training state" in told(lambda: read_state(path))


# ---------------------------------------------------------------------- no file, or too large


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights.pt": (read_weights, "weights file"),
    "weights.safetensors": (read_weights, "weights file"),
    "curve.safetensors": (Curve.load, "curve file"),
    "ensemble.safetensors": (lambda p: fge.Ensemble.load(p, nn.Linear(3, 2)), "ensemble file"),
    "state.safetensors": (read_state, "file"),
}
SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "{} is a named pipe and no {}"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "{} is a device and no {}"),
    "folder": (Path.mkdir, "{} is a folder and no {}"),
    "link": (lambda path: path.symlink_to("gone"), "{} is a link to nothing and no {}"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, name: str, special: str
) -> None:
    read, kind = READERS[name]
    make, message = SPECIAL[special]
    make(tmp_path / name)
    assert told(lambda: read(tmp_path / name)) == message.format(tmp_path / name, kind)


@pytest.mark.parametrize("name", READERS)
def test_a_file_larger_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(5 * 10**9)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 10**9)
    message = told(lambda: READERS[name][0](tmp_path / name))
    assert message.startswith(f"{tmp_path / name} needs 5 GB of memory, but 1 GB are free; ")


def test_a_packed_file_is_measured_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    path = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert path.stat().st_size < 20_000
    assert read_weights(path)["weight"].shape == (1000, 1000)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1_000_000)
    assert "needs 4 MB of memory, but 1 MB are free" in told(lambda: read_weights(path))


@pytest.mark.parametrize("special", ["pipe", "device"])
def test_snapshots_and_their_index_are_regular_files(tmp_path: Path, special: str) -> None:
    make, message = SPECIAL[special]
    file = SnapshotStore(tmp_path).append(nn.Linear(3, 2))
    file.unlink()
    make(file)
    assert told(lambda: SnapshotStore(tmp_path)[0]) == message.format(file, "snapshot")
    index = tmp_path / "index.json"
    index.unlink()
    make(index)
    assert told(lambda: SnapshotStore(tmp_path)) == message.format(index, "snapshot index")


@pytest.mark.parametrize("entry", [[], 5, {"file": 5, "sha256": "x"}, {"file": "x"}, None])
def test_an_index_that_names_no_files_is_damaged(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"snapshots": [entry]}))
    assert "is not a snapshot index" in told(lambda: SnapshotStore(tmp_path))
