"""Batches that are read once per member, product or average have to be the same on each pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge import Ensemble
from fge.ensemble import fold
from fge.errors import UserError
from fge.landscape import HessianOperator, trace
from fge.networks import Passes, reordered

RNG = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=RNG), torch.randint(0, 3, (12,), generator=RNG)
MASK = torch.ones(6, 4)
OTHER = r"^{} yielded 12 examples on the first pass and {} on a later one; give the same data on e"


class Masked(nn.Module):
    """A model of mappings, whose first tensor is the same in all batches."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.layer(torch.nan_to_num(batch["x"]) * batch["mask"])
        return out


MODELS = [Masked(seed) for seed in range(3)]


def batches(order: list[int], x: Tensor = X) -> list[dict[str, Tensor]]:
    """Return batches of six examples, in this order of the examples."""
    pieces = [order[k : k + 6] for k in range(0, len(order), 6)]
    return [{"mask": MASK[: len(k)], "x": x[k], "y": Y[k]} for k in pieces]


IN_ORDER, SHUFFLED = list(range(12)), [*range(6, 12), *range(6)]


class Changing:
    """Batches whose order is another from the second pass on."""

    def __init__(self, later: list[int]) -> None:
        self.later, self.passes = later, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(batches(IN_ORDER if self.passes == 1 else self.later))


def hessian(data: Any) -> HessianOperator:
    return HessianOperator(
        MODELS[0], F.cross_entropy, data, target_fn=lambda batch: batch["y"], graph_memory=0
    )


def products(data: Any) -> None:
    operator = hessian(data)
    for _ in range(2):
        operator.matvec(torch.ones(operator.size))


def by_nll(data: Any) -> None:
    fold(MODELS[0], MODELS, data, refresh=[X], target_fn=lambda batch: batch["y"])


def by_loss(data: Any) -> None:
    targets = lambda batch: {"a": batch["mask"], "b": batch["y"]}  # noqa: E731
    loss = lambda out, held: F.cross_entropy(out, held["b"])  # noqa: E731
    fold(MODELS[0], MODELS, data, refresh=[X], target_fn=targets, loss_fn=loss)


READERS: dict[str, Callable[[Any], Any]] = {
    "batches": lambda data: Ensemble(MODELS[0], MODELS).predict(data),
    "batches-hessian": products,
    "validation batches": by_nll,
    "validation batches-loss": by_loss,
}


@pytest.mark.parametrize("reader", READERS)
def test_another_order_is_seen_behind_a_constant_first_tensor(reader: str) -> None:
    with pytest.raises(UserError, match=f"^{reordered(reader.split('-')[0])}$"):
        READERS[reader](Changing(SHUFFLED))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("count", [6, 7])
def test_another_number_of_examples_is_refused(reader: str, count: int) -> None:
    with pytest.raises(UserError, match=OTHER.format(reader.split("-")[0], count)):
        READERS[reader](Changing(IN_ORDER[:count]))


def test_one_row_is_not_broadcast_over_all() -> None:
    class Short:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            pieces = [
                {"mask": MASK[:1], "x": x, "y": y} for x, y in zip(X[:, None], Y, strict=True)
            ]
            return iter(pieces if self.passes == 1 else pieces[:1])

    with pytest.raises(UserError, match=OTHER.format("batches", 1)):
        Ensemble(MODELS[0], MODELS).predict(Short())


def test_another_order_within_nested_targets_is_seen_after_the_first_batch() -> None:
    with pytest.raises(UserError, match=f"^{reordered('validation batches')}$"):
        by_loss(Changing([*range(6), *range(11, 5, -1)]))


def test_inputs_that_are_no_numbers_are_the_same_on_each_pass() -> None:
    x = X.clone()
    x[0, 0] = math.nan
    data, clean = (
        [{"x": batch["x"], **batch} for batch in batches(IN_ORDER, inputs)]  # they come first
        for inputs in (x, torch.nan_to_num(x))
    )
    for of in (Ensemble(MODELS[0], MODELS).predict, lambda d: hessian(d).gradient()):
        assert torch.equal(of(data), of(clean))


def test_empty_batches_are_passed_over() -> None:
    data = batches(IN_ORDER)
    with_empty = [{name: tensor[:0] for name, tensor in data[0].items()}, *data]
    calls: dict[str, Any] = {"target_fn": lambda batch: batch["y"], "graph_memory": 0}
    pair = [trace(MODELS[0], F.cross_entropy, d, **calls) for d in (data, with_empty)]
    assert pair[0].value == pair[1].value
    loss = {"loss_fn": F.cross_entropy, "target_fn": calls["target_fn"], "refresh": [X]}
    folds = [fold(MODELS[0], MODELS, d, **loss) for d in (data, with_empty)]
    assert folds[0].members == folds[1].members
    assert math.isfinite(folds[0].after.nll)


def test_passes_without_examples_are_no_others() -> None:
    passes = Passes()
    for _ in range(2):
        passes.begin()
        passes.look(X[:0], 0)
        passes.end()
    assert passes.examples == 0
    assert Ensemble(MODELS[0], MODELS).predict([{"mask": MASK[:0], "x": X[:0]}]).shape == (0, 3)
