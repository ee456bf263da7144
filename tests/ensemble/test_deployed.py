"""The deployable form of an ensemble: same predictions compiled, exported, halved; gradients."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from small_ensembles import COUNT, ensemble_of, images_of, small_net, used
from torch import Tensor, nn

from fge import Deployed, Ensemble, Normalise
from fge.data import Normaliser
from fge.errors import UserError
from fge.networks import build_model

ROUNDING = 1e-6
"""Between averages in float32 and in float64."""
MEAN, STD = [100.0, 120.0], [50.0, 60.0]


def exported(model: nn.Module, *inputs: Tensor) -> Callable[[Tensor], Tensor]:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(model, inputs, dynamic_shapes=shapes).module()


OUTPUTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "logits": {"combine": "logits"},
    "sigmoid": {"output": "sigmoid"},
    "one-sigmoid": {"output": "sigmoid", "width": 1},
    "regression": {"output": "identity", "width": 5},
    "function": {"output": lambda z: z.softmax(1) @ torch.ones(3, 2, dtype=torch.float64)},
}


@pytest.mark.parametrize("options", OUTPUTS.values(), ids=OUTPUTS)
def test_every_output_is_predicted_the_same_by_eager_and_exported_forms(
    options: dict[str, Any],
) -> None:
    ensemble = ensemble_of(**options)
    inputs = torch.randn(7, 2, 8, 8)
    expected = ensemble(inputs)
    deployed = ensemble.deployable()
    found = deployed(inputs)
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
    program = exported(deployed, inputs)
    for count in (1, 4, 7):  # a batch of any size
        torch.testing.assert_close(program(inputs[:count]), found[:count], rtol=0, atol=ROUNDING)


def test_images_are_normalised_within_the_exported_form() -> None:
    side = 16
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_model("convnet", in_channels=3, num_classes=4, image_size=(side, side))
        members.append(used(model, 3, side))
    ensemble = Ensemble(members[0], members)
    images = images_of(3, 3, side)
    statistics = [80.0, 90.0, 100.0], [60.0, 70.0, 80.0]
    expected = ensemble(Normaliser(*statistics, torch.device("cpu"))(images))
    assert float(expected.std(0).max()) > 1e-4, "the images make a difference"
    deployed = ensemble.deployable(preprocess=Normalise(*statistics))
    torch.testing.assert_close(deployed(images), expected, rtol=0, atol=ROUNDING)
    program = exported(deployed, images)
    torch.testing.assert_close(program(images[:1]), expected[:1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_compiler_traces_the_whole_form_at_once() -> None:
    ensemble = ensemble_of()
    deployed = ensemble.deployable()
    compiled = torch.compile(deployed, backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (2, 5):
        inputs = torch.randn(count, 2, 8, 8)
        torch.testing.assert_close(compiled(inputs), ensemble(inputs), rtol=0, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_forms_predict_the_same() -> None:
    ensemble = ensemble_of()
    inputs = torch.randn(5, 2, 8, 8)
    expected = ensemble(inputs)
    deployed = torch.compile(ensemble.deployable(), fullgraph=True)
    torch.testing.assert_close(deployed(inputs), expected, rtol=0, atol=1e-5)
    exchanging = torch.compile(
        ensemble, backend="eager"
    )  # in pieces, between which it exchanges the weights
    for _ in range(2):
        torch.testing.assert_close(exchanging(inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracers_would_record_one_member_and_are_refused_by_the_ensemble_itself() -> None:
    ensemble, inputs = ensemble_of(), torch.randn(2, 2, 8, 8)
    tracers: list[Callable[[nn.Module], Any]] = [
        lambda module: torch.export.export(module, (inputs,)).module(),
        lambda module: torch.jit.trace(module, inputs),
    ]
    for trace in tracers:
        with pytest.raises(
            UserError, match=r"Ensemble; give them ensemble\.deployable\(\), which "
        ):
            trace(ensemble)
        found = trace(ensemble.deployable())(inputs)
        torch.testing.assert_close(found, ensemble(inputs), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("form", ["ensemble", "deployable", "exported"])
@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_gradients_to_the_inputs_are_those_of_the_mean_of_the_members(
    form: str, combine: Any
) -> None:
    ensemble = ensemble_of(combine=combine).double()
    members = [small_net(seed).double() for seed in range(COUNT)]
    given = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    weights = torch.randn(4, 3, dtype=torch.float64)

    def gradient(predict: Callable[[Tensor], Tensor]) -> Tensor:
        inputs = given.clone().requires_grad_()
        outputs = predict(inputs)
        assert outputs.requires_grad
        return torch.autograd.grad((outputs * weights).sum(), inputs)[0]

    def mean(inputs: Tensor) -> Tensor:
        if combine == "probs":
            return torch.stack([m(inputs).softmax(1) for m in members]).mean(0)
        return torch.stack([m(inputs) for m in members]).mean(0).softmax(1)

    expected = gradient(mean)
    assert float(expected.abs().max()) > 1e-3
    deployed = ensemble.deployable()
    forms = {"ensemble": ensemble, "deployable": deployed}
    predict = forms[form] if form in forms else exported(deployed, given)
    torch.testing.assert_close(gradient(predict), expected, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in (*ensemble.parameters(), *deployed.parameters()))


def test_gradients_reach_inputs_in_any_container_of_a_model_called_in_its_own_way() -> None:
    ensemble = ensemble_of(forward_fn=lambda model, batch: model(batch["pixels"]) * batch["scale"])
    batch = {"pixels": torch.randn(2, 2, 8, 8, requires_grad=True), "scale": torch.ones(2, 1)}
    for form in (ensemble, ensemble.deployable()):
        [found] = torch.autograd.grad(form(batch)[:, 0].sum(), [batch["pixels"]])
        members = [small_net(seed) for seed in range(COUNT)]
        mean = torch.stack([m(batch["pixels"]).softmax(1) for m in members]).mean(0)
        [expected] = torch.autograd.grad(mean[:, 0].sum(), [batch["pixels"]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_there_is_no_graph_unless_an_input_asks_for_one() -> None:
    inputs = torch.randn(2, 2, 8, 8)
    ensemble = ensemble_of()
    for form in (ensemble, ensemble.deployable()):
        assert not form(inputs).requires_grad
        with torch.no_grad():
            assert not form(inputs.clone().requires_grad_()).requires_grad


def test_a_subset_predicts_as_an_ensemble_of_it() -> None:
    inputs = torch.randn(3, 2, 8, 8)
    ensemble = ensemble_of()
    for positions in ([0, 2], [1], [2, 1, 0]):
        found = ensemble.deployable(members=positions)
        assert len(found) == len(positions)
        expected = Ensemble(small_net(50), [small_net(k) for k in positions])(inputs)
        torch.testing.assert_close(found(inputs), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("members", [[3], [-1], [0, 0], [], [True], ["0"]])
def test_unknown_members_are_refused(members: list[Any]) -> None:
    with pytest.raises(UserError) as caught:
        ensemble_of().deployable(members=members)
    assert str(caught.value) == (
        f"members must be different numbers from 0 to 2, one or more, got {members}"
    )


# half 11 bits, bf16 8 bits: the stated tolerances are about 2 units of the last place of 1
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_in_half_precision_predictions_are_float32_and_close(
    dtype: torch.dtype, apart: float
) -> None:
    ensemble = ensemble_of()
    images = images_of(16)
    deployed = ensemble.deployable(preprocess=Normalise(MEAN, STD))
    expected = deployed(images)
    halved = copy.deepcopy(deployed).to(dtype)
    assert {p.dtype for p in halved.members.parameters()} == {dtype}
    found = halved(images)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) <= apart
    torch.testing.assert_close(found.sum(1), torch.ones(16), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(exported(halved, images)(images[:1]), found[:1], rtol=0, atol=apart)


class SinceStart(nn.Module):
    """Takes times in seconds, which float32 would round to two minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, times: Tensor) -> Tensor:
        return cast("Tensor", self.linear(((times - 1.7e9) / 100).to(self.linear.weight.dtype)))


def test_inputs_are_not_cast_before_the_networks_are() -> None:
    torch.manual_seed(0)
    networks = [SinceStart(), SinceStart()]
    times = 1.7e9 + 100 * torch.randn(16, 4, dtype=torch.float64)
    ensemble = Ensemble(networks[0], networks)
    expected = ensemble(times).float()
    deployed = ensemble.deployable()
    torch.testing.assert_close(deployed(times), expected, rtol=0, atol=ROUNDING)
    images = torch.randn(7, 2, 8, 8)
    for half in (ensemble_of().half().deployable(), ensemble_of().deployable().half()):
        assert half(images).dtype == torch.float32


def test_grey_levels_are_normalised_as_by_the_commands_and_never_in_half_precision() -> None:
    images = images_of(5)
    module = Normalise(MEAN, STD)
    expected = Normaliser(MEAN, STD, torch.device("cpu"))(images)
    assert torch.equal(module(images), expected)
    assert torch.equal(module.half()(images), expected)
    assert module.to("meta").scale.device.type == "meta"


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([], [], "mean and std must have a number for each channel, got 0 and 0"),
        ([1.0], [1.0, 2.0], "mean and std must have a number for each channel, got 1 and 2"),
        ([1.0], [0.0], "std finite and above 0, got [1.0] and [0.0]"),
        ([float("nan")], [1.0], "mean must be finite, and std finite and above 0, got [nan]"),
    ],
)
def test_impossible_statistics_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Normalise(mean, std)
    assert message in str(caught.value)


def test_the_form_stays_in_evaluation_mode_and_keeps_its_own_weights() -> None:
    ensemble = ensemble_of()
    inputs = torch.randn(4, 2, 8, 8)
    deployed = ensemble.deployable()
    before = deployed(inputs)
    nn.Sequential(deployed).train()
    for state in ensemble.members:
        for tensor in state.values():
            tensor.zero_()
    assert torch.equal(deployed(inputs), before)
    assert not any(module.training for module in deployed.modules())
    assert "3 members, output='softmax'" in repr(deployed)


def test_a_state_dict_of_the_ensemble_loads_into_it() -> None:
    ensemble, other = ensemble_of(), Ensemble(small_net(9), [small_net(9)] * COUNT)
    deployed = other.deployable()
    deployed.load_state_dict(ensemble.state_dict())
    inputs = torch.randn(4, 2, 8, 8)
    torch.testing.assert_close(deployed(inputs), ensemble(inputs), rtol=0, atol=ROUNDING)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_that_keep_what_they_compute_and_scripted_ones_have_gradients() -> None:
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(128, 3)))

    kinds: list[Callable[[int], nn.Module]] = [
        normed,
        lambda seed: torch.jit.script(small_net(seed)),  # type: ignore[return-value]
    ]
    for make in kinds:
        members = [make(seed) for seed in range(2)]
        inputs = torch.randn(2, 2, 8, 8, requires_grad=True)
        mean = torch.stack([m.eval()(inputs).softmax(1) for m in members]).mean(0)
        [expected] = torch.autograd.grad(mean[:, 1].sum(), inputs)
        ensemble = Ensemble(make(5), members)
        for form in (ensemble, ensemble.deployable()):
            [found] = torch.autograd.grad(form(inputs)[:, 1].sum(), inputs)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_form_may_be_made_by_hand() -> None:
    ensemble = ensemble_of()
    deployed = Deployed([small_net(0)], ensemble.outputs)
    inputs = torch.randn(2, 2, 8, 8)
    expected = small_net(0)(inputs).softmax(1)
    torch.testing.assert_close(deployed(inputs), expected, rtol=0, atol=ROUNDING)


def test_a_regression_says_its_variance_in_double_precision() -> None:
    ensemble = ensemble_of(output=lambda z: 1e7 + z, width=2)
    inputs = torch.randn(5, 2, 8, 8)
    each = ensemble.predict_members([inputs])
    mean, variance = ensemble.deployable().with_variance([0.5, 2.0])(inputs)
    assert mean.dtype == variance.dtype == torch.float64
    torch.testing.assert_close(mean, each.mean(0), rtol=0, atol=1e-5)
    spread = each.var(0, correction=0)
    assert float(spread.max()) > 1e-3
    wanted = spread + torch.tensor([0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(variance, wanted, rtol=1e-5, atol=0)
    first = ensemble.deployable([0]).with_variance()
    torch.testing.assert_close(first(inputs)[1], torch.zeros_like(mean), rtol=0, atol=0)
    program = exported(first.half(), inputs)
    assert [output.dtype for output in program(inputs[:1])] == [torch.float64] * 2


@pytest.mark.parametrize(
    ("output", "noise", "message"),
    [
        ("softmax", [1.0], "with_variance is for a regression, got output='softmax'"),
        ("identity", [-1.0], r"noise must be finite variances of at least 0, got \[-1.0\]"),
        ("identity", [], r"noise must be finite variances of at least 0, got \[\]"),
        ("identity", [float("nan")], "noise must be finite variances"),
    ],
)
def test_variances_that_cannot_be_are_refused(output: Any, noise: Any, message: str) -> None:
    deployed = ensemble_of(output=output).deployable()
    with pytest.raises(UserError, match=message):
        deployed.with_variance(noise)
