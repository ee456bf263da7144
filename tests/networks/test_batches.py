"""Batches in the containers that PyTorch's collate makes, and what their targets are."""

from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fge
from fge.errors import UserError
from fge.networks import (
    call_model,
    count_examples,
    cut,
    refresh_batch_norm,
    targets_of,
    tensors,
    to_device,
)

CPU, META = torch.device("cpu"), torch.device("meta")
X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)


class Named(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor


class Encoding(UserDict[str, Any]):
    """A mapping that moves itself, in place, as that of a well-known library does."""

    def to(self, device: torch.device) -> Encoding:
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self


class Moving:
    """An object of the user's own, whose ``to`` returns nothing."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x = x
        self.y = y
        self.count = len(x)

    def to(self, device: torch.device) -> None:
        self.x, self.y = self.x.to(device), self.y.to(device)


class ReadOnly(Mapping[str, Tensor]):
    """A mapping that cannot be made like another."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._held = {"x": x, "y": y}

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda x, y: {"x": x, "y": y},
    "ordered": lambda x, y: OrderedDict(x=x, y=y),
    "default": lambda x, y: defaultdict(list, x=x, y=y),
    "user-dict": lambda x, y: UserDict(x=x, y=y),
    "encoding": lambda x, y: Encoding(x=x, y=y),
    "proxy": lambda x, y: MappingProxyType({"x": x, "y": y}),
    "named": Named,
    "dataclass": Record,
    "frozen": Frozen,
}


def held(batch: Any) -> tuple[Tensor, Tensor]:
    return (batch["x"], batch["y"]) if isinstance(batch, Mapping) else (batch.x, batch.y)


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_are_moved_counted_and_cut_and_keep_their_types(
    make: Callable[[Tensor, Tensor], Any],
) -> None:
    batch = make(X, Y)
    moved = to_device([batch], META)[0]
    assert type(moved) is type(batch)
    assert all(tensor.device == META for tensor in held(moved))
    assert all(tensor.device == CPU for tensor in held(batch))
    assert count_examples([batch]) == 6
    pieces = list(cut(batch, 4))
    assert [size for _, size in pieces] == [3, 3]
    assert all(type(piece) is type(batch) for piece, _ in pieces)
    for parts, whole in zip(zip(*(held(p) for p, _ in pieces), strict=True), (X, Y), strict=True):
        assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(a, b) for a, b in zip(held(batch), (X, Y), strict=True))


@pytest.mark.parametrize("make", [ReadOnly, lambda x, y: UserList([x, y])])
def test_other_containers_become_plain_ones(make: Callable[[Tensor, Tensor], Any]) -> None:
    moved = to_device(make(X, Y), META)
    assert isinstance(moved, dict | list)
    assert [tensor.device for tensor in tensors(moved)] == [META, META]
    assert [size for _, size in cut(make(X, Y), 2)] == [2, 2, 2]


def test_objects_move_themselves_as_copies_and_are_not_cut() -> None:
    batch = Moving(X, Y)
    moved = to_device(batch, META)
    assert moved.x.device == moved.y.device == META
    assert batch.x.device == CPU
    assert count_examples(batch) == 6
    assert list(cut(batch, 2)) == [(batch, 6)]


def test_packed_sequences_are_counted_by_sequences_and_moved_by_themselves() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    moved = to_device((packed, torch.ones(2)), META)[0]
    assert isinstance(moved, PackedSequence)
    assert moved.data.device == META
    assert moved.batch_sizes.device == CPU
    assert count_examples((packed, torch.ones(2))) == 2
    assert [size for _, size in cut((packed, torch.ones(2)), 1)] == [2]
    assert call_model(nn.Identity(), packed) is packed


def test_texts_are_cut_with_their_tensors_and_other_things_left() -> None:
    batch = {"x": X, "text": list("abcdef"), "kinds": ["a", "b"], "note": "abcdef"}
    pieces = [piece for piece, _ in cut(batch, 3)]
    assert [piece["text"] for piece in pieces] == [["a", "b", "c"], ["d", "e", "f"]]
    assert all(piece["kinds"] == ["a", "b"] and piece["note"] == "abcdef" for piece in pieces)


def test_a_key_that_is_called_to_is_no_method() -> None:
    assert to_device({"to": X}, META)["to"].device == META
    assert count_examples({"step": torch.tensor(3), "x": X}) == 6


def test_targets_are_the_second_of_two_parts() -> None:
    for batch in ((X, Y), [X, Y], Named(X, Y)):
        assert targets_of(batch, F.cross_entropy) is Y
    assert targets_of(X, F.mse_loss) is X
    batch = {"x": X, "y": Y}
    assert targets_of(batch, lambda outputs, _: outputs) is batch
    assert targets_of(batch, F.cross_entropy, lambda batch: batch["y"]) is Y
    assert targets_of((X, X, Y), F.cross_entropy, lambda batch: batch[2]) is Y


@pytest.mark.parametrize("loss_fn", [F.mse_loss, lambda outputs, _: outputs])
def test_of_more_than_two_parts_the_targets_are_not_guessed(loss_fn: Any) -> None:
    message = (
        r"^batches of 3 parts do not say which is the target; give target_fn=lambda batch: "
        r"batch\[2\], or the right one$"
    )
    with pytest.raises(UserError, match=message):
        targets_of((X, X, Y), loss_fn)


@pytest.mark.parametrize(
    ("loss_fn", "batch"),
    [
        (F.cross_entropy, {"x": X}),
        (F.cross_entropy, X),
        (nn.CrossEntropyLoss(), X),
        (nn.MSELoss(), Record(X, Y)),
        (F.mse_loss, (X,)),
    ],
)
def test_missing_targets_are_an_error_and_not_a_traceback(loss_fn: Any, batch: Any) -> None:
    with pytest.raises(UserError, match=r"^batches must yield \(inputs, targets, ...\), got a "):
        targets_of(batch, loss_fn)


def test_a_named_tuple_is_cut_to_the_images_wanted_and_keeps_its_names() -> None:
    layer = nn.BatchNorm1d(2).double()
    forward = lambda model, batch: model(batch.x)  # noqa: E731
    used = refresh_batch_norm(layer, [Named(X.double(), Y)], num_images=4, forward_fn=forward)
    assert used == 4
    assert layer.running_mean is not None
    assert torch.allclose(layer.running_mean, X[:4].double().mean(0))


@pytest.mark.parametrize("order", [("w", "x", "y"), ("x", "w", "y"), ("x", "y", "w")])
def test_the_examples_are_as_many_as_most_tensors_have(order: tuple[str, ...]) -> None:
    parts = {"w": torch.ones(3), "x": torch.zeros(5, 2), "y": torch.zeros(5)}
    batch = {name: parts[name] for name in order}
    assert count_examples(batch) == 5
    assert [count for _, count in cut(batch, 2)] == [5]  # as a whole: what "w" is of is unknown


class Pair(nn.Module):
    """A model of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        out: Tensor = self.layer(one - other)
        return out


def test_a_model_of_several_inputs_is_told_of_forward_fn() -> None:
    error = r"first of 3 parts of a batch alone \(TypeError: .*'other'\); give forward_fn=lambda"
    model, batch = Pair(), (X, 2 * X, Y % 3)
    with pytest.raises(UserError, match=error):
        call_model(model, batch)
    with pytest.raises(UserError, match=error.replace("3", "2")):
        fge.Ensemble(model, [model]).predict([(X, 2 * X)])
    found = fge.Ensemble(model, [model], forward_fn=lambda m, b: m(b[0], b[1])).predict([batch])
    assert torch.allclose(found, model(X, 2 * X).double().softmax(1))
    with pytest.raises(TypeError, match="other"):
        call_model(model, X)  # nothing else could be given
