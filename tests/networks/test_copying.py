"""Copies of modules that ``copy.deepcopy`` refuses: they compute what the original does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD

import fge
from fge.errors import UserError
from fge.networks import build_model, check_copyable, copy_module

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


class Keeping(nn.Module):
    """Keeps its last activations, as models with attention maps do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.kept: dict[str, Any] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        self.kept["outputs"] = [outputs, (outputs.exp(),)]
        return outputs


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.inner.lock = threading.Lock()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        return outputs


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def spectrally_normed() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3))


MODELS = [weight_normed, spectrally_normed, pruned, parametrized, Keeping]
each_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def inputs() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


def used(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model after a forward pass, whose computed tensors have a graph."""
    torch.manual_seed(0)
    model = make()
    model(inputs())
    return model


@each_model
def test_a_copy_computes_the_same_and_shares_nothing(make: Callable[[], nn.Module]) -> None:
    model = used(make)
    copied = copy_module(nn.DataParallel(model))
    assert type(copied) is type(model)
    model.eval(), copied.eval()
    before = model(inputs())
    assert torch.equal(copied(inputs()), before)
    copied(inputs()).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(model(inputs()), before)


@each_model
def test_an_ensemble_of_the_cycle_averages_its_snapshots(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = used(make)
    optimizer = SGD(model.parameters(), lr=0.1)
    cycle = fge.FGE(model, optimizer, cycle_steps=2, max_lr=0.5, min_lr=0.1, out=tmp_path)
    for _ in range(3):
        model(inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        cycle.step()
    ensemble, expected = cycle.ensemble(), []
    for state in cycle.store:
        member = make().eval()
        member.load_state_dict(state)
        with torch.no_grad():
            expected.append(member(inputs()).double().softmax(1))
    assert len(expected) == 2
    probs = ensemble.predict_proba([inputs()])
    torch.testing.assert_close(probs, torch.stack(expected).mean(0), rtol=0, atol=1e-7)


@each_model
def test_a_tail_average_gives_a_module_of_the_mean(make: Callable[[], nn.Module]) -> None:
    model = used(make)
    tail = fge.TailAverage(model, first_step=0)
    with torch.no_grad():
        for factor in (1.0, 3.0):
            for parameter in model.parameters():
                parameter.mul_(factor)
            tail.step()
    expected = make().eval()
    expected.load_state_dict(tail.state_dict())
    assert torch.equal(tail.module()(inputs()), expected(inputs()))


@each_model
def test_members_are_folded(make: Callable[[], nn.Module]) -> None:
    model = used(make)
    batches = [(inputs(), torch.arange(6) % 3)]
    result = fge.fold(model, [model.state_dict()] * 2, batches, refresh=batches)
    assert result.folded == (0, 1)
    assert set(result.state) == set(model.state_dict())


def test_what_cannot_be_copied_is_named_before_the_training(tmp_path: Path) -> None:
    model = Locked()
    message = "the model, a Locked, cannot be copied because of its attribute 'inner.lock': TypeErr"
    for refuse in (copy_module, check_copyable):
        with pytest.raises(UserError, match=message):
            refuse(model)
    with pytest.raises(UserError, match=message):
        fge.FGE(
            model, SGD(model.parameters()), cycle_steps=2, max_lr=1, min_lr=0, out=tmp_path / "s"
        )
    assert not (tmp_path / "s").exists()


class Fresh(nn.Linear):
    """Copies itself without its weights, as classes do that call their constructor again."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Fresh:
        return Fresh(self.in_features, self.out_features)


def test_a_copy_with_other_weights_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Fresh(2, 2))
    model[0].bias.data[0] = torch.nan
    with pytest.raises(
        UserError, match=r"has another '1.weight' than the model; correct its __dee"
    ):
        copy_module(model)
    assert copy_module(model[0]).bias[0].isnan()


def test_a_mean_that_cannot_be_copied_is_not_lost() -> None:
    model = Locked()
    tail = fge.TailAverage(model, first_step=0)
    tail.step()
    with pytest.raises(UserError, match="remove what cannot be copied, or give it a __deepcopy__"):
        tail.module()
    assert torch.equal(tail.state_dict()["inner.weight"], model.inner.weight)


def test_a_check_takes_no_memory_for_weights() -> None:
    class Counting(nn.Parameter):
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
            Counting.copies += 1
            return nn.Parameter(self.data.clone())

    model = nn.Linear(2, 2)
    model.weight = Counting(torch.ones(2, 2))
    check_copyable(model)
    assert Counting.copies == 0
    copy_module(model)
    assert Counting.copies == 1


def build_locked() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Locked())


def test_a_factory_whose_model_cannot_be_copied_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fge.networks.build.import_named", lambda *_: build_locked)
    with pytest.raises(UserError, match=r"^the model, a Sequential, cannot be copied because of"):
        build_model("own:build_locked", in_channels=1, num_classes=3, image_size=(2, 2))
