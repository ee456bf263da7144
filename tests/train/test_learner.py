"""One training step, prediction, and the state that is kept between runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from fge.errors import UserError
from fge.networks import predict_proba, read_state, write_state
from fge.train import Learner, Speed


def make_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(
            dtype
        )


def batch(step: int, count: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    inputs = torch.randn(count, 4, generator=rng, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, 3, (count,), generator=rng)


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_steps_are_bitwise_those_of_a_plain_loop() -> None:
    model, plain = make_model(), make_model()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    learner = Learner(model, SGD(model.parameters(), **options))
    optimizer = SGD(plain.parameters(), **options)
    for step in range(6):
        inputs, targets = batch(step, count=8 - step % 2)
        loss = learner.step(inputs, targets)
        optimizer.zero_grad()
        expected = F.cross_entropy(plain(inputs), targets)
        expected.backward()
        optimizer.step()
        assert torch.equal(loss, expected.detach())
        assert not loss.requires_grad
    assert_same_weights(model, plain)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_on_a_quadratic_is_the_closed_form() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 5.0)
    learner = Learner(
        model, SGD(model.parameters(), lr=0.25), loss_fn=lambda w, m: ((w - m) ** 2).sum() / 2
    )
    one, minimum = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)
    losses = [float(learner.step(one, minimum)) for _ in range(3)]
    assert losses == pytest.approx([(3 * 0.75**k) ** 2 / 2 for k in range(3)], rel=1e-15)
    assert model.weight.item() == pytest.approx(2 + 3 * 0.75**3, rel=1e-15)


def test_predictions_are_probabilities_in_evaluation_mode() -> None:
    model = make_model(torch.float32).train()
    learner = Learner(model, SGD(model.parameters(), lr=0.1))
    batches = [batch(0, dtype=torch.float32), batch(1, count=3, dtype=torch.float32)]
    probs = learner.predict(batches)
    assert probs.shape == (11, 3)
    assert probs.dtype == torch.float64
    assert torch.equal(probs, predict_proba(model, batches))
    assert all(module.training for module in model.modules())


def test_a_restored_learner_goes_on_bitwise(tmp_path: Path) -> None:
    model = make_model()
    learner = Learner(model, SGD(model.parameters(), lr=0.1, momentum=0.9))
    for step in range(3):
        learner.step(*batch(step))
    write_state(tmp_path / "state", learner.state_dict())
    other = nn.Sequential(*copy.deepcopy(list(model)))
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    resumed = Learner(other, SGD(other.parameters(), lr=0.1, momentum=0.9))
    resumed.load_state_dict(read_state(tmp_path / "state"))
    for step in range(3, 6):
        assert torch.equal(learner.step(*batch(step)), resumed.step(*batch(step)))
    assert_same_weights(model, other)


def test_options_given_win_over_those_of_the_restored_run() -> None:
    model = make_model()
    learner = Learner(model, SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5))
    learner.step(*batch(0))
    state = copy.deepcopy(learner.state_dict())
    buffer = state["optimizer"][0]["momentum_buffer"].clone()

    other = make_model()
    optimizer = SGD(other.parameters(), lr=0.3, momentum=0.5, weight_decay=0.0)
    resumed = Learner(other, optimizer)
    resumed.load_state_dict(state)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.5, 0.0)
    weight = other[0].weight.detach().clone()
    probe = copy.deepcopy(other)
    F.cross_entropy(probe(batch(1)[0]), batch(1)[1]).backward()
    resumed.step(*batch(1))
    expected = weight - 0.3 * (0.5 * buffer + probe[0].weight.grad)
    assert torch.allclose(other[0].weight, expected, rtol=0, atol=1e-15)


def test_what_adam_remembers_is_restored_and_its_options_are_not() -> None:
    model, other = make_model(), make_model()
    learner = Learner(model, Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9)))
    learner.step(*batch(0))
    optimizer = Adam(other.parameters(), lr=0.2, betas=(0.5, 0.6))
    resumed = Learner(other, optimizer)
    resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    moments = optimizer.state_dict()["state"]
    for position, saved in learner.state_dict()["optimizer"].items():
        assert float(moments[position]["step"]) == 1
        assert torch.equal(moments[position]["exp_avg"], saved["exp_avg"])


def test_the_rate_set_by_a_schedule_survives_restoring() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    learner = Learner(model, optimizer)
    state = copy.deepcopy(learner.state_dict())
    optimizer.param_groups[0]["lr"] = 0.007
    learner.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.007


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_gradients_are_not_scaled_where_it_is_not_needed(amp: str) -> None:
    model = make_model(torch.float32)
    learner = Learner(model, SGD(model.parameters(), lr=0.1), Speed(amp=amp))
    assert not learner.scaler.is_enabled()
    assert learner.state_dict()["scaler"] == {}


def test_bf16_computes_in_bf16_and_keeps_float32_weights_and_finite_losses() -> None:
    dtypes = []
    model, plain = make_model(torch.float32), make_model(torch.float32)
    model[0].register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    learner = Learner(model, SGD(model.parameters(), lr=0.1), Speed(amp="bf16"))
    exact = Learner(plain, SGD(plain.parameters(), lr=0.1))
    for step in range(5):
        inputs, targets = batch(step, dtype=torch.float32)
        loss, expected = learner.step(inputs, targets), exact.step(inputs, targets)
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(expected), rel=3e-2)
        assert float(loss) != float(expected)
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    probs = learner.predict([batch(9, dtype=torch.float32)])
    assert torch.allclose(probs.sum(1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_channels_last_changes_the_layout_of_convolutions_only() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 3)).double()
    plain = copy.deepcopy(model)
    learner = Learner(model, SGD(model.parameters(), lr=0.1), Speed(channels_last=True))
    exact = Learner(plain, SGD(plain.parameters(), lr=0.1))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(4, 2, 5, 5, generator=rng, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0])
    loss = learner.step(images.contiguous(memory_format=torch.channels_last), targets)
    assert float(loss) == pytest.approx(float(exact.step(images, targets)), rel=1e-12)
    assert torch.allclose(model[0].weight, plain[0].weight, rtol=0, atol=1e-12)


def test_only_full_batches_go_through_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_sizes = []

    def compile_model(model: nn.Module, *, dynamic: bool) -> nn.Module:
        assert not dynamic

        def forward(inputs: Tensor) -> Tensor:
            compiled_sizes.append(len(inputs))
            outputs: Tensor = model(inputs)
            return outputs

        return forward  # type: ignore[return-value]

    monkeypatch.setattr(torch, "compile", compile_model)
    model, plain = make_model(), make_model()
    learner = Learner(model, SGD(model.parameters(), lr=0.1), Speed(compile=True), batch_size=8)
    exact = Learner(plain, SGD(plain.parameters(), lr=0.1))
    for count in (8, 5, 8):
        learner.step(*batch(count, count))
        exact.step(*batch(count, count))
    assert compiled_sizes == [8, 8]
    compiled_sizes.clear()
    learner.predict([batch(0, 6), batch(1, 6), batch(2, 2)])
    assert compiled_sizes == [6, 6]
    assert_same_weights(model, plain)


@pytest.mark.parametrize("fused", [True, False])
def test_a_state_from_a_file_goes_on_bitwise_in_channels_last(tmp_path: Path, fused: bool) -> None:
    """Files hold contiguous momentum; a fused step that mixed layouts would move wrong weights."""

    def make() -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        return Learner(model, optimizer, Speed(channels_last=True))

    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 3, 5, 5, generator=rng), torch.randint(0, 3, (8,), generator=rng))
        for _ in range(4)
    ]
    whole = make()
    for batch in batches[:2]:
        whole.step(*batch)
    write_state(tmp_path / "state.safetensors", whole.state_dict())
    resumed = make()
    resumed.load_state_dict(read_state(tmp_path / "state.safetensors"))
    for batch in batches[2:]:
        whole.step(*batch)
        resumed.step(*batch)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return what drops a part of a nested state."""

    def drop(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return drop


def other(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    """Return what replaces a part of a nested state."""

    def replace(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return replace


DAMAGED = [
    without("model"),
    without("optimizer"),
    without("scaler"),
    without("model", "0.weight"),
    without("optimizer", 0, "exp_avg"),
    other(3, "model"),
    other(None, "model", "0.weight"),
    other(torch.zeros(2), "model", "0.weight"),
    other(torch.zeros(2), "model", "more"),
    other([], "optimizer"),
    other({}, "optimizer", 99),
    other({"exp_avg": torch.zeros(2)}, "optimizer", "a"),
    other(None, "optimizer", 0),
    other({}, "optimizer", 0),
    other(None, "optimizer", 0, "exp_avg"),
    other(torch.zeros(2), "optimizer", 0, "exp_avg_sq"),
    other(1, "optimizer", 0, "step"),
    other("x", "scaler"),
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_state_is_refused_in_one_line(damage: Callable[[dict[str, Any]], None]) -> None:
    model = make_model()
    learner = Learner(model, Adam(model.parameters(), lr=0.1))
    learner.step(*batch(0))
    state = copy.deepcopy(learner.state_dict())
    learner.load_state_dict(copy.deepcopy(state))
    damage(state)
    with pytest.raises(
        UserError, match=r"^the saved training state is damaged: .*; restore it"
    ) as e:
        learner.load_state_dict(state)
    assert str(e.value).isprintable()


def test_what_another_optimizer_remembers_is_refused() -> None:
    model = make_model()
    learners = [
        Learner(model, SGD(model.parameters(), lr=0.1, momentum=0.9)),
        Learner(model, Adam(model.parameters(), lr=0.1)),
    ]
    for learner in learners:
        learner.step(*batch(0))
    states = [copy.deepcopy(learner.state_dict()) for learner in learners]
    for learner, state in zip(learners, reversed(states), strict=True):
        with pytest.raises(UserError, match="its optimizer remembers "):
            learner.load_state_dict(state)
