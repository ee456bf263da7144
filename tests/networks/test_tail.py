"""The mean of a tail in a loop of one's own, against means by hand in float64."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.errors import UserError
from fge.networks import StatisticsWarning


def make_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).to(dtype)


def make_batches(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(4)
    return [
        (torch.randn(8, 4, generator=rng).to(dtype), torch.randint(0, 3, (8,), generator=rng))
        for _ in range(6)
    ]


def run(
    tail: fge.TailAverage, model: nn.Module, optimizer: SGD, batches: list[tuple[Tensor, Tensor]]
) -> list[dict[str, Tensor]]:
    """Take a step on each batch; return the weights after each, in float64."""
    history = []
    for x, y in batches:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        tail.step()
        history.append({n: p.detach().double().clone() for n, p in model.named_parameters()})
    return history


def test_it_is_the_mean_of_the_weights_after_the_steps_from_the_first_on() -> None:
    model = make_model()
    tail = fge.TailAverage(model, first_step=2)
    history = run(tail, model, SGD(model.parameters(), lr=0.1), make_batches())
    assert (len(tail), tail.steps) == (4, 6)
    state = tail.state_dict()
    assert list(state) == list(model.state_dict())
    for name in history[0]:
        mean = torch.stack([weights[name] for weights in history[2:]]).mean(0)
        torch.testing.assert_close(state[name], mean, rtol=0, atol=1e-12)
    for name, buffer in model.named_buffers():
        assert torch.equal(state[name], buffer)


def test_a_mean_of_low_precision_weights_is_kept_in_float32() -> None:
    model = make_model(torch.bfloat16)
    tail = fge.TailAverage(model, first_step=0)
    batches = make_batches(torch.bfloat16) * 20
    history = run(tail, model, SGD(model.parameters(), lr=0.05), batches)
    for name, value in tail.progress()["mean"]["averages"].items():
        mean = torch.stack([weights[name] for weights in history]).mean(0)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-6)
    assert tail.state_dict()["0.weight"].dtype == torch.bfloat16


def test_a_module_has_the_mean_and_statistics_of_its_own() -> None:
    model = make_model()
    tail = fge.TailAverage(model, first_step=3)
    run(tail, model, SGD(model.parameters(), lr=0.1), make_batches())
    before = copy.deepcopy(model.state_dict())
    averaged = tail.module(refresh=make_batches())
    expected = make_model()
    expected.load_state_dict(tail.state_dict())
    fge.refresh_batch_norm(expected, make_batches())
    for name, value in expected.state_dict().items():
        assert torch.equal(averaged.state_dict()[name], value), name
    assert not averaged.training
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_progress_continues_in_mid_tail_bitwise() -> None:
    batches = make_batches()
    whole, cut = make_model(), make_model()
    first = fge.TailAverage(whole, first_step=1)
    run(first, whole, SGD(whole.parameters(), lr=0.1), batches)
    part = fge.TailAverage(cut, first_step=1)
    optimizer = SGD(cut.parameters(), lr=0.1)
    run(part, cut, optimizer, batches[:3])
    resumed = fge.TailAverage(cut, first_step=1)
    resumed.load_progress(copy.deepcopy(part.progress()))
    run(resumed, cut, optimizer, batches[3:])
    for name, value in first.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_within_swapped_the_model_has_the_mean_and_afterwards_its_own_weights() -> None:
    model = make_model()
    tail = fge.TailAverage(model, first_step=0)
    run(tail, model, SGD(model.parameters(), lr=0.1), make_batches())
    weights = [p.detach().clone() for p in model.parameters()]
    with tail.swapped():
        assert torch.equal(model[0].weight, tail.state_dict()["0.weight"])
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_a_compiled_model_is_seen_through() -> None:
    model = make_model()
    tail = fge.TailAverage(torch.compile(model, backend="eager"), first_step=0)  # type: ignore[arg-type]
    tail.step()
    assert list(tail.state_dict()) == list(model.state_dict())


def test_batch_norm_needs_inputs_for_statistics() -> None:
    tail = fge.TailAverage(make_model(), first_step=0)
    tail.step()
    with pytest.raises(UserError, match=r"batch norm.*give refresh=batches"):
        tail.module()
    kept = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    others = fge.TailAverage(kept, first_step=0)
    others.step()
    with pytest.raises(UserError, match=r"instance norm.*give refresh=batches"):
        others.module()
    plain = fge.TailAverage(nn.Linear(2, 2), first_step=0)
    plain.step()
    assert isinstance(plain.module(), nn.Linear)


class HandNorm(nn.Module):
    """Batch norm written by hand: the statistics are plain buffers."""

    running_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.5)
        return (x - self.running_mean) * self.scale


class FrozenHandNorm(HandNorm):
    """Named as libraries for detection name layers whose statistics are constants."""


def test_statistics_of_a_layer_of_ones_own_are_warned_of() -> None:
    model = nn.Sequential(nn.Linear(3, 3), HandNorm())
    tail = fge.TailAverage(model, first_step=0)
    model(torch.tensor([[1.0, 2.0, 3.0]]))
    tail.step()
    message = (
        "^the running statistics in HandNorm are those of other weights than the mean and cannot "
        "be estimated; set them from data, use PyTorch's batch norm, or keep the last weights$"
    )
    for refresh in (None, [torch.zeros(4, 3)]):
        with pytest.warns(StatisticsWarning, match=message) as caught:
            averaged = tail.module(refresh=refresh)
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)]
        assert torch.equal(averaged[1].running_mean, model[1].running_mean)


def test_constants_named_as_frozen_statistics_are_taken_for_such() -> None:
    tail = fge.TailAverage(nn.Sequential(nn.Linear(3, 3), FrozenHandNorm()), first_step=0)
    tail.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tail.module()


def test_a_mean_of_no_step_is_refused() -> None:
    tail = fge.TailAverage(make_model(), first_step=5)
    tail.step()
    with pytest.raises(UserError, match="1 steps were taken, and averaging starts after 5"):
        tail.state_dict()
    with pytest.raises(UserError, match="first_step must be >= 0, got -1"):
        fge.TailAverage(make_model(), first_step=-1)


def test_progress_is_a_copy_and_belongs_to_its_first_step() -> None:
    model = make_model()
    tail = fge.TailAverage(model, first_step=0)
    optimizer = SGD(model.parameters(), lr=0.1)
    run(tail, model, optimizer, make_batches())
    saved = tail.progress()
    before = copy.deepcopy(saved)
    run(tail, model, optimizer, make_batches())
    for name, value in saved["mean"]["averages"].items():
        assert torch.equal(value, before["mean"]["averages"][name])
    with pytest.raises(UserError, match="saved with first_step 0, got 2; give the same"):
        fge.TailAverage(model, first_step=2).load_progress(saved)


def test_a_lazy_model_is_averaged_once_it_has_weights() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    tail = fge.TailAverage(model, first_step=0)
    model(torch.zeros(1, 2))
    tail.step()
    assert torch.equal(tail.state_dict()["0.weight"], model[0].weight)


def test_integer_parameters_stay_as_they_are() -> None:
    model = nn.Linear(2, 1)
    model.register_parameter("count", nn.Parameter(torch.tensor([2**25 + 1]), requires_grad=False))
    tail = fge.TailAverage(model, first_step=0)
    tail.step()
    assert tail.state_dict()["count"].item() == 2**25 + 1


def test_a_mean_that_is_not_finite_is_named() -> None:
    model = nn.Linear(2, 1)
    tail = fge.TailAverage(model, first_step=0)
    model.bias.data.fill_(torch.nan)
    tail.step()
    with pytest.raises(UserError, match="the mean of 'bias' is not finite; lower the"):
        tail.state_dict()


def test_infinite_numbers_that_stay_are_those_of_the_mean() -> None:
    model = nn.Linear(2, 1)
    mask = torch.tensor([0.0, -torch.inf])
    model.register_parameter("mask", nn.Parameter(mask, requires_grad=False))
    tail = fge.TailAverage(model, first_step=0)
    for value in (1.0, 2.0, 6.0):
        model.bias.data.fill_(value)
        tail.step()
    assert torch.equal(tail.module().mask, mask)
    assert tail.state_dict()["bias"].item() == 3.0
    model.mask.data[0] = torch.inf  # not what it was
    tail.step()
    model.mask.data[0] = 1.0
    with pytest.raises(UserError, match="the mean of 'mask' is not finite"):
        tail.state_dict()


def test_refreshing_a_copy_draws_nothing_from_any_generator() -> None:
    model = make_model()
    tail = fge.TailAverage(model, first_step=0)
    tail.step()
    data, own = TensorDataset(make_batches()[0][0]), torch.Generator().manual_seed(2)
    for generator in (None, own):
        loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
        torch.manual_seed(1)
        tail.module(refresh=loader)
        drawn = torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(own.get_state(), torch.Generator().manual_seed(2).get_state())


def test_progress_of_another_model_is_refused() -> None:
    tail = fge.TailAverage(make_model(), first_step=0)
    other = fge.TailAverage(nn.Linear(2, 2), first_step=0)
    other.step()
    with pytest.raises(UserError, match="other parameters"):
        tail.load_progress(other.progress())


def test_a_step_while_the_model_holds_the_mean_is_refused() -> None:
    model = make_model()
    tail = fge.TailAverage(model, first_step=0)
    run(tail, model, SGD(model.parameters(), lr=0.1), make_batches())
    before = tail.state_dict()
    with tail.swapped():
        tail.state_dict()  # another swap within, which ends before this one
        with pytest.raises(UserError, match=r"leave the swapped\(\) block before the next step"):
            tail.step()
    assert len(tail) == tail.steps == 6
    assert all(torch.equal(value, before[name]) for name, value in tail.state_dict().items())
    tail.step()


def test_a_model_that_moves_to_another_dtype_is_still_averaged() -> None:
    model = nn.Linear(1, 1, bias=False)
    tail = fge.TailAverage(model, first_step=0)
    for value, dtype in ((1.0, torch.float32), (3.0, torch.float64)):
        model.to(dtype).weight.data.fill_(value)
        tail.step()
    assert tail.state_dict()["weight"].item() == 2.0


def test_buffers_that_the_block_replaces_come_back() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("mean", torch.tensor([5.0]))
    buffer = model.get_buffer("mean")
    tail = fge.TailAverage(model, first_step=0)
    tail.step()
    with tail.swapped():
        model.mean = 0.9 * model.get_buffer("mean")
        model.get_buffer("mean").add_(1)
    assert model.get_buffer("mean") is buffer
    assert buffer.item() == 5.0
