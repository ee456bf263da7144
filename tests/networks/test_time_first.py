"""Batches whose sequences lie time first, (T, N, ...): counted by their targets and never cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fge
from fge.curves import evaluate_curve, straight_curve
from fge.landscape import HessianOperator
from fge.networks import count_examples, cut, refresh_batch_norm
from fge.train import Learner

X, Y = torch.zeros(5, 12, 3), torch.zeros(12, dtype=torch.int64)


class Recurrent(nn.Module):
    """A classifier of sequences in the layout that PyTorch's layers have by default."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.recurrent(x)[0][-1])
        return out


class Normalised(nn.Module):
    """Batch norm of the means over time, of a model with a layer that is not ``batch_first``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.BatchNorm1d(3), nn.MultiheadAttention(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.mean(0))
        return out


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((X, Y), 12),
        (((X, torch.zeros(5, 12)), Y), 12),
        (({"x": X, "lengths": Y}, Y), 12),
        ((X[:, :1], Y[:1]), 1),
        ((X, torch.zeros(12, 7)), 12),
        ((X, (Y, Y)), 12),
        ((torch.zeros(5, 3), Y), 5),  # nothing of the inputs is as long as these targets
        ((torch.zeros(5, 3), {"a": Y, "b": torch.zeros(2)}), 5),
        (((torch.zeros(4, 9), torch.zeros(9)), torch.zeros(4)), 4),
        ((torch.zeros(4, 2), torch.zeros(4, 7)), 4),
    ],
)
def test_where_lengths_differ_targets_count_the_examples(batch: Any, count: int) -> None:
    assert count_examples(batch) == count
    if len({len(t) for t in batch if isinstance(t, Tensor)}) > 1:
        assert [size for _, size in cut(batch, 2)] == [count]


def test_target_fn_counts_where_it_can() -> None:
    batch = {"x": X, "y": Y}
    assert count_examples(batch, lambda batch: batch["y"]) == 12
    assert count_examples(batch, lambda batch: batch["labels"]) == 5


@pytest.mark.parametrize(
    ("batch", "cuts"),
    [
        ((torch.zeros(6, 6, 3), torch.zeros(6)), False),
        ((torch.zeros(6, 5), torch.zeros(6, 5)), False),
        ((torch.zeros(6, 5, 3), torch.zeros(6)), True),
        ((torch.zeros(6, 6, 3, 3), torch.zeros(6)), True),
    ],
)
def test_what_may_be_time_is_not_cut_for_a_model_of_this_layout(batch: Any, cuts: bool) -> None:
    assert [n for _, n in cut(batch, 3, model=nn.GRU(3, 8))] == ([3, 3] if cuts else [6])
    for model in (None, nn.GRU(3, 8, batch_first=True), nn.Linear(3, 3)):
        assert [n for _, n in cut(batch, 3, model=model)] == [3, 3]


def sequences(steps: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, 12, 3, generator=generator)
    return x, torch.randint(0, 4, (12,), generator=generator)


@pytest.mark.parametrize("steps", [5, 12])
def test_loss_and_products_of_parts_are_those_of_the_whole(steps: int) -> None:
    torch.manual_seed(0)
    model, (x, y) = Recurrent(), sequences(steps)
    parts = [(x[:, :10], y[:10]), (x[:, 10:], y[10:])]
    expected = float(F.cross_entropy(model(x), y).detach())
    record = evaluate_curve(model, straight_curve(model, model, Recurrent()), parts, ts=[0.0])[0]
    assert record["loss"] == pytest.approx(expected, rel=1e-6)
    dicts = [{"x": x, "y": y} for x, y in parts]
    calls: dict[str, Any] = {
        "forward_fn": lambda model, batch: model(batch["x"]),
        "target_fn": lambda batch: batch["y"],
    }
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    whole = HessianOperator(model, F.cross_entropy, [(x, y)]).matvec(vector)
    # 8 examples of 12 were a part of the time where T = N
    for found in (
        HessianOperator(model, F.cross_entropy, parts, chunk=4).matvec(vector),
        HessianOperator(model, F.cross_entropy, [(x, y)], chunk=4).matvec(vector),
        HessianOperator(model, F.cross_entropy, dicts, **calls).matvec(vector),
    ):
        assert float((found - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("steps", [5, 12])
@pytest.mark.parametrize("num_images", [None, 6])
def test_statistics_are_those_of_the_sequences(steps: int, num_images: int | None) -> None:
    model, (x, y) = Normalised(), sequences(steps)
    parts = [(x[:, :10], y[:10]), (x[:, 10:], y[10:])] if num_images is None else [(x, y)]
    assert refresh_batch_norm(model, parts, num_images=num_images) == 12
    assert model.norm.running_mean is not None
    assert torch.allclose(model.norm.running_mean, x.mean((0, 1)), atol=1e-6)


def test_statistics_of_mappings_are_weighted_by_their_targets() -> None:
    model, (x, y) = Normalised(), sequences()
    parts = [{"x": x[:, :10], "y": y[:10]}, {"x": x[:, 10:], "y": y[10:]}]
    used = refresh_batch_norm(
        model,
        parts,
        forward_fn=lambda model, batch: model(batch["x"]),
        target_fn=lambda batch: batch["y"],
    )
    assert used == 12
    assert model.norm.running_mean is not None
    assert torch.allclose(model.norm.running_mean, x.mean((0, 1)), atol=1e-6)


def test_the_gradient_of_a_step_with_a_small_memory_is_that_of_the_batch() -> None:
    torch.manual_seed(0)
    model, (x, y) = Recurrent(), sequences(12)
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), model.head.weight)[0]
    before = model.head.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Learner(model, optimizer, batch_size=4, accumulate=True).step(x, y)
    assert torch.allclose(before - model.head.weight, expected, atol=1e-6)


def test_checks_of_a_sound_model_pass() -> None:
    torch.manual_seed(0)
    x, y = sequences()
    report = str(fge.check(Recurrent(), [(x, y), (x[:, :7], y[:7])]))
    assert "outputs: ok, 12 examples give (12, 4)" in report
    assert "failed" not in report
