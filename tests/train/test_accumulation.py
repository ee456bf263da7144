"""Accumulated gradients are those of the joint batch; norms are clipped as PyTorch clips them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from fge.train import Learner
from fge.train.joint import parts_in


def network(norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        between = nn.BatchNorm1d(6) if norm else nn.Identity()
        return nn.Sequential(nn.Linear(4, 6), between, nn.Tanh(), nn.Linear(6, 3)).double()


def batch(count: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(count)
    inputs = torch.randn(count, 4, generator=rng, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (count,), generator=rng)


@pytest.mark.parametrize("count", [24, 23, 21, 17, 9, 8, 5, 1])
def test_a_step_in_parts_is_the_step_on_the_joint_batch(count: int) -> None:
    model = network()
    plain = copy.deepcopy(model)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    learner = Learner(model, SGD(model.parameters(), **options), batch_size=8, accumulate=True)
    joint = Learner(plain, SGD(plain.parameters(), **options), batch_size=24)
    for _ in range(3):
        loss, expected = learner.step(*batch(count)), joint.step(*batch(count))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_parts_are_full_batches_and_never_single_images() -> None:
    sizes: list[int] = []
    model = network(norm=True)  # which does not take a single image
    model.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))
    learner = Learner(model, SGD(model.parameters(), lr=0.1), batch_size=8, accumulate=True)
    learner.step(*batch(32))
    assert sizes == [8, 8, 8, 8]
    for count in range(2, 34):
        sizes.clear()
        learner.step(*batch(count))
        assert sum(sizes) == count
        assert 2 <= min(sizes) <= max(sizes) <= 8
    assert all(module.training for module in model.modules())


def test_parts_of_a_batch_are_as_few_as_fit() -> None:
    assert [parts_in(count, 8) for count in (1, 8, 9, 32, 33)] == [1, 1, 2, 4, 5]
    assert [parts_in(count, 2) for count in (2, 3, 4, 5)] == [1, 1, 2, 2]
    assert parts_in(4, 1) == 4


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_norm_that_is_clipped_is_that_of_the_joint_gradient(accumulate: bool) -> None:
    model = network()
    plain = copy.deepcopy(model)
    learner = Learner(
        model,
        SGD(model.parameters(), lr=1.0),
        batch_size=8,
        accumulate=accumulate,
        clip_norm=0.05,
    )
    learner.step(*batch(20))
    inputs, targets = batch(20)
    F.cross_entropy(plain(inputs), targets).backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
    assert norm > 0.05
    moved = 0.0
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs - theirs.grad, rtol=0, atol=1e-14)
        moved += float((ours - theirs).detach().square().sum())
    assert moved**0.5 == pytest.approx(0.05, rel=1e-4)


def test_a_norm_below_the_limit_is_left_alone_bitwise() -> None:
    model = network()
    plain = copy.deepcopy(model)
    learner = Learner(model, SGD(model.parameters(), lr=0.1), clip_norm=1e6)
    joint = Learner(plain, SGD(plain.parameters(), lr=0.1))
    learner.step(*batch(20))
    joint.step(*batch(20))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
