"""Ensembles of binary, regression, multi-label, segmentation and token models: closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

import fge
from fge import Ensemble
from fge.errors import UserError
from fge.networks import predict_proba

Array = NDArray[np.float64]
INPUTS = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TOLERANCE = 1e-12


class Scaled(nn.Module):
    """Outputs are the inputs times a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight


WEIGHTS = (0.5, -1.0, 3.0)
MEMBERS = [Scaled(weight) for weight in WEIGHTS]


def ensemble(**options: Any) -> Ensemble:
    return Ensemble(Scaled(0.0), MEMBERS, **options)


def member_outputs(inputs: Tensor) -> Array:
    """The outputs (S, N, ...) of the members, by NumPy."""
    return np.stack([weight * inputs.numpy() for weight in WEIGHTS])


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def softmax(z: Array, axis: int) -> Array:
    powers = np.exp(z - z.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def close(actual: Tensor, expected: Array) -> None:
    assert actual.dtype == torch.float64
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def halves(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(inputs[:4], torch.zeros(4)), (inputs[4:], torch.zeros(3))]


BINARY = [INPUTS[:, 0, 0], INPUTS[:, 0, :1], INPUTS[:, 0], INPUTS[:, :, :2]]
"""One logit (N,) and (N, 1), labels (N, K), labels of each pixel (N, K, M)."""

MEASURES = ["mean", "entropy", "expected_entropy", "mutual_information", "disagreement"]
"""Of probabilities."""


@pytest.mark.parametrize("inputs", BINARY, ids=lambda inputs: str(tuple(inputs.shape)))
def test_sigmoids_of_logits_are_averaged(inputs: Tensor) -> None:
    probs = sigmoid(member_outputs(inputs))
    mean = probs.mean(0)
    binary = ensemble(output="sigmoid")
    close(binary(inputs), mean)
    for predict in (binary.predict, binary.predict_proba):
        close(predict(halves(inputs)), mean)
    close(binary.predict_members(halves(inputs)), probs)
    figures = binary.uncertainty(halves(inputs))

    def entropy(p: Array) -> Array:
        return np.asarray(-p * np.log(p) - (1 - p) * np.log(1 - p))

    assert list(figures) == MEASURES
    close(figures["mean"], mean)
    close(figures["entropy"], entropy(mean))
    close(figures["expected_entropy"], entropy(probs).mean(0))
    close(figures["mutual_information"], entropy(mean) - entropy(probs).mean(0))
    close(figures["disagreement"], ((probs > 0.5) != (mean > 0.5)).mean(0))


@pytest.mark.parametrize("inputs", BINARY, ids=lambda inputs: str(tuple(inputs.shape)))
def test_regression_has_a_mean_and_a_variance(inputs: Tensor) -> None:
    outputs = member_outputs(inputs)
    regression = ensemble(output="identity")
    close(regression(inputs), outputs.mean(0))
    close(regression.predict(halves(inputs)), outputs.mean(0))
    close(regression.predict_members(halves(inputs)), outputs)
    figures = regression.uncertainty(halves(inputs))
    assert list(figures) == ["mean", "variance"]
    close(figures["mean"], outputs.mean(0))
    close(figures["variance"], outputs.var(0))  # divided by S
    with pytest.raises(UserError, match=r"predict_proba needs output='softmax' or 'sigmoid'.*use"):
        regression.predict_proba(halves(inputs))


def test_a_variance_far_from_zero_keeps_its_digits() -> None:
    members = [Scaled(1e6 + offset) for offset in (0.0, 1.0, 2.0)]
    inputs = torch.ones(2, 1, dtype=torch.float64)
    figures = Ensemble(members[0], members, output="identity").uncertainty([inputs])
    np.testing.assert_allclose(figures["variance"], 2 / 3, rtol=1e-9)


@pytest.mark.parametrize(
    ("inputs", "dim"),
    [
        (INPUTS[:, 0], 1),
        (INPUTS, 1),
        (INPUTS, -1),
        (INPUTS, 2),
        (torch.stack([INPUTS] * 2, dim=-1), 1),  # (N, C, H, W)
    ],
    ids=["classes", "sequence", "tokens", "tokens-by-2", "segmentation"],
)
def test_classes_may_be_in_any_dimension(inputs: Tensor, dim: int) -> None:
    axis = dim + 1 if dim > 0 else dim  # members come first
    probs = softmax(member_outputs(inputs), axis)
    mean = probs.mean(0)
    classifier = ensemble(output_dim=dim)
    close(classifier(inputs), mean)
    close(classifier.predict(halves(inputs)), mean)
    close(classifier.predict_proba(halves(inputs)), mean)
    close(classifier.predict_members(halves(inputs)), probs)
    figures = classifier.uncertainty(halves(inputs), members=True)
    assert list(figures) == [*MEASURES, "members"]
    close(figures["members"], probs)
    total = -(mean * np.log(mean)).sum(dim)
    close(figures["entropy"], total)
    expected = -(probs * np.log(probs)).sum(axis).mean(0)
    close(figures["expected_entropy"], expected)
    close(figures["mutual_information"], total - expected)
    label = np.expand_dims(mean.argmax(dim), dim)[None]
    close(figures["disagreement"], (probs.argmax(axis) != label.squeeze(axis)).mean(0))


def test_certain_members_that_disagree_have_all_entropy_as_mutual_information() -> None:
    members = [Scaled(1e4), Scaled(-1e4)]  # their probabilities are 0 and 1
    inputs = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    for output, expected in (("softmax", [math.log(2)]), ("sigmoid", [[math.log(2)] * 2])):
        figures = Ensemble(members[0], members, output=output).uncertainty([inputs])  # type: ignore[arg-type]
        for name in ("entropy", "mutual_information"):
            np.testing.assert_allclose(figures[name], expected, rtol=1e-15)


def test_members_that_agree_have_no_mutual_information() -> None:
    same = Ensemble(Scaled(0.0), [Scaled(1.0)] * 5)
    assert (same.uncertainty([INPUTS])["mutual_information"] == 0).all()


def test_a_function_of_the_outputs_is_averaged() -> None:
    bounded = ensemble(output=torch.tanh)
    outputs = np.tanh(member_outputs(INPUTS))
    close(bounded.predict([INPUTS]), outputs.mean(0))
    close(bounded.uncertainty([INPUTS])["variance"], outputs.var(0))
    log_mean = ensemble(output=torch.tanh, combine="logits")
    close(log_mean.predict([INPUTS]), np.tanh(member_outputs(INPUTS).mean(0)))


def test_logits_may_be_averaged_before_the_sigmoid() -> None:
    binary = ensemble(output="sigmoid", combine="logits")
    close(binary.predict([INPUTS]), sigmoid(member_outputs(INPUTS).mean(0)))
    close(binary.predict_members([INPUTS]), sigmoid(member_outputs(INPUTS)))
    with pytest.raises(UserError, match="averages logits; use combine='probs'"):
        binary.uncertainty([INPUTS])


@pytest.mark.parametrize("inputs", BINARY[:2], ids=["(N,)", "(N, 1)"])
def test_the_softmax_of_one_output_is_refused_and_the_choices_are_named(inputs: Tensor) -> None:
    message = (
        r"^the model has one output, of shape \(7(, 1|,)\), and the softmax of one number is always"
        r" 1; give output='sigmoid' for the logit of two classes or of independent labels, "
        r"'identity' for regression, or a function of the outputs$"
    )
    one = ensemble()
    for predict in (one.predict, one.predict_proba, one.predict_members, one.uncertainty):
        with pytest.raises(UserError, match=message):
            predict([inputs])
    with pytest.raises(UserError, match=message):
        one(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "tanh"}, "output must be 'softmax', 'sigmoid', 'identity' or a fun.*'tanh'"),
        ({"output_dim": 0}, "output_dim must be the dimension of the classes, got 0"),
        ({"output_dim": 3}, r"output_dim is 3, but the outputs have shape \(7, 4, 3\)"),
        ({"output_dim": -3}, r"output_dim is -3, but the outputs have shape \(7, 4, 3\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ensemble(**options).predict([INPUTS])


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: (m(x),), "a tensor of outputs .*got a tuple; give forward_fn="),
        (lambda m, x: m(x).mean(), "must return outputs .*got a single number"),
    ],
)
def test_outputs_that_are_no_tensor_of_examples_are_refused(
    forward: Callable[[nn.Module, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ensemble(forward_fn=forward, output="identity").predict([INPUTS])


def test_batches_of_several_lengths_are_refused_but_predicted_one_by_one() -> None:
    tokens = ensemble(output_dim=-1)
    with pytest.raises(UserError, match=r"shape \(N, 4, 3\), of another \(N, 2, 3\); pad the inp"):
        tokens.predict([INPUTS, INPUTS[:, :2]])
    close(tokens(INPUTS[:, :2]), softmax(member_outputs(INPUTS[:, :2]), -1).mean(0))


def test_dict_batches_that_change_their_order_are_refused() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            yield {"x": INPUTS.roll(self.passes, dims=0)}

    of_dicts = ensemble(forward_fn=lambda model, batch: model(batch["x"]))
    with pytest.raises(UserError, match="different order on each pass"):
        of_dicts.predict(Shuffled())


def test_a_cycle_passes_on_what_its_outputs_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    cycle = fge.FGE(model, optimizer, cycle_steps=2, max_lr=0.5, min_lr=0.1, out=tmp_path)
    x, y = INPUTS[:, 0].float(), torch.arange(7.0)[:, None] % 2
    for _ in range(3):
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        cycle.step()
    states = list(cycle.store)
    with torch.no_grad():
        logits = torch.stack([F.linear(x, s["weight"], s["bias"]) for s in states]).double()
    binary = cycle.ensemble(output="sigmoid")
    torch.testing.assert_close(
        binary.predict_proba([x]), logits.sigmoid().mean(0), rtol=0, atol=1e-15
    )
    joined = cycle.ensemble(output="sigmoid", combine="logits")
    torch.testing.assert_close(joined.predict([x]), logits.mean(0).sigmoid(), rtol=0, atol=1e-15)
    with pytest.raises(UserError, match="output='sigmoid'"):
        cycle.ensemble().predict([x])


def test_a_fold_of_one_output_is_refused() -> None:
    batches = [(INPUTS[:, 0, :1], torch.arange(7) % 2)]
    with pytest.raises(UserError, match="two or more classes, and the model has one output; give"):
        fge.fold(Scaled(1.0), MEMBERS, batches, refresh=batches)
    two = fge.fold(
        Scaled(1.0),
        MEMBERS,
        batches,
        refresh=batches,
        forward_fn=lambda m, batch: torch.cat([torch.zeros_like(batch[0]), m(batch[0])], 1),
    )
    assert len(two.members) == 3


# -------------------------------------------------------------------------------------- one model


@pytest.mark.parametrize("inputs", [INPUTS[:, 0, :1], INPUTS[:, 0, 0]], ids=["(N, 1)", "(N,)"])
def test_one_model_with_one_output_is_told_the_choices_as_an_ensemble_is(inputs: Tensor) -> None:
    model, messages = Scaled(2.0), []
    for predict in (
        lambda: predict_proba(model, [inputs]),
        lambda: Ensemble(model, [model]).predict_proba([inputs]),
    ):
        with pytest.raises(UserError) as caught:
            predict()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"the model has one output, of shape {tuple(inputs.shape)}, and")
    close(predict_proba(model, [inputs], output="sigmoid"), sigmoid(2 * inputs.numpy()))


@pytest.mark.parametrize("output", ["identity", torch.exp])
def test_what_one_model_predicts_must_be_probabilities(output: Any) -> None:
    with pytest.raises(UserError, match=r"^predict_proba needs output='softmax' or 'sigmoid', got"):
        predict_proba(Scaled(1.0), [INPUTS], output=output)


@pytest.mark.parametrize("dim", [1, -1])
def test_one_model_may_have_its_classes_in_any_dimension(dim: int) -> None:
    probs = predict_proba(Scaled(2.0), [INPUTS[:3], INPUTS[3:]], output_dim=dim)
    close(probs, softmax(2 * INPUTS.numpy(), axis=dim))
