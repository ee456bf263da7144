"""Tensors on disk: what is written comes back, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fge.errors import UserError
from fge.networks import (
    canonical_state,
    decode_state,
    decode_weights,
    encode_weights,
    load_weights,
    read_metadata,
    read_state,
    read_weights,
    unwrap,
    write_state,
)
from fge.networks.state import is_state


class Compiled(nn.Module):
    """Wraps a module as ``torch.compile`` does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight


class Evil:
    """Makes a folder when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.mkdir, (self.path,))


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(2))


def built(model: nn.Module) -> nn.Module:
    model(torch.randn(4, 2, 5, 5))
    return model


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].shape == tensor.shape
        assert torch.equal(actual[name], tensor), name


def test_weights_and_buffers_come_back_bitwise() -> None:
    model = built(make_model())
    state = decode_weights(encode_weights(canonical_state(model)), "here")
    assert_same(state, dict(model.state_dict()))
    assert int(state["1.num_batches_tracked"]) == 1


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype) -> None:
    state = {
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "matrix": torch.arange(6).view(2, 3).to(dtype),
    }
    back = decode_weights(encode_weights(state), "here")
    assert_same(back, state)


def test_channels_last_weights_have_the_bytes_of_contiguous_ones() -> None:
    model = built(make_model())
    plain = encode_weights(canonical_state(model))
    model.to(memory_format=torch.channels_last)
    assert not model.state_dict()["0.weight"].is_contiguous()
    assert encode_weights(canonical_state(model)) == plain


def test_loading_keeps_the_models_memory_format() -> None:
    model = built(make_model()).to(memory_format=torch.channels_last)
    state = {k: torch.ones_like(v).contiguous() for k, v in model.state_dict().items()}
    load_weights(model, state, "here")
    weight = model.state_dict()["0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert bool((weight == 1).all())


def test_views_are_written_by_value() -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {"transposed": base.t(), "part": base[1:, ::2]}
    back = decode_weights(encode_weights(canonical_state(state)), "here")
    assert torch.equal(back["transposed"], base.t())
    assert torch.equal(back["part"], torch.tensor([[4.0, 6.0], [8.0, 10.0]]))


def test_tied_weights_come_back_tied() -> None:
    model, other = Tied(), Tied()
    state = decode_weights(encode_weights(canonical_state(model)), "here")
    load_weights(other, state, "here")
    assert torch.equal(other.encoder.weight, model.encoder.weight)
    assert other.decoder.weight is other.encoder.weight


def test_a_canonical_state_does_not_change_with_the_model() -> None:
    model = nn.Linear(2, 2)
    state = canonical_state(model)
    before = state["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(state["weight"], before)
    assert not state["weight"].requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        Compiled,
        nn.DataParallel,
        lambda module: nn.DataParallel(Compiled(module)),
        lambda module: Compiled(nn.DataParallel(module)),
    ],
    ids=["compiled", "data-parallel", "data-parallel-compiled", "compiled-data-parallel"],
)
def test_wrappers_are_seen_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Linear(2, 2)
    wrapped = wrap(model)
    assert unwrap(wrapped) is model
    assert_same(canonical_state(wrapped), dict(model.state_dict()))
    load_weights(wrapped, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, "here")
    assert torch.equal(model.weight, torch.ones(2, 2))


def test_a_module_with_a_child_called_module_is_not_unwrapped() -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    assert unwrap(model) is model
    assert list(canonical_state(model)) == ["module.weight", "module.bias"]


def good_state() -> dict[str, Tensor]:
    return canonical_state(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bias"), "^there has no tensor 'bias', but the model needs it$"),
        (
            lambda s: s.update(extra=torch.zeros(1)),
            "^there has a tensor 'extra', but the model has none of that name$",
        ),
        (
            lambda s: s.update(weight=torch.zeros(2, 3)),
            r"^there: tensor 'weight' has shape \(2, 3\), the model needs \(2, 2\)$",
        ),
        (
            lambda s: s["weight"][0, 0].fill_(math.nan),
            "^there: tensor 'weight' holds values that are not finite$",
        ),
        (
            lambda s: s["bias"][1].fill_(-math.inf),
            "^there: tensor 'bias' holds values that are not finite$",
        ),
    ],
    ids=["missing", "left-over", "misshapen", "nan", "infinite"],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    model, state = nn.Linear(2, 2), good_state()
    before = canonical_state(model)
    change(state)
    with pytest.raises(UserError, match=message):
        load_weights(model, state, "there")
    assert_same(canonical_state(model), before)


def test_a_buffer_that_is_meant_to_be_infinite_is_no_damage() -> None:
    model = nn.Linear(2, 2)
    mask = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])  # as causal attention keeps it
    model.register_buffer("mask", mask)
    load_weights(model, canonical_state(model), "here")
    assert torch.equal(model.get_buffer("mask"), mask)


def test_truncated_weights_are_refused_wherever_they_are_cut() -> None:
    data = encode_weights(good_state())
    for length in (0, 4, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(UserError, match=r"^there is not a complete safetensors file"):
            decode_weights(data[:length], "there")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text("ab", min_size=1, max_size=3) | st.integers(0, 3)
TENSORS = st.lists(st.integers(-9, 9), max_size=4).map(lambda v: torch.tensor(v, dtype=torch.int64))
NESTED = st.recursive(
    SCALARS | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def plain(value: Any) -> Any:
    """Return the value with its tensors as lists behind their dtype and shape."""
    if isinstance(value, Tensor):
        return ("tensor", str(value.dtype), tuple(value.shape), value.tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


@settings(deadline=None, max_examples=50)
@given(value=st.dictionaries(KEYS, NESTED, max_size=4))
def test_nested_states_come_back(value: dict[str | int, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        write_state(path, value)
        assert plain(read_state(path)) == plain(value)


def test_an_optimizers_state_comes_back_with_numbers_as_keys(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    write_state(tmp_path / "s", {"optimizer": optimizer.state_dict()})
    state = read_state(tmp_path / "s")["optimizer"]
    assert plain(state["state"]) == plain(optimizer.state_dict()["state"])
    other = torch.optim.Adam(nn.Linear(2, 2).parameters())
    other.load_state_dict(state)
    assert tuple(other.param_groups[0]["betas"]) == (0.8, 0.9)


def test_tensors_with_alike_paths_are_told_apart(tmp_path: Path) -> None:
    value = {"a": {"b": torch.tensor(1.0)}, "a.b": torch.tensor(2.0)}
    write_state(tmp_path / "s", value)
    assert plain(read_state(tmp_path / "s")) == plain(value)


def test_infinite_scalars_come_back(tmp_path: Path) -> None:
    write_state(tmp_path / "s", {"best": math.inf, "worst": -math.inf, "none": math.nan})
    state = read_state(tmp_path / "s")
    assert (state["best"], state["worst"]) == (math.inf, -math.inf)
    assert math.isnan(state["none"])


def test_what_cannot_be_stored_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot store a set at 'a\.1'"):
        write_state(tmp_path / "s", {"a": [1, {2}]})
    assert list(tmp_path.iterdir()) == []


def test_writing_a_state_again_replaces_it(tmp_path: Path) -> None:
    write_state(tmp_path / "s", {"x": torch.zeros(9)})
    write_state(tmp_path / "s", {"x": torch.ones(2)})
    assert read_state(tmp_path / "s")["x"].tolist() == [1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_truncated_states_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, {"x": torch.zeros(9), "n": 3})
    data = path.read_bytes()
    for length in (0, 7, 30, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"s\.safetensors is not a complete safetensors file"):
            read_state(path)


def test_weights_are_no_training_state(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(encode_weights(good_state()))
    assert not is_state(path)
    with pytest.raises(UserError, match=r"w\.safetensors is not a training state"):
        read_state(path)


def test_a_damaged_header_of_a_state_is_the_users_to_hear_of(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_state(path, {"x": torch.zeros(2), "n": 3})
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    other = []
    for position in range(end):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            read_state(path)
        except UserError:
            pass
        except Exception as error:
            other.append((position, repr(error)))
    assert other == []


def with_header(header: bytes | dict[str, Any], rest: bytes = b"", more: int = 0) -> bytes:
    """Return safetensors bytes with a header, which says that it is longer by ``more``."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) + more).to_bytes(8, "little") + text + rest


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x02",
        with_header({}, more=2**40),
        with_header({}, more=2**64 - 3),
        with_header(b'{"\xff": 1}'),
        with_header(b"[]"),
        with_header(b"null"),
        with_header({"__metadata__": {"a": 1}}),
        with_header({"__metadata__": [1]}),
        with_header(b'{"__metadata__": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
        with_header(b'{"__metadata__": {"a": "\\ud800"}}'),
        with_header({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
        with_header({"a": entry("F32", [2], 4, 12)}, bytes(12)),
        with_header({"a": entry("F32", [2], 0, 8)}, bytes(12)),
        with_header({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
        with_header({"a": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)),
        with_header({"a": entry("F32", [0, 2**63 + 5], 0, 0)}),
        with_header({"a": entry("F4", [4], 0, 2)}, bytes(2)),
        with_header(b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}', bytes(4)),
    ],
)
def test_what_is_no_safetensors_file_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    for read in (read_weights, read_state):
        with pytest.raises(UserError, match=r"w\.safetensors is not a complete s") as error:
            read(path)
        assert str(error.value).isprintable()
        assert str(error.value).endswith("; restore it from a copy")


def test_metadata_that_are_null_are_none(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(with_header({"__metadata__": None, "a": entry("F32", [1], 0, 4)}, bytes(4)))
    assert read_weights(path)["a"].tolist() == [0.0]
    assert not is_state(path)


def test_equal_weights_and_metadata_are_equal_bytes() -> None:
    state, metadata = good_state(), {name: name for name in "bcdaefgh"}
    data = encode_weights(state, metadata)
    assert all(encode_weights(state, metadata) == data for _ in range(5))
    assert list(read_metadata(data, "them")) == sorted(metadata)
    assert plain(decode_weights(data, "them")) == plain(state)


def skeleton_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_metadata(data, "state")["skeleton"])
    return found


def with_skeleton(data: bytes, skeleton: Any) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["skeleton"] = json.dumps(skeleton)
    return with_header(header, data[end:])


def test_a_changed_header_of_a_state_does_not_have_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, {"epoch": 3, "x": torch.zeros(6)})
    data = path.read_bytes()
    skeleton = skeleton_of(data)
    skeleton["items"][0][1]["value"] = 4
    with pytest.raises(UserError, match=r"not a training state any more: its checksum is another;"):
        decode_state(with_skeleton(data, skeleton), path)
    del skeleton["sha256"]  # as in files of before there was one
    assert decode_state(with_skeleton(data, skeleton), path)["epoch"] == 4
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["x"]["shape"] = [3, 2]
    reshaped = with_header(header, data[end:])
    with pytest.raises(UserError, match="its checksum is another"):
        decode_state(reshaped, path)


@pytest.mark.parametrize(
    "skeleton",
    [
        *(None, 3, "x", [], {}, {"items": {}}, {"items": [[1]]}, {"items": [[[], {"value": 1}]]}),
        *({"items": [["a", {"tensor": "none"}]]}, {"items": [["a", {"tensor": ["x"]}]]}),
        *({"items": [["a", {"value": [1]}]]}, {"items": [["a", {"list": {"0": 1}}]]}),
        *({"items": [["a", 3]]}, {"list": [{"value": 1}]}, {"value": 1}, {"tensor": "x"}),
        *({"items": [["a", {"value": 10**4000}]]}, {"items": [[None, {"value": 1}]]}),
    ],
)
def test_a_skeleton_of_nothing_is_refused(tmp_path: Path, skeleton: Any) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, {"x": torch.zeros(2)})
    with pytest.raises(UserError, match=r"s\.safetensors has a damaged header .*; restore it"):
        decode_state(with_skeleton(path.read_bytes(), skeleton), path)


def test_weights_files_are_read_whatever_wrote_them(tmp_path: Path) -> None:
    state = good_state()
    (tmp_path / "w.safetensors").write_bytes(encode_weights(state))
    torch.save(state, tmp_path / "w.pt")
    assert_same(read_weights(tmp_path / "w.safetensors"), state)
    assert_same(read_weights(tmp_path / "w.pt"), state)


def test_a_training_state_gives_its_models_weights(tmp_path: Path) -> None:
    path, state = tmp_path / "s.safetensors", good_state()
    write_state(path, {"model": state, "optimizer": {0: {"momentum_buffer": torch.ones(2)}}})
    assert is_state(path)
    assert_same(read_weights(path), state)


@pytest.mark.parametrize("key", ["state_dict", "model_state", "model"])
def test_a_state_dict_is_found_in_a_checkpoint(tmp_path: Path, key: str) -> None:
    state = good_state()
    torch.save({key: state, "epoch": 3}, tmp_path / "w.pt")
    assert_same(read_weights(tmp_path / "w.pt"), state)


def test_weights_in_a_pt_file_may_require_gradients_and_be_strided(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    torch.save({"w": nn.Parameter(base.t())}, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert torch.equal(weights["w"], base.t())
    assert weights["w"].is_contiguous()
    assert not weights["w"].requires_grad


@pytest.mark.parametrize(
    "content", [b"file,label\na,b\n", b"\xff\xd8\xff\xe0 a picture", b"\x80\x02."]
)
def test_what_is_no_file_of_weights_is_told_without_advice_to_read_it_unsafely(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pt cannot be .*; save model\.state_dict\(\)$"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("nest", [lambda e: e, lambda e: {"w": e}, lambda e: {"state_dict": e}])
def test_code_in_a_pickle_is_refused_and_not_run(
    tmp_path: Path, nest: Callable[[Evil], object]
) -> None:
    trap = tmp_path / "sprung"
    torch.save(nest(Evil(trap)), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt cannot be loaded as a plain state dict"):
        read_weights(tmp_path / "w.pt")
    assert not trap.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert trap.is_dir(), "the trap works"


@pytest.mark.parametrize("value", [3, [torch.zeros(1)], {"w": torch.zeros(1), "epoch": 3}])
def test_a_pt_file_without_a_state_dict_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt holds no state dict"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_missing_and_damaged_weights_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"no weights file .*{name}"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"not what it says")
    with pytest.raises(UserError, match=name) as raised:
        read_weights(tmp_path / name)
    assert "\n" not in str(raised.value)
