"""Losses with class weights and smoothing, against PyTorch and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fge.config import TrainConfig
from fge.train import WeightedCrossEntropy, balanced_weights, endpoint_recipe, training_loss


def outputs_and_targets(count: int = 12) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(count, 3, generator=rng, dtype=torch.float64)
    return outputs, torch.randint(0, 3, (count,), generator=rng)


WEIGHTS = torch.tensor([0.5, 3.0, 1.0], dtype=torch.float64)


def test_balanced_weights_make_every_class_count_the_same() -> None:
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([990, 10]))
    weights = balanced_weights(labels, 3)
    assert weights.tolist() == pytest.approx([1000 / (2 * 990), 1000 / (2 * 10), 0.0])
    of_examples = weights[labels].double()
    assert float(of_examples.mean()) == pytest.approx(1, rel=1e-6)
    assert float(of_examples[labels == 0].sum()) == pytest.approx(500, rel=1e-6)
    assert float(of_examples[labels == 1].sum()) == pytest.approx(500, rel=1e-6)


def test_the_weighted_loss_is_pytorch_s_sum_over_the_number_of_examples() -> None:
    outputs, targets = outputs_and_targets()
    expected = F.cross_entropy(outputs, targets, weight=WEIGHTS, reduction="sum") / len(targets)
    assert float(WeightedCrossEntropy(WEIGHTS)(outputs, targets)) == pytest.approx(float(expected))
    one_hot = F.one_hot(targets, 3).double()
    for same in (one_hot, targets.byte()):  # which PyTorch's takes too
        assert float(WeightedCrossEntropy(WEIGHTS)(outputs, same)) == pytest.approx(float(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_with_equal_weights_is_pytorch_s(smoothing: float) -> None:
    outputs, targets = outputs_and_targets()
    expected = F.cross_entropy(outputs, targets, label_smoothing=smoothing)
    ours = WeightedCrossEntropy(torch.ones(3, dtype=torch.float64), smoothing)
    assert float(ours(outputs, targets)) == pytest.approx(float(expected), rel=1e-12)
    mixed = torch.softmax(outputs.flip(1), dim=1)
    expected = F.cross_entropy(outputs, mixed, label_smoothing=smoothing)
    assert float(ours(outputs, mixed)) == pytest.approx(float(expected), rel=1e-12)


def test_each_example_has_the_weight_of_its_class_smoothed_or_mixed() -> None:
    outputs, targets = outputs_and_targets()
    loss = WeightedCrossEntropy(WEIGHTS, 0.2)
    each = F.cross_entropy(outputs, targets, label_smoothing=0.2, reduction="none")
    expected = (each * WEIGHTS[targets]).mean()
    assert float(loss(outputs, targets)) == pytest.approx(float(expected), rel=1e-12)
    other, share = targets.roll(1), 0.3
    mixed = share * F.one_hot(targets, 3).double() + (1 - share) * F.one_hot(other, 3).double()
    parts = share * loss(outputs, targets) + (1 - share) * loss(outputs, other)
    assert float(loss(outputs, mixed)) == pytest.approx(float(parts), rel=1e-12)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    outputs, targets = outputs_and_targets()
    loss = WeightedCrossEntropy(WEIGHTS, 0.1)
    parts = [loss(outputs[a:b], targets[a:b]) * (b - a) / 12 for a, b in ((0, 5), (5, 7), (7, 12))]
    assert float(sum(parts)) == pytest.approx(float(loss(outputs, targets)), rel=1e-12)


def test_by_default_the_loss_is_pytorch_s_own() -> None:
    labels = torch.tensor([0, 0, 1])
    assert training_loss(endpoint_recipe(TrainConfig()), labels, 2) is F.cross_entropy
    balanced = training_loss(endpoint_recipe(TrainConfig(class_weights="balanced")), labels, 2)
    assert isinstance(balanced, WeightedCrossEntropy)
    assert balanced.weights.tolist() == pytest.approx([0.75, 1.5])
