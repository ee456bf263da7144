"""Uncertainty of each prediction: closed forms, identities, and what ``Ensemble`` gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from fge import Ensemble
from fge.errors import UserError
from fge.metrics import (
    entropy,
    expected_entropy,
    label_disagreement,
    member_variance,
    mutual_information,
    uncertainty,
)

LN2 = math.log(2)
MEMBERS = np.array(
    [
        [[1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.6, 0.4]],
        [[0.0, 1.0], [0.5, 0.5], [0.9, 0.1], [0.3, 0.7]],
        [[1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.9, 0.1]],
        [[0.0, 1.0], [0.5, 0.5], [0.9, 0.1], [0.4, 0.6]],
    ]
)
"""Certain and opposed; all indifferent; all the same; two of four against the mean's label."""


def test_closed_forms() -> None:
    found = uncertainty(MEMBERS)
    one = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    np.testing.assert_allclose(found["entropy"][:3], [LN2, LN2, one], rtol=1e-12)
    np.testing.assert_allclose(found["expected_entropy"][:3], [0, LN2, one], rtol=1e-12)
    np.testing.assert_allclose(found["mutual_information"][:3], [LN2, 0, 0], atol=1e-12)
    # The mean of the first two rows is (1/2, 1/2), whose label is the first class.
    assert found["disagreement"].tolist() == [0.5, 0.0, 0.0, 0.5]
    np.testing.assert_allclose(found["mean"][3], [0.55, 0.45])


def test_the_single_measures_are_those_of_all() -> None:
    generator = np.random.default_rng(0)
    members = softmax(generator.normal(size=(5, 30, 4)), axis=2)
    found = uncertainty(list(members))
    total = found["expected_entropy"] + found["mutual_information"]
    np.testing.assert_allclose(found["entropy"], total, rtol=1e-12)
    np.testing.assert_allclose(found["entropy"], entropy(members.mean(axis=0)), rtol=1e-12)
    assert expected_entropy(members).tolist() == found["expected_entropy"].tolist()
    assert mutual_information(members).tolist() == found["mutual_information"].tolist()
    assert label_disagreement(members).tolist() == found["disagreement"].tolist()
    assert (found["mutual_information"] <= math.log(5)).all()
    by_hand = [
        sum(int(np.argmax(m[n]) != np.argmax(members[:, n].mean(axis=0))) for m in members) / 5
        for n in range(30)
    ]
    assert found["disagreement"].tolist() == by_hand
    assert max(by_hand) > 0


def test_the_ensemble_gives_the_same_in_one_pass() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(torch.nn.Linear(6, 4), [torch.nn.Linear(6, 4) for _ in range(5)])
    batches = list(torch.randn(50, 6).split(16))
    figures = ensemble.uncertainty(batches, members=True)
    members = figures.pop("members")
    assert torch.equal(members, ensemble.predict_members(batches))
    found = uncertainty(members.numpy())
    for name, values in figures.items():
        np.testing.assert_allclose(values.numpy(), found[name], rtol=1e-12, atol=1e-12)
    assert set(figures) == set(found)
    assert figures["disagreement"].max() > 0


@pytest.mark.parametrize("shape", [(3,), (1,), (3, 2, 2)], ids=["labels", "one", "pixels"])
def test_labels_have_the_figures_of_an_ensemble_with_a_sigmoid(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    wide = math.prod(shape)

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, wide), torch.nn.Unflatten(1, shape))

    ensemble = Ensemble(network(), [network() for _ in range(5)], output="sigmoid")
    figures = ensemble.uncertainty(list(torch.randn(40, 6).split(16)), members=True)
    members = figures.pop("members").numpy()
    found = uncertainty(members, output="sigmoid")
    assert found.keys() == figures.keys()
    for name, values in figures.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-12, atol=1e-12)
    if len(shape) == 1:  # each label is two classes
        for k in range(wide):
            pairs = np.stack([1 - members[..., k], members[..., k]], axis=-1)
            for name, values in uncertainty(pairs).items():
                own = found[name][:, k]
                np.testing.assert_allclose(values[:, 1] if name == "mean" else values, own)
    assert figures["disagreement"].max() > 0
    assert (mutual_information(members, output="sigmoid") == found["mutual_information"]).all()
    assert (expected_entropy(members, output="sigmoid") == found["expected_entropy"]).all()
    assert (label_disagreement(members, output="sigmoid") == found["disagreement"]).all()


def test_labels_are_not_taken_for_classes() -> None:
    members = [[[0.9, 0.8], [0.5, 0.5]]]
    assert uncertainty(members, output="sigmoid")["entropy"].shape == (2, 2)
    error = r"member 0 must be .* exclusive classes, .* row 0 sums to 1.7; .* output=\"sigmoid\""
    with pytest.raises(UserError, match=error):
        uncertainty(members)
    with pytest.raises(UserError, match=r"member 0 must be probabilities in .* apply a sigmoid"):
        uncertainty([[[1.5, 0.2]]], output="sigmoid")
    with pytest.raises(UserError, match="unknown output 'sigmoidal'; did you mean 'sigmoid'"):
        uncertainty(members, output="sigmoidal")  # type: ignore[arg-type]


def test_one_member_has_no_mutual_information() -> None:
    found = uncertainty(MEMBERS[:1])
    assert found["mutual_information"].tolist() == found["disagreement"].tolist() == [0] * 4
    np.testing.assert_allclose(found["entropy"], entropy(MEMBERS[0]))


def test_variance_of_outputs() -> None:
    values = np.array([[[1.0, 5.0], [0.0, 0.0]], [[3.0, 5.0], [0.0, 9.0]]])
    assert member_variance(values).tolist() == [[1.0, 0.0], [0.0, 20.25]]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least 1 member, got 0"),
        ([[[0.5, 0.5]], [[0.2, 0.3, 0.5]]], r"member 1 has shape \(1, 3\), but member 0 has \(1, "),
        ([[[3.0, -1.0]]], "member 0 must be probabilities in"),
    ],
)
def test_what_is_no_prediction_of_members_is_refused(members: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        uncertainty(members)


def test_what_has_no_variance_is_refused() -> None:
    with pytest.raises(UserError, match=r"must be \(S, N, \.\.\.\) with S, N >= 1, got shape \(3,"):
        member_variance([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="must be finite, got nan"):
        member_variance([[1.0, math.nan]])
