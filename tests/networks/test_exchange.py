"""States in a model in turn: each predicts as if loaded, and nothing else changes."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from fge.errors import UserError
from fge.networks import Exchange, copy_module

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    """Holds its weights a second time, in a list of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 3, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs[:, None])[0][:, 0]
        return outputs


class Counting(nn.Module):
    """Writes to a buffer in every forward pass, which the outputs depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("passing", torch.ones(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(inputs) * self.calls * self.passing


class Saying(nn.Linear):
    """Has a state beside its tensors."""

    scale = 1.0

    def get_extra_state(self) -> Any:
        return torch.tensor(self.scale)

    def set_extra_state(self, state: Any) -> None:
        self.scale = float(state)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.scale


def saying() -> nn.Module:
    model = Saying(4, 3)
    model.scale = float(torch.rand(()))
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    return model.train(model(torch.randn(9, 4)) is None)


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    prune.random_unstructured(model[0], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return model


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(normed())  # type: ignore[no-any-return]


MAKE: list[Callable[[], nn.Module]] = [
    *(normed, scripted, tied, pruned, saying, Recurrent, Counting),
    lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)),
    lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3)),
]
each_model = pytest.mark.parametrize("make", MAKE)


def members(make: Callable[[], nn.Module], count: int = 3) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(make().eval())
    return made


def states_of(models: list[nn.Module]) -> list[dict[str, Any]]:
    return [copy.deepcopy(dict(model.state_dict())) for model in models]


def outputs(exchange: Exchange, model: nn.Module, states: Any, *, keep: bool) -> list[Tensor]:
    return [model(INPUTS).detach() for _ in exchange.in_turn(model, states, keep=keep)]


@each_model
@pytest.mark.parametrize("keep", [True, False])
def test_each_predicts_as_if_it_had_been_loaded(make: Callable[[], nn.Module], keep: bool) -> None:
    *models, model = members(make, 4)
    states, exchange = states_of(models), Exchange()
    before = copy.deepcopy(states)
    own = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with torch.no_grad():
        expected = [copy_module(one)(INPUTS) for one in models]
    for _ in range(3):
        found = outputs(exchange, model, states, keep=keep)
        assert all(map(torch.equal, found, expected))
    for state, earlier in zip(states, before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in earlier.items())
    if make not in (saying, scripted):  # what loads in its own way is loaded, and stays
        assert all(torch.equal(tensor, own[n]) for n, tensor in model.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(map(torch.equal, outputs(exchange, model, states, keep=keep), expected))


def test_after_an_exception_the_parameters_are_the_model_s_own() -> None:
    *models, model = members(normed)
    own = [tensor.clone() for tensor in model.parameters()]
    turn = Exchange().in_turn(model, states_of(models), keep=True)
    next(turn)
    assert torch.equal(model[0].weight, models[0][0].weight)
    turn.close()
    assert all(map(torch.equal, model.parameters(), own))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_of_another_dtype_are_converted_as_by_loading(dtype: torch.dtype) -> None:
    *models, model = members(normed)
    exchange, states = Exchange(), states_of(models)
    outputs(exchange, model, states, keep=True)
    model.to(dtype)
    kinds = []
    for _ in exchange.in_turn(model, states, keep=True):
        kinds.append({p.dtype for p in model.parameters()})
        assert torch.equal(model[0].weight, states[len(kinds) - 1]["0.weight"].to(dtype))
    assert kinds == [{dtype}] * 2


def test_what_changes_in_the_model_or_in_a_state_is_seen() -> None:
    *models, model = members(normed)
    exchange, states = Exchange(), states_of(models)
    first = outputs(exchange, model, states, keep=True)
    model[2] = nn.Linear(5, 3)  # another layer in the place of the first
    assert all(map(torch.equal, outputs(exchange, model, states, keep=True), first))
    model[2].weight = nn.Parameter(torch.zeros(3, 5))
    assert all(map(torch.equal, outputs(exchange, model, states, keep=True), first))
    states[1]["2.weight"] = states[0]["2.weight"]
    states[1] |= {name: tensor for name, tensor in states[0].items() if name != "2.weight"}
    again = outputs(exchange, model, states, keep=True)
    assert torch.equal(again[0], again[1])


def test_a_state_that_does_not_fit_is_named_and_the_parameters_come_back() -> None:
    *models, model = members(normed)
    states = states_of(models)
    states[1]["0.weight"] = torch.zeros(4, 4)
    own = [tensor.clone() for tensor in model.parameters()]
    with pytest.raises(UserError, match="member 1"):
        outputs(Exchange(), model, states, keep=True)
    assert all(map(torch.equal, model.parameters(), own))


def test_parameters_lend_their_memory_and_kept_states_are_no_copies() -> None:
    *models, model = members(normed)
    exchange, states = Exchange(), states_of(models)
    for position, _ in enumerate(exchange.in_turn(model, states, keep=True)):
        assert model[0].weight.data_ptr() == states[position]["0.weight"].data_ptr()
        mean = model[1].running_mean
        assert mean is not None
        assert mean.data_ptr() != states[position]["1.running_mean"].data_ptr()


def test_it_is_copied_and_pickled_as_one_that_knows_nothing() -> None:
    *models, model = members(normed)
    exchange, states = Exchange(), states_of(models)
    expected = outputs(exchange, model, states, keep=True)
    for other in (copy.deepcopy(exchange), pickle.loads(pickle.dumps(exchange))):
        twin = copy.deepcopy(model)
        assert all(map(torch.equal, outputs(other, twin, states, keep=True), expected))
