"""Averages of weights against closed forms and PyTorch's own, and what is refused."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fge
from fge.errors import UserError
from fge.networks import (
    ExponentialAverage,
    RunningAverage,
    TailAverage,
    UniformAverage,
    average_weights,
    read_state,
    write_state,
)


def network(seed: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return model.to(dtype)


def train_a_little(model: nn.Module, steps: int) -> Iterator[None]:
    """Yield after each step of SGD, gradients still there."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rng = torch.Generator().manual_seed(5)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(8, 4, generator=rng, dtype=torch.float64).to(dtype)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()
        yield


# --------------------------------------------------------------------------------- several networks


def test_the_average_of_two_states_is_half_their_sum() -> None:
    one, two = {"w": torch.tensor([1.0, -3.0])}, {"w": torch.tensor([2.0, 5.0])}
    assert average_weights([one, two])["w"].tolist() == [1.5, 1.0]
    assert one["w"].tolist() == [1.0, -3.0]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_the_average_is_numpys_in_float64(values: list[float]) -> None:
    states = [{"w": torch.tensor([value], dtype=torch.float32)} for value in values]
    average = float(average_weights(states)["w"])
    expected = np.mean(np.array(values, np.float64))
    scale = max(abs(value) for value in values)
    assert average == pytest.approx(expected, rel=6e-8, abs=1e-12 * scale)  # rounded to float32


def test_many_small_ones_beside_a_large_one_are_not_lost() -> None:
    """A running mean in float32 would stay at 2^24 times something."""
    states = [{"w": torch.tensor([float(2**24)])}, *[{"w": torch.tensor([1.0])}] * 255]
    assert float(average_weights(states)["w"]) == pytest.approx((2**24 + 255) / 256, rel=1e-7)


def test_equal_states_average_to_themselves_bitwise() -> None:
    state = network(0, torch.float32).state_dict()
    average = average_weights([state] * 7)
    assert all(torch.equal(average[name], state[name]) for name in state)


def test_floating_buffers_are_averaged_and_whole_numbers_are_the_last() -> None:
    first, last = network(0), network(1)
    first[1].running_mean.fill_(1.0)
    last[1].running_mean.fill_(4.0)
    last[1].num_batches_tracked.fill_(17)
    average = average_weights([first, last])
    assert average["1.running_mean"].tolist() == [2.5] * 5
    assert average["1.num_batches_tracked"] == 17
    assert average["1.num_batches_tracked"].dtype == torch.int64
    assert list(average) == list(first.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_rounding_happens_once(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(50, generator=rng).to(dtype)} for _ in range(5)]
    average = average_weights(states)["w"]
    exact = torch.stack([state["w"].double() for state in states]).mean(0)
    assert average.dtype == dtype
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-15
    assert bool(((average.double() - exact).abs() <= bound).all())


def test_complex_parameters_are_averaged() -> None:
    states = [{"w": torch.tensor([1 + 2j])}, {"w": torch.tensor([3 - 4j])}]
    assert average_weights(states)["w"].tolist() == [2 - 1j]


def test_an_infinite_buffer_that_all_share_stays() -> None:
    mask = torch.tensor([0.0, -torch.inf])
    assert torch.equal(average_weights([{"mask": mask}] * 3)["mask"], mask)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", [1, -1])
def test_a_member_that_diverged_is_named_and_leaves_the_average_as_it_was(
    odd: float, order: int
) -> None:
    first, second = [1.0, odd][::order]
    average = RunningAverage()
    average.update({"w": torch.tensor([2.0, first])})
    before = average.state_dict()["w"]
    with pytest.raises(UserError, match=r"member 1: tensor 'w' has no average with those"):
        average.update({"w": torch.tensor([2.0, second])})
    assert average.count == 1
    torch.testing.assert_close(average.state_dict()["w"], before, equal_nan=True)


def test_what_is_no_number_in_all_members_stays() -> None:
    states = [{"w": torch.tensor([math.nan, value])} for value in (1.0, 3.0)]
    torch.testing.assert_close(
        average_weights(states)["w"], torch.tensor([math.nan, 2.0]), equal_nan=True
    )


def test_the_result_is_contiguous_and_shares_no_memory() -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    average = average_weights([{"w": weight}])["w"]
    assert average.is_contiguous()
    assert torch.equal(average, weight)
    average.zero_()
    assert weight.abs().sum() > 0


def test_stores_state_dicts_and_modules_are_taken_one_by_one(tmp_path: Path) -> None:
    store = fge.SnapshotStore(tmp_path)
    models = [network(seed) for seed in range(3)]
    for model in models:
        store.append(model)
    expected = average_weights(models)
    for states in (store, [*store], (m.state_dict() for m in models), map(nn.DataParallel, models)):
        average = fge.average_weights(states)  # type: ignore[arg-type]
        assert all(torch.equal(average[name], expected[name]) for name in expected)


def test_memory_holds_no_more_than_the_average_and_one_state() -> None:
    kept: list[weakref.ref[Tensor]] = []
    most = 0

    def states() -> Iterator[dict[str, Tensor]]:
        nonlocal most
        for _ in range(10):
            tensor = torch.zeros(3)
            kept.append(weakref.ref(tensor))
            state = {"w": tensor}
            del tensor
            most = max(most, sum(reference() is not None for reference in kept))
            yield state
            del state

    average_weights(states())
    assert most <= 2


def test_including_leaves_the_average_as_it_was() -> None:
    average = RunningAverage()
    average.update({"w": torch.tensor([1.0])})
    wider = average.including({"w": torch.tensor([3.0])})
    assert (average.count, wider.count) == (1, 2)
    assert average.state_dict()["w"].tolist() == [1.0]
    assert wider.state_dict()["w"].tolist() == [2.0]


def test_the_average_of_quadratics_minimum_is_where_the_noise_cancels() -> None:
    """SWA's own argument: iterates around a minimum average to it."""
    minimum = torch.tensor([2.0, -1.0], dtype=torch.float64)
    around = [torch.tensor(v, dtype=torch.float64) for v in ([1, 0], [-1, 0], [0, 1], [0, -1])]
    average = average_weights([{"w": minimum + offset} for offset in around])["w"]
    assert torch.equal(average, minimum)


def test_no_states_are_refused() -> None:
    with pytest.raises(UserError, match="needs at least one state dict, got none"):
        average_weights([])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "member 1 has no tensor 'w', which member 0 has"),
        ({"w": torch.zeros(3)}, r"member 1: tensor 'w' has shape \(3,\), that of member 0 has"),
        ({"w": torch.zeros(2), "b": torch.zeros(1)}, "member 1 has a tensor 'b', which member 0"),
        ({"w": "text"}, "the model's state 'w' is a str; only tensors can be saved"),
    ],
)
def test_states_that_do_not_fit_are_named(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        average_weights([{"w": torch.zeros(2)}, other])


# ------------------------------------------------------------------------------ over the steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_average_is_pytorchs(dtype: torch.dtype) -> None:
    model = network(0, dtype)
    ours = ExponentialAverage(model, decay=0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in train_a_little(model, 6):
        ours.update(model)
        theirs.update_parameters(model)
    for name, parameter in theirs.module.named_parameters():
        assert torch.equal(ours.averages[name], parameter)


def test_it_is_the_weighted_sum_of_the_iterates() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average = ExponentialAverage(model, decay=0.75)
    for value in (4.0, 8.0, 16.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
    assert float(average.averages["weight"]) == 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 16
    assert average.updates == 3


def test_before_the_first_step_it_is_the_model_and_a_decay_of_0_follows_it() -> None:
    model = network(0)
    average = ExponentialAverage(model, decay=0.0)
    for _ in train_a_little(model, 2):
        average.update(model)
        for name, parameter in model.named_parameters():
            assert torch.equal(average.averages[name], parameter)
    assert all(not tensor.requires_grad for tensor in average.averages.values())


def test_low_precision_is_averaged_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 256.0)
    average = ExponentialAverage(model, decay=0.5)
    average.update(model)
    nn.init.constant_(model.weight, 258.0)
    average.update(model)
    nn.init.constant_(model.weight, 256.0)
    average.update(model)
    assert average.averages["weight"].dtype == torch.float32
    assert float(average.averages["weight"]) == 256.5  # bfloat16 has steps of 2 here
    with average.swapped(model):
        assert model.weight.dtype == torch.bfloat16
        assert float(model.weight.detach()) == 256.0


def test_swapped_puts_it_in_and_restores_everything_bitwise() -> None:
    model = network(0, torch.float32).to(memory_format=torch.channels_last)
    average = ExponentialAverage(model, decay=0.5)
    for _ in train_a_little(model, 3):
        average.update(model)
    seats = [parameter.data_ptr() for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.swapped(nn.DataParallel(model)):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, average.averages[name])
        assert torch.equal(model[1].running_mean, before["1.running_mean"])
        fge.refresh_batch_norm(model, [torch.randn(8, 4)])
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == seats
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


def test_swapped_restores_when_the_block_raises() -> None:
    model = network(0)
    average = ExponentialAverage(network(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def block() -> None:
        with average.swapped(model):
            assert not torch.equal(model[0].weight, before["0.weight"])
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_a_saved_state_goes_on_bitwise_and_holds_no_decay(tmp_path: Path) -> None:
    model = network(0, torch.float32)
    whole, first = (ExponentialAverage(model, decay=0.9) for _ in range(2))
    again = ExponentialAverage(network(1, torch.float32), decay=0.9)
    for step, _ in enumerate(train_a_little(model, 6)):
        whole.update(model)
        if step < 3:
            first.update(model)
        if step == 2:
            write_state(tmp_path / "state", first.state_dict())
            assert set(first.state_dict()) == {"updates", "averages"}
            again.load_state_dict(read_state(tmp_path / "state"))
        if step >= 3:
            again.update(model)
    assert again.updates == 6
    assert all(torch.equal(again.averages[name], whole.averages[name]) for name in whole.averages)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=rf"decay must be in \[0, 1\), got {decay}"):
        ExponentialAverage(network(0), decay=decay)


def test_other_parameters_are_refused_and_named() -> None:
    average = ExponentialAverage(nn.Linear(2, 3))
    other = nn.Linear(2, 4)
    message = (
        r"has other parameters than the average: 'weight' is \(4, 2\), the average has \(3, 2\)"
    )
    with pytest.raises(UserError, match=f"^the model {message}$"):
        average.update(other)
    with pytest.raises(UserError, match=r"^the model has other"), average.swapped(other):
        pass
    state = {"updates": 1, "averages": dict(other.named_parameters())}
    with pytest.raises(UserError, match=f"^the saved state {message}$"):
        average.load_state_dict(state)
    with pytest.raises(UserError, match=r"'bias' is missing, the average has \(3,\)$"):
        average.update(nn.Linear(2, 3, bias=False))


@pytest.mark.parametrize(
    "state",
    [{}, {"updates": 1}, {"updates": -1, "averages": {}}, {"updates": 1, "averages": {"w": 3}}, 3],
)
def test_a_damaged_state_is_refused(state: Any) -> None:
    average = ExponentialAverage(nn.Linear(2, 3))
    with pytest.raises(
        UserError, match=r"the saved average is damaged: .*; restore it from a copy"
    ):
        average.load_state_dict(state)


@pytest.mark.parametrize(
    ("use", "source"),
    [
        (lambda model: average_weights([model]), "the model's state "),
        (lambda model: TailAverage(model, 0).step(), ""),
        (ExponentialAverage, ""),
        (UniformAverage, ""),
    ],
)
def test_lazy_weights_are_averaged_after_a_batch(
    use: Callable[[nn.Module], object], source: str
) -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    message = f"^{source}'0.weight' has no shape yet; call the model on one batch first$"
    with pytest.raises(UserError, match=message):
        use(model)
    model(torch.zeros(1, 2))
    use(model)
