"""An ensemble as a state dict, as one file, and its members in memory or on disk."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fge import Ensemble, SnapshotStore
from fge.ensemble import ensemble as module
from fge.errors import UserError
from fge.networks import (
    canonical_state,
    decode_weights,
    encode_weights,
    read_metadata,
    read_weights,
)

COUNT = 12  # sorted as text, the names of 12 members are in another order
INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def members(first: int = 0, count: int = COUNT) -> list[nn.Module]:
    return [make_model(first + k) for k in range(count)]


def members_in(folder: Path, *, kept: bool) -> Ensemble:
    store = SnapshotStore(folder)
    for member in members():
        store.append(member)
    return Ensemble(make_model(99), store, in_memory=kept)


MADE: dict[str, Callable[[Path], Ensemble]] = {
    "modules": lambda _: Ensemble(make_model(99), members()),
    "store-in-memory": lambda folder: members_in(folder, kept=True),
    "store-on-disk": lambda folder: members_in(folder, kept=False),
}
each_kind = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


@each_kind
def test_a_state_dict_holds_all_members(make: Callable[[Path], Ensemble], tmp_path: Path) -> None:
    state = make(tmp_path).state_dict()
    expected = {
        f"members.{k}.{name}": tensor
        for k, member in enumerate(members())
        for name, tensor in member.state_dict().items()
    }
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@each_kind
@pytest.mark.parametrize("order", [list, sorted])
def test_a_loaded_state_is_the_ensemble_that_was_saved(
    make: Callable[[Path], Ensemble], order: Callable[[Any], Any], tmp_path: Path
) -> None:
    saved = Ensemble(make_model(99), members(50))
    state = {name: saved.state_dict()[name].clone() for name in order(saved.state_dict())}
    other = make(tmp_path)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert not torch.equal(other.predict([INPUTS]), saved.predict([INPUTS]))
    result = other.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    for tensor in state.values():
        tensor.zero_()  # a later change of what was loaded
    assert torch.equal(other.predict([INPUTS]), saved.predict([INPUTS]))
    assert torch.equal(other(INPUTS), saved(INPUTS))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_an_ensemble_within_another_module_is_saved_and_loaded_with_it() -> None:
    class Both(nn.Module):
        def __init__(self, first: int) -> None:
            super().__init__()
            self.ensemble = Ensemble(make_model(99), members(first, 2))
            self.head = nn.Linear(2, 2)

    saved, other = Both(0), Both(10)
    state = saved.state_dict()
    assert set(state) == {
        "head.weight",
        "head.bias",
        *(f"ensemble.members.{k}.{n}" for k in range(2) for n in make_model().state_dict()),
    }
    other.load_state_dict(state)
    assert torch.equal(other.ensemble(INPUTS), saved.ensemble(INPUTS))
    assert torch.equal(other.head.weight, saved.head.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("members.2.")],
            "holds 2 members and the ensemble has 3; make it with as many members, or use",
        ),
        (lambda s: s.clear(), "holds 0 members and the ensemble has 3"),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("members.0.")],
            "the state dict has no member 0, but later ones",
        ),
        (lambda s: s.pop("members.1.0.bias"), "^member 1 has no tensor '0.bias', but the model"),
        (lambda s: s.update(extra=torch.ones(1)), "tensor 'extra', which is of no member"),
        (lambda s: s.update({"members.2.more": torch.ones(1)}), "member 2 has a tensor 'more'"),
        (
            lambda s: s.update({"members.2.0.bias": torch.ones(7)}),
            r"^member 2: tensor '0.bias' has shape \(7,\), the model needs \(3,\)",
        ),
        (lambda s: s["members.2.0.bias"].fill_(torch.nan), "member 2: tensor '0.bias' holds val"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_changed(
    change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    ensemble = Ensemble(make_model(99), members(0, 3))
    before = ensemble(INPUTS)
    state = copy.deepcopy(dict(Ensemble(make_model(99), members(7, 3)).state_dict()))
    change(state)
    with pytest.raises(UserError, match=message):
        ensemble.load_state_dict(state)
    assert torch.equal(ensemble(INPUTS), before)


@each_kind
@pytest.mark.parametrize(
    "options",
    [{}, {"output": "sigmoid"}, {"output": "identity"}, {"output_dim": -1, "combine": "logits"}],
)
def test_one_file_holds_the_members_and_what_they_predict(
    make: Callable[[Path], Ensemble], options: dict[str, Any], tmp_path: Path
) -> None:
    ensemble = make(tmp_path / "store")
    saved = Ensemble(make_model(99), list(ensemble.members), **options)
    path = tmp_path / "new" / "all.safetensors"
    saved.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert set(decode_weights(path.read_bytes(), path)) == set(saved.state_dict())
    loaded = Ensemble.load(str(path), make_model(5))
    assert repr(loaded) == repr(saved)
    assert torch.equal(loaded.predict([INPUTS]), saved.predict([INPUTS]))
    with_function = Ensemble.load(path, make_model(5), forward_fn=lambda m, x: -m(x))
    assert not torch.equal(with_function(INPUTS), saved(INPUTS))


def test_a_function_of_the_outputs_is_given_again(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    saved = Ensemble(make_model(99), members(0, 2), output=torch.exp)
    saved.save(path)
    with pytest.raises(UserError, match=r"saved with a function as output; give it: load\(\.\.\."):
        Ensemble.load(path, make_model())
    loaded = Ensemble.load(path, make_model(), output=torch.exp)
    assert torch.equal(loaded(INPUTS), saved(INPUTS))


def test_a_file_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.safetensors"
    Ensemble(make_model(99), members(0, 2)).save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Ensemble(make_model(99), members(5, 2)).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_that_hold_no_whole_ensemble_are_refused(tmp_path: Path) -> None:
    path, one = tmp_path / "all.safetensors", tmp_path / "one.safetensors"
    ensemble = Ensemble(make_model(99), members(0, 2))
    ensemble.save(path)
    with pytest.raises(UserError, match=r"saved as \.safetensors, got 'all\.pt'"):
        ensemble.save("all.pt")
    with pytest.raises(UserError, match=r"no ensemble file .*none\.safetensors"):
        Ensemble.load(tmp_path / "none.safetensors", make_model())
    one.write_bytes(encode_weights(canonical_state(make_model())))
    with pytest.raises(UserError, match=r"holds no ensemble; .* use fge\.Ensemble\(model, \[path"):
        Ensemble.load(one, make_model())
    with pytest.raises(UserError, match=r"an ensemble and not one network; load it with fge\.Ens"):
        read_weights(path)
    with pytest.raises(UserError, match=r"member 0: tensor '0\.weight' has shape"):
        Ensemble.load(path, nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        Ensemble.load(path, make_model())


@pytest.mark.parametrize(
    "facts",
    [
        *("", "{", "[]", "null", "{}", "[" * 10**5, '{"schema_version": 1e400}'),
        *('{"output": 3}', '{"output": "softplus"}', '{"combine": null}', '{"output_dim": 1.5}'),
        *('{"output_dim": 99}', '{"schema_version": "1"}', '{"schema_version": true}'),
    ],
)
def test_damaged_options_of_an_ensemble_are_refused(tmp_path: Path, facts: str) -> None:
    path = tmp_path / "all.safetensors"
    Ensemble(make_model(99), members(0, 2)).save(path)
    whole = json.loads(read_metadata(path.read_bytes(), path)["ensemble"])
    text = facts
    if '":' in facts and "1e400" not in facts:  # all options but one are right
        text = json.dumps({**whole, **json.loads(facts)})
    path.write_bytes(encode_weights(decode_weights(path.read_bytes(), path), {"ensemble": text}))
    with pytest.raises(UserError, match=r"is damaged and is not an ensemble any more: .*; restore"):
        Ensemble.load(path, make_model())


def test_one_place_of_a_member_has_one_name(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    Ensemble(make_model(99), members(0, 2)).save(path)
    data = path.read_bytes()
    metadata = read_metadata(data, path)
    for name in ("members.00.0.weight", "members.².0.weight", f"members.{'9' * 5000}.0.weight"):
        tensors = {**decode_weights(data, path), name: torch.zeros(1)}
        path.write_bytes(encode_weights(tensors, metadata))
        with pytest.raises(UserError, match="which is of no member of an ensemble"):
            Ensemble.load(path, make_model())


# ------------------------------------------------------------------------------ in memory, on disk


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record which positions are read from now on."""
    reads: list[int] = []
    original = SnapshotStore.__getitem__

    def read(self: SnapshotStore, position: int) -> dict[str, Tensor]:
        reads.append(position)
        return original(self, position)

    monkeypatch.setattr(SnapshotStore, "__getitem__", read)
    return reads


@pytest.mark.parametrize(
    ("free", "in_memory", "passes"),
    [(1 << 40, None, 1), (1000, None, 3), (1 << 40, False, 3), (1000, True, 1)],
    ids=["fits", "too-large", "on-disk", "in-memory"],
)
def test_members_that_fit_are_read_once(
    free: int,
    in_memory: bool | None,
    passes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SnapshotStore(tmp_path)
    for member in members(0, 3):
        store.append(member)
    reads = reads_of(monkeypatch)
    monkeypatch.setattr(module, "free_memory", lambda _: free)
    ensemble = Ensemble(make_model(99), store, in_memory=in_memory)
    outputs = [ensemble(INPUTS) for _ in range(2)]
    assert reads == [0, 1, 2] * passes
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], Ensemble(make_model(), members(0, 3))(INPUTS))


@pytest.mark.parametrize("kept", [True, False])
def test_a_store_that_grows_leaves_the_ensemble_as_it_was(kept: bool, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.append(make_model(1))
    ensemble = Ensemble(make_model(99), store, in_memory=kept)
    before = ensemble(INPUTS)
    store.append(make_model(2))
    assert (len(store), len(ensemble)) == (2, 1)
    assert torch.equal(ensemble(INPUTS), before)


def test_an_ensemble_in_another_dtype_keeps_its_members_exact() -> None:
    models = [model.double() for model in members(0, 2)]
    ensemble = Ensemble(make_model(99).double(), models)
    before = ensemble(INPUTS.double())
    ensemble.bfloat16()
    assert ensemble(INPUTS.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(ensemble.double()(INPUTS.double()), before)


class Slow(nn.Linear):
    """Lets other threads run before it uses its weights."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.005)
        return super().forward(x)


def test_threads_that_predict_at_the_same_time_get_what_one_alone_gets() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(Slow(4, 3), [Slow(4, 3) for _ in range(4)])
    expected = ensemble(INPUTS)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ensemble, [INPUTS] * 6))
    assert all(torch.equal(probs, expected) for probs in found)
