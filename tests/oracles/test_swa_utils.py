"""Averages of weights and batch-norm statistics against ``torch.optim.swa_utils``.

The situations are those of PyTorch's own tests of it: plain and convolutional networks, buffers of
floating-point numbers and of integers, ``momentum=None``, and every format of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

import fge
from fge.networks import ExponentialAverage, UniformAverage

pytestmark = pytest.mark.slow

STEPS, IMAGES = 7, (8, 1, 10, 10)
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels last": {"dtype": torch.float32, "memory_format": torch.channels_last},
    "float64, channels last": {"dtype": torch.float64, "memory_format": torch.channels_last},
}
CLOSE: dict[torch.dtype, float] = {torch.float64: 1e-13, torch.float32: 1e-6}
"""Relative differences that rounding may leave."""


class Counting(nn.Module):
    """Buffers of its own: a mean, an integer that grows, a mask, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0).to(self.mean), 0.1)
                self.count += 1
        return x * self.mask


def network(**options: Any) -> nn.Sequential:
    """Return convolutions, batch norm of both kinds of momentum, and buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=None, affine=False),
        nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), Counting(),
    )  # fmt: skip
    return model.to(**options)


def steps(model: nn.Module) -> Iterator[None]:
    """Yield after each step of a training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    dtype = next(model.parameters()).dtype
    for step in range(STEPS):
        x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
        yield


def wide(model: nn.Module) -> nn.Module:
    """Return a copy in float64, in which rounding does not count; PyTorch averages no booleans."""
    copied = copy.deepcopy(model).double()
    for module in copied.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype == torch.bool:
                module._buffers[name] = buffer.double()
    return copied


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Compare tensors by name, names and dtypes included."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name],
            tensor.contiguous(),
            rtol=rtol,
            atol=rtol,
            msg=lambda m, n=name: f"{n}: {m}",
        )


# --------------------------------------------------------------------------------- several networks


@pytest.mark.parametrize("format_", FORMATS)
def test_average_weights_is_swa_of_parameters_and_buffers(format_: str) -> None:
    """In float64, rounded once: PyTorch averages in the dtype of the weights."""
    model = network(**FORMATS[format_])
    oracle = AveragedModel(wide(model), use_buffers=True)
    kept = []
    for _ in steps(model):
        kept.append(copy.deepcopy(model.state_dict()))
        oracle.update_parameters(wide(model))
    found = fge.average_weights(kept)
    expected = oracle.module.state_dict()
    for name, tensor in kept[-1].items():
        if tensor.is_floating_point():
            expected[name] = expected[name].to(tensor.dtype)
        else:  # PyTorch's mean of integers is cut to an integer at every step: here, the last
            expected[name] = tensor
    exact = CLOSE[torch.float64] if FORMATS[format_]["dtype"] == torch.float64 else 0.0
    assert_same(found, expected, exact)
    assert found["1.num_batches_tracked"] == found["9.count"] == STEPS
    assert found["9.mask"].tolist() == [True, False, True]


# ----------------------------------------------------------------------------------- over the steps


@pytest.mark.parametrize("format_", FORMATS)
def test_the_mean_over_steps_is_pytorchs(format_: str) -> None:
    model = network(**FORMATS[format_])
    ours, tail = UniformAverage(model), fge.TailAverage(model, first_step=0)
    oracles = [
        AveragedModel(model),
        AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn()),
        AveragedModel(wide(model)),
    ]
    rounding = [0.0, CLOSE[torch.float32], 0.0]  # the second has its weights in float32
    for _ in steps(model):
        ours.update(model)
        tail.step()
        for oracle in oracles:
            oracle.update_parameters(wide(model) if oracle is oracles[2] else model)
    assert len(tail) == ours.updates == int(oracles[0].n_averaged)
    dtype = FORMATS[format_]["dtype"]
    # In bfloat16 PyTorch's own mean stands still after some steps; ours is in float32.
    first = 2 if dtype == torch.bfloat16 else 0
    for oracle, least in zip(oracles[first:], rounding[first:], strict=True):
        for name, parameter in oracle.module.named_parameters():
            found = ours.averages[name]
            rtol = max(CLOSE[found.dtype], least)
            torch.testing.assert_close(found, parameter.to(found), rtol=rtol, atol=rtol)
    buffers = model.state_dict()
    means = {n: p.to(dtype) for n, p in ours.averages.items()}
    assert_same(tail.state_dict(), {n: means.get(n, b) for n, b in buffers.items()}, 0.0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("format_", FORMATS)
def test_the_exponential_mean_is_pytorchs(format_: str, decay: float) -> None:
    model = network(**FORMATS[format_])
    ours = ExponentialAverage(model, decay=decay)
    oracles = [
        AveragedModel(wide(model), multi_avg_fn=get_ema_multi_avg_fn(decay)),
        AveragedModel(wide(model), avg_fn=get_ema_avg_fn(decay)),
    ]
    for _ in steps(model):
        ours.update(model)
        for oracle in oracles:
            oracle.update_parameters(wide(model))
    for oracle in oracles:
        for name, parameter in oracle.module.named_parameters():
            found = ours.averages[name]
            rtol = CLOSE[found.dtype]
            torch.testing.assert_close(found, parameter.to(found), rtol=rtol, atol=rtol)


def test_a_tail_is_pytorchs_average_started_later() -> None:
    model = network(dtype=torch.float64)
    tail, oracle = fge.TailAverage(model, first_step=4), AveragedModel(model)
    for step, _ in enumerate(steps(model)):
        tail.step()
        if step >= 4:
            oracle.update_parameters(model)
    assert len(tail) == STEPS - 4
    assert_same(tail.state_dict(), oracle.module.state_dict(), CLOSE[torch.float64])


# ---------------------------------------------------------------------------- batch-norm statistics


def batches(count: int, sizes: int | list[int], dtype: torch.dtype) -> list[Tensor]:
    rng = torch.Generator().manual_seed(9)
    images = torch.randn(count, *IMAGES[1:], generator=rng, dtype=torch.float64)
    return list((2 * images + 1).to(dtype).split(sizes))


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of the batch-norm layers; the others are not to be changed."""
    named = model.state_dict().items()
    return {n: b for n, b in named if "running" in n or "num_batches" in n}


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("format_", FORMATS)
def test_refreshed_statistics_are_those_of_update_bn(
    format_: str, wrapped: bool, in_training: bool
) -> None:
    """With batches of equal size, which count alike in both."""
    ours = network(**FORMATS[format_])
    for _ in steps(ours):
        pass
    theirs = copy.deepcopy(ours)
    for model in (ours, theirs):
        model.train(in_training)
    momenta = [layer.momentum for layer in ours if hasattr(layer, "momentum")]
    before = copy.deepcopy(ours.state_dict())
    data = batches(48, 8, FORMATS[format_]["dtype"])
    update_bn([(x, torch.zeros(len(x))) for x in data] if wrapped else data, theirs)
    given = [[x, torch.zeros(len(x))] for x in data] if wrapped else data
    assert fge.refresh_batch_norm(ours, given, num_images=None) == 48
    rtol = CLOSE.get(FORMATS[format_]["dtype"], 0.05)  # bfloat16 rounds each of six updates
    assert_same(statistics(ours), statistics(theirs), rtol)
    changed = {n for n, b in ours.state_dict().items() if not torch.equal(b, before[n])}
    assert changed <= set(statistics(ours))
    assert [layer.momentum for layer in ours if hasattr(layer, "momentum")] == momenta
    assert all(module.training is in_training for module in ours.modules())


def test_unequal_batches_count_by_their_images() -> None:
    """As in update_bn, which counts batches, of each batch once for every six of its images."""
    data = batches(30, [12, 12, 6], torch.float64)
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    fge.refresh_batch_norm(ours, data, num_images=None)
    update_bn([part for part in data for _ in range(len(part) // 6)], theirs)
    found, expected = (
        {n: b for n, b in statistics(model).items() if "running" in n} for model in (ours, theirs)
    )
    assert_same(found, expected, CLOSE[torch.float64])


def test_what_update_bn_does_to_a_network_without_batch_norm_is_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 3), nn.LayerNorm(3)).double()
    before = copy.deepcopy(model.state_dict())
    assert fge.refresh_batch_norm(model, batches(8, 4, torch.float64)) == 0
    update_bn(batches(8, 4, torch.float64), model)
    assert_same(model.state_dict(), before, 0.0)


@pytest.mark.parametrize("average", [0.5, 1.0])
def test_an_averaged_network_with_refreshed_statistics_predicts_as_pytorchs(average: float) -> None:
    """The whole way: average over the tail of a training, statistics, prediction."""
    model = network(dtype=torch.float64)
    first = STEPS - round(average * STEPS)
    tail, oracle = fge.TailAverage(model, first_step=first), AveragedModel(model)
    for step, _ in enumerate(steps(model)):
        tail.step()
        if step >= first:
            oracle.update_parameters(model)
    data = batches(48, 8, torch.float64)
    ours = tail.module(data)
    update_bn(data, oracle)
    with torch.no_grad():
        expected = oracle.eval()(data[0])
        torch.testing.assert_close(ours(data[0]), expected, rtol=1e-11, atol=1e-11)
    probs = fge.Ensemble(model, [ours]).predict_proba([data[0]])
    np.testing.assert_allclose(probs, expected.softmax(1).numpy(), rtol=1e-11)
