"""The loss that training minimises: cross-entropy, smoothed, or with classes that count alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fge.config import CLASSIFICATION
from fge.networks import LossFn
from fge.tasks import MANY_CLASSES, BinaryCrossEntropy, Task
from fge.train.recipes import Recipe


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """Cross-entropy in which each class has a weight, averaged over the examples.

    With target probabilities t (one-hot for a class), weights w and smoothing s the loss of an
    example is::

        sum_c t_c w_c (-(1 - s) log p_c - s/C sum_k log p_k)

    It is divided by the number of examples, not by the sum of their weights: so the loss of a batch
    is the mean of those of its parts.

    Args:
        weights: (C,), on the device of the outputs.
        smoothing: in [0, 1).
    """

    weights: Tensor
    smoothing: float = 0.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (N, C) and targets (N,), or probabilities (N, C)."""
        log_probs = F.log_softmax(outputs, dim=1)
        hard = not targets.is_floating_point()
        mixed = F.one_hot(targets.long(), outputs.shape[1]).to(log_probs) if hard else targets
        weighted = mixed * self.weights
        losses = -(1 - self.smoothing) * (weighted * log_probs).sum(1)
        if self.smoothing:
            losses = losses - self.smoothing * weighted.sum(1) * log_probs.mean(1)
        return losses.mean()


@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """PyTorch's cross-entropy with label smoothing (arXiv 1512.00567), of probabilities too."""

    smoothing: float = 0.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (N, C) and targets (N,), or probabilities (N, C)."""
        if targets.is_floating_point():
            targets = targets.to(torch.promote_types(targets.dtype, outputs.dtype))
        return F.cross_entropy(outputs, targets, label_smoothing=self.smoothing)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Return the weight N / (K n_c) of each class c (C,) of n_c of N examples in K classes.

    Every class then counts as much as any other, and the mean weight of an example is 1. Classes
    without examples have the weight 0.

    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=classes)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp(min=1)), 0.0)


def training_loss(
    recipe: Recipe, labels: Tensor, classes: int, *, soft: bool = False, task: Task = MANY_CLASSES
) -> LossFn:
    """Return the loss of a recipe for training images of these labels.

    Args:
        recipe: of the training.
        labels: (N,), of the training images.
        classes: of the data.
        soft: whether targets are probabilities, as those of mixed images always are.
        task: what is predicted; the losses of other tasks take soft targets anyway.
    """
    if task.name == "binary":
        balanced = recipe.class_weights == "balanced"
        weights = balanced_weights(labels, classes) if balanced else None
        return BinaryCrossEntropy(weights, recipe.label_smoothing)
    if task.name != CLASSIFICATION:
        return task.loss(labels.device)
    if recipe.class_weights == "balanced":
        return WeightedCrossEntropy(balanced_weights(labels, classes), recipe.label_smoothing)
    if recipe.label_smoothing or recipe.mixup or soft:
        return SmoothedCrossEntropy(recipe.label_smoothing)
    return F.cross_entropy
