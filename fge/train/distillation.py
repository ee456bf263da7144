"""Training one network on the predictions of several: batches with a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fge.data import TrainBatches


class TaughtBatches:
    """Yields a few fixed views of the training images, each with a teacher's probabilities.

    Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531) at temperature 1, with hard labels
    left out. Views are epochs 0, 1, ... of the training batches: orders, crops and flips as in
    training, the same again every ``views`` epochs. So the teacher predicts each view once, in
    :meth:`learn_from`, before the first iteration.

    Args:
        batches: of the training split.
        views: how many.
        dtype: in which the predictions are kept. Numbers may be far from 0, with differences that
            float32 does not have.
    """

    def __init__(
        self, batches: TrainBatches, views: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.batches = batches
        self.views = views
        self.dtype = dtype
        self.view = 0
        self.targets: list[Tensor] = []

    def learn_from(self, teach: Callable[[Iterable[Any]], Tensor]) -> None:
        """Let the teacher predict the views.

        Args:
            teach: returns the teacher's probabilities (N, C) for batches, in their order.
        """
        for view in range(self.views):
            self.batches.set_epoch(view)
            taught = teach(self.batches).to(self.dtype)
            self.targets.append(taught.to(self.batches.labels.device))

    @property
    def images(self) -> int:
        """The images that each member of the teacher predicts."""
        return self.views * len(self.batches.labels)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, of the next iteration."""
        self.view = epoch % self.views
        self.batches.set_epoch(self.view)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the current view: inputs (n, C, H, W), probabilities (n, classes)."""
        first = 0
        for inputs, _ in self.batches:
            yield inputs, self.targets[self.view][first : first + len(inputs)]
            first += len(inputs)


def mean_prediction(
    members: Sequence[Any], predict: Callable[[Any, Iterable[Any]], Tensor]
) -> Callable[[Iterable[Any]], Tensor]:
    """Return what predicts the mean of members' probabilities for batches.

    Args:
        members: weights of each.
        predict: returns the probabilities of one member for batches.
    """

    def teach(batches: Iterable[Any]) -> Tensor:
        total = predict(members[0], batches).clone()
        for member in members[1:]:
            total += predict(member, batches)
        return total / len(members)

    return teach
