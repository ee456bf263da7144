"""Averaged predictions against numpy, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fge import Ensemble, SnapshotStore
from fge.errors import UserError
from fge.networks import (
    RunningMean,
    encode_weights,
    nothing_yielded,
    predict_logits,
    predict_proba,
    reordered,
)

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def linear(seed: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    model = nn.Linear(4, 3, dtype=dtype)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=rng, dtype=torch.float64) * 2)
        model.bias.copy_(torch.randn(3, generator=rng, dtype=torch.float64))
    return model


def logits_of(model: nn.Linear, inputs: Tensor) -> Array:
    weight, bias = (p.detach().double().numpy() for p in (model.weight, model.bias))
    return np.asarray(inputs.double().numpy() @ weight.T + bias)


def inputs_of(count: int = 10) -> Tensor:
    rng = torch.Generator().manual_seed(99)
    return torch.randn(count, 4, generator=rng, dtype=torch.float64)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class PickInput(nn.Module):
    """A model that is called with keywords."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, ids: Tensor, scale: float) -> dict[str, Tensor]:
        return {"logits": self.inner(ids) * scale}


def call_with_keywords(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = model(ids=batch["ids"], scale=batch["scale"])["logits"]
    return logits


MEMBERS = [linear(seed) for seed in range(4)]
INPUTS = inputs_of()
MEAN_OF_PROBS = np.mean([softmax(logits_of(m, INPUTS)) for m in MEMBERS], axis=0)
SOFTMAX_OF_MEAN = softmax(np.mean([logits_of(m, INPUTS) for m in MEMBERS], axis=0))


def test_probabilities_of_one_model_are_the_softmax_of_its_logits() -> None:
    probs = predict_proba(MEMBERS[0], [INPUTS[:6], INPUTS[6:]])
    assert probs.dtype == torch.float64
    np.testing.assert_allclose(probs, softmax(logits_of(MEMBERS[0], INPUTS)), rtol=0, atol=1e-12)


def test_the_ensemble_predicts_the_mean_of_the_members_probabilities() -> None:
    probs = Ensemble(linear(50), MEMBERS).predict_proba([INPUTS[:7], INPUTS[7:]])
    assert probs.shape == (10, 3)
    np.testing.assert_allclose(probs, MEAN_OF_PROBS, rtol=0, atol=1e-12)


def test_forward_gives_the_mean_of_the_members_probabilities() -> None:
    probs = Ensemble(linear(50), MEMBERS)(INPUTS)
    np.testing.assert_allclose(probs.detach(), MEAN_OF_PROBS, rtol=0, atol=1e-12)


def test_logits_are_averaged_before_the_softmax_on_demand() -> None:
    assert np.abs(SOFTMAX_OF_MEAN - MEAN_OF_PROBS).max() > 0.01, "the two differ here"
    ensemble = Ensemble(linear(50), MEMBERS, combine="logits")
    for probs in (ensemble.predict_proba([INPUTS]), ensemble(INPUTS).detach()):
        np.testing.assert_allclose(probs, SOFTMAX_OF_MEAN, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_keeps_the_models_dtype_and_rounds_only_at_the_end(dtype: torch.dtype) -> None:
    members = [linear(seed, dtype) for seed in range(4)]
    inputs = INPUTS.to(dtype)
    with torch.no_grad():
        probs = Ensemble(members[0], members)(inputs)
        exact = torch.stack([m(inputs).double().softmax(1) for m in members]).mean(0)
    assert probs.dtype == dtype
    assert (probs.double() - exact).abs().max() <= torch.finfo(dtype).eps / 2


def test_predict_proba_averages_in_float64_for_float32_models() -> None:
    members = [linear(seed, torch.float32) for seed in range(4)]
    inputs = INPUTS.float()
    probs = Ensemble(members[0], members).predict_proba([inputs])
    with torch.no_grad():
        exact = torch.stack([m(inputs).double().softmax(1) for m in members]).mean(0)
    assert probs.dtype == torch.float64
    assert (probs - exact).abs().max() <= 1e-15
    assert (probs.sum(1) - 1).abs().max() <= 1e-14


def test_members_may_be_a_store_state_dicts_or_modules(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for member in MEMBERS:
        store.append(member)
    mixed = [MEMBERS[0], MEMBERS[1].state_dict(), nn.DataParallel(MEMBERS[2]), store[3]]
    for members in (store, list(store), [m.state_dict() for m in MEMBERS], MEMBERS, mixed):
        ensemble = Ensemble(linear(50), members)  # type: ignore[arg-type]
        assert len(ensemble) == 4
        np.testing.assert_allclose(
            ensemble.predict_proba([INPUTS]), MEAN_OF_PROBS, rtol=0, atol=1e-12
        )


def test_members_may_be_weights_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.pt"
    first.write_bytes(encode_weights(MEMBERS[0].state_dict()))
    torch.save(MEMBERS[1].state_dict(), second)
    ensemble = Ensemble(linear(50), [first, str(second), *MEMBERS[2:]])
    np.testing.assert_allclose(ensemble.predict_proba([INPUTS]), MEAN_OF_PROBS, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match=r"no weights file .*c\.pt"):
        Ensemble(linear(50), [tmp_path / "c.pt"])


def test_members_stay_in_evaluation_mode_when_the_ensemble_is_told_to_train() -> None:
    members = [nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), linear(seed)) for seed in range(3)]
    ensemble = Ensemble(members[0].double(), [member.double() for member in members])
    before = ensemble(INPUTS)
    assert ensemble.train() is ensemble
    assert ensemble.training
    assert not any(modes(ensemble.model))
    assert torch.equal(ensemble(INPUTS), before)
    assert torch.equal(nn.Sequential(ensemble).train()(INPUTS), before)


def test_the_architecture_may_be_given_wrapped() -> None:
    probs = Ensemble(nn.DataParallel(linear(50)), MEMBERS).predict_proba([INPUTS])
    np.testing.assert_allclose(probs, MEAN_OF_PROBS, rtol=0, atol=1e-12)


def test_one_member_predicts_as_it_does_alone() -> None:
    probs = Ensemble(linear(50), MEMBERS[:1]).predict_proba([INPUTS])
    assert torch.equal(probs, predict_proba(MEMBERS[0], [INPUTS]))


def test_batches_may_hold_targets_behind_the_inputs() -> None:
    targets = torch.zeros(10, dtype=torch.int64)
    ensemble = Ensemble(linear(50), MEMBERS)
    for batch in ((INPUTS, targets), [INPUTS, targets, "a note"]):
        np.testing.assert_allclose(
            ensemble.predict_proba([batch]), MEAN_OF_PROBS, rtol=0, atol=1e-12
        )


def test_forward_fn_calls_models_of_any_signature() -> None:
    members = [PickInput(member) for member in MEMBERS]
    batches = [{"ids": INPUTS[:5], "scale": 1.0}, {"ids": INPUTS[5:], "scale": 1.0}]
    ensemble = Ensemble(PickInput(linear(50)), members, forward_fn=call_with_keywords)
    np.testing.assert_allclose(ensemble.predict_proba(batches), MEAN_OF_PROBS, rtol=0, atol=1e-12)
    whole = ensemble({"ids": INPUTS, "scale": 1.0}).detach()
    np.testing.assert_allclose(whole, MEAN_OF_PROBS, rtol=0, atol=1e-12)
    alone = predict_proba(members[0], batches, forward_fn=call_with_keywords)
    np.testing.assert_allclose(alone, softmax(logits_of(MEMBERS[0], INPUTS)), rtol=0, atol=1e-12)


def test_members_do_not_change_with_later_training() -> None:
    member = linear(1)
    ensemble = Ensemble(member, [member])
    before = ensemble.predict_proba([INPUTS])
    nn.init.zeros_(member.weight)
    assert torch.equal(ensemble.predict_proba([INPUTS]), before)


def test_the_given_model_is_not_changed() -> None:
    model = linear(50).train()
    before = model.weight.detach().clone()
    Ensemble(model, MEMBERS).predict_proba([INPUTS])
    assert torch.equal(model.weight, before)
    assert model.training


def test_each_member_predicts_with_its_own_batch_norm_statistics() -> None:
    def member(mean: float) -> nn.BatchNorm1d:
        model = nn.BatchNorm1d(4, eps=0, affine=False, dtype=torch.float64)
        model.running_mean = torch.full((4,), mean, dtype=torch.float64) * torch.arange(4)
        return model

    members = [member(0.5).train(), member(-1.0).train()]
    ensemble = Ensemble(members[0], members)
    shifts = [0.5 * np.arange(4), -1.0 * np.arange(4)]
    expected = np.mean([softmax(INPUTS.numpy() - shift) for shift in shifts], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba([INPUTS]), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ensemble(INPUTS), expected, rtol=0, atol=1e-12)


def mixed_modes() -> nn.Sequential:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    model[1].eval()  # frozen statistics
    return model


def test_a_models_modes_are_restored_one_by_one() -> None:
    model = mixed_modes()
    before = modes(model)
    seen = []

    def forward(m: nn.Module, batch: Tensor) -> Tensor:
        seen.append(any(modes(m)))
        logits: Tensor = m(batch)
        return logits

    predict_proba(model, [INPUTS, INPUTS], forward_fn=forward)
    assert seen == [False, False]
    assert modes(model) == before == [True, True, False, True]


def test_a_models_modes_are_restored_when_it_raises() -> None:
    model = mixed_modes()
    with pytest.raises(RuntimeError):
        predict_proba(model, [INPUTS, torch.zeros(2, 5, dtype=torch.float64)])
    assert modes(model) == [True, True, False, True]


def test_a_models_modes_are_restored_when_the_batches_raise() -> None:
    model = mixed_modes()

    def batches() -> Iterator[Tensor]:
        yield INPUTS
        raise KeyError("no such image")

    with pytest.raises(KeyError, match="no such image"):
        predict_proba(model, batches())
    assert modes(model) == [True, True, False, True]


def test_predicting_leaves_batch_norm_statistics_and_gradients_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probs = predict_proba(model, [INPUTS])
    assert not probs.requires_grad
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_model_keeps_while_predicting_can_be_trained_with() -> None:
    class Caching(nn.Module):
        """Computes its positions once, as models with rotary or sine embeddings do."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3, dtype=torch.float64)
            self.positions: Tensor | None = None

        def forward(self, inputs: Tensor) -> Tensor:
            if self.positions is None:
                self.positions = torch.arange(1.0, 4.0, dtype=torch.float64).cos()
            logits: Tensor = self.linear(inputs) * self.positions
            return logits

    model = Caching()
    predict_proba(model, [INPUTS])
    model(INPUTS).sum().backward()
    assert model.linear.weight.grad is not None


def test_a_generator_is_refused_since_it_is_used_up_by_one_member() -> None:
    ensemble = Ensemble(linear(50), MEMBERS)
    with pytest.raises(UserError, match="iterable more than once, got a generator; give a list"):
        ensemble.predict_proba(batch for batch in [INPUTS])


def test_one_model_may_read_a_generator_once_and_says_when_it_is_used_up() -> None:
    batches = iter([INPUTS])
    assert predict_proba(MEMBERS[0], batches).shape == (10, 3)
    with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
        predict_proba(MEMBERS[0], batches)


def test_no_batches_are_refused() -> None:
    with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
        Ensemble(linear(50), MEMBERS).predict_proba([])


def test_batches_that_are_used_up_after_one_pass_are_found_out() -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter([INPUTS])

        def __iter__(self) -> Iterator[Tensor]:
            return self.batches

    with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
        Ensemble(linear(50), MEMBERS).predict_proba(Once())


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: (x, torch.zeros(len(x)))])
def test_batches_that_change_their_order_are_refused(pack: Callable[[Tensor], Any]) -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            yield pack(INPUTS.roll(self.passes, dims=0))

    with pytest.raises(UserError, match=f"^{reordered()}$"):
        Ensemble(linear(50), MEMBERS).predict_proba(Shuffled())


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda m, x: m(x)[:, 0], r"\(10,\)"),
        (lambda m, x: m(x)[:, :, None], r"\(10, 3, 1\)"),
        (lambda m, x: (m(x),), "tuple"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(
    forward: Callable[[nn.Module, Tensor], Tensor], shape: str
) -> None:
    message = rf"must return logits of shape \(N, C\), got {shape}; for .* give loss_fn="
    with pytest.raises(UserError, match=message):
        list(predict_logits(MEMBERS[0], [INPUTS], forward_fn=forward))


def test_inputs_are_cast_with_the_ensemble() -> None:
    ensemble = Ensemble(linear(50), MEMBERS)
    exact, cast = ensemble(INPUTS), ensemble.deployable().half()
    single = ensemble.float()(INPUTS)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-6, rtol=0)
    half = ensemble.half()
    assert half(INPUTS).dtype == torch.float16
    torch.testing.assert_close(half(INPUTS).float(), cast(INPUTS), atol=1e-3, rtol=0)
    torch.testing.assert_close(half(INPUTS), half(INPUTS.half()))
    inputs = INPUTS.clone().requires_grad_()
    half(inputs)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.float64
    probs = half.predict_proba([(INPUTS, INPUTS)])
    torch.testing.assert_close(probs, exact, atol=2e-3, rtol=0)
    torch.testing.assert_close(half.double()(INPUTS), exact, atol=1e-6, rtol=0)


def test_an_ensemble_of_nobody_is_refused(tmp_path: Path) -> None:
    for members in ([], SnapshotStore(tmp_path)):
        with pytest.raises(UserError, match="at least one member, got none"):
            Ensemble(linear(50), members)  # type: ignore[arg-type]


def test_a_member_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"member 1: tensor 'weight' has shape \(2, 4\)"):
        Ensemble(linear(50), [MEMBERS[0], nn.Linear(4, 2)])
    with pytest.raises(UserError, match="member 0 has no tensor 'bias'"):
        Ensemble(linear(50), [{"weight": torch.zeros(3, 4)}])


def test_an_unknown_way_to_combine_is_refused() -> None:
    with pytest.raises(UserError, match="combine must be 'probs' or 'logits', got 'median'"):
        Ensemble(linear(50), MEMBERS, combine="median")  # type: ignore[arg-type]


def test_the_running_mean_is_numpys_in_float64() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1e4, 1, size=(50, 3, 2)).astype(np.float32)
    mean = RunningMean()
    for count, value in enumerate(values, start=1):
        so_far = mean.update(torch.from_numpy(value))
        expected = values[:count].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(so_far, expected, rtol=1e-14, atol=0)
    assert mean.count == 50
    assert mean.value.dtype == torch.float64


def test_the_running_mean_does_not_change_what_it_is_given() -> None:
    first = torch.zeros(2, dtype=torch.float64)
    mean = RunningMean()
    mean.update(first)
    mean.update(torch.ones(2, dtype=torch.float64))
    assert first.tolist() == [0.0, 0.0]
    assert mean.value.tolist() == [0.5, 0.5]
