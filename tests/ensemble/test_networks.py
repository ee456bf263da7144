"""Members in memory as networks: they predict as in turn, and changes count."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from fge.ensemble import Ensemble

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Counting(nn.Module):
    """Writes to a buffer in every forward pass, which the outputs depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(inputs) * self.calls


class Recurrent(nn.Module):
    """Holds its weights a second time, in a list of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 3, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs[:, None])[0][:, 0]
        return outputs


def normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model(torch.randn(9, 4))
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


MAKE: list[Callable[[], nn.Module]] = [
    *(normed, tied, Recurrent, Counting),
    lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))),
]


def models(make: Callable[[], nn.Module] = normed, count: int = 3) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(make().eval())
    return made


def in_turn(members: list[nn.Module]) -> Ensemble:
    """Return an ensemble whose working copy has been looked at: members take turns in it."""
    ensemble = Ensemble(members[0], members)
    assert ensemble.model is not members[0]
    return ensemble


@pytest.mark.parametrize("make", MAKE)
def test_networks_predict_as_the_working_copy_does(make: Callable[[], nn.Module]) -> None:
    members = models(make)
    own, working = Ensemble(members[0], members), in_turn(members)
    for _ in range(3):
        assert torch.equal(own(INPUTS), working(INPUTS))
        expected = working.predict_members([INPUTS, INPUTS[:2]])
        assert torch.equal(own.predict_members([INPUTS, INPUTS[:2]]), expected)


def test_parameters_are_the_tensors_of_the_members_and_buffers_are_copies() -> None:
    ensemble = Ensemble(nn.BatchNorm1d(4), [nn.BatchNorm1d(4), nn.BatchNorm1d(4)])
    for network, state in zip(ensemble._in_turn(), ensemble.members, strict=True):
        assert network.weight.data_ptr() == state["weight"].data_ptr()
        assert network.running_mean.data_ptr() != state["running_mean"].data_ptr()
        assert not network.weight.requires_grad
    networks = list(ensemble._in_turn())
    assert len(set(map(id, networks))) == 2
    assert all(a is b for a, b in zip(networks, ensemble._in_turn(), strict=True))


def test_a_hook_on_the_working_copy_hears_of_each_member() -> None:
    ensemble = Ensemble(*(lambda members: (members[0], members))(models()))
    ensemble(INPUTS)  # the networks are made before
    heard: list[Tensor] = []
    ensemble.model.register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    ensemble(INPUTS)
    assert len(heard) == 3


@pytest.mark.parametrize("look", ["modules", "apply", "children"])
def test_a_change_to_modules_of_the_working_copy_counts_for_each_member(look: str) -> None:
    members = models()
    ensemble = Ensemble(members[0], members)
    before = ensemble(INPUTS)

    def drop(module: nn.Module) -> None:
        if isinstance(module, nn.Dropout):
            module.p, module.training = 1.0, True

    if look == "apply":
        ensemble.apply(drop)
    else:
        found = ensemble.modules() if look == "modules" else next(ensemble.children()).modules()
        list(map(drop, found))
    expected = torch.stack([member[3].bias.softmax(0) for member in members]).mean(0)
    assert not torch.allclose(before, expected.expand(6, 3))
    torch.testing.assert_close(ensemble(INPUTS), expected.expand(6, 3))


def test_a_change_to_a_member_is_seen() -> None:
    members = models()
    ensemble = Ensemble(members[0], members[:2])
    ensemble(INPUTS)
    assert isinstance(ensemble.members, list)
    ensemble.members[0]["3.bias"].add_(1.0)  # in the memory of its network
    ensemble.members[1] = {n: t.clone() for n, t in members[2].state_dict().items()}
    with torch.no_grad():
        members[0][3].bias.add_(1.0)
    assert torch.equal(ensemble(INPUTS), Ensemble(members[0], [members[0], members[2]])(INPUTS))


def test_other_values_that_are_loaded_or_cast_are_those_that_predict() -> None:
    one, other = models(count=2), models(count=4)[2:]
    ensemble = Ensemble(one[0], one)
    ensemble(INPUTS)
    ensemble.load_state_dict(Ensemble(other[0], other).state_dict())
    assert torch.equal(ensemble(INPUTS), Ensemble(other[0], other)(INPUTS))
    wide = [copy.deepcopy(member).double() for member in other]
    assert torch.equal(ensemble.double()(INPUTS), Ensemble(wide[0], wide)(INPUTS.double()))


def test_copies_and_pickles_have_networks_of_their_own() -> None:
    members = models()
    ensemble = Ensemble(members[0], members)
    expected = ensemble(INPUTS)
    for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert torch.equal(other(INPUTS), expected)
        assert all(a is not b for a, b in zip(other._in_turn(), ensemble._in_turn(), strict=True))


def test_threads_predict_as_one_does() -> None:
    members = models(Counting)  # wrong if two threads were in it at a time
    ensemble = Ensemble(members[0], members)
    expected = ensemble(INPUTS)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(one, expected) for one in pool.map(ensemble, [INPUTS] * 40))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("combine", ["probs", "logits"])
@pytest.mark.parametrize(("shape", "dim"), [((5, 3), 1), ((5, 3), -1), ((2, 3, 4, 4), 1)])
def test_few_outputs_are_averaged_together_as_one_by_one(
    kind: str, combine: str, shape: tuple[int, ...], dim: int
) -> None:
    model = nn.Identity()
    outputs = Ensemble(model, [model], output=kind, output_dim=dim, combine=combine).outputs  # type: ignore[arg-type]
    given = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    together = outputs.mean_of(iter(given.double()), 4)
    apart = outputs.mean_of(iter(given.double()), 1 << 16)
    torch.testing.assert_close(together, apart, rtol=1e-14, atol=1e-15)
    values = torch.stack([outputs.averaged(one) for one in given])
    torch.testing.assert_close(together, outputs.finished(values.mean(0)), rtol=1e-14, atol=1e-15)
    assert torch.equal(outputs.mean_of(iter(given), 4), together.float())
